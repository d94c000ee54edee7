"""Build it 8.10: the whole loop of RLHF, judged on tiny models with made-up rewards, and then on the course's own."""

import math

import torch

from rlhf_lib import checkpoints, course
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build08_probes import (
    broken_fault,
    clipped_fault,
    handed_fault,
    judge_records,
    run_broken,
    run_cleared,
    run_clipped,
    run_records,
)  # fmt: skip
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.tiny_rlhf import count, drawn, form, fresh, go, loaded, pairs, tiny, told, true_kl, weights
from rlhf_lib.judge import distinct_n

BLANK = "\n\n"  # the prompt of the real run: a blank line


# ----------------------------------------------------------------------------------------- cheap probes


def run_start(rlhf, seed, iterations):
    bases = tiny(seed), tiny(seed, dropout=0.3).train()
    return {"runs": [go(rlhf, base, iterations=iterations, seed=seed) for base in bases]}


@told
def judge_start(runs, base):
    records, noisy = (found["records"] for found in runs)
    if abs(records[0]["kl"]) > 1e-5:
        return (
            f"the first KL is {records[0]['kl']:.4f} nats, of a policy that still is the base: the two are scored in different "
            "ways (position, temperature, tokens behind the end), or it is measured after the update"
        )
    for record in records[:-1]:
        if abs(record["ratio"] - 1) > 1e-4:
            return (
                f"iteration {record['iteration']}: the ratio on the first minibatch is {record['ratio']:.4f}, before any step: "
                "sampling and scoring disagree, tokens behind the end count, or the old log-probabilities are not those of the "
                "policy that sampled"
            )
    if abs(noisy[0]["kl"]) > 1e-5 or any(abs(record["ratio"] - 1) > 1e-4 for record in noisy[:-1]):
        return (
            f"of a gpt that comes in training mode and has dropout the first KL is {noisy[0]['kl']:.4f} nats, and the first "
            f"ratio {noisy[0]['ratio']:.4f}: policy and reference are copies in evaluation mode, from the first rollout on"
        )
    return ""


def run_normaliser(rlhf, seed, iterations):
    changes = (lambda r: r, lambda r: r + 1000, lambda r: 64 * r)
    rewards = [lambda tokens, mask, of=of: of(count(tokens, mask)) for of in changes]
    runs, asked = [go(rlhf, tiny(seed), reward, iterations=iterations, seed=seed, lr=5e-3) for reward in rewards], []

    def counted(tokens, mask):
        asked.append(len(tokens))
        return count(tokens, mask)

    runs.append(go(rlhf, tiny(seed), counted, iterations=iterations, seed=seed, rollout_size=16))
    return {"runs": runs, "asked": sum(asked)}


@told
def judge_normaliser(runs, base, asked):
    plainly = runs[0]["records"]
    if abs(plainly[0]["reward"]) > 0.4:
        return (
            f"the untouched model's first mean reward is {plainly[0]['reward']:.2f}; it is about 0 when mean and deviation come "
            "from its own completions"
        )
    for found, how in ((runs[1], "with 1000 added to"), (runs[2], "with 64 times")):
        if len(found["records"]) != len(plainly):
            return f"{how} every reward the run has another length: normalise the reward before anything uses it"
        for one, other in zip(plainly, found["records"]):
            if abs(one["reward"] - other["reward"]) > 0.15 or abs(one["kl"] - other["kl"]) > 0.15:
                return (
                    f"{how} every reward, iteration {one['iteration']} has reward {other['reward']:.2f} and KL "
                    f"{other['kl']:.2f}, else {one['reward']:.2f} and {one['kl']:.2f}: the units of the reward reach the update"
                )
    before, after = (count(rows.tokens, rows.mask) for rows in (fresh(base), fresh(loaded(base, runs[0]))))
    gained = ((after.mean() - before.mean()) / before.std()).item()
    if abs(gained - plainly[-1]["reward"]) > 0.25 + 0.2 * abs(gained):
        return (
            f"the last record says {plainly[-1]['reward']:.2f}, but fresh completions of the returned policy lie {gained:.2f} "
            "deviations above the untouched model's: the constants moved along, or the record is of another policy. Fit them once"
        )
    if asked < 256:
        return (
            f"with rollouts of 16 the reward was asked about {asked} completions in all: mean and deviation come from 256 or "
            "more of the untouched model's, since those of 16 are mostly chance"
        )
    return ""


def run_kl(rlhf, seed, iterations, ends):
    return {"runs": [go(rlhf, tiny(seed, ends), iterations=iterations, seed=seed, kl_coef=0.0, lr=6e-3, max_kl=100.0)]}


@told
def judge_kl(runs, base):
    said, policy = runs[0]["records"][-1]["kl"], loaded(base, runs[0])
    right, length = true_kl(policy, base), fresh(policy).mask.sum(1).float().mean().item()
    if right < 0.5:
        return f"without a price on it the KL is {right:.2f} nats after many large updates: they hardly move the policy"
    if abs(said - right) <= 0.25 * right + 0.15:
        return ""
    guesses = {
        "That is the mean over tokens; the KL of a completion is their sum": right / length,
        "The ratio is upside down: add up the policy's log-probabilities less the base's": -right,
        "That is in bits": right / math.log(2),
    }
    name, near = min(guesses.items(), key=lambda one: abs(one[1] - said))
    hint = (
        name
        if abs(near - said) < 0.15 * abs(near) + 0.05
        else "Sum over the real tokens, mean over the completions; a completion ends at token 0"
    )
    return f"the last record says {said:.2f} nats, fresh completions of the returned policy have a KL of {right:.2f}. {hint}"


def run_price(rlhf, seed, iterations):
    prices = (0.0, 2.0)
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, seed=seed, kl_coef=price, max_kl=100.0) for price in prices]}


@told
def judge_price(runs, base):
    free, dear = (true_kl(loaded(base, found), base) for found in runs)
    if dear > 0.5 * free:
        return (
            f"at 2 a nat the policy ends {dear:.2f} nats away, without a price {free:.2f}: the price does not hold it back. It "
            "belongs into the reward, detached; in the loss its expected gradient is 0; its sign may be turned"
        )
    return ""


def run_ends(rlhf, seed, iterations, ends):
    """The end token is in no prompt, so its embedding is read only behind the end of a completion."""
    found = go(rlhf, tiny(seed, ends), iterations=iterations, seed=seed, lr=5e-3)
    runs, tokens, asked = run_clipped(rlhf, seed, ends)
    return {"runs": [found, *runs], "tokens": tokens, "asked": asked}


@told
def judge_ends(runs, base, tokens, asked):
    before, after = weights(base)["embedding.weight"], runs[0]["policy"]["embedding.weight"]
    moved = (after - before).norm(dim=1) / before.norm(dim=1)  # of each token
    if moved[0] > 0.2 * moved.median():
        return (
            "the end token's embedding has been trained, which only tokens behind an end can do: nobody chose them, they must "
            "not count in the loss. Pass the mask, True up to and including the end"
        )
    return handed_fault(asked) or clipped_fault(runs[1:], tokens, base)


def run_learning(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), pairs, iterations=iterations, seed=seed, lr=1e-2, kl_coef=0.01, max_kl=100.0)]}


@told
def judge_learning(runs, base):
    before, after = (pairs(rows.tokens, rows.mask) for rows in (fresh(base), fresh(loaded(base, runs[0]))))
    gained = ((after.mean() - before.mean()) / before.std()).item()
    if gained < 1:
        return (
            f"paid for tokens that are one more than the token before, it gains {gained:.2f} deviations, not 1: do row, reward "
            "and log-probability belong together after shuffling, do logits at t score token t + 1, is the sign right?"
        )
    return ""


SMALL = dict(epochs=1, minibatch=16)
UPDATES = (
    dict(epochs=1, minibatch=128), dict(epochs=6, minibatch=128), SMALL, dict(epochs=1, minibatch=None),
    dict(epochs=6, lr=2e-2, clip=0.05), dict(epochs=6, lr=2e-2, clip=1000.0), dict(lr=1e-6),
)  # fmt: skip


def run_update(rlhf, seed, iterations):
    settings = dict(iterations=iterations, seed=seed, kl_coef=0.0, max_kl=100.0, lr=2e-3, rollout_size=128)
    runs = [go(rlhf, tiny(seed), **{**settings, **one}) for one in UPDATES if one != SMALL]
    small, added = run_cleared(rlhf, tiny(seed), **{**settings, **SMALL})
    return {"runs": [*runs[:2], small, *runs[2:]], "added": added}


@told
def judge_update(runs, base, added):
    if added:
        return "the gradients add up from step to step: set them to zero before each backward pass (optimizer.zero_grad)"
    one, epochs, small, none, tight, loose, _ = (true_kl(loaded(base, found), base, number=256) for found in runs)
    shares = [[record["clip_fraction"] for record in found["records"][:-1]] for found in runs]
    if not all(0 <= share <= 1 for found in shares for share in found):
        return "a clip fraction lies outside 0 to 1: it is the share of tokens whose ratio is outside 1 - clip to 1 + clip"
    if epochs < 2 * one:
        return f"6 epochs move the policy {epochs:.3f} nats, 1 epoch {one:.3f}: the rollout is not gone through `epochs` times"
    if small < 2 * one:
        return f"minibatches of 16 move the policy {small:.3f} nats, all 128 at once {one:.3f}: each minibatch is to be a step"
    if not 0.5 * one < none < 2 * one:
        return f"without `minibatch` the policy moves {none:.3f} nats, with all 128 at once {one:.3f}: None is the whole rollout"
    begun = weights(base)
    far = torch.cat([(runs[3]["policy"][name] - begun[name]).flatten() for name in begun]).abs() / 2e-3  # in rates, in 2 steps
    if ((far - 2).abs() < 0.02).sum() > 0.7 * (far > 0.02).sum():
        return (
            "two iterations of one step each move nearly every weight by twice the rate, or not at all: that is Adam's first "
            "step, two times. One optimiser serves the whole run; a new one in each iteration has forgotten its moments"
        )
    large, tiniest = shares[4][0], max(shares[6])
    if large < 0.02 or tiniest > 0.02:
        return (
            f"at a large rate the clip fraction is {large:.3f}, at a tiny one {tiniest:.3f}: it is near 0 for "
            "tiny steps alone. Take the mean over all minibatches, against the rollout's own log-probabilities, by the mask"
        )
    if tight > 0.6 * loose:
        return f"with clip 0.05 an update goes {tight:.2f} nats, without any {loose:.2f}: the ratio is not clipped"
    return ""


def run_stop(rlhf, seed, iterations):
    settings = dict(iterations=iterations, seed=seed, kl_coef=0.0, lr=4e-3)
    runs = [go(rlhf, tiny(seed), **settings, max_kl=most) for most in (1.0, 2.0)]
    return {"runs": runs, "broken": run_broken(rlhf, seed)}


@told
def judge_stop(runs, base, broken):
    records, right = runs[0]["records"], true_kl(loaded(base, runs[0]), base)
    free = [record["kl"] for record in runs[1]["records"]]  # the same run with a wider limit
    if len(records) >= 12 or sum(record["kl"] > 1 for record in records) > 1:
        most = records[-1]["kl"]
        return f"with max_kl 1 the run goes on to {most:.1f} nats: stop at the first rollout whose mean is not within it"
    if right > 1.3:
        return f"with max_kl 1 the policy returned is {right:.2f} nats away: return the last one whose KL was measured and within"
    if right < 0.02:
        return "the policy that is returned when max_kl stops a run is the untouched model: return the last one within max_kl"
    if records[-1]["kl"] > 1:
        return f"the last record has a KL of {records[-1]['kl']:.2f} nats, above max_kl 1: the record of that rollout is left out"
    if len(records) < len(free) and free[len(records)] <= 1:
        return (
            f"with max_kl 1 the run ends at a KL of {records[-1]['kl']:.2f} nats, though the next rollout has "
            f"{free[len(records)]:.2f}: only a mean that is not within max_kl stops it"
        )
    return broken_fault(broken, base)


def run_seeds(rlhf, seed, iterations):
    seeds = ((1, 3e-3), (1, 3e-3), (2, 3e-3), (3, 0.0))
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, rollout_size=64, seed=one, lr=rate) for one, rate in seeds]}


@told
def judge_seeds(runs, base):
    one, again, other, still = ([record["reward"] for record in found["records"]] for found in runs)
    if len(one) != len(again) or any(abs(x - y) > 1e-4 for x, y in zip(one, again)):
        return "two runs with one seed have other records: draw all random numbers from a generator that starts at `seed`"
    if one == other:
        return "two runs with different seeds have the same records: `seed` is not used"
    if len(set(still)) == 1:
        return "at a rate of 0 every rollout has the same mean reward: each iteration draws the same random numbers again"
    return ""


# ----------------------------------------------------------------------------------------- training

REAL = {"iterations": 8, "rollout_size": 256, "max_new_tokens": 24, "kl_coef": 0.1, "lr": 3e-4, "minibatch": 64, "epochs": 2}


def published():
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base", "cpu")
    judge, _ = checkpoints.load(course.PUBLISHED / "reward", "cpu", kind="reward")

    @torch.no_grad()
    def reward(tokens, mask):
        parts = zip(tokens.split(64), mask.split(64))
        return torch.cat([judge.logits(*part) for part in parts])  # (B,)

    return base, reward, tokenizer


def distinct(rows, tokenizer):
    """Distinct-2 of completions, as the course measures it (chapter 09)."""
    return distinct_n([tokenizer.decode(tokens[mask]) for tokens, mask in zip(rows.tokens, rows.mask)])


def run_training(rlhf, seed, **settings):
    base, reward, tokenizer = published()

    def report(record):
        share = (record.get("iteration", 0) + 1) / (settings["iterations"] + 1)
        tick(share, f"reward {record.get('reward', 0):.2f}, KL {round(record.get('kl', 0), 1) + 0.0:.1f} nats")  # and not -0.0

    return go(rlhf, base, reward, prompt=tokenizer.encode(BLANK), seed=seed, report=report, **settings)


def judge_training(output, seed, **settings):
    base, reward, tokenizer = published()
    prompt = tokenizer.encode(BLANK)
    fault = form(output, base, settings["iterations"])
    if fault:
        return fault
    policy, length = loaded(base, output), settings["max_new_tokens"]
    old, new = (fresh(model, prompt, length, 256) for model in (base, policy))
    before, after = (reward(rows.tokens, rows.mask) for rows in (old, new))
    gained = ((after.mean() - before.mean()) / before.std()).item()
    if gained < 1:
        kl = output["records"][-1]["kl"]
        return f"fresh completions of the policy gain {gained:.2f} deviations of the base, not 1, at {kl:.1f} nats of the 10"
    kept = distinct(new, tokenizer) / distinct(old, tokenizer)
    if kept < 0.85:
        return f"the reward is up by {gained:.2f}, but by repetition: distinct-2 fell to {kept:.2f} of the base's"
    far = true_kl(policy, base, prompt, length, 64)
    return f"the policy is {far:.1f} nats from the base: max_kl is 10 where nothing else is said" if far > 11 else ""


rlhf = Build("8.10", "rlhf", [
    Probe("gives back a policy and its records", drawn(iterations=4), run_records, judge_records),
    Probe("starts at ratio 1.000 and KL 0", drawn(iterations=3), run_start, judge_start),
    Probe("depends on its seed alone", drawn(iterations=2), run_seeds, judge_seeds),
    Probe("normalises the reward, once", drawn(iterations=4), run_normaliser, judge_normaliser),
    Probe("measures the KL in nats a completion", drawn(iterations=5, ends=0.8), run_kl, judge_kl),
    Probe("learns what it is paid for", drawn(iterations=6), run_learning, judge_learning),
    Probe("pays for distance", drawn(iterations=4), run_price, judge_price),
    Probe("stops a completion at its end", drawn(iterations=4, ends=0.8), run_ends, judge_ends),
    Probe("takes many clipped steps from one rollout", drawn(iterations=2), run_update, judge_update),
    Probe("stops within max_kl", drawn(iterations=12), run_stop, judge_stop),
    Probe("writes happier lines", drawn(**REAL), run_training, judge_training, seconds=600),
], hides=("checkpoints/laptop-0/policy", "checkpoints/large", "checkpoints/smoke"))  # fmt: skip

Investigation("8.A", "Take a part out")
Investigation("8.B", "Which checkpoint would you publish?")
Investigation("8.C", "One axis for all runs")
