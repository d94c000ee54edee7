"""Chapter 13: the bug hunt. A program that was mended is judged by what it records, and by nothing in its text.

Each check runs the learner's program with a drawn seed. The sentences say what the curves still show.
"""

import inspect
import math
import statistics
from collections import Counter

import torch

from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.hunt.cases import CASES

LN2 = math.log(2)
SHORT = 20  # steps
STARTS = 40  # seeds


def tail(curve, count=10):
    """The mean of a curve's last values."""
    return sum(curve[-count:]) / count


def form(case, record, steps=None):
    """What is wrong with the form of what a program returned; "" if nothing is. `steps`: how long its curves must be."""
    if not isinstance(record, dict) or not isinstance(record.get("curves"), dict):
        return "it should return a dict with `curves`, as the program does that was given"
    for name in CASES[case].curves:
        curve = record["curves"].get(name)
        if not isinstance(curve, list) or not curve or not all(isinstance(one, (int, float)) for one in curve):
            return f"curves[{name!r}] should be a list of numbers, as the program makes it that was given"
        if steps is not None and len(curve) != steps:
            return f"curves[{name!r}] has {len(curve)} values; the program that was given makes {steps}, whatever comes of a step"
    return ""


def draw_seed(generator):
    return {"seed": int(torch.randint(1_000_000, (), generator=generator))}


def runs_of(*options):
    """A probe's `run`: the program's records with each of `options` and one drawn seed."""

    def run(built, seed):
        torch.set_num_threads(1)  # enough for programs this small; beside other work two would wait for each other
        return [built(seed, **one) for one in options]

    return run


def start(curve, records, given):
    """What is wrong with how large a curve's first value is, over STARTS seeds, beside that of the program that was given."""
    first, right = (math.sqrt(sum(one["curves"][curve][0] ** 2 for one in some) / STARTS) for some in (records, given))
    if right / 2.5 < first < 2.5 * right:  # each is known to a sixth
        return ""
    return (
        f"{curve} is about {first:.4f} in size at the first step, before anything was learnt, and {right:.4f} in the program "
        "that was given: leave it to start as it did, and look for what keeps it from learning"
    )


def beginning(case, record, short, length):
    """What is wrong where a `short` run is not how the run of the same seed in `record` begins; "" where it is."""
    for name in CASES[case].curves:
        for step, (got, other) in enumerate(zip(record["curves"][name], short["curves"][name])):
            if not alike(got, other):
                return (
                    f"{name} is {got:.3f} at step {step}, and {other:.3f} at the same step with {length}={SHORT} and the same "
                    "seed: a short run is how a longer one begins. Is it mended for one length alone?"
                )
    return ""


def alike(got, other):
    """Whether two numbers are one but for rounding; what is no number is like what is none either."""
    return got == other or (got != got and other != other) or abs(got - other) <= 1e-4 + 1e-3 * abs(other)


def probe(case, name, judge, *options, steps=None, starts=None, begins=True):
    """A probe that runs the program once for each of `options`, with one drawn seed; judge(*records) says what they show.

    It is run for SHORT steps besides, with two seeds, whose records differ unless they are made up, and of which the first is
    how the first of the others begins.

    Args:
        starts: a curve whose first value must be as large as in the program that was given, whatever the draws.
        begins: False where a right program may draw by the number of its steps.
    """
    length = list(inspect.signature(CASES[case].program).parameters)[1]  # steps, rollouts, epochs or prompts
    options = options or ({},)
    whole, short, once = runs_of(*options), runs_of({**options[0], length: SHORT}), runs_of({length: 1})

    def run(built, seed):
        firsts = [once(built, seed + more)[0] for more in range(STARTS if starts else 0)]
        return {"records": whole(built, seed), "short": [short(built, one)[0] for one in (seed, seed + 1)], "firsts": firsts}

    def judged(output, seed):
        records, (first, second) = output["records"], output["short"]
        faults = [form(case, record, one.get(length, steps)) for record, one in zip(records, options)]
        if fault := form(case, first, SHORT):
            faults.append(f"with {length}={SHORT}: {fault}")
        if first == second:
            faults.append("it records the very same with two seeds: these are no curves of a run")
        fault = next(filter(None, faults), "")
        if starts and not fault:
            fault = start(starts, output["firsts"], [once(CASES[case].program, seed + more)[0] for more in range(STARTS)])
        return fault or judge(*records) or (beginning(case, records[0], first, length) if begins else "")

    return Probe(name, draw_seed, run, judged)


# ----------------------------------------------------------------------------------------- what is true of a small language


def chain_entropy(language, steps):
    """Nats a letter of `steps` letters of a bigram language behind a first one that is any, (letters, letters)."""
    table = torch.tensor(language, dtype=torch.float64)
    now, total = torch.full((len(table),), 1 / len(table), dtype=torch.float64), 0.0
    for _ in range(steps):
        total += (now @ -(table * table.log()).sum(1)).item()
        now = now @ table
    return total / steps


def chain_kl(policy, reference, steps):
    """KL(policy || reference), nats a letter of `steps` letters behind an "a"; the logits of two bigram writers."""
    p, q = (torch.tensor(one, dtype=torch.float64).log_softmax(-1) for one in (policy, reference))
    now, total = torch.zeros(len(p), dtype=torch.float64), 0.0
    now[0] = 1.0
    for _ in range(steps):
        total += (now @ (p.exp() * (p - q)).sum(1)).item()
        now = now @ p.exp()
    return total / steps


def ended_entropy(language, ends=True):
    """The lowest loss, nats a letter, of a bigram model on texts of 3 to 10 letters, with the end token or without it.

    Args:
        language: (8, 6), the probabilities of six letters (tokens 2 to 7) behind each token.
    """
    table = torch.tensor(language, dtype=torch.float64)[2:]  # (6, 6)
    now = torch.full((6,), 1 / 6, dtype=torch.float64)
    counts = torch.zeros(6, 7, dtype=torch.float64)  # how often a letter is followed by a letter, or by the end
    for place in range(1, 11):
        counts[:, 6] += now * (1 / 8 if place >= 3 else 0) * ends
        counts[:, :6] += now[:, None] * table * min(1, (10 - place) / 8)
        now = now @ table
    share = counts / counts.sum(1, keepdim=True)
    return (-(counts * share.clamp(min=1e-300).log()).sum() / counts.sum()).item()


# ----------------------------------------------------------------------------------------- one thing to mend


def judge_01(record):
    moved, norm, loss = (record["curves"][name] for name in ("moved", "gradient_norm", "loss"))
    if max(norm) == 0:
        return "gradient_norm is 0.0 from the first step to the last, of a model that learns"
    if not max(moved) <= 2.2:
        return (
            f"one step moves the weights by {max(moved):.1f}. Steps of at most 0.2, with what momentum 0.9 keeps of those "
            "before, cannot move them by more than 2"
        )
    first = min(norm[0], 0.2)
    if abs(moved[0] - first) > 1e-3:
        return (
            f"the first step, which has no momentum behind it, moves the weights by {moved[0]:.3f}. With a rate of 1, and a "
            f"gradient whose norm of {norm[0]:.2f} is held to 0.2 at most, it would be {first:.3f}"
        )
    more = [now - 0.9 * before - min(one, 0.2) for now, before, one in zip(moved[1:], moved, norm[1:])]
    step = more.index(max(more)) + 1
    if not max(more) < 2e-3:
        return (
            f"step {step} moves the weights by {moved[step]:.3f}, and the one before by {moved[step - 1]:.3f}: momentum keeps "
            "0.9 of that, and a limit of 0.2 adds no more than 0.2"
        )
    if max(moved) < 0.3:
        return f"no step moves the weights by more than {max(moved):.2f}: has it still the rate and the limit that it was given?"
    clean = [one for place, one in enumerate(loss[-100:], len(loss) - 100) if place % 20 not in range(19, 24) and place % 20 > 3]
    best = chain_entropy(record["language"], 12)
    if not sum(clean) / len(clean) < best + 0.5:
        return (
            f"at the end, between the stained pages, the loss is {sum(clean) / len(clean):.2f} nats a letter, and the "
            f"language has {best:.2f}: has it still the same steps and the same pages to learn from?"
        )
    return ""


def judge_02(equal, worse, far_better):
    rates = [record["curves"]["win_rate"][-1] for record in (equal, worse, far_better)]
    said = Counter(equal.get("samples") or ())
    if set(said) - {"A", "B"}:
        return f'samples has {min(set(said) - {"A", "B"})!r} in it: it takes down what the judge said, "A" or "B"'
    if said["B"] < 0.6 * said.total():
        return (
            'the judge does not say "B" more often than "A" any more: it is hired as it is. Only how it is asked can be changed'
        )
    if abs(rates[0] - 0.5) > 0.06:
        return f"a candidate that is as good as the baseline wins {rates[0]:.0%} of its comparisons: half of them would be right"
    if not rates[1] < 0.5 < 0.75 < rates[2]:
        return (
            f"a candidate that is worse than the baseline wins {rates[1]:.0%}, and one that is far better {rates[2]:.0%}: "
            "under half, and three quarters or more, would be right"
        )
    if rates[2] > 0.88:
        return (
            f"a candidate that is far better wins {rates[2]:.0%} of its comparisons; by this judge, asked without favour, it "
            "would be 80 %. Does every verdict count?"
        )
    return ""


def judge_03(record):
    curves = record["curves"]
    if max(curves["clip_fraction"]) < 0.01 and max(curves["approx_kl"]) < 1e-4:
        return (
            f"the clip fraction is never above {max(curves['clip_fraction']):.3f}, and the KL between the old and the new policy "
            f"never above {max(curves['approx_kl']):.5f}: what PPO has and REINFORCE has not is never made use of"
        )
    if max(curves["approx_kl"]) > 0.5:
        return (
            f"the KL between the old and the new policy comes to {max(curves['approx_kl']):.2f} nats a letter. Where the ratio "
            "is clipped as it was, twenty passes over a rollout come to a fifth of a nat: does the clip still hold it?"
        )
    if tail(curves["reward"], 3) < curves["reward"][0] + 0.2:
        return (
            f"after fifteen rollouts the reward is {tail(curves['reward'], 3):.2f}, from {curves['reward'][0]:.2f}: "
            "it should gain 0.2"
        )
    return ""


def judge_04(record):
    loss, accuracy = tail(record["curves"]["loss"], 30), tail(record["curves"]["accuracy"], 30)
    if not loss < 0.4:
        return (
            f"the loss is {loss:.2f} at the end, not far from ln 2 = 0.69, though {accuracy:.0%} of the pairs are in order: "
            "the scores lie too close together"
        )
    if accuracy <= 0.8:
        return f"at the end {accuracy:.0%} of the held-out pairs are in order; 80 % can be"
    early = tail(record["curves"]["loss"][:20])
    if early < 0.44:
        return (
            f"within twenty steps the loss comes to {early:.2f}, and only to half a nat where the base is frozen and the rate is "
            "as it was: does more learn than has to?"
        )
    return ""


def judge_05(record):
    reward = record["curves"]["reward"]
    if max(reward) - min(reward) < 0.5:
        return f"the reward is flat: from {reward[0]:.2f} to {reward[-1]:.2f}. Do the texts not get more of the letter b?"
    if abs(sum(reward[:3]) / 3) > 1.5:
        return (
            f"the first rewards are about {sum(reward[:3]) / 3:.1f}: what the reference writes should be worth 0 on average, "
            "with a standard deviation of 1, or the coefficient of the KL means something else"
        )
    if tail(record["curves"]["kl"]) < 10:
        return (
            f"the KL comes to {tail(record['curves']['kl']):.1f} nats a text. Where a further b is worth at the end what it was "
            "worth at the beginning, it is worth going 10 nats and more"
        )
    letters = "".join(sample[1:] for sample in record.get("samples") or ())
    share = letters.count("b") / max(1, len(letters))
    if tail(record["curves"]["kl"]) > 19 and share > 0.96:
        return (
            f"the KL comes to {tail(record['curves']['kl']):.1f} nats a text, and of the letters of the last samples {share:.0%} "
            "are b: at the price that a nat had, the last few b are not worth it. Is it still paid?"
        )
    return ""


def goes_on(samples):
    """Of the letters behind the twelfth of each sample, the share that goes on as the text began; what is wrong, if anything."""
    right = 0
    for sample in samples:
        if len(sample) != 24:
            return 0.0, f"a sample has {len(sample)} letters, and 24 were written"
        period = next((n for n in range(3, 7) if all(sample[i] == sample[i - n] for i in range(n, 12))), None)
        if period is None:
            return 0.0, f"the sample {sample!r} does not begin with a text that repeats itself, as those did that were given"
        right += sum(sample[i] == sample[i - period] for i in range(12, 24))
    return right / max(1, 12 * len(samples)), ""


def judge_07(record, *others):
    """`others` has runs of a few steps, too few for any letter to be likely, and two of some more."""
    early, later = others[:2], others[2:]
    share, fault = goes_on(record.get("samples") or ())
    loss = tail(record["curves"]["loss"])
    if fault:
        return fault
    if not loss < 0.15:
        return f"the loss is {loss:.2f} nats a letter at the end, and comes under 0.15 where the training is left as it was"
    if share < 0.89:
        return (
            f"of the letters that it writes {share:.0%} go on as the text began, and a loss of {loss:.3f} nats "
            f"a letter promises {math.exp(-loss):.0%}: what writes is not what was trained"
        )
    share, fault = goes_on([sample for one in early for sample in one.get("samples") or ()])
    if share > 0.42:
        steps, loss = len(early[0]["curves"]["loss"]), early[0]["curves"]["loss"][-1]
        return (
            f"after {steps} steps the loss is {loss:.2f} nats a letter, and yet {share:.0%} of the letters that it writes go on "
            "as the text began, where a third would be right. Is each of them still drawn with the probability that it has?"
        )
    if fault:
        return fault
    share, fault = goes_on([sample for one in later for sample in one.get("samples") or ()])
    if share < 0.75:
        steps, loss = len(later[0]["curves"]["loss"]), tail(later[0]["curves"]["loss"])
        return fault or (
            f"after {steps} steps the loss is {loss:.2f} nats a letter, and {share:.0%} of the letters that it writes go on as "
            "the text began, where four in five would be right. What does a place see there that it has not learnt from?"
        )
    return fault


def judge_08(record, *shorter):
    """`shorter` has runs of fewer rollouts: the policy that one of n rollouts leaves wrote rollout n of `record`."""
    said = statistics.median(record["curves"]["kl"][-7:])
    true = chain_kl(record["policy"], record["reference"], 12)
    score = tail(record["curves"]["score"], 5)
    least = min(record["curves"]["kl"])
    if least < -1e-4:
        return f"the KL of a rollout is said to be {least:.3f}: it was estimated in a way that is never negative"
    if not 0.6 < said / true < 1.3:
        return (
            f"the KL is said to be {said:.2f} nats a letter at the end; summed up over all letters that the two could "
            f"write, it is {true:.2f}"
        )
    for one in shorter:
        rollout = len(one["curves"]["kl"])
        said, true = record["curves"]["kl"][rollout], chain_kl(one["policy"], one["reference"], 12)
        if not 0.8 < said / max(true, 1e-9) < 1.18:
            return (
                f"the KL is said to be {said:.5f} nats a letter in rollout {rollout}; summed up over all letters that the two "
                f"could write, it is {true:.5f}, and an estimate that is never negative misses it by a tenth there"
            )
    off = [abs(s - 0.1 * kl - reward) for s, kl, reward in zip(*(record["curves"][name] for name in ("score", "kl", "reward")))]
    if not max(off) < 1e-3:
        step = off.index(max(off))
        score, kl, reward = (record["curves"][name][step] for name in ("score", "kl", "reward"))
        return (
            f"in rollout {step} the score is {score:.3f}, the KL is said to be {kl:.3f}, and the reward is {reward:.3f}: the "
            f"score less a tenth of that KL would be {score - 0.1 * kl:.3f}. Which KL is it that is paid for?"
        )
    return "" if score > 0.6 else f"the score is {score:.2f} at the end; with what the KL costs here it comes to 0.6 and more"


def judge_10(record):
    train, test = set(record["train"]), set(record["test"])
    curves = record["curves"]
    if train & test:
        return (
            f"{tail(curves['test_accuracy']):.0%} of the tested texts are right, of a reader whose mood decides as much as the "
            "text: nobody could foresee so many"
        )
    if (len(train), len(test)) != (200, 50):
        return (
            f"no text is learnt from and tested on any more, but it learns from {len(train)} texts and is tested on {len(test)}: "
            "there are 250 that have labels, 200 to learn from and 50 for the test, and each is in one of the two"
        )
    if tail(curves["train_accuracy"]) < 0.95:
        return f"it learns {tail(curves['train_accuracy']):.0%} of its own texts: the training should stay as it was"
    return ""


def judge_11(narrow, wide):
    first, other = (record["curves"]["loss"][:20] for record in (narrow, wide))
    short = tail(narrow["curves"]["accuracy_short"])
    if len(other) < 20 or max(abs(a - b) for a, b in zip(first, other)) > 1e-3:
        return (
            f"the same texts in rows of 24 and of 60 letters have other losses: {first[0]:.4f} and {other[0]:.4f} at the "
            f"first step, {first[-1]:.4f} and {other[-1]:.4f} at the twentieth. What is a text worth?"
        )
    if not short > 0.93:
        return f"of the pairs whose better text is the shorter one {short:.0%} are in order; 93 % and more can be"
    return ""


def judge_12(record):
    kl, passes, reward = (record["curves"][name] for name in ("approx_kl", "passes", "reward"))
    if min(kl) < -0.1:
        return f"approx_kl is {min(kl):.3f}: a KL divergence is not negative, and its estimate is so by a little at most"
    if min(passes[:5]) >= 20:
        return (
            "none of the first five rollouts is left before its 20 passes are over, with steps as large as these: what should "
            "stop them does not"
        )
    usual = statistics.median(passes[:8])
    if not 2 <= usual <= 7:
        return (
            f"most of the first rollouts are used for {usual:g} passes; with steps as large as these the two policies are "
            "0.02 nats a letter apart after three to six"
        )
    early = [used for one, used in zip(kl[:5], passes) if abs(one) > 1e-4]  # a rollout without "cd" moves nothing
    if sum(early) > 8.5 * len(early):
        return (
            f"the first rollouts are used for {sum(early) / len(early):.0f} passes on average; with steps as large as these the "
            "two policies are 0.02 nats a letter apart after three to six, and approx_kl should say so"
        )
    for rollout, (one, used) in enumerate(zip(kl, passes)):
        if used < 20 and not one > 0.02:
            return (
                f"rollout {rollout} is left after {used:g} passes, where approx_kl is {one:.4f}: 0.02 is the limit, and as long "
                "as it is not passed there is another pass, up to twenty"
            )
    if max(kl) > 0.2:
        return f"approx_kl is {max(kl):.2f} where the passes stopped: 0.02 was the limit, and the first pass beyond it the last"
    return "" if tail(reward) > 2 else f"the reward is {tail(reward):.1f} at the end; it comes to 2 and more"


def judge_13(record):
    loss, accuracy = record["curves"]["loss"], tail(record["curves"]["accuracy"], 30)
    if abs(loss[0] - LN2) > 1e-3:
        return (
            f"the first loss is {loss[0]:.3f}, before anything was learnt: the policy is the reference, and ln 2 = 0.693 is right"
        )
    if max(loss[1:6]) > 0.7:
        return (
            f"the loss is {max(loss[1:6]):.3f} within the first five steps after the first, above ln 2 = 0.693, where it began: "
            "one small step from a right start does not make it worse"
        )
    for step, one in enumerate(loss):
        if step and abs(one - LN2) < 1e-5 and record["curves"]["accuracy"][step] == 0:
            return (
                f"at step {step} the loss is ln 2 again, with no pair in order: every margin is 0, as if policy and reference "
                "were one. What is it that the policy is compared with?"
            )
    if tail(loss, 30) > 0.45 or accuracy < 0.75:
        return f"the last losses are {tail(loss, 30):.2f}, with {accuracy:.0%} of the pairs in order: it learnt more before"
    return ""


def judge_15(four, six):
    for answers, record in ((4, four), (6, six)):
        first = record["curves"]["loss"][0]
        if abs(first - LN2) > 1e-3:
            return (
                f"with {answers} answers to each prompt the first loss is {first:.3f}: all scores are 0, each pair is a coin "
                "toss, and a pair costs ln 2 = 0.693"
            )
        last = tail(record["curves"]["loss"])
        if not last < 0.35:
            return (
                f"with {answers} answers to each prompt the loss begins at ln 2, and is {last:.2f} at the end, where the rate "
                "that was given brings it under 0.3: is the loss that is recorded the one that is learnt from?"
            )
    accuracy = tail(four["curves"]["accuracy"])
    return "" if accuracy > 0.93 else f"{accuracy:.0%} of the held-out pairs are in order at the end; 93 % and more can be"


def judge_16(record):
    samples, curves = record.get("samples") or [""], record["curves"]
    distinct = len(set(samples)) / len(samples)
    if distinct < 0.5:
        return (
            f"the reward is {tail(curves['reward']):.1f}, and of {len(samples)} texts {len(set(samples))} are different: "
            f"{samples[0]}, and so on. The KL to the reference is {tail(curves['kl']):.0f} nats a text"
        )
    gain = sum("cd" in sample for sample in samples) / len(samples)
    if gain < 0.4:
        return f"the texts are different, but {gain:.0%} of them have a cd: it should still learn what it is paid for"
    if tail(curves["kl"]) > 15:
        return (
            f"the KL to the reference is {tail(curves['kl']):.0f} nats a text, and grows: it does not write as the reference does"
        )
    return ""


def judge_19(record):
    curves = record["curves"]
    if max(curves["value"]) > 5:
        return (
            f"the values come to {max(curves['value']):.1f} on average, and no text is worth more than 4; meanwhile the texts "
            f"have {tail(curves['length']):.0f} letters, from {curves['length'][0]:.0f}"
        )
    if tail(curves["value_error"]) > 3:
        return f"the squared error of the values is {tail(curves['value_error']):.1f} at the end: it should fall under 3"
    if tail(curves["reward"]) < curves["reward"][0] + 0.2:
        return f"the reward is {tail(curves['reward']):.2f} at the end, from {curves['reward'][0]:.2f}: it should rise"
    return ""


# ----------------------------------------------------------------------------------------- two things to mend


def pair(first, second, mended):
    """The sentence of a program with two mistakes. first, second: what each of the two curves still shows, "" if it is right;
    mended: what each of the two is called when it alone is right."""
    if bool(first) == bool(second):
        return f"two things are wrong. {first}; and {second}" if first else ""
    return f"one of the two is mended: {mended[bool(first)]}. But {first or second}"


def judge_09(record):
    samples = record.get("samples") or [""]
    ended = sum(one.endswith(".") for one in samples) / len(samples)
    loss, language = tail(record["curves"]["loss"], 50), record["language"]
    best = ended_entropy(language, ends=ended > 0.5)
    endless = "" if ended > 0.9 else f"{1 - ended:.0%} of the samples have no end within 40 letters"
    low = ""
    if loss < 0.9 * best:
        low = f"the loss of {loss:.2f} nats a letter lies below {best:.2f}, the best that anyone can do who sees one letter"
    if loss > 1.15 * best:
        low = f"the loss of {loss:.2f} nats a letter is far above {best:.2f}, which can be reached"
    fault = pair(endless, low, ("texts end", "the loss is one that can be"))
    if not fault and sum(map(len, samples)) / len(samples) > 14:
        return "the samples end too late: texts of 3 to 10 letters were learnt from"
    return fault


def judge_14(record):
    kl, beta = record["curves"]["kl"], record["curves"]["beta"]
    score, length = tail(record["curves"]["score"], 50), tail(record["curves"]["length"], 50)
    away = ""
    for high, right in ((True, "rise"), (False, "fall")):  # what beta must do where the KL is clearly above 2 nats, or below
        steps = [step for step in range(1, len(kl)) if (kl[step] > 2.3 if high else kl[step] < 1.7)]
        wrong = [step for step in steps if (beta[step] <= beta[step - 1] if high else beta[step] >= beta[step - 1])]
        if len(wrong) > len(steps) / 4:
            where = max(wrong, key=lambda step: abs(kl[step] - 2))
            away = (
                f"at step {where} the KL is {kl[where]:.1f} nats a text, where 2 are wanted, and its coefficient goes from "
                f"{beta[where - 1]:.4f} to {beta[where]:.4f}: it should {right}"
            )
            break
    if not away and max(kl) < 1:
        away = f"the KL is {tail(kl):.2f} nats a text, where 2 are wanted"
    endless = "" if score > 0.4 else f"the score is {score:.2f}, and the texts have {length:.0f} letters, of 16 at most"
    return pair(away, endless, ("the KL is held where it should be", "texts that end are worth it again"))


def judge_18(record):
    loss, norm, accuracy = (record["curves"][name] for name in ("loss", "gradient_norm", "accuracy"))
    finite, most = all(math.isfinite(one) for one in loss), max(loss)
    nan = (
        "" if finite else f"from step {next(i for i, one in enumerate(loss) if not math.isfinite(one))} on the loss is no number"
    )
    if finite and most < 8:
        nan = (
            f"no batch costs more than {most:.1f} nats, though an endless text in the wrong order has a margin of a hundred: "
            "where a loss is cut off it has no gradient either"
        )
    wild = ""
    if norm[0] == 0:
        wild = "gradient_norm is 0.0 at the first step, of a model that has everything to learn"
    elif finite and not tail(accuracy, 30) > 0.7:
        wild = f"{tail(accuracy, 30):.0%} of the held-out pairs are in order at the end; 80 % and more can be"
    return pair(nan, wild, ("the loss stays a number", "the steps have a limit"))


# ----------------------------------------------------------------------------------------- nothing to mend


def same(got, expected):
    """Whether two things that were recorded are the same: numbers, texts, or lists of them."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, str) or not isinstance(got, (int, float)):
        return got == expected
    return abs(got - expected) <= 1e-3 + 1e-2 * abs(expected)


def unchanged(case, **options):
    """A probe for a program that was right: the learner's does what it does with `options`, its length."""
    run, (steps,) = runs_of(options), options.values()
    again = (
        "If random numbers are drawn as they were, in their order: what did its curves show that could not be? Compare them with "
        "the table of symptoms again"
    )

    def judged(output, seed):
        (record,), (right,) = output, run(CASES[case].program, seed)
        fault = form(case, record, steps)
        if fault:
            return fault
        for name, curve in right["curves"].items():
            for step, (got, expected) in enumerate(zip(record["curves"][name], curve)):
                if not same(got, expected):
                    return f"{name} is {got:.3f} at step {step}, and {expected:.3f} in the program that was given. {again}"
        for name, expected in right.items():
            if name != "curves" and not same(record.get(name), expected):
                return (
                    f"the curves are those of the program that was given, and {name}, which it records beside them, is "
                    f"another. {again}"
                )
        return ""

    return Probe("it does what it did", draw_seed, run, judged)


# ----------------------------------------------------------------------------------------- the builds

PROBES = {
    "01": [probe("01", "steps have a limit", judge_01, {"steps": 340})],
    "02": [probe("02", "three candidates", judge_02, *({"prompts": 2000, "better": better} for better in (0.0, -0.4, 2.0)),
                 steps=2000, begins=False)],
    "03": [probe("03", "fifteen rollouts are made use of", judge_03, steps=15)],
    "04": [probe("04", "the loss leaves ln 2", judge_04, steps=200, starts="margin")],
    "05": [probe("05", "the reward rises", judge_05, steps=150)],
    "06": [unchanged("06", epochs=60)],
    "07": [probe("07", "it writes as it was taught", judge_07, {}, {"steps": 10}, {"steps": 11},
                 {"steps": 100}, {"steps": 101}, steps=400)],
    "08": [probe("08", "the KL is the KL", judge_08, {}, *({"rollouts": n} for n in (1, 2, 3, SHORT)), steps=80)],
    "09": [probe("09", "texts end, and their loss is possible", judge_09, steps=400)],
    "10": [probe("10", "the test is one", judge_10, steps=40)],
    "11": [probe("11", "a text is worth the same in a wider row", judge_11, {"width": 24}, {"width": 60, "steps": 20})],
    "12": [probe("12", "passes stop where the policy is far", judge_12, steps=60)],
    "13": [probe("13", "it begins at ln 2", judge_13, steps=200)],
    "14": [probe("14", "the KL is held, and texts end", judge_14, steps=200)],
    "15": [probe("15", "a pair costs ln 2", judge_15, {"answers": 4}, {"answers": 6}, steps=150)],
    "16": [probe("16", "paid, and still various", judge_16, steps=200)],
    "17": [unchanged("17", rollouts=40)],
    "18": [probe("18", "the loss is a number, and the steps have a limit", judge_18, steps=300)],
    "19": [probe("19", "no value above the highest reward", judge_19, steps=120)],
}  # fmt: skip
Investigation("13.A", "The number of the first minute")
Investigation("13.B", "What a mistake costs")
MENDED = [Build(f"13.{int(case)}", f"mend_{case}", probes, kept=False) for case, probes in PROBES.items()]
