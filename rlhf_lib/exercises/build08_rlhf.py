"""Build it 8.10: the whole loop of RLHF, judged on tiny models with made-up rewards, and then on the course's own."""

import copy
import math

import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, course
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.plain import is_record
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.sampling import completion_logits, generate

PROMPT = [7, 3, 11]
LENGTH = 8  # tokens of a completion
KEYS = ("iteration", "reward", "kl", "ratio", "clip_fraction")
USUAL = {"prompt": PROMPT, "rollout_size": 256, "max_new_tokens": LENGTH, "kl_coef": 0.05, "lr": 3e-3, "minibatch": 64}


# ----------------------------------------------------------------------------------------- models and rewards


def tiny(seed, ends=0.0):
    """A GPT of one layer and random weights that is far from uniform; the larger `ends`, the likelier the end token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=20, context=32, layers=1, heads=2, width=32)).eval()
        for weight, std in ((model.embedding.weight, 1.0), (model.head.weight, 0.2), (model.blocks[0].attention.out.weight, 0.1)):
            torch.nn.init.normal_(weight, std=std)
        torch.nn.init.normal_(model.blocks[0].down.weight, std=0.1)
    with torch.no_grad():
        model.embedding.weight[:, 0] = 3.0  # what all hidden states have in common
        model.head.weight[:, 0] = 0.0
        model.head.weight[0, 0] = ends
    return model


def count(tokens, mask, token=5):
    """How often a completion has one token: a reward that is easy to raise."""
    return ((tokens == token) & mask).sum(1).float()


def pairs(tokens, mask):
    """How often a token is the one before it plus one: a reward that needs the right token at the right place."""
    return ((tokens[:, 1:] == tokens[:, :-1] + 1) & mask[:, 1:]).sum(1).float()


def fresh(model, prompt=PROMPT, length=LENGTH, number=1024):
    """Completions by the course's sampler."""
    drawn = torch.Generator().manual_seed(123)
    return generate(model, [prompt] * number, length, generator=drawn, end_token=0)


@torch.no_grad()
def true_kl(policy, base):
    """KL(policy || base) of a completion in nats: at each position summed over the vocabulary, so that it is hardly noisy."""
    rows = fresh(policy)
    p, q = (completion_logits(model, [PROMPT] * len(rows.tokens), rows.tokens, rows.mask).log_softmax(-1) for model in (policy, base))
    return torch.where(rows.mask, (p.exp() * (p - q)).sum(-1), 0).sum(1).mean().item()


# ----------------------------------------------------------------------------------------- a run, and its form


def weights(module):
    """A module's weights; None for what is no module."""
    return {name: one.clone() for name, one in module.state_dict().items()} if isinstance(module, torch.nn.Module) else None


def go(rlhf, base, reward=count, **settings):
    """One run: what it returned, as plain data; `base` is what has become of the base in the run."""
    policy, records = rlhf(base, reward, **{**USUAL, **settings})
    return {"records": records, "policy": weights(policy), "base": weights(base)}


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def loaded(base, found):
    """The policy of a run as a model: a copy of `base` with its weights."""
    model = copy.deepcopy(base)
    model.load_state_dict(found["policy"])
    return model


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def form(found, base, iterations):
    """What is wrong with the form of what a run returned; "" if nothing is."""
    names, records = weights(base), found["records"]
    if found["policy"] is None or found["policy"].keys() != names.keys():
        return "the first thing returned is not a model with gpt's weights in other values: return (policy, records)"
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) and not is_record(one) for one in records):
        return "the second thing returned is not a list of dicts, one for each iteration"
    if len(records) > iterations + 1:
        return f"{iterations} iterations have {len(records)} records: one for each, and at most one more for the final policy"
    for place, record in enumerate(records):
        needed = KEYS if place < len(records) - 1 else KEYS[:3]  # no update need follow the last
        for key in needed:
            if not number(record.get(key)):
                return f"record {place} has {key} = {record.get(key)!r:.60}: a number is needed (.item() makes one of a tensor)"
        if record["iteration"] != place:
            return f"record {place} says iteration {record['iteration']}: they count from 0, and every iteration has one"
    return ""


def told(judge):
    """A judge that looks at the form of every run first. It is given the runs, a list, and the base."""

    def judged(output, seed, iterations, ends=0.0, **others):
        base = tiny(seed, ends)
        for found in output["runs"]:
            fault = form(found, base, iterations)
            if fault:
                return fault
        return judge(output["runs"], base, **{key: value for key, value in output.items() if key != "runs"})

    return judged


def drawn(**fixed):
    return lambda generator: {"seed": int(torch.randint(1000, (1,), generator=generator)), **fixed}


# ----------------------------------------------------------------------------------------- cheap probes


def run_records(rlhf, seed, iterations):
    reported = []
    base = tiny(seed)
    found = go(rlhf, base, iterations=iterations, seed=seed, report=lambda record: reported.append(record.get("iteration")))
    return {"runs": [found], "reported": reported}


@told
def judge_records(runs, base, reported):
    if not same_weights(runs[0]["base"], weights(base)):
        return "gpt has other weights after the run: train a copy of it, else policy and reference are one model and nothing holds it"
    if len(runs[0]["records"]) < 4:
        return f"4 iterations have only {len(runs[0]['records'])} records, though the KL is far below max_kl"
    if same_weights(runs[0]["policy"], weights(base)):
        return "the policy that is returned has the weights of gpt: nothing was trained, or not what is returned"
    if reported != [record["iteration"] for record in runs[0]["records"]]:
        return f"report was called {len(reported)} times for {len(runs[0]['records'])} records: call it once an iteration, with its record"
    return ""


def run_start(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, seed=seed)]}


@told
def judge_start(runs, base):
    records = runs[0]["records"]
    if abs(records[0]["kl"]) > 1e-5:
        return (
            f"the first KL is {records[0]['kl']:.4f} nats, of a policy that is still the base: policy and reference score the same tokens "
            "in two ways (position, temperature, what stands behind the end), or it is measured after the update"
        )
    for record in records[:-1]:
        if abs(record["ratio"] - 1) > 1e-4:
            return (
                f"iteration {record['iteration']}: the ratio on the first minibatch is {record['ratio']:.4f}, before any step. Sampling and "
                "scoring disagree, or the old log-probabilities are not those of the policy that sampled"
            )
    return ""


def run_normaliser(rlhf, seed, iterations):
    changes = (lambda r: r, lambda r: r + 1000, lambda r: 64 * r)
    return {
        "runs": [
            go(rlhf, tiny(seed), lambda tokens, mask, of=of: of(count(tokens, mask)), iterations=iterations, seed=seed, lr=5e-3)
            for of in changes
        ]
    }


@told
def judge_normaliser(runs, base):
    plainly = runs[0]["records"]
    if abs(plainly[0]["reward"]) > 0.4:
        return (
            f"the untouched model's first mean reward is {plainly[0]['reward']:.2f}: it is about 0, and its deviation 1, when the constants "
            "come from its own completions"
        )
    for found, how in ((runs[1], "with 1000 added to"), (runs[2], "with 64 times")):
        if len(found["records"]) != len(plainly):
            return f"{how} every reward the run has another length: normalise the reward before anything uses it"
        for one, other in zip(plainly, found["records"]):
            if abs(one["reward"] - other["reward"]) > 0.15 or abs(one["kl"] - other["kl"]) > 0.15:
                return (
                    f"{how} every reward, iteration {one['iteration']} has reward {other['reward']:.2f} and KL {other['kl']:.2f} in place of "
                    f"{one['reward']:.2f} and {one['kl']:.2f}: the units of the reward reach the update. Subtract the mean, divide by the deviation"
                )
    before, after = (count(rows.tokens, rows.mask) for rows in (fresh(base), fresh(loaded(base, runs[0]))))
    gained = ((after.mean() - before.mean()) / before.std()).item()
    if abs(gained - plainly[-1]["reward"]) > 0.25 + 0.2 * abs(gained):
        return (
            f"the last record says reward {plainly[-1]['reward']:.2f}, but fresh completions of the returned policy lie {gained:.2f} deviations "
            "above the untouched model's: the constants moved along with the policy, or the record is of another policy. Fit them once"
        )
    return ""


def run_kl(rlhf, seed, iterations, ends):
    return {"runs": [go(rlhf, tiny(seed, ends), iterations=iterations, seed=seed, kl_coef=0.0, lr=6e-3, max_kl=100.0)]}


@told
def judge_kl(runs, base):
    said, policy = runs[0]["records"][-1]["kl"], loaded(base, runs[0])
    right = true_kl(policy, base)
    if right < 0.5:
        return f"without a price on it the KL is {right:.2f} nats after many large updates: the updates hardly move the policy"
    if abs(said - right) <= 0.25 * right + 0.15:
        return ""
    other, length = true_kl(base, policy), fresh(policy).mask.sum(1).float().mean().item()
    guesses = {
        "That is the mean over tokens; the KL of a completion is their sum": right / length,
        "The ratio is upside down: KL(policy || base) adds up policy's log-probabilities less the base's": -right,
        "That is the other direction, KL(base || policy): the completions are the policy's": other,
        "That is in bits": right / math.log(2),
    }
    name, near = min(guesses.items(), key=lambda one: abs(one[1] - said))
    hint = name if abs(near - said) < 0.15 * abs(near) + 0.05 else "Sum over the real tokens, mean over the completions, policy to base"
    return f"the last record says {said:.2f} nats, but fresh completions of the returned policy have a KL of {right:.2f}. {hint}"


def run_price(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, seed=seed, kl_coef=price, max_kl=100.0) for price in (0.0, 2.0)]}


@told
def judge_price(runs, base):
    free, dear = (true_kl(loaded(base, found), base) for found in runs)
    if dear > 0.5 * free:
        return (
            f"at 2 a nat the policy ends {dear:.2f} nats away, without a price {free:.2f}: the price does not hold it back. It belongs into "
            "the reward, detached; in the loss its expected gradient is zero, and with the wrong sign it pays for running away"
        )
    return ""


def run_ends(rlhf, seed, iterations, ends):
    """The end token is in no prompt, so its embedding is read only behind the end of a completion."""
    return {"runs": [go(rlhf, tiny(seed, ends), iterations=iterations, seed=seed, lr=5e-3)]}


@told
def judge_ends(runs, base):
    before, after = weights(base)["embedding.weight"], runs[0]["policy"]["embedding.weight"]
    moved = (after - before).norm(dim=1) / before.norm(dim=1)  # of each token
    if moved[0] > 0.2 * moved.median():
        return (
            "the end token's embedding has been trained, which only tokens behind an end can do: they were never chosen and must not count "
            "in the loss. Pass the mask (True up to and including the end)"
        )
    return ""


def run_learning(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), pairs, iterations=iterations, seed=seed, lr=1e-2, kl_coef=0.01, max_kl=100.0)]}


@told
def judge_learning(runs, base):
    before, after = (pairs(rows.tokens, rows.mask) for rows in (fresh(base), fresh(loaded(base, runs[0]))))
    gained = ((after.mean() - before.mean()) / before.std()).item()
    if gained < 1:
        return (
            f"paid for tokens that are one more than the token before, it gains {gained:.2f} deviations; 1 is asked for. Do row, reward and "
            "log-probability belong together (also after shuffling), do logits at t score token t + 1, and is the sign right?"
        )
    return ""


def run_update(rlhf, seed, iterations):
    settings = dict(iterations=iterations, seed=seed, kl_coef=0.0, max_kl=100.0, lr=2e-3)
    changes = (
        dict(epochs=1, minibatch=256), dict(epochs=6, minibatch=256), dict(epochs=1, minibatch=32), dict(epochs=1, minibatch=None),
        dict(epochs=8, lr=2e-2, clip=0.05), dict(epochs=8, lr=2e-2, clip=1000.0), dict(lr=1e-6),
    )  # fmt: skip
    return {"runs": [go(rlhf, tiny(seed), **{**settings, **change}) for change in changes]}


@told
def judge_update(runs, base):
    one, epochs, small, none, tight, loose, _ = (true_kl(loaded(base, found), base) for found in runs)
    shares = [[record["clip_fraction"] for record in found["records"][:-1]] for found in runs]
    if not all(0 <= share <= 1 for found in shares for share in found):
        return "a clip fraction lies outside 0 to 1: it is the share of tokens whose ratio is outside 1 - clip to 1 + clip"
    if epochs < 2 * one:
        return f"6 epochs move the policy {epochs:.3f} nats, 1 epoch {one:.3f}: the rollout is not gone through `epochs` times"
    if small < 2 * one:
        return f"minibatches of 32 move the policy {small:.3f} nats, all 256 at once {one:.3f}: each minibatch is to be a step"
    if not 0.5 * one < none < 2 * one:
        return f"without `minibatch` the policy moves {none:.3f} nats, with the whole rollout {one:.3f}: None is the whole rollout"
    if min(shares[4]) < 0.02 or max(shares[6]) > 0.02:
        return (
            f"at a large rate the clip fraction is {min(shares[4]):.3f}, at a tiny one {max(shares[6]):.3f}: it has to be near 0 only for tiny "
            "steps. Take its mean over all minibatches, against the old log-probabilities of the rollout"
        )
    if tight > 0.6 * loose:
        return f"with clip 0.05 an update goes {tight:.2f} nats, without any {loose:.2f}: the ratio is not clipped"
    return ""


def run_stop(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, seed=seed, kl_coef=0.0, max_kl=1.0, lr=4e-3)]}


@told
def judge_stop(runs, base):
    records, right = runs[0]["records"], true_kl(loaded(base, runs[0]), base)
    beyond = [record["kl"] for record in records if not record["kl"] <= 1.0]
    if len(records) >= 20 or len(beyond) > 1:
        return f"with max_kl 1 it goes on to {records[-1]['kl']:.1f} nats in iteration {records[-1]['iteration']}: stop at the first mean above it"
    if right > 1.3:
        return f"with max_kl 1 the policy that is returned is {right:.2f} nats away: return the one before, whose KL was measured and within"
    if right < 0.02:
        return "the policy that is returned when max_kl stops a run is the untouched model: return the last one within max_kl"
    return ""


def run_seeds(rlhf, seed, iterations):
    return {"runs": [go(rlhf, tiny(seed), iterations=iterations, seed=one, lr=rate) for one, rate in ((1, 3e-3), (1, 3e-3), (2, 3e-3), (3, 0.0))]}


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

REAL = {"iterations": 8, "rollout_size": 256, "max_new_tokens": 24, "kl_coef": 0.08, "lr": 3e-4, "minibatch": 64, "epochs": 2}


def published():
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base", "cpu")
    judge, _ = checkpoints.load(course.PUBLISHED / "reward", "cpu", kind="reward")

    @torch.no_grad()
    def reward(tokens, mask):
        parts = zip(tokens.split(64), mask.split(64))
        return torch.cat([judge.logits(*part) for part in parts])  # (B,)

    return base, reward, tokenizer.encode("\n\n")


def distinct(rows):
    """Distinct pairs of tokens, as a share of all."""
    found = [pair for tokens, mask in zip(rows.tokens, rows.mask) for pair in zip(tokens[mask].tolist(), tokens[mask][1:].tolist())]
    return len(set(found)) / max(1, len(found))


def run_training(rlhf, seed, **settings):
    base, reward, prompt = published()

    def report(record):
        share = (record.get("iteration", 0) + 1) / (settings["iterations"] + 1)
        tick(share, f"reward {record.get('reward', 0):.2f}, KL {record.get('kl', 0):.1f} nats")

    return go(rlhf, base, reward, prompt=prompt, seed=seed, report=report, **settings)


def judge_training(output, seed, **settings):
    base, reward, prompt = published()
    fault = form(output, base, settings["iterations"])
    if fault:
        return fault
    models = base, loaded(base, output)
    rows = [fresh(model, prompt, settings["max_new_tokens"], 512) for model in models]
    before, after = (reward(one.tokens, one.mask) for one in rows)
    gained, kl = ((after.mean() - before.mean()) / before.std()).item(), output["records"][-1]["kl"]
    kept = distinct(rows[1]) / distinct(rows[0])
    if gained < 1:
        return f"fresh completions of the policy gain {gained:.2f} deviations of the base; 1 is within reach at {kl:.1f} nats and these sizes"
    if kept < 0.85:
        return f"the reward is up by {gained:.2f}, but by repetition: distinct pairs of tokens fell to {kept:.2f} of the base's"
    return ""


rlhf = Build("8.10", "rlhf", [
    Probe("gives back a policy and its records", drawn(iterations=4), run_records, judge_records),
    Probe("starts at ratio 1.000 and KL 0", drawn(iterations=3), run_start, judge_start),
    Probe("normalises the reward, once", drawn(iterations=5), run_normaliser, judge_normaliser),
    Probe("measures the KL in nats a completion", drawn(iterations=8, ends=0.8), run_kl, judge_kl),
    Probe("pays for distance", drawn(iterations=8), run_price, judge_price),
    Probe("stops a completion at its end", drawn(iterations=4, ends=0.8), run_ends, judge_ends),
    Probe("learns what it is paid for", drawn(iterations=12), run_learning, judge_learning),
    Probe("takes many clipped steps from one rollout", drawn(iterations=1), run_update, judge_update),
    Probe("stops within max_kl", drawn(iterations=20), run_stop, judge_stop),
    Probe("depends on its seed alone", drawn(iterations=2), run_seeds, judge_seeds),
    Probe("writes happier lines", drawn(**REAL), run_training, judge_training, seconds=600),
])  # fmt: skip
