"""Build it 8.10: right programs pass its probes, and each wrong one is found at the probe that looks for its mistake."""

import copy
from pathlib import Path

import nbformat
import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, course
from rlhf_lib.exercises import build08_rlhf as built
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.declare import BUILDS, load
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.exercises.plain import plain

load()
BUILD = BUILDS["rlhf"]
NOTEBOOK = Path(__file__).resolve().parents[2] / "solutions" / "08_rlhf.ipynb"
SOURCE = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "rlhf")
PIECES = ("policy_loss", "fit_normaliser", "completion_kl", "token_advantages", "with_baseline")


@torch.no_grad()
def generate(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
    """Chapter 04's, by the contract of 4.10, without a cache; for prompts without padding."""
    tokens, logprobs, alive = [], [], []
    whole, going = prompts, torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    for step in range(uniforms.shape[1]):
        scores = (model(whole)[:, -1] / temperature).log_softmax(-1)  # (B, V)
        below = scores.exp().cumsum(-1) <= uniforms[:, step, None]
        chosen = torch.where(going, below.sum(-1).clamp(max=scores.shape[1] - 1), end_token)
        tokens.append(chosen)
        logprobs.append(torch.where(going, scores.gather(1, chosen[:, None])[:, 0], 0))
        alive.append(going)
        going = going & (chosen != end_token)
        whole = torch.cat([whole, chosen[:, None]], 1)
    return torch.stack(tokens, 1), torch.stack(logprobs, 1), torch.stack(alive, 1)


def program(*changes):
    """The worked answer, with pieces of its text replaced."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    names = {"torch": torch, "copy": copy, "F": F, "generate": generate, **{name: the_course(name) for name in PIECES}}
    exec(source, names)
    return names["rlhf"]


def rlhf_by_hand(
    gpt, reward, *, prompt, iterations, rollout_size, max_new_tokens, kl_coef, lr, seed,
    max_kl=10.0, epochs=2, minibatch=None, clip=0.2, report=None,
):  # fmt: skip
    """Written differently: a snapshot of weights instead of a second model, scoring by cross-entropy with the old
    log-probabilities computed anew, no baseline, AdamW, and nothing but functions of PyTorch."""
    torch.manual_seed(seed)
    gpt = copy.deepcopy(gpt).eval()
    policy = copy.deepcopy(gpt)
    device = policy.embedding.weight.device
    start = torch.tensor([prompt]).to(device)
    for parameter in policy.parameters():
        parameter.requires_grad = True
    steps = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)

    def sampled(count):
        prompts = start.expand(count, -1)
        return generate(policy, prompts, prompts >= 0, torch.rand(count, max_new_tokens).to(device))

    def logprobs(model, tokens):
        logits = model(torch.cat([start.expand(len(tokens), -1), tokens], 1))[:, start.shape[1] - 1 : -1]
        return -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

    first, _, real = sampled(256 + rollout_size)
    scale, centre = torch.std_mean(reward(first, real).double())
    records, snapshots = [], []
    for number in range(iterations + 1):
        tokens, _, real = sampled(rollout_size)
        with torch.no_grad():
            old, reference = logprobs(policy, tokens), logprobs(gpt, tokens)
        apart = (old - reference).masked_fill(~real, 0)
        kl = apart.sum(1).mean().item()
        if kl > max_kl or kl != kl:
            break
        snapshots = [{name: one.clone() for name, one in policy.state_dict().items()}]
        paid = ((reward(tokens, real).double() - centre) / scale).float()
        to_come = apart.sum(1, keepdim=True) - apart.cumsum(1) + apart
        advantage = paid[:, None] - kl_coef * to_come
        advantage = advantage - advantage[real].mean()
        shares, ratios = [torch.zeros(())], [torch.ones(())]
        for _ in range(epochs if number < iterations else 0):
            order = torch.randperm(rollout_size)
            for begin in range(0, rollout_size, minibatch or rollout_size):
                rows = order[begin : begin + (minibatch or rollout_size)]
                ratio = (logprobs(policy, tokens[rows]) - old[rows])[real[rows]].exp()
                gains = advantage[rows][real[rows]]
                loss = torch.max(-ratio * gains, -ratio.clamp(1 - clip, 1 + clip) * gains).mean()
                steps.zero_grad()
                loss.backward()
                steps.step()
                ratios.append(ratio.mean())
                shares.append(((ratio < 1 - clip) | (ratio > 1 + clip)).float().mean())
        records.append({
            "iteration": number, "kl": kl, "reward": paid.mean().item(), "ratio": ratios[:2][-1].item(),
            "clip_fraction": torch.stack(shares[1:] or shares).mean().item(), "lr": lr,
        })  # fmt: skip
        if report is not None:
            report(records[-1])
    policy.load_state_dict(snapshots[-1])
    return policy, records


ALTERNATIVES = {"rlhf": rlhf_by_hand}


def test_an_answer_written_differently_passes_the_cheap_probes():
    assert try_out(BUILD, rlhf_by_hand, 3, most=100) == ("", "")


SCORE = "return logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]"
LOSS = "policy_loss(logprobs, old[rows], advantages[rows], mask[rows], clip)"
FIT = "normalise = fit_normaliser(reward(tokens, mask))"
PAID = "rewards = normalise(reward(tokens, mask))"
KL = "kl = completion_kl(old, reference, mask).mean().item()"
WORTH = "worth = token_advantages(rewards, old, reference, mask, kl_coef)"
RECORDS, START, SEED, NORMALISES, MEASURES, LEARNS, PAYS, ENDS, STEPS, STOPS, HAPPIER = BUILD.probes
WRONG = {
    "trains the original model": (RECORDS, "other weights", [("copy.deepcopy(gpt).eval()", "gpt.eval()")]),
    "hands out the untouched copy": (RECORDS, "nothing was trained", [("kept.load_state_dict(policy.state_dict())", "pass")]),
    "reports every minibatch": (
        RECORDS, "once an iteration",
        [("optimizer.zero_grad()", "optimizer.zero_grad()\n                    report and report(record)")],
    ),
    "reports at the end": (
        RECORDS, "as soon as",
        [("        if report:\n            report(record)\n", ""),
         ("    return kept, records", "    _ = [report(record) for record in records if report]\n    return kept, records")],
    ),
    "reports before the update": (
        RECORDS, "has changed after it was reported",
        [("        if report:\n            report(record)\n", ""),
         ("records.append(record)\n", "records.append(record)\n        report and report(record)\n")],
    ),
    "the prompt stays on the processor": (
        RECORDS, "lies on cpu", [("[list(prompt)] * count, device=device)", "[list(prompt)] * count)")],
    ),
    "the uniforms stay on the processor": (
        RECORDS, "uniforms lie on cpu",
        [("max_new_tokens, generator=drawn).to(device)", "max_new_tokens, generator=drawn)")],
    ),
    "records tensors": (RECORDS, ".item()", [("reward=rewards.mean().item()", "reward=rewards.mean()")]),
    "returns records first": (RECORDS, "not a model", [("return kept, records", "return records, kept")]),
    "keeps records of the last update alone": (RECORDS, "count from 0", [("records.append(record)", "records = [record]")]),
    "does not measure the last policy": (
        RECORDS, "one more", [("range(iterations + 1)", "range(iterations)"), ("if iteration < iterations:", "if True:")],
    ),
    "puts the original model to sleep": (
        RECORDS, "gpt's mode", [("copy.deepcopy(gpt).eval()", "copy.deepcopy(gpt.eval())")],
    ),
    "freezes the original model": (
        RECORDS, "gpt's requires_grad",
        [("copy.deepcopy(gpt).eval()", "copy.deepcopy(gpt.requires_grad_(False)).eval()")],
    ),
    "leaves gradients in the original model": (
        RECORDS, "gpt's grad",
        [("    return kept, records", "    score(gpt, tokens).sum().backward()\n    return kept, records")],
    ),
    "drops features out of the policy": (
        START, "has dropout", 
        [("copy.deepcopy(gpt).eval()", "copy.deepcopy(gpt)"), ("(policy)  # the ref", "(policy).eval()  # the ref")],
    ),
    "drops features out of the reference": (START, "has dropout", [("score(start, some)", "score(gpt, some)")]),
    "samples at 0.7 and scores at 1": (START, "first KL", [("torch.bool), uniforms)", "torch.bool), uniforms, 0.7)")]),
    "scores logits one position late": (START, "first KL", [(SCORE, SCORE.replace("logits.", "logits.roll(-1, 1)."))]),
    "counts tokens behind the end in the KL": (
        START, "first KL", [(KL, KL.replace("mask", "torch.ones_like(mask)"))],
    ),
    "measures the ratio after the step": (
        START, "ratio on the first minibatch", [("ratios.append((logprobs -", "ratios.append((score(policy, tokens[rows]) -")],
    ),
    "old log-probabilities are the reference's": (
        START, "ratio on the first minibatch",
        [(LOSS, LOSS.replace("old[", "reference[")), ("ratios.append((logprobs - old", "ratios.append((logprobs - reference")],
    ),
    "tokens behind the end are in the ratio": (
        START, "behind the end count",
        [(KL, KL + "\n        real, mask = mask, mask | True"), (PAID, PAID.replace("mask", "real"))],
    ),
    "each batch by its own constants": (
        NORMALISES, "moved along", [(PAID, "raw = reward(tokens, mask)\n        rewards = fit_normaliser(raw)(raw)")],
    ),
    "no constants at all": (NORMALISES, "first mean reward", [(FIT, "normalise = lambda raw: raw")]),
    "no division by the deviation": (
        NORMALISES, "units of the reward",
        [(FIT, "centre = reward(tokens, mask).mean()\n    normalise = lambda raw: raw - centre")],
    ),
    "the mean is not subtracted": (
        NORMALISES, "first mean reward",
        [(FIT, "spread = reward(tokens, mask).std()\n    normalise = lambda raw: raw / spread + 1")],
    ),
    "constants fitted anew in every iteration": (
        NORMALISES, "moved along", [(PAID, "normalise = fit_normaliser(reward(*roll(256)[::2]))\n        " + PAID)],
    ),
    "constants of one small rollout": (NORMALISES, "mostly chance", [("roll(max(256, rollout_size))", "roll(rollout_size)")]),
    "KL as a mean over tokens": (MEASURES, "mean over tokens", [(KL, "kl = (old - reference)[mask].mean().item()")]),
    "KL upside down": (MEASURES, "upside down", [(KL, KL.replace("old, reference", "reference, old"))]),
    "KL of the policy after the update": (MEASURES, "last record says", [(KL, KL.replace("kl =", "kl = 0.5 *"))]),
    "no price": (PAYS, "does not hold it back", [(WORTH, WORTH.replace("kl_coef", "0.0"))]),
    "a price with the wrong sign": (PAYS, "does not hold it back", [(WORTH, WORTH.replace("kl_coef", "-kl_coef"))]),
    "the price in the loss": (
        PAYS, "in the loss",
        [(WORTH, WORTH.replace("kl_coef", "0.0")),
         ("loss.backward()", "(loss + kl_coef * (logprobs - reference[rows])[mask[rows]].mean()).backward()")],
    ),
    "tokens behind the end are trained": (
        ENDS, "behind an end",
        [(KL, KL + "\n        real, mask, old = mask, mask | True, score(policy, tokens).detach()"),
         (PAID, PAID.replace("mask", "real"))],
    ),
    "padding without an advantage is in the means": (
        ENDS, "of the real tokens alone",
        [(LOSS, "policy_loss(torch.where(mask[rows], logprobs, 0), old[rows], advantages[rows], mask[rows] | True, clip)")],
    ),
    "padding without an advantage, scored, is in the means": (
        ENDS, "of the real tokens alone",
        [(KL, KL + "\n        old = score(policy, tokens).detach()"), (LOSS, LOSS.replace("mask[rows]", "mask[rows] | True"))],
    ),
    "the reward is given a mask that is True everywhere": (
        ENDS, "the mask that `reward` is given",
        [(FIT, FIT.replace("mask", "mask | True")), (PAID, PAID.replace("mask", "mask | True"))],
    ),
    "the reward is given a mask without the end": (
        ENDS, "the mask that `reward` is given",
        [(FIT, FIT.replace("mask", "mask & (tokens > 0)")), (PAID, PAID.replace("mask", "mask & (tokens > 0)"))],
    ),
    "walks at random": (
        MEASURES, "hardly move",
        [("optimizer.step()", "[one.data.add_(lr * torch.randn(one.shape, generator=drawn)) for one in policy.parameters()]")],
    ),
    "the sign of the loss": (LEARNS, "sign", [("loss.backward()", "(-loss).backward()")]),
    "advantages stay when rows are shuffled": (
        LEARNS, "shuffling", [(LOSS, LOSS.replace("advantages[rows]", "advantages[: len(rows)]"))],
    ),
    "rewards of other rows": (LEARNS, "belong together", [(PAID, PAID + ".roll(1)")]),
    "one epoch": (STEPS, "`epochs` times", [("for _ in range(epochs)", "for _ in range(1)")]),
    "one step for the whole rollout": (
        STEPS, "minibatches of 16", [(".split(minibatch or rollout_size)", ".split(rollout_size)")],
    ),
    "no clipping": (
        STEPS, "not clipped",
        [(LOSS, "(-((logprobs - old[rows]).exp() * advantages[rows])[mask[rows]].mean(), " + LOSS + "[1])")],
    ),
    "gradients are never cleared": (STEPS, "add up from step to step", [("optimizer.zero_grad()", "pass")]),
    "gradients are cleared once a rollout": (
        STEPS, "add up from step to step",
        [("optimizer.zero_grad()", "pass"), ("ratios, clipped = [], []", "ratios, clipped, _ = [], [], optimizer.zero_grad()")],
    ),
    "clip fraction of the first minibatch": (ENDS, "first one alone", [("sum(clipped) / len(clipped)", "clipped[0]")]),
    "clip fraction of the last minibatch": (ENDS, "last one alone", [("sum(clipped) / len(clipped)", "clipped[-1]")]),
    "clip fraction in percent": (ENDS, "in percent", [("sum(clipped) /", "100 * sum(clipped) /")]),
    "a new optimiser for every rollout": (
        STEPS, "forgotten its moments",
        [("ratios, clipped = [], []", "ratios, clipped, optimizer = [], [], torch.optim.Adam(policy.parameters(), lr=lr)")],
    ),
    "stops at half of max_kl": (STOPS, "only a mean that is not within", [("if not kl <= max_kl:", "if not kl <= max_kl / 2:")]),
    "keeps the record of the rollout that is too far": (
        STOPS, "is left out",
        [("            break", "            records.append(dict(iteration=iteration, reward=0.0, kl=kl))\n            break")],
    ),
    "a KL of NaN goes on": (STOPS, "have become NaN goes on", [("if not kl <= max_kl:", "if kl > max_kl:")]),
    "never stops": (STOPS, "stop at the first", [("if not kl <= max_kl:", "if False:")]),
    "hands out the policy beyond max_kl": (STOPS, "whose KL was measured", [("return kept, records", "return policy, records")]),
    "the limit is on the mean over tokens": (
        STOPS, "max_kl 1", [("if not kl <= max_kl:", "if not kl / max_new_tokens <= max_kl:")],
    ),
    "the seed is not used": (SEED, "one seed", [(".manual_seed(seed)", ".manual_seed(int(torch.randint(9999, ())))")]),
    "a seed of its own": (SEED, "not used", [(".manual_seed(seed)", ".manual_seed(42)")]),
    "the same numbers in every rollout": (
        SEED, "same random numbers",
        [("generator=drawn).to(device)\n        with", "generator=drawn.manual_seed(seed)).to(device)\n        with")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_found_first_at_its_own_probe(name):
    """As a learner runs it: the first three probes in their order, or its own alone (that those before it pass takes minutes)."""
    probe, word, changes = WRONG[name]
    tried, wrong = [*BUILD.probes][:3] if probe in [*BUILD.probes][:5] else [], program(*changes)
    for inputs in BUILD.draw():
        said = BUILD.fault(inputs, BUILD.answer(wrong, inputs)) if inputs["probe"] in (*tried, probe) else ""
        if said:
            break
    assert said and inputs["probe"] == probe and word in said, (inputs["probe"], said)


def test_the_stub_is_not_written_yet():
    def rlhf(gpt, reward, **settings):
        raise NotImplementedError()

    assert try_out(BUILD, rlhf)[1].startswith("not written yet")


# ----------------------------------------------------------------------------------------- training


def handed_in(policy, kl=5.0):
    records = [{"iteration": place, "reward": 0.0, "kl": kl, "ratio": 1.0, "clip_fraction": 0.1} for place in range(3)]
    return plain({"records": records, "policy": built.weights(policy), "base": None})


def verdict(policy, kl=5.0):
    inputs = next(one for one in BUILD.draw(0) if one["probe"] == HAPPIER)
    return BUILD.fault(inputs, handed_in(policy, kl))


def test_a_policy_that_is_not_trained_or_repeats_itself_does_not_pass_for_happier():
    base = built.published()[0]
    assert "gain" in verdict(base)
    cold = copy.deepcopy(checkpoints.load(course.PUBLISHED / "policy", "cpu")[0])
    with torch.no_grad():
        cold.head.weight *= 2  # as if sampled at temperature 0.5
    assert "repetition" in verdict(cold)
