"""What Build it 11.13 is tried with before it trains a real model: probes on tiny ones with made-up rewards."""

import torch

from rlhf_lib.exercises.build08_probes import broken_fault
from rlhf_lib.exercises.tiny_assistant import END, PROMPTS, Critic, by_prompt, fresh, gain, go, loaded, run_broken, told, true_kl
from rlhf_lib.exercises.tiny_rlhf import count, pairs, same_weights, weights


def run_records(built, seed, iterations):
    return {"runs": [go(built, seed, iterations=iterations, frozen=["blocks.0.up", "head"])]}


@told
def judge_records(runs, base):
    found, start = runs[0], weights(base)
    if len(found["records"]) < 4:
        return f"3 iterations have only {len(found['records'])} records: one before each update, and one behind the last"
    reported, records = found["reported"], found["records"]
    if [record.get("iteration") for record in reported] != [record["iteration"] for record in records]:
        return f"report was called {len(reported)} times for {len(records)} records: once each, when complete"
    for name in ("ratio", "clip_fraction"):
        if any(early.get(name) != record[name] for early, record in zip(reported, records)):
            return f"report is given a record whose {name} changes later: call it when the update behind the rollout is done"
    for name in ("blocks.0.up.weight", "head.weight"):
        for model, place in (("policy", name), ("critic", f"body.{name}")):
            if not torch.equal(found[model][place], start[name]) or f"{model} {name}" not in found["frozen"]:
                return f"the {model}'s {name} was frozen and has moved, or is not any more: train only what requires a gradient"
    if torch.equal(found["policy"]["embedding.weight"], start["embedding.weight"]):
        return "the policy that came in has not moved: it is trained in place"
    if same_weights(found["critic"], weights(Critic(base))):
        return "the critic has not moved: it learns too, in place, from its own loss"
    return ""


def run_start(built, seed, iterations):
    return {"runs": [go(built, seed, iterations=iterations), go(built, seed, iterations=iterations, noise=0.2)]}


@told
def judge_start(runs, base):
    first = runs[0]["records"][0]
    if abs(first["kl"]) > 1e-5:
        return (
            f"the first KL is {first['kl']:.4f} nats, of a policy that still is the reference: are both scored in the same "
            "way, and before the update?"
        )
    for place, found in enumerate(runs):
        for record in found["records"][:-1]:
            if abs(record["ratio"] - 1) > 1e-4:
                hint = (
                    ": the sampler's own log-probabilities stand for the old ones. Here they are a little off, as those of half "
                    "precision are: score the answers again, the way they are scored in the update"
                    if place
                    else ", before any step: old and new log-probabilities are of other tokens, or the old of another policy"
                )
                return f"iteration {record['iteration']}: the ratio on the first minibatch is {record['ratio']:.4f}{hint}"
    return ""


def run_kl(built, seed, iterations, ends):
    return {"runs": [go(built, seed, ends=ends, iterations=iterations, kl_coef=0.0, lr=6e-3)]}


@told
def judge_kl(runs, base):
    said, policy = runs[0]["records"][-1]["kl"], loaded(base, runs[0]["policy"])
    right, length = true_kl(policy, base), fresh(policy)[1].mask.sum(1).float().mean().item()
    if right < 0.3:
        return f"without a price on it the KL is {right:.2f} nats after many large updates: they hardly move the policy"
    if abs(said - right) <= 0.25 * right + 0.15:
        return ""
    guesses = {
        "That is the mean over tokens; the KL of an answer is their sum": right / length,
        "The ratio is upside down: the policy's log-probabilities less the reference's": -right,
    }
    name, near = min(guesses.items(), key=lambda one: abs(one[1] - said))
    hint = (
        name
        if abs(near - said) < 0.15 * abs(near) + 0.05
        else "Which logits predict an answer's first token, behind prompts that are padded on the left? Is the mask handed on?"
    )
    return f"the last record says {said:.2f} nats, fresh answers of the trained policy have a KL of {right:.2f}. {hint}"


def run_padding(built, seed, iterations, ends):
    return {"runs": [go(built, seed, ends=ends, iterations=iterations, lr=5e-3)]}


@told
def judge_padding(runs, base):
    asked = runs[0]["asked"]
    if not all(one["left"] for one in asked):
        return "prompts are padded on the left: the last place of each is a real token, which the answer goes on from"
    known = {tuple(prompt) for prompt in PROMPTS}
    if any(tuple(prompt) not in known for one in asked for prompt in one["prompts"]):
        return "by the mask the sampler was given prompts that are none of `prompts`: the mask is True on a prompt's tokens alone"
    for state, start, name in ((runs[0]["policy"], weights(base), ""), (runs[0]["critic"], weights(Critic(base)), "body.")):
        place = f"{name}embedding.weight"
        moved = (state[place] - start[place]).norm(dim=1) / start[place].norm(dim=1)  # of each token
        if max(moved[0], moved[END]) > 0.2 * moved.median():
            return (
                f"the {'critic' if name else 'policy'} has learned from padding, or from what stands behind an end: the "
                "embedding of a token that is only there has moved. Give the models the mask of prompt and answer, and losses "
                "and whitening the answer's; or logits and values are read a place late: answer token t's stand at P + t - 1"
            )
    if runs[0]["behind"]:
        names = " and ".join(runs[0]["behind"])
        return f"the mask of {names} is True behind the end of answers: it is on real tokens alone, of prompt and answer"
    return ""


def run_prompts(built, seed, iterations):
    return {"runs": [go(built, seed, iterations=iterations, rollout_size=size, minibatch=8) for size in (16, 40)]}


@told
def judge_prompts(runs, base):
    for found, size in zip(runs, (16, 40)):
        for one in found["asked"][-2:]:
            counts = [one["prompts"].count(prompt) for prompt in PROMPTS]
            if sum(counts) != size:
                return f"a rollout has {sum(counts)} answers; rollout_size is {size}"
            if max(counts) - min(counts) > 1:
                return (
                    f"of 16 prompts one stands {max(counts)} times in a rollout of {size}, another {min(counts)} times: they are "
                    "drawn without repetition until all were there"
                )
    if runs[0]["asked"][-1]["prompts"] == runs[0]["asked"][-2]["prompts"]:
        return "every rollout has the prompts in one order: draw a new one each time"
    return ""


def run_price(built, seed, iterations):
    return {"runs": [go(built, seed, iterations=iterations, kl_coef=price) for price in (0.0, 3.0)]}


@told
def judge_price(runs, base):
    free, dear = (true_kl(loaded(base, found["policy"]), base) for found in runs)
    if dear <= 0.5 * free:
        return ""
    return (
        f"at 3 a nat the policy ends {dear:.2f} nats away, without a price {free:.2f}: the price does not hold it back. It is "
        "part of every token's reward, with a minus"
    )


def run_ends(built, seed, iterations, ends):
    settings = dict(ends=ends, iterations=iterations, kl_coef=0.0, lr=5e-3, end_penalty=2.0)
    return {"runs": [go(built, seed, lambda prompts, tokens, mask: torch.zeros(len(tokens)), **settings)]}


@told
def judge_ends(runs, base):
    def share(model):
        rows = fresh(model)[1]
        return ((rows.tokens == END) & rows.mask).any(1).float().mean().item()

    before, after, said = share(base), share(loaded(base, runs[0]["policy"])), runs[0]["records"][-1]["ended"]
    if abs(said - after) > 0.15:
        return (
            f"the last record says that {said:.0%} of the answers end, of fresh ones {after:.0%} do: the share with the end token"
        )
    if after > before + 0.15:
        return ""
    return (
        f"with nothing to gain but the penalty for answers without an end, {after:.0%} of the answers end, before "
        f"{before:.0%}: the penalty does not reach those that have no end token"
    )


def run_critic(built, seed, iterations):
    settings = dict(iterations=iterations, kl_coef=0.0, lr=1e-5, critic_lr=2e-2, value_clip=10.0, epochs=4)
    return {"runs": [go(built, seed, by_prompt, **settings)]}


@told
def judge_critic(runs, base):
    asked, rows = fresh(base, 256)
    longest = max(map(len, asked))
    start = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    real = torch.arange(longest) >= longest - torch.tensor([[len(prompt)] for prompt in asked])
    with torch.no_grad():
        critic = loaded(Critic(base), runs[0]["critic"]).eval()
        values = critic(torch.cat([start, rows.tokens], 1), torch.cat([real, rows.mask], 1))[:, longest - 1 : -1][rows.mask]
    returns = by_prompt(asked, None, None)[:, None].expand(rows.mask.shape)[rows.mask]
    right = (1 - (returns - values).var() / returns.var()).item()
    said = runs[0]["records"][-1]["explained_variance"]
    if right < 0.5:
        return (
            f"the prompt alone decides the reward, and the critic explains {right:.2f} of the returns' variance after all "
            "iterations: is its loss on the returns (advantages before whitening plus values), is a value read where its token "
            "is predicted, does each update go through the rollout `epochs` times, at the rate critic_lr?"
        )
    if not abs(said - right) < 0.3:
        return (
            f"the last record says that {said:.2f} of the variance is explained, on fresh answers it is {right:.2f}: take the "
            "real tokens, and the values of before the update"
        )
    return ""


def run_scale(built, seed, iterations):
    rewards = [lambda prompts, tokens, mask, by=by: by * count(tokens, mask) for by in (1, 64)]
    return {"runs": [go(built, seed, one, iterations=iterations, kl_coef=0.0) for one in rewards]}


@told
def judge_scale(runs, base):
    one, other = (found["policy"] for found in runs)
    apart = max((one[name] - other[name]).abs().max().item() for name in one)
    moved = max((one[name] - start).abs().max().item() for name, start in weights(base).items())
    if apart <= 0.05 * moved:
        return ""
    return (
        "with 64 times the reward the first update is another one: the advantages are not whitened (mean 0 and deviation 1 "
        "over all real tokens of the rollout), or made anew when the critic has moved, or the critic's loss moves the policy"
    )


UPDATES = (
    dict(epochs=1, minibatch=128), dict(epochs=6, minibatch=128), dict(epochs=1, minibatch=16),
    dict(epochs=6, minibatch=64, lr=2e-2, clip=0.05), dict(epochs=6, minibatch=64, lr=2e-2, clip=1000.0),
    dict(lr=1e-6, minibatch=48), dict(epochs=2, minibatch=128, lr=2e-2, clip=1e-4),
)  # fmt: skip


def run_update(built, seed, iterations):
    return {"runs": [go(built, seed, **{"iterations": iterations, "kl_coef": 0.0, "lr": 2e-3, **one}) for one in UPDATES]}


@told
def judge_update(runs, base):
    one, epochs, small, tight, loose, *_ = (true_kl(loaded(base, found["policy"]), base, 256) for found in runs)
    shares = [[record["clip_fraction"] for record in found["records"][:1]] for found in runs]  # of the one update
    if not all(0 <= share <= 1 for found in shares for share in found):
        return "a clip fraction lies outside 0 to 1: it is the share of tokens whose ratio is outside 1 - clip to 1 + clip"
    if epochs < 2 * one:
        return f"6 epochs move the policy {epochs:.3f} nats, 1 epoch {one:.3f}: the rollout is not gone through `epochs` times"
    if small < 2 * one:
        return f"minibatches of 16 move the policy {small:.3f} nats, all 128 at once {one:.3f}: each minibatch is to be a step"
    if runs[5]["learned"] < 2 * 128:
        seen = runs[5]["learned"] // 2
        return f"of 128 answers in minibatches of 48 an epoch learns from {seen}: the 32 that are left are a minibatch too"
    if shares[3][0] < 0.02 or max(shares[5]) > 0.02:
        return (
            f"at a large rate the clip fraction is {shares[3][0]:.3f}, at a tiny one {max(shares[5]):.3f}: it is the mean over "
            "all minibatches, against the log-probabilities of the rollout, which stay"
        )
    if abs(shares[6][0] - 0.5) > 0.1:
        return (
            f"with a tiny clip and two minibatches the clip fraction is {shares[6][0]:.2f}: the first has none, the second "
            "nearly all, and their mean is 0.5. Take the mean over all minibatches of the update"
        )
    if tight <= 0.6 * loose:
        return ""
    return f"with clip 0.05 an update goes {tight:.2f} nats, without any {loose:.2f}: the ratio is not clipped"


def run_values(built, seed, iterations):
    settings = dict(iterations=iterations, kl_coef=0.0, lr=1e-6, epochs=8, critic_lr=2e-2)
    return {"runs": [go(built, seed, by_prompt, value_clip=clip, **settings) for clip in (0.01, 1000.0)]}


@told
def judge_values(runs, base):
    asked, rows = fresh(base, 64)
    whole = [torch.tensor([prompt + row[real].tolist()]) for prompt, row, real in zip(asked, rows.tokens, rows.mask)]
    with torch.no_grad():
        tight, loose = (
            torch.cat([loaded(Critic(base), found["critic"])(one)[0, :-1] for one in whole]).abs().mean().item() for found in runs
        )
    if tight <= 0.5 * loose:
        return ""
    return (
        f"one update with value_clip 0.01 moves the values by {tight:.2f}, without a clip by {loose:.2f}: a value that has "
        "left its old one by more than the clip gets no gradient any further. The old ones are the rollout's, for all epochs"
    )


def run_learning(built, seed, iterations):
    return {"runs": [go(built, seed, pairs, iterations=iterations, lr=1e-2, kl_coef=0.01)]}


@told
def judge_learning(runs, base):
    gained = gain(loaded(base, runs[0]["policy"]), base, pairs)
    if gained >= 2:
        return ""
    return (
        f"paid for tokens that are one more than the token before, it gains {gained:.2f} deviations, not 2: do row, reward and "
        "log-probability belong together after shuffling, do logits at t score token t + 1, is the sign right?"
    )


def run_stop(built, seed, iterations):
    """Once with a limit, once without, and twice with one that is a little below, and above, the KL of the last rollout."""
    settings = dict(kl_coef=0.0, lr=3e-3)
    runs = [go(built, seed, iterations=iterations, max_kl=1.5, **settings), go(built, seed, iterations=2, **settings)]
    limits = [share * runs[1]["records"][-1]["kl"] for share in (0.97, 1.03)]
    runs += [go(built, seed, iterations=2, max_kl=most, **settings) for most in limits]
    return {"runs": runs, "limits": limits, "broken": run_broken(built, seed)}


@told
def judge_stop(runs, base, limits, broken):
    records, right = runs[0]["records"], true_kl(loaded(base, runs[0]["policy"]), base)
    if len(records) > 12 or any(record["kl"] > 1.5 for record in records):
        most = max(record["kl"] for record in records)
        return f"with max_kl 1.5 the records go on to {most:.1f} nats: stop at the first rollout not within, without its record"
    if right > 1.3 * records[-1]["kl"] + 0.4:
        return (
            f"the last record within max_kl 1.5 says {records[-1]['kl']:.2f} nats, and the policy that is left is {right:.2f} "
            "away: put back the weights of the last one within"
        )
    if right < 0.02:
        return "what is left when max_kl stops a run is the untouched policy: put back the last one within max_kl"
    far = [record["kl"] for record in runs[1]["records"]]
    for found, most in zip(runs[2:], limits):
        wanted = next((place for place, kl in enumerate(far) if kl > most), len(far))
        if len(found["records"]) != wanted:
            return (
                f"with max_kl {most:.3f} a run has {len(found['records'])} records; without it the KLs are "
                f"{', '.join(f'{kl:.3f}' for kl in far)}: stop at the first that is not within max_kl itself, without its record"
            )
    return broken_fault(broken, base)


def run_seeds(built, seed, iterations):
    runs = []
    for own, rate in ((1, 3e-3), (1, 3e-3), (2, 3e-3), (3, 0.0)):
        torch.manual_seed(len(runs))  # what is around a run is another each time
        runs.append(go(built, seed, own=own, iterations=iterations, lr=rate))
    return {"runs": runs}


@told
def judge_seeds(runs, base):
    one, again, other, still = ([record["reward"] for record in found["records"]] for found in runs)
    if len(one) != len(again) or any(abs(x - y) > 1e-4 for x, y in zip(one, again)):
        return "two runs with one seed have other records: draw all random numbers from a generator that starts at `seed`"
    if one == other:
        return "two runs with different seeds have the same records: `seed` is not used"
    if len(set(still)) > 1:
        return ""
    return "at a rate of 0 every rollout is the same: each iteration draws the same random numbers again"
