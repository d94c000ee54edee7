"""Build it 12.12: right programs pass its probes, and each wrong one is found at the probe that looks for its mistake."""

import copy
from pathlib import Path

import nbformat
import pytest
import torch

from rlhf_lib.exercises import build12_learn
from rlhf_lib.exercises.build import try_out

BUILD = build12_learn.learn
NOTEBOOK = Path(__file__).parents[2] / "solutions" / "12_beyond_ppo.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
SOURCE = CELLS[BUILD.name]


def program(*changes):
    """The worked answer, with pieces of its text replaced."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    names = {"torch": torch, "copy": copy}
    exec(source, names)
    return names[BUILD.name]


def learn_by_hand(
    policy, reference, reward, prompts, *, loss, generate, end_token, group, iterations, max_new_tokens, kl_coef, lr, seed,
    epochs=1, minibatch=4, max_kl=10.0, report=None,
):  # fmt: skip
    """Written differently: tensors with a dimension for the group, a prompt scored at a time, and AdamW without decay."""
    numbers = torch.Generator().manual_seed(17 * seed + 1)
    steps = torch.optim.AdamW(policy.parameters(), lr, weight_decay=0.0)
    records, snapshots = [], []
    N, T = len(prompts), max_new_tokens
    start = torch.tensor(prompts).repeat_interleave(group, 0)

    def logprobs_of(model, tokens):  # (N', G, T)
        n, P = len(tokens), start.shape[1]
        whole = tokens.reshape(n * group, -1)
        logits = model(whole)[:, P - 1 : P - 1 + T]
        return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), whole[:, P:], reduction="none").view(n, group, T)

    for number in range(iterations + 1):
        answers, _, real = generate(policy, start, start >= 0, torch.rand(len(start), T, generator=numbers), end_token=end_token)
        whole, mask = torch.cat([start, answers], 1).view(N, group, -1), real.view(N, group, T)
        with torch.no_grad():
            old = logprobs_of(policy, whole)
            apart = (old - logprobs_of(reference, whole)).masked_fill(~mask, 0).sum(-1)  # (N, G)
        if not apart.mean().item() <= max_kl:
            policy.load_state_dict(snapshots[-1])
            break
        snapshots = [copy.deepcopy(policy.state_dict())]
        raw = reward(start.tolist(), answers, real).view(N, group)
        agreed = sum(len({*row}) == 1 for row in raw.tolist()) / N
        record = {"iteration": number, "reward": raw.mean().item(), "kl": apart.mean().item(), "silent": agreed, "ratio": 1.0}
        first = True
        for _ in range(epochs if number < iterations else 0):
            order = torch.randperm(N, generator=numbers)
            for begin in range(0, N, minibatch):
                some = order[begin : begin + minibatch]
                new = logprobs_of(policy, whole[some])
                if first:
                    record["ratio"] = (new.detach() - old[some])[mask[some]].exp().mean().item()
                first = False
                steps.zero_grad()
                rewards = raw[some] - kl_coef * apart[some]
                loss(rewards, new.flatten(0, 1), old[some].flatten(0, 1), mask[some].flatten(0, 1)).backward()
                steps.step()
        records.append(record)
        if report is not None:
            report(record)
    return records


@pytest.mark.parametrize("seed", [7])
def test_the_worked_answer_passes_the_cheap_probes(seed):
    assert try_out(BUILD, program(), seed, most=100) == ("", "")


def test_an_answer_written_differently_passes_the_cheap_probes():
    assert try_out(BUILD, learn_by_hand, 3, most=100) == ("", "")


ADAM = "torch.optim.Adam(policy.parameters(), lr=lr)"
ORDER = "torch.randperm(len(prompts), generator=drawn).to(device)"
ALLOWED = {
    "gradients of length 1 at most": [
        ("optimizer.step()", "torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)\n                    optimizer.step()"),
    ],
    "another memory": [(ADAM, ADAM.replace("lr=lr", "lr=lr, betas=(0.9, 0.95), eps=1e-5"))],
    "decoupled decay": [(ADAM, ADAM.replace("Adam", "AdamW"))],
    "minibatches of nearly one size": [(ORDER + ".split(minibatch)", ORDER + ".tensor_split(-(-len(prompts) // minibatch))")],
    "the ratio as a mean of completions' means": [
        ("(logprobs - old[rows])[mask[rows]].exp().mean()",
         "(torch.where(mask[rows], (logprobs - old[rows]).exp(), 0).sum(1) / mask[rows].sum(1)).mean()"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_card_leaves_open_passes_the_cheap_probes(name):
    assert try_out(BUILD, program(*ALLOWED[name]), 5, most=100) == ("", "")


RECORDS, GROUPS, START, EPOCHS, STEPS, PRICE, MEASURED, STOPS, SEED, LEARNS = BUILD.probes
SOME = "some = [prompt for prompt in prompts for _ in range(group)]"
ROWS = "rows = (groups[:, None] * group + torch.arange(group, device=device)).flatten()"
CALL = "loss(paid[groups], logprobs, old[rows], mask[rows])"
PAID = "paid = (scores - kl_coef * kl).view(-1, group)"
KL = "kl = torch.where(mask, old - ref_logprobs, 0).sum(1)"
SILENT = "silent = (table == table[:, :1]).all(1).float().mean().item()"
SAMPLED = "tokens, _, mask = generate("
SCORED = "old, ref_logprobs = score(policy, whole), score(reference, whole)"
NEW = "logprobs = score(policy, whole[rows])"
UPDATE = "# Update: some prompts at a time, each with all its completions."
CLEAR = "                    optimizer.zero_grad()\n"
WRONG = {
    "returns nothing": (RECORDS, "list of dicts", [("return records", "return None")]),
    "records tensors": (RECORDS, ".item()", [("reward=scores.mean().item()", "reward=scores.mean()")]),
    "does not measure the last policy": (
        RECORDS, "one more that measures",
        [("range(iterations + 1)", "range(iterations)"), ("if iteration < iterations:", "if True:")],
    ),
    "trains a copy": (
        RECORDS, "weights that it came with", [("    policy.eval()\n", "    policy = copy.deepcopy(policy).eval()\n")],
    ),
    "the reference follows the policy": (
        RECORDS, "the reference has other weights",
        [("scores = reward(some", "reference.load_state_dict(kept)\n        scores = reward(some")],
    ),
    "reports every step": (
        RECORDS, "report was called",
        [("optimizer.zero_grad()", "optimizer.zero_grad()\n                    report and report(record)")],
    ),
    "never steps": (RECORDS, "weights that it came with", [("optimizer.step()", "pass")]),
    "rewards flat": (RECORDS, "shapes", [(CALL, CALL.replace("paid[groups]", "paid[groups].flatten()"))]),
    "one completion of each prompt": (RECORDS, "shapes", [(ROWS, "rows = groups * group")]),
    "prompts side by side": (
        GROUPS, "different prompts", [(SOME, "some = [prompt for _ in range(group) for prompt in prompts]")],
    ),
    "rows are shuffled and not groups": (
        GROUPS, "different prompts", [(ROWS, ROWS + "\n                    rows = rows[torch.randperm(len(rows))]")],
    ),
    "groups by stride": (
        GROUPS, "different prompts",
        [(ROWS, "rows = (groups[:, None] + len(prompts) * torch.arange(group, device=device)).flatten()")],
    ),
    "rewards of other prompts": (GROUPS, "in another order", [(CALL, CALL.replace("paid[groups]", "paid[: len(groups)]"))]),
    "minibatch counts completions": (GROUPS, "a number of prompts", [(".split(minibatch)", ".split(minibatch // group)")]),
    "half of the prompts": (GROUPS, "of each of the 16", [(SOME, SOME.replace("in prompts", "in prompts[::2] * 2"))]),
    "the sampler's own log-probabilities": (
        START, "that the sampler gives",
        [(SAMPLED, "tokens, said, mask = generate("), (SCORED, SCORED + "\n            old = said")],
    ),
    "the reference's for the old ones": (START, "reference's have no part", [(CALL, CALL.replace("old[", "ref_logprobs["))]),
    "old ones follow the policy": (
        START, "stay until the next rollout", [(CALL, CALL.replace("old[rows]", "logprobs.detach()"))],
    ),
    "scores one place late": (
        START, "predicted by the logits at t - 1", [("[:, P - 1 : -1].log_softmax", "[:, P:].log_softmax")],
    ),
    "one draw for a group": (
        RECORDS, "its own uniforms",
        [("torch.rand(B, max_new_tokens, generator=drawn)",
          "torch.rand(len(prompts), max_new_tokens, generator=drawn).repeat_interleave(group, 0)")],
    ),
    "one epoch": (START, "are 12 steps", [("for _ in range(epochs)", "for _ in range(1)")]),
    "the ratio of the last step": (START, "record's ratio", [("ratios[0]", "ratios[-1]")]),
    "no mask": (RECORDS, "not True on every token", [("torch.ones_like(start, dtype", "torch.zeros_like(start, dtype")]),
    "no end": (RECORDS, "without end_token", [("end_token=end_token)", "end_token=0)")]),
    "no shuffle": (EPOCHS, "order in which they were sampled", [(ORDER, "torch.arange(len(prompts))")]),
    "one order for all epochs": (EPOCHS, "for every epoch", [
        (ORDER, "order"), ("            ratios = []", f"            ratios, order = [], {ORDER}"),
    ]),
    "one order for all rollouts": (EPOCHS, "for every epoch", [(ORDER, ORDER.replace("drawn", "drawn.manual_seed(seed)"))]),
    "steps are shuffled, and not prompts": (EPOCHS, "for every epoch", [
        (ORDER + ".split(minibatch)",
         "[torch.arange(len(prompts)).roll(3).split(minibatch)[k] for k in torch.randperm(-(-len(prompts) // minibatch))]"),
    ]),
    "prompts drawn with replacement": (EPOCHS, "each prompt once", [
        (ORDER, "torch.randint(len(prompts), (len(prompts),), generator=drawn)"),
    ]),
    "the last minibatch is dropped": (EPOCHS, "is left out", [
        (ORDER + ".split(minibatch)", ORDER + "[: len(prompts) // minibatch * minibatch].split(minibatch)"),
    ]),
    "a new Adam in every iteration": (STEPS, "a new Adam begins in every iteration", [
        (UPDATE, UPDATE + "\n            optimizer = torch.optim.Adam(policy.parameters(), lr=lr)"),
    ]),
    "a new Adam in every step": (STEPS, "a new Adam begins in every step", [
        (CALL, "optimizer = torch.optim.Adam(policy.parameters(), lr=lr)\n                    " + CALL),
    ]),
    "gradients are never cleared": (STEPS, "never set to zero", [(CLEAR, "")]),
    "gradients are cleared once a rollout": (STEPS, "once a rollout", [
        (CLEAR, ""), (UPDATE, UPDATE + "\n            optimizer.zero_grad()"),
    ]),
    "descends without Adam": (STEPS, "other weights", [(ADAM, ADAM.replace("Adam", "SGD"))]),
    "a rate of its own": (STEPS, "other weights", [("lr=lr)", "lr=1e-3)")]),
    "the ratio over padding too": (
        MEASURED, "over padding too", [("(logprobs - old[rows])[mask[rows]].exp()", "(logprobs - old[rows]).exp()")],
    ),
    "the ratio is written down": (MEASURED, "measure it", [("ratios[0]", "1.0")]),
    "the log-ratio": (MEASURED, "mean ratio of", [("[mask[rows]].exp().mean().item()", "[mask[rows]].mean().item() + 1")]),
    "no price": (PRICE, "no price", [(PAID, PAID.replace(" - kl_coef * kl", ""))]),
    "the price is added": (PRICE, "distance is paid for", [(PAID, PAID.replace("- kl_coef", "+ kl_coef"))]),
    "the price of the mean": (PRICE, "each pays its own", [(PAID, PAID.replace("* kl)", "* kl.mean())"))]),
    "the price of a mean over tokens": (PRICE, "mean over tokens", [(PAID, PAID.replace("* kl)", "* kl / mask.sum(1))"))]),
    "charged behind the end": (
        PRICE, "behind the end", [(PAID, PAID.replace("* kl)", "* (old - ref_logprobs).sum(1))"))],
    ),
    "KL as a mean over tokens": (
        MEASURED, "KL of", [("kl=kl.mean().item()", "kl=(old - ref_logprobs)[mask].mean().item()")],
    ),
    "the reward less its price": (
        MEASURED, "without the price", [("reward=scores.mean().item()", "reward=(scores - kl_coef * kl).mean().item()")],
    ),
    "silent by the price": (
        MEASURED, "silent", [("table = scores.view(-1, group)", "table = (scores - kl_coef * kl).view(-1, group)")],
    ),
    "a KL of NaN goes on": (STOPS, "have become NaN goes on", [("if not kl.mean() <= max_kl:", "if kl.mean() > max_kl:")]),
    "a mask that is True everywhere for the reward": (
        RECORDS, "another mask", [("reward(some, tokens, mask)", "reward(some, tokens, mask | True)")],
    ),
    "never stops": (STOPS, "the run stops at the first", [("if not kl.mean() <= max_kl:", "if False:")]),
    "leaves the policy beyond": (STOPS, "put the last one back", [("policy.load_state_dict(kept)", "pass")]),
    "a fifth beyond": (STOPS, "the run stops at the first", [("<= max_kl:", "<= 1.2 * max_kl:")]),
    "learns with dropout": (RECORDS, "in training mode", [("    policy.eval()\n", "    policy.train()\n")]),
    "stops a fifth before": (STOPS, "the run stops at the first", [("<= max_kl:", "<= 0.8 * max_kl:")]),
    "stops at half of max_kl": (STOPS, "the run stops at the first", [("<= max_kl:", "<= max_kl / 2:")]),
    "the seed is not used": (SEED, "one seed", [(".manual_seed(seed)", ".manual_seed(int(torch.randint(9999, ())))")]),
    "a seed of its own": (SEED, "not used", [(".manual_seed(seed)", ".manual_seed(42)")]),
    "the same numbers in every rollout": (
        SEED, "same random numbers", [("max_new_tokens, generator=drawn)", "max_new_tokens, generator=drawn.manual_seed(seed))")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_found_at_its_own_probe(name):
    probe, word, changes = WRONG[name]
    inputs = next(one for one in BUILD.draw() if one["probe"] == probe)
    fault = BUILD.fault(inputs, BUILD.answer(program(*changes), inputs))
    assert word in fault, fault or "nothing was found"


@pytest.mark.parametrize("name", ["charged behind the end", "KL as a mean over tokens", "leaves the policy beyond"])
def test_nothing_is_said_of_a_mistake_before_its_own_probe(name):
    probe, _, changes = WRONG[name]
    for inputs in BUILD.draw():
        if inputs["probe"] == probe:
            return
        assert BUILD.fault(inputs, BUILD.answer(program(*changes), inputs)) == ""


def test_the_worked_answer_learns_by_every_row():
    inputs = next(one for one in BUILD.draw(1) if one["probe"] == LEARNS)
    assert BUILD.fault(inputs, BUILD.answer(program(), inputs)) == ""


def test_a_run_that_gains_nothing_does_not_pass():
    inputs = next(one for one in BUILD.draw(1) if one["probe"] == LEARNS)
    still = program(("lr=lr)", "lr=1e-6)"))
    assert "should gain 0.2" in BUILD.fault({**inputs, "iterations": 2}, BUILD.answer(still, {**inputs, "iterations": 2}))


def test_the_stub_is_not_written_yet():
    def learn(policy, reference, reward, prompts, **settings):
        raise NotImplementedError()

    assert try_out(BUILD, learn)[1].startswith("not written yet")
