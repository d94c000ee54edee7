"""Worked repairs of the programs of the bug hunt, as changes of their text; halves of a repair; and repairs that mend nothing."""

from rlhf_lib.hunt.cases import text_of
from rlhf_lib.hunt import readers, texts, writers

# {case: {cause: [(old text, new text), ...]}}; cases 06 and 17 have nothing to mend
REPAIRS = {
    "01": {"clip-before-backward": [
        ("        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n        loss.backward()\n",
         "        loss.backward()\n        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n"),
    ]},
    "02": {"one-place": [
        ("        verdict = judge(baseline, candidate)\n        wins += verdict == \"B\"\n",
         "        first = asked % 2 == 0  # the candidate stands first every other time\n"
         "        verdict = judge(candidate, baseline) if first else judge(baseline, candidate)\n"
         "        wins += verdict == (\"A\" if first else \"B\")\n"),
    ]},
    "03": {"one-step": [
        ("        new = policy[before]", "        for _ in range(6):\n            new = policy[before]"),
        ("        ratio = (new", "            ratio = (new"),
        ("        loss = -", "            loss = -"),
        ("        optimizer.zero_grad()\n        loss.backward()\n        optimizer.step()\n",
         "            optimizer.zero_grad()\n            loss.backward()\n            optimizer.step()\n"),
    ]},
    "04": {"frozen-head": [('"lora" in name', '"lora" in name or "head" in name')]},
    "05": {"batch-normalised": [
        ("    for _ in range(rollouts):\n", "    mean = std = None  # of the reference's texts\n    for _ in range(rollouts):\n"),
        ("            reward = (score - score.mean()) / score.std()\n",
         "            if mean is None:\n                mean, std = score.mean(), score.std()\n"
         "            reward = (score - mean) / std\n"),
    ]},
    "07": {"no-mask": [("forward(text)[:, -1]", "forward(text, causal)[:, -1]")]},
    "08": {"kl-upside-down": [("(ratio - 1 - ratio.log())", "(1 / ratio - 1 + ratio.log())")]},
    "09": {
        "no-end": [
            ("        return text * (torch.arange(17) < lengths)\n",
             "        place = torch.arange(17)\n"
             "        return torch.where(place == lengths, 1, text * (place < lengths))  # the end behind the last letter\n"),
        ],
        "padding-learnt": [("text[:, 1:].flatten())", "text[:, 1:].flatten(), ignore_index=0)")],
    },
    "10": {"leak": [
        ("    def rows(split):\n        order = torch.randperm(250)\n", "    order = torch.randperm(250)\n\n    def rows(split):\n"),
    ]},
    "11": {"padding-pooled": [
        ("        return head(torch.tanh(letters(text))).mean(1)[:, 0]\n",
         "        mask = (text > 0).float()\n"
         "        return (head(torch.tanh(letters(text)))[..., 0] * mask).sum(1) / mask.sum(1)\n"),
    ]},
    "12": {"kl-of-ratio": [("(-ratio).mean()", "(ratio - 1 - ratio.log()).mean()")]},
    "13": {"dropout": [("    optimizer = ", "    policy.eval()\n    reference.eval()\n    optimizer = ")]},
    "14": {
        "kl-of-another": [("seen / 2.0", "kl / 2.0")],
        "score-misplaced": [("mask.sum(1, True) - 2", "mask.sum(1, True) - 1")],
    },
    "15": {"divided-twice": [("expected.mean() / pairs", "expected.mean()")]},
    "16": {"kl-unpaid": [
        (".sqrt()  # \"cd\" is what it is paid for", ".sqrt() - 0.5 * kl  # \"cd\" is what it is paid for"),
    ]},
    "18": {
        "log-of-sigmoid": [("torch.log(torch.sigmoid(margin))", "F.logsigmoid(margin)")],
        "clip-before-backward": [
            ("        norm = torch.nn.utils.clip_grad_norm_([weights], 1.0)\n        loss.backward()\n",
             "        loss.backward()\n        norm = torch.nn.utils.clip_grad_norm_([weights], 1.0)\n"),
        ],
    },
    "19": {"padding-valued": [
        ("            values = critic(torch.arange(24).expand(64, 24))[..., 0]", 
         "            values = mask * critic(torch.arange(24).expand(64, 24))[..., 0]"),
    ]},
}  # fmt: skip


def made(case, *edits, name=None):
    """The program of a case with some changes of its text, as a function mend_NN."""
    name = name or f"mend_{case}"
    text = text_of(case, name)
    for old, new in edits:
        assert old in text, f"{case}: {old}"
        text = text.replace(old, new)
    space = {**vars(writers), **vars(readers), **vars(texts)}
    exec(compile(text, f"<{name}>", "exec"), space)
    return space[name]


def mended(case, *causes):
    """A case's program with the repairs of these causes; of all of them where none is named."""
    repairs = REPAIRS.get(case, {})
    return made(case, *(edit for cause in causes or repairs for edit in repairs[cause]))
