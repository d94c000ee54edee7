"""Worked repairs of the programs of the bug hunt, as changes of their text; halves of a repair; and repairs that mend nothing."""

from rlhf_lib.hunt import readers, texts, writers
from rlhf_lib.hunt.cases import text_of

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
        ("        new = policy[before]", "        for _ in range(3):\n            new = policy[before]"),
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
        ("    def rows(split):\n        order = torch.randperm(250)\n",
         "    order = torch.randperm(250)\n\n    def rows(split):\n"),
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

# {case: {what was done: ([(old text, new text), ...], words of what the check says)}}: none of them mends the program
WRONG = {
    "01": {
        "smaller steps": ([("lr=1.0", "lr=0.05")], "gradient_norm is 0.0"),
        "clips behind the step": (
            [*REPAIRS["01"]["clip-before-backward"],
             ("        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n        optimizer.step()\n",
              "        optimizer.step()\n        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n")],
            "moves the weights by",
        ),
    },
    "02": {
        "another judge": ([("+ 1.5 + noise", "+ noise")], "hired as it is"),
        "unsettled ones dropped": (
            [("        verdict = judge(baseline, candidate)\n        wins += verdict == \"B\"\n",
              "        verdict = judge(baseline, candidate)\n        again = judge(candidate, baseline)\n"
              "        settled = verdict != again\n        wins += settled and verdict == \"B\"\n"
              "        kept = asked if asked == 1 else kept\n        kept = 1 if asked == 1 else kept + settled\n"),
             ("rate = wins / asked", "rate = wins / max(1, kept)")],
            "Does every verdict count",
        ),
        "always first": (
            [("judge(baseline, candidate)", "judge(candidate, baseline)"), ('+= verdict == "B"', '+= verdict == "A"')],
            "as good as the baseline wins",
        ),
    },
    "03": {"larger steps": ([("lr=0.1", "lr=0.5")], "clip fraction is never above")},
    "04": {
        "larger steps": ([("lr=0.01", "lr=0.05")], "not far from ln 2"),
        "a larger start": ([("std=0.02", "std=0.5")], "before anything was learnt"),
        "larger scores": ([('return model["head"]', 'return 20 * model["head"]')], "before anything was learnt"),
    },
    "05": {
        "another curve": (
            [("    for _ in range(rollouts):\n", "    mean = None\n    for _ in range(rollouts):\n"),
             ('        curves["reward"].append(reward.mean().item())\n',
              "        mean, std = (score.mean(), score.std()) if mean is None else (mean, std)\n"
              '        curves["reward"].append(((score - mean) / std).mean().item())\n')],
            "10 nats and more",
        ),
        "as the model says": ([("(score - score.mean()) / score.std()", "score")], "should be worth 0 on average"),
    },
    "06": {"weight decay": ([("lr=0.01)", "lr=0.01, weight_decay=0.1)")], "in the program that was given")},
    "07": {
        "likely letters": ([("forward(text)[:, -1]", "(forward(text)[:, -1] / 0.7)")], "what writes is not what was trained"),
        "the likeliest letter": (
            [*REPAIRS["07"]["no-mask"], ("probabilities.multinomial(1)", "probabilities.argmax(1, keepdim=True)")],
            "with the probability that it has",
        ),
    },
    "08": {"the logarithm": ([("(ratio - 1 - ratio.log())", "(-ratio.log())")], "is said to be")},
    "09": {"less padding": ([("F.pad(text, (0, 7))", "F.pad(text, (0, 1))"), ("torch.arange(17)", "torch.arange(11)")],
                            "two things are wrong")},
    "10": {
        "a smaller test": ([('order[:50] if split == "test"', 'order[:40] if split == "test"')], "nobody could foresee"),
        "what is in both left out": (
            [('    train, test = rows("train"), rows("test")\n',
              '    train, test = rows("train"), rows("test")\n    train = train[~torch.isin(train, test)]\n')],
            "there are 250",
        ),
        "a test of what is left": (
            [('    train, test = rows("train"), rows("test")\n',
              '    train, test = rows("train"), rows("test")\n    test = test[~torch.isin(test, train)]\n')],
            "tested on",
        ),
    },
    "11": {"padding is 0": ([("nn.Embedding(9, 16)", "nn.Embedding(9, 16, padding_idx=0)")], "have other losses")},
    "12": {
        "without the sign": ([("(-ratio).mean()", "ratio.mean()")], "for 0 passes"),
        "distance from 1": ([("(-ratio).mean()", "(1 - ratio).abs().mean()")], "for 1 passes"),
    },
    "13": {"one of two models": ([("    optimizer = ", "    reference.eval()\n    optimizer = ")], "the first loss is")},
    "14": {"no controller": ([("beta *= 1 +", "beta *= 1 + 0 *")], "two things are wrong")},
    "15": {"a sum of prompts": ([("expected.mean() / pairs", "expected.sum() / pairs")], "a pair costs ln 2")},
    "16": {"smaller steps": ([("lr=0.03", "lr=0.0003")], "have a cd")},
    "17": {"another estimate": ([("kl = (old - ref).sum(1)", "kl = ((ref - old).exp() - 1 - ref + old).sum(1)")],
                                "in the program that was given")},
    "18": {"smaller steps": ([*REPAIRS["18"]["log-of-sigmoid"], ("lr=0.05", "lr=0.005")], "gradient_norm is 0.0")},
    "19": {"values are cut": (
        [("critic(torch.arange(24).expand(64, 24))[..., 0]  # (N, T)",
          "critic(torch.arange(24).expand(64, 24))[..., 0].clamp(max=4)")],
        "squared error of the values",
    )},
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
