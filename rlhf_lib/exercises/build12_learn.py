"""Build it 12.12: the loop around any row of the table, judged on a tiny model by what passes through its hands."""

import torch

from rlhf_lib.exercises import tiny_groups as groups
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build08_probes import broken_fault
from rlhf_lib.exercises.tiny_groups import GROUP, PROMPTS, go, match, prices, rows_of, spoken, tiny, told, trained, true_kl
from rlhf_lib.exercises.tiny_rlhf import drawn, same_weights, weights

# ----------------------------------------------------------------------------------------- cheap probes


def run_records(learn, seed, iterations):
    reported = []
    found = go(learn, seed, iterations=iterations, report=lambda record: reported.append(dict(record)))
    return {"runs": [found], "reported": reported}


@told
def judge_records(runs, seed, reported):
    records = runs[0]["records"]
    if len(records) != 3 or len(runs[0]["rollouts"]) != 3:
        there = f"{len(runs[0]['rollouts'])} rollouts and {len(records)} records"
        return f"2 updates have {there}: one before each update, and one more that measures the last policy"
    if same_weights(runs[0]["policy"], weights(tiny(seed))):
        why = "train it in place, and no copy of it; and give each completion of a prompt its own uniforms, or all are alike"
        return f"the policy has the weights that it came with: {why}"
    if reported != records:
        return f"report was called {len(reported)} times for {len(records)} records: once for each, when it is complete"
    return ""


def run_groups(learn, seed, iterations):
    return {"runs": [go(learn, seed, iterations=iterations)]}


@told
def judge_groups(runs, **_):
    found = runs[0]
    for rollout in found["rollouts"]:
        asked = rollout["prompts"]
        if sorted(asked) != sorted(PROMPTS * GROUP):
            return f"a rollout has {GROUP} completions (`group`) of each of the 16 prompts; this one has {len(asked)} rows"
    for call in found["calls"]:
        rollout = found["rollouts"][call["rollout"]]
        rows, far = rows_of(call, rollout)
        if far.max() > 1e-3:
            continue  # what else is compared is the next probe's
        asked = [rollout["prompts"][row] for row in rows.tolist()]
        for start in range(0, len(asked), GROUP):
            if any(one != asked[start] for one in asked[start : start + GROUP]):
                return (
                    "a row of the rewards has completions of different prompts: an easy prompt then looks like a good answer. "
                    f"Let the {GROUP} completions of a prompt stand one after another, and shuffle whole groups"
                )
        raw = rollout["raw"][rows].view(-1, GROUP)
        if call["rollout"] == 0 and (call["rewards"] - raw).abs().max() > 1e-3:  # there is no KL yet
            return (
                "in the first rollout, before any KL, the rewards in a call to `loss` are not those of its completions: are they "
                "taken in another order than the log-probabilities, or changed?"
            )
    sizes = {len(call["rewards"]) for call in found["calls"]}
    if sizes != {4}:
        return f"a step has {sorted(sizes)} prompts; `minibatch` is 4, a number of prompts, each with all its completions"
    return ""


def run_level_start(learn, seed, iterations):
    return {"runs": [go(learn, seed, iterations=iterations, noise=0.3, epochs=3)]}


@told
def judge_level_start(runs, **_):
    found, seen = runs[0], set()
    for call in found["calls"]:
        rollout = found["rollouts"][call["rollout"]]
        far = rows_of(call, rollout)[1]
        gap = torch.where(call["mask"], call["new"] - call["old"], 0.0).abs().max()
        if call["rollout"] not in seen and gap > 1e-3:
            said = torch.where(call["mask"], call["old"], 0)
            noisy = torch.where(rollout["mask"], rollout["said"], 0)
            if (said[:, None] - noisy).abs().amax(-1).amin(1).max() < 1e-4:
                return (
                    "the old log-probabilities are those that the sampler gives, which may be off by a little: the ratio is not "
                    "1 before the first step. Score old and new by the same line"
                )
            return (
                "before the first step on a rollout new and old log-probabilities differ: both are the policy's, of the same "
                "tokens, at the same places, without dropout. The reference's have no part in the ratio"
            )
        if far.max() > 1e-3:
            if call["rollout"] not in seen:
                return "these are not the log-probabilities of the rollout's tokens: token t is predicted by the logits at t - 1"
            return (
                "in a later step on a rollout the old log-probabilities are others than in the first: they are those of the "
                "policy that sampled, and stay until the next rollout"
            )
        seen.add(call["rollout"])
    if abs(found["records"][0]["kl"]) > 1e-4:
        return f"the first KL is {found['records'][0]['kl']:.4f} nats, of a policy that still is the reference"
    if any(abs(record["ratio"] - 1) > 1e-3 for record in found["records"]):
        return "a record's ratio is not 1: it is that of the first step on its rollout, before the step; 1 in the last record"
    steps = [sum(call["rollout"] == place for call in found["calls"]) for place in range(len(found["rollouts"]))]
    if any(count != 12 for count in steps[:-1]):
        return f"3 epochs over 16 prompts in minibatches of 4 are 12 steps a rollout; there were {steps[0]}"
    return ""


def run_epochs(learn, seed, iterations):
    return {"runs": [go(learn, seed, iterations=iterations, epochs=3, minibatch=6)]}


@told
def judge_epochs(runs, **_):
    found, orders = runs[0], []
    for place, rollout in enumerate(found["rollouts"][:-1]):
        steps = [groups.prompts_of(call, rollout) for call in found["calls"] if call["rollout"] == place]
        if len(steps) == 6 and all(len(step) == 6 for step in steps):
            return "the last minibatch of an epoch is left out, where 16 prompts in minibatches of 6 leave 4 for it"
        epochs = [steps[start : start + 3] for start in range(0, len(steps), 3)]
        if len(steps) != 9 or any(sum(map(len, epoch)) != 16 or len(frozenset().union(*epoch)) != 16 for epoch in epochs):
            return (
                "3 epochs over 16 prompts in minibatches of 6 are 9 steps, with each prompt once in every 3 of them; there were "
                f"{len(steps)}, with {', '.join(map(str, map(len, steps[:3])))} prompts in the first 3"
            )
        asked = [tuple(prompt) for prompt in rollout["prompts"][::GROUP]]
        if epochs[0] == [frozenset(asked[start : start + 6]) for start in (0, 6, 12)]:
            return "the prompts are taken in the order in which they were sampled: each epoch has a new order, drawn by chance"
        orders += [frozenset(epoch) for epoch in epochs]
    if len({*orders}) < len(orders):
        return "two epochs have the same prompts in the same minibatches: draw a new order of the prompts for every epoch"
    return ""


def run_steps(learn, seed, iterations):
    return {"runs": [go(learn, seed, iterations=iterations, lr=1e-2)]}


@told
def judge_steps(runs, seed):
    found = runs[0]
    right, left = groups.replayed(found, seed, 1e-2), found["policy"]
    mistakes = {
        "a new Adam begins in every iteration, and knows nothing of the steps before: make one for the whole run":
            {"optimizer": "rollout"},
        "a new Adam begins in every step, and all weights move by the rate, however small a gradient is: make one for the run":
            {"optimizer": "step"},
        "the gradients are never set to zero: each step is along the sum of all before it": {"cleared": "run"},
        "the gradients are set to zero once a rollout; each step needs its own": {"cleared": "rollout"},
    }  # fmt: skip
    for meaning, options in mistakes.items():
        wrong = groups.replayed(found, seed, 1e-2, **options)
        if groups.apart(left, wrong) < 0.1 * groups.apart(right, wrong):
            return meaning
    if groups.apart(left, right) > 0.5 * groups.apart(weights(tiny(seed)), right):
        return "one Adam at the rate `lr` makes other weights of these losses: one step after each call of `loss`, and no other"
    return ""


def run_price(learn, seed, iterations):
    return {"runs": [go(learn, seed, ends=0.8, iterations=iterations, kl_coef=0.7, lr=1e-2, epochs=2)]}


@told
def judge_price(runs, **_):
    found = runs[0]
    for call in found["calls"]:
        if call["rollout"] == 0:
            continue  # there is no KL yet
        rollout = found["rollouts"][call["rollout"]]
        rows, _ = rows_of(call, rollout)
        raw, kl = rollout["raw"][rows], prices(rollout)[rows]
        lengths = rollout["mask"].sum(1)[rows]
        whole = (rollout["old"] - rollout["ref"]).sum(1)[rows]
        paid = call["rewards"].flatten()
        if (paid - (raw - 0.7 * kl)).abs().max() < 1e-3:
            continue
        guesses = {
            "no price is taken off: each completion pays `kl_coef` times its KL": raw,
            "the price is added: distance is paid for": raw + 0.7 * kl,
            "the price is that of a mean over tokens; a completion's KL is their sum": raw - 0.7 * kl / lengths,
            "tokens behind the end are charged too": raw - 0.7 * whole,
            "every completion pays the mean KL, which no comparison within a group sees; each pays its own":
                raw - 0.7 * prices(rollout).mean(),
        }  # fmt: skip
        for meaning, guess in guesses.items():
            if (paid - guess).abs().max() < 1e-3:
                return f"the rewards that `loss` is given: {meaning}"
        return "the rewards that `loss` is given are not what `reward` said, less `kl_coef` times each completion's own KL"
    return ""


def run_measured(learn, seed, iterations):
    """Rewards of few values, so that some groups agree."""

    def coarse(prompts, tokens, mask):
        return (match(prompts, tokens, mask) > 0.25).float()

    settings = dict(iterations=iterations, kl_coef=0.2, lr=1e-2)
    return {"runs": [go(learn, seed, coarse, **settings), go(learn, seed, ends=0.8, uneven=0.3, **settings)]}


@told
def judge_measured(runs, **_):
    for record, rollout in zip(runs[0]["records"], runs[0]["rollouts"]):
        raw, kl = rollout["raw"], prices(rollout).mean().item()
        silent = (raw.view(-1, GROUP) == raw.view(-1, GROUP)[:, :1]).all(1).float().mean().item()
        here = f"iteration {record['iteration']}"
        if abs(record["kl"] - kl) > 1e-3 + 0.01 * abs(kl):
            return (
                f"{here}: the record says a KL of {record['kl']:.3f} nats, and its rollout has {kl:.3f}: the sum over a "
                "completion's tokens, the mean over completions, before the update"
            )
        if abs(record["reward"] - raw.mean().item()) > 1e-4:
            return f"{here}: the record's reward is {record['reward']:.3f}, and `reward` gave {raw.mean():.3f}, without the price"
        if abs(record["silent"] - silent) > 1e-4:
            return (
                f"{here}: {record['silent']:.3f} of the groups are said to be silent; in {silent:.3f} of them `reward` gave all "
                "completions the same"
            )
    return judge_ratio(runs[1])


def judge_ratio(found):
    """The ratio of a policy whose log-probabilities in a minibatch are others than in the rollout."""
    for place, record in enumerate(found["records"][:-1]):
        call = next(one for one in found["calls"] if one["rollout"] == place)
        ratio, mask, said = (call["new"] - call["old"]).exp(), call["mask"], record["ratio"]
        right = ratio[mask].mean().item()
        of_completions = (torch.where(mask, ratio, 0).sum(1) / mask.sum(1)).mean().item()
        if min(abs(said - right), abs(said - of_completions)) < 1e-3:
            continue
        if abs(said - 1) < 1e-6:
            return f"a record's ratio is 1, where `loss` was given new and old log-probabilities of ratio {right:.3f}: measure it"
        if abs(said - ratio.mean().item()) < 1e-3:
            return f"a record's ratio is {said:.3f}, over padding too; over the completions' own tokens it is {right:.3f}"
        return f"a record's ratio is {said:.3f}; the first minibatch, before its step, has a mean ratio of {right:.3f} a token"
    return ""


def run_stop(learn, seed, iterations):
    """Once without a limit, and twice with one that is a little below, and above, the KL after the second update."""
    settings = dict(iterations=iterations, kl_coef=0.0, lr=1e-2)
    free = go(learn, seed, **settings)
    limits = [share * free["records"][:3][-1]["kl"] for share in (0.97, 1.03)]
    runs = [*(go(learn, seed, **settings, max_kl=most) for most in limits), free]
    return {"runs": runs, "limits": limits, "broken": groups.run_broken(learn, seed)}


@told
def judge_stop(runs, seed, limits, broken):
    far = [record["kl"] for record in runs[2]["records"]]
    if max(far) < 1.2:
        return f"without a price and a limit the KL gets to {max(far):.2f} nats: the policy is hardly trained"
    fault = stopped(runs[0], seed, far, limits[0]) or stopped(runs[1], seed, far, limits[1])
    return fault or broken_fault(broken, tiny(seed))


def stopped(found, seed, far, most):
    """What is wrong with a run with a limit, by the KLs of one without; "" if nothing is."""
    wanted = next((place for place, kl in enumerate(far) if kl > most), len(far))
    if len(found["records"]) != wanted:
        return (
            f"with max_kl {most:.2f} there are {len(found['records'])} records; the run stops at the first rollout whose mean KL "
            f"is not within it, as a NaN is not, without a record of it, and so has {wanted}"
        )
    last = found["rollouts"][len(found["records"]) - 1]
    with torch.no_grad():
        now = spoken(trained(found, seed), last["prompts"], last["tokens"])
    if torch.where(last["mask"], now - last["old"], 0).abs().max() > 1e-3:
        return f"with max_kl {most:.2f} the policy ends {true_kl(found, seed):.2f} nats away: put the last one back within it"
    return ""


def run_seeds(learn, seed, iterations):
    runs = []
    for globally, own, lr in ((1, 1, 3e-3), (2, 1, 3e-3), (2, 2, 3e-3), (3, 1, 0.0)):
        torch.default_generator.manual_seed(globally)
        runs.append(go(learn, seed, own=own, iterations=iterations, lr=lr))
    return {"runs": runs}


@told
def judge_seeds(runs, **_):
    one, again, other, still = ([record["reward"] for record in found["records"]] for found in runs)
    if len(one) != len(again) or any(abs(x - y) > 1e-4 for x, y in zip(one, again)):
        return "two runs with one seed have other records: draw all random numbers from a generator that starts at `seed`"
    if one == other:
        return "two runs with different seeds have the same records: `seed` is not used"
    if len(set(still)) == 1:
        return "at a rate of 0 every rollout has the same mean reward: each iteration draws the same random numbers again"
    return ""


# ----------------------------------------------------------------------------------------- training


def run_learning(learn, seed, iterations):
    runs, methods = [], ("rloo", "grpo", "gspo")
    for place, method in enumerate(methods):

        def report(record, place=place, method=method):
            share = (record.get("iteration", 0) + 1) / (iterations + 1)
            tick((place + share) / len(methods), f"{method}: reward {record.get('reward', 0):.2f}")

        runs.append(go(learn, seed, method=method, iterations=iterations, lr=1e-2, kl_coef=0.02, report=report))
    return {"runs": [{**found, "rollouts": [], "calls": found["calls"][:1]} for found in runs]}


@told
def judge_learning(runs, seed):
    for method, found in zip(("rloo", "grpo", "gspo"), runs):
        before, after = groups.earned(tiny(seed)), groups.earned(trained(found, seed))
        if abs(found["records"][-1]["reward"] - after) > 0.1:
            said = found["records"][-1]["reward"]
            return f"{method}: the last record says a reward of {said:.2f}, and the policy that is left gets {after:.2f}"
        if not after > before + 0.2:
            return (
                f"{method}: paid for repeating its prompt it gets from {before:.2f} to {after:.2f}, and should gain 0.2: do "
                "rewards and rows belong together after the shuffling, is every step taken, are the gradients set to zero?"
            )
        right = true_kl(found, seed)
        if abs(found["records"][-1]["kl"] - right) > 0.5 + 0.3 * right:
            return f"{method}: the last record says {found['records'][-1]['kl']:.1f} nats, and the policy is {right:.1f} away"
    return ""


learn = Build("12.12", "learn", [
    Probe("trains the policy, and says what it measured", drawn(iterations=2), run_records, judge_records),
    Probe("a group is one prompt's", drawn(iterations=2), run_groups, judge_groups),
    Probe("starts each rollout at ratio 1", drawn(iterations=2), run_level_start, judge_level_start),
    Probe("every epoch takes all prompts, in a new order", drawn(iterations=2), run_epochs, judge_epochs),
    Probe("one Adam takes every step", drawn(iterations=2), run_steps, judge_steps),
    Probe("each completion pays for its own distance", drawn(iterations=2), run_price, judge_price),
    Probe("measures what the records say", drawn(iterations=3), run_measured, judge_measured),
    Probe("stops within max_kl", drawn(iterations=4), run_stop, judge_stop),
    Probe("depends on its seed alone", drawn(iterations=2), run_seeds, judge_seeds),
    Probe("learns by every row", drawn(iterations=24), run_learning, judge_learning, seconds=180),
])  # fmt: skip
