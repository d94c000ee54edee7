"""Chapter 09: comparing two models, best-of-n, diversity and form, and the curve of gold against proxy reward."""

import itertools
import math
from collections import Counter

import numpy as np
import torch
from scipy import integrate, optimize, stats

from rlhf_lib.exercises.declare import Exercise

WORDS = ("love", "joy", "sweet", "my", "lord", "the", "day", "O", "night", "thou")


def pick(generator, options, count):
    return [options[place] for place in torch.randint(len(options), (count,), generator=generator).tolist()]


# ----------------------------------------------------------------------------------------- 9.1

win_rate = Exercise("9.1", "win_rate")


@win_rate.inputs
def _(generator):
    yield {"first": torch.tensor([1.0, 0.0]), "second": torch.tensor([0.0, 0.0])}
    yield {"first": torch.tensor([3.0, 1.0, 2.0]), "second": torch.tensor([0.0, 2.0, 2.0])}
    yield {"first": torch.tensor([1.0, 0.0, 2.0, 5.0]), "second": torch.tensor([2.0, 0.0, 4.0])}
    for size in (6, 15):
        first, second = torch.randint(4, (2, size), generator=generator).float()
        yield {"first": first, "second": second}


@win_rate.oracle
def _(first, second):
    """The Mann-Whitney statistic, which counts ties half, over the number of pairs."""
    return float(stats.mannwhitneyu(first.numpy(), second.numpy()).statistic / (len(first) * len(second)))


def pairs(first, second):
    return first[:, None] - second


@win_rate.mistake("a tie counts nothing here; it counts half, or a model would lose against itself")
def _(first, second):
    return (pairs(first, second) > 0).float().mean()


@win_rate.mistake("a tie counts as a win here; it counts half")
def _(first, second):
    return (pairs(first, second) >= 0).float().mean()


@win_rate.mistake("ties are left out: with many ties a few pairs would decide. Keep them, each as half a win")
def _(first, second):
    difference = pairs(first, second)
    return (difference > 0).float().sum() / (difference != 0).float().sum()


@win_rate.mistake("only the pairs of one place are compared; the samples are not paired, so compare each with every one")
def _(first, second):
    size = min(len(first), len(second))
    return ((first[:size] > second[:size]).float() + 0.5 * (first[:size] == second[:size])).mean()


@win_rate.mistake("this is how often the second wins")
def _(first, second):
    return 1 - win_rate.right(first, second)


@win_rate.mistake("this compares with the other side's mean; compare with each of its completions")
def _(first, second):
    difference = first - second.mean()
    return ((difference > 0).float() + 0.5 * (difference == 0)).mean()


# ----------------------------------------------------------------------------------------- 9.2

mean_interval = Exercise("9.2", "mean_interval")


@mean_interval.inputs
def _(generator):
    yield {"values": torch.tensor([1.0, 2.0, 3.0])}
    for size in (2, 5, 20):
        yield {"values": 3 + 2 * torch.randn(size, generator=generator)}


def interval(values, quantile=None, correction=1, divide=math.sqrt, half=1.0):
    n, mean = len(values), values.double().mean().item()
    quantile = stats.t.ppf(0.975, n - 1) if quantile is None else quantile
    reach = half * quantile * values.double().std(correction=correction).item() / divide(n)
    return mean, mean - reach, mean + reach


@mean_interval.oracle
def _(values):
    x = values.double().numpy()
    low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    return float(x.mean()), float(low), float(high)


@mean_interval.mistake("this is where single values lie; the mean's own deviation is smaller, std / sqrt(n)")
def _(values):
    return interval(values, divide=lambda n: 1)


@mean_interval.mistake("the deviation is divided by n; the error of a mean falls with the root of n")
def _(values):
    return interval(values, divide=lambda n: n)


@mean_interval.mistake("1.96 is right for many values only; for n of them take Student's t with n - 1 degrees of freedom")
def _(values):
    return interval(values, quantile=1.96)


@mean_interval.mistake("this is the 95 % point of one side, a 90 % interval; leave out 2.5 % on either side: t.ppf(0.975, n - 1)")
def _(values):
    return interval(values, quantile=stats.t.ppf(0.95, len(values) - 1))


@mean_interval.mistake("t has n - 1 degrees of freedom, not n: one is spent on the mean")
def _(values):
    return interval(values, quantile=stats.t.ppf(0.975, len(values)))


@mean_interval.mistake("the variance is divided by n here; a sample's is divided by n - 1")
def _(values):
    return interval(values, correction=0)


@mean_interval.mistake("the quantile is the distance to either side; do not halve it")
def _(values):
    return interval(values, half=0.5)


# ----------------------------------------------------------------------------------------- 9.3

best_of_n = Exercise("9.3", "best_of_n")


@best_of_n.inputs
def _(generator):
    yield {"rewards": torch.tensor([1.0, 3.0, 9.0, 8.0]), "n": 2}
    yield {"rewards": torch.tensor([9.0, 2.0, 8.0, 7.0, 1.0, 4.0, 3.0, 99.0]), "n": 3}
    for groups, n in ((3, 4), (2, 8)):
        yield {"rewards": torch.randn(groups * n + 1, generator=generator), "n": n}


def groups(rewards, n):
    return rewards[: len(rewards) // n * n].view(-1, n)


@best_of_n.oracle
def _(rewards, n):
    values = rewards.tolist()
    return torch.tensor([max(range(start, start + n), key=values.__getitem__) for start in range(0, len(values) - n + 1, n)])


@best_of_n.mistake("these are places within the groups; add each group's start to get the place among all samples")
def _(rewards, n):
    return groups(rewards, n).argmax(1)


@best_of_n.mistake("these are the best rewards; return where they are, so that text and gold score can be looked up")
def _(rewards, n):
    return groups(rewards, n).amax(1)


@best_of_n.mistake("this picks the worst of each group")
def _(rewards, n):
    chosen = groups(rewards, n).argmin(1)
    return chosen + n * torch.arange(len(chosen))


@best_of_n.mistake("these are the best of all samples; best-of-n picks one out of every group of n, good group or bad")
def _(rewards, n):
    return rewards.topk(len(rewards) // n).indices


@best_of_n.mistake(
    "the groups are strided: a group is n samples that follow each other, so view(-1, n) and the maximum over dim 1"
)
def _(rewards, n):
    count = len(rewards) // n
    return rewards[: count * n].view(n, count).argmax(0) * count + torch.arange(count)


@best_of_n.mistake("the last group has fewer than n samples, so it is a weaker best-of: leave it out")
def _(rewards, n):
    return torch.stack([start + rewards[start : start + n].argmax() for start in range(0, len(rewards), n)])


# ----------------------------------------------------------------------------------------- 9.4

best_of_n_kl = Exercise("9.4", "best_of_n_kl")


@best_of_n_kl.inputs
def _(generator):
    for n in (1, 2, 4, *torch.randint(5, 200, (3,), generator=generator).tolist()):
        yield {"n": n}


@best_of_n_kl.oracle
def _(n):
    """The integral: the largest of n uniforms has density n u^(n-1), the base has 1."""

    def term(u):
        density = n * u ** (n - 1)
        return density * math.log(density) if density > 0 else 0.0

    return integrate.quad(term, 0, 1, epsabs=1e-10, epsrel=1e-10, limit=200)[0]


@best_of_n_kl.mistake("log n is only an upper bound: it forgets the (n - 1) / n that comes off")
def _(n):
    return math.log(n)


@best_of_n_kl.mistake("(n - 1) / n is subtracted, not added")
def _(n):
    return math.log(n) + (n - 1) / n


@best_of_n_kl.mistake("this subtracts 1, which is right for large n only; best-of-1 is the base itself, so its KL is 0")
def _(n):
    return math.log(n) - 1


@best_of_n_kl.mistake("these are bits: take the natural logarithm, as all KLs here are in nats")
def _(n):
    return math.log2(n) - (n - 1) / n


@best_of_n_kl.mistake("this is (n - 1) / n alone; log n is missing")
def _(n):
    return (n - 1) / n


@best_of_n_kl.mistake("this is its root, the axis of the plot; return the KL itself, in nats")
def _(n):
    return math.sqrt(math.log(n) - (n - 1) / n)


# ----------------------------------------------------------------------------------------- 9.5

best_of_n_gold = Exercise("9.5", "best_of_n_gold")


@best_of_n_gold.inputs
def _(generator):
    yield {"proxy": torch.tensor([1.0, 2.0, 3.0]), "gold": torch.tensor([4.0, 0.0, 3.0]), "n": 2}
    for size, n in ((5, 1), (7, 3), (9, 4)):
        proxy = torch.randperm(size, generator=generator).float() + 0.5 * torch.rand(size, generator=generator)  # no ties
        yield {"proxy": proxy, "gold": 10 * torch.rand(size, generator=generator) - 5, "n": n}


@best_of_n_gold.oracle
def _(proxy, gold, n):
    """Every group of n there is, one after the other."""
    found = [gold[max(group, key=lambda i: proxy[i].item())].item() for group in itertools.combinations(range(len(proxy)), n)]
    return math.fsum(found) / len(found)


def ranked(weights, key, gold):
    """The sum of the gold scores, ordered by `key`, lowest first, each times its weight."""
    return (torch.tensor(weights, dtype=torch.float64) * gold[key.argsort()].double()).sum().item()


def subset_weights(size, n):
    """The share of groups of n that the sample of each rank, lowest first, is the best of."""
    return [math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)]


@best_of_n_gold.mistake("this picks by the gold score; best-of-n picks by the proxy and is then measured by gold")
def _(proxy, gold, n):
    return ranked(subset_weights(len(gold), n), gold, gold)


@best_of_n_gold.mistake("this is the proxy reward of the winners; return what the gold judge says of them")
def _(proxy, gold, n):
    return ranked(subset_weights(len(gold), n), proxy, proxy)


@best_of_n_gold.mistake("the ranks run the wrong way: this is worst-of-n. Sort by the proxy, lowest first")
def _(proxy, gold, n):
    return ranked(subset_weights(len(gold), n), -proxy, gold)


@best_of_n_gold.mistake("these weights let a group hold a sample twice; of rank i, C(i, n-1) groups out of C(N, n) are won")
def _(proxy, gold, n):
    size = len(gold)
    return ranked([((rank + 1) / size) ** n - (rank / size) ** n for rank in range(size)], proxy, gold)


@best_of_n_gold.mistake("the rank counts from 0: the sample of rank i beats i others, so C(i, n-1), not C(i + 1, n-1)")
def _(proxy, gold, n):
    size = len(gold)
    return ranked([math.comb(rank + 1, n - 1) / math.comb(size, n) for rank in range(size)], proxy, gold)


@best_of_n_gold.mistake("this cuts the samples into groups once: right on average, but noisy. Average over all groups there are")
def _(proxy, gold, n):
    starts = range(0, len(gold) - n + 1, n)
    return sum(gold[start + proxy[start : start + n].argmax()].item() for start in starts) / len(starts)


@best_of_n_gold.mistake("this is the gold score of the best of all N samples; that is best-of-N")
def _(proxy, gold, n):
    return gold[proxy.argmax()].item()


# ----------------------------------------------------------------------------------------- 9.6

distinct_n = Exercise("9.6", "distinct_n")


@distinct_n.inputs
def _(generator):
    yield {"texts": ["my love my love"], "n": 2}
    yield {"texts": ["My love", "my love my", "joy"], "n": 2}
    yield {"texts": ["joy", ""], "n": 2}
    yield {"texts": ["O my lord O my lord", "the sweet day", "my lord O"], "n": 3}
    for count, n in ((3, 1), (4, 2), (6, 3)):
        yield {"texts": [" ".join(pick(generator, WORDS, 7)) for _ in range(count)], "n": n}


def grams(words, n):
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def share(found):
    return len(set(found)) / len(found) if found else 0.0


@distinct_n.oracle
def _(texts, n):
    counts = Counter()
    for text in texts:
        words = text.casefold().split()
        counts.update(" ".join(words[end - n : end]) for end in range(n, len(words) + 1))
    return len(counts) / counts.total() if counts else 0.0


@distinct_n.mistake(
    "this is the mean of each text's own share: a line that every text repeats would go unnoticed. Pool all texts"
)
def _(texts, n):
    shares = [share(grams(text.lower().split(), n)) for text in texts]
    return sum(shares) / len(shares)


@distinct_n.mistake("some n-grams run over the border between two texts; cut each text by itself")
def _(texts, n):
    return share(grams(" ".join(texts).lower().split(), n))


@distinct_n.mistake("these are n-grams of characters; split the text into words first")
def _(texts, n):
    return share([gram for text in texts for gram in grams(text.lower(), n)])


@distinct_n.mistake("case makes a difference here: put the text in lower case first")
def _(texts, n):
    return share([gram for text in texts for gram in grams(text.split(), n)])


@distinct_n.mistake("the different n-grams are divided by the number of words; divide by the number of n-grams")
def _(texts, n):
    words = [text.lower().split() for text in texts]
    total = sum(map(len, words))
    return len({gram for some in words for gram in grams(some, n)}) / total if total else 0.0


@distinct_n.mistake("these are words, whatever n is")
def _(texts, n):
    return share([gram for text in texts for gram in grams(text.lower().split(), 1)])


@distinct_n.mistake("the n-grams do not overlap here; one begins at every word")
def _(texts, n):
    return share([gram for text in texts for gram in grams(text.lower().split(), n)[::n]])


@distinct_n.mistake("texts too short for a single n-gram make this divide by 0; return 0.0 for them")
def _(texts, n):
    found = [gram for text in texts for gram in grams(text.lower().split(), n)]
    return len(set(found)) / len(found)


# ----------------------------------------------------------------------------------------- 9.7

separator_ratio = Exercise("9.7", "separator_ratio")


@separator_ratio.inputs
def _(generator):
    yield {"policy_texts": ["O joy.\n\nKING.\nLove!\n\n"], "base_texts": ["A day.\n\nB", "Night."]}
    yield {"policy_texts": ["O\n\n\nP\nQ\nR", "S\n\nT", "U"], "base_texts": ["V\n\nW\nX\n\nY"]}
    yield {"policy_texts": ["O\n\nP"], "base_texts": ["one\ntwo"]}
    for _ in range(2):
        sides = []
        for count in (5, 8):
            pieces = [pick(generator, ("day", "\n", "\n\n", "love my", "."), 9) for _ in range(count)]
            sides.append(["\n\n" + "".join(one) for one in pieces])
        yield {"policy_texts": sides[0], "base_texts": sides[1]}


@separator_ratio.oracle
def _(policy_texts, base_texts):
    rates = [sum(len(text.split("\n\n")) - 1 for text in texts) / len(texts) for texts in (policy_texts, base_texts)]
    return rates[0] / rates[1] if rates[1] else None


def over(policy, base):
    return policy / base if base else None


def blank_lines(texts):
    return sum(text.count("\n\n") for text in texts) / len(texts)


@separator_ratio.mistake("these are totals; the two sets differ in size, so divide each by its number of completions")
def _(policy_texts, base_texts):
    return over(blank_lines(policy_texts) * len(policy_texts), blank_lines(base_texts) * len(base_texts))


@separator_ratio.mistake("the ratio is upside down: policy over base, above 1 where the policy writes more blank lines")
def _(policy_texts, base_texts):
    return over(blank_lines(base_texts), blank_lines(policy_texts)) if blank_lines(base_texts) else None


@separator_ratio.mistake("this counts completions that have a separator at all; count every one, a policy may write five")
def _(policy_texts, base_texts):
    return over(*(sum("\n\n" in text for text in texts) / len(texts) for texts in (policy_texts, base_texts)))


@separator_ratio.mistake("this counts line breaks; a separator is a blank line, two of them in a row")
def _(policy_texts, base_texts):
    return over(*(sum(text.count("\n") for text in texts) / len(texts) for texts in (policy_texts, base_texts)))


@separator_ratio.mistake("this is the difference; the ratio says the same for a base that writes few and one that writes many")
def _(policy_texts, base_texts):
    return blank_lines(policy_texts) - blank_lines(base_texts) if blank_lines(base_texts) else None


@separator_ratio.mistake("this counts blank lines per character; shorter completions would look worse. Count them per completion")
def _(policy_texts, base_texts):
    return over(*(blank_lines(texts) * len(texts) / sum(map(len, texts)) for texts in (policy_texts, base_texts)))


@separator_ratio.mistake("when the base has no separator at all this divides by 0; return None then, there is no ratio")
def _(policy_texts, base_texts):
    return blank_lines(policy_texts) / blank_lines(base_texts)


# ----------------------------------------------------------------------------------------- 9.8

fit_gold = Exercise("9.8", "fit_gold", tolerance=1e-4)


@fit_gold.inputs
def _(generator):
    yield {"kl": torch.tensor([0.0, 1.0, 4.0]), "gold": torch.tensor([0.0, 3.0, 4.0])}
    yield {"kl": torch.tensor([-0.01, 1.0, 4.0, 9.0]), "gold": torch.tensor([0.0, 0.5, 0.7, 0.6])}
    for size in (5, 12):
        kl = torch.linspace(0.5, 12, size) + 0.3 * torch.rand(size, generator=generator)
        gold = kl.sqrt() * (0.5 - 0.1 * kl.sqrt()) + 0.02 * torch.randn(size, generator=generator)
        yield {"kl": kl, "gold": gold}


@fit_gold.oracle
def _(kl, gold):
    """scipy's optimiser on the sum of squares, from nowhere in particular."""
    d = kl.clamp(min=0).sqrt().double().numpy()
    found = optimize.least_squares(
        lambda p: d * (p[0] - p[1] * d) - gold.double().numpy(), [1.0, 1.0], method="lm", xtol=1e-12, ftol=1e-12
    )
    alpha, beta = found.x
    return float(alpha), float(beta), float((alpha / (2 * beta)) ** 2)


def fit(kl, gold, constant=False, root=True, weight=None):
    d = kl.double().clamp(min=0)
    d = d.sqrt() if root else d
    columns = np.stack([d, -(d**2), *([np.ones(len(d))] if constant else [])], axis=1)
    weight = 1 if weight is None else weight(d).numpy()[:, None]
    alpha, beta = np.linalg.lstsq(columns * weight, gold.double().numpy()[:, None] * weight, rcond=None)[0][:2, 0]
    return float(alpha), float(beta), float((alpha / (2 * beta)) ** 2)


@fit_gold.mistake("d is the KL here; Gao et al.'s curve is over its root")
def _(kl, gold):
    return fit(kl, gold, root=False)


@fit_gold.mistake("the fit has a constant of its own; the base has gold 0 at distance 0, so the curve goes through there")
def _(kl, gold):
    return fit(kl, gold, constant=True)


@fit_gold.mistake("beta has the wrong sign: the curve is d (alpha - beta d), and beta is positive where gold falls in the end")
def _(kl, gold):
    alpha, beta, best = fit(kl, gold)
    return alpha, -beta, best


@fit_gold.mistake("there the curve is back at 0, at d = alpha / beta; its top is half as far, at d = alpha / (2 beta)")
def _(kl, gold):
    alpha, beta, _ = fit(kl, gold)
    return alpha, beta, (alpha / beta) ** 2


@fit_gold.mistake("the third number is the top's distance d; return its KL, the square")
def _(kl, gold):
    alpha, beta, _ = fit(kl, gold)
    return alpha, beta, alpha / (2 * beta)


@fit_gold.mistake("the third number is the largest KL that was measured; return the KL at the top of the fitted curve")
def _(kl, gold):
    alpha, beta, _ = fit(kl, gold)
    return alpha, beta, kl.max().item()


@fit_gold.mistake("dividing by d first gives points near the base too much weight, and 0 / 0 at it; fit gold itself")
def _(kl, gold):
    return fit(kl, gold, weight=lambda d: 1 / d) if (kl > 0).all() else (math.nan, math.nan, math.nan)


@fit_gold.mistake("an estimated KL may lie a little below 0, and its root is NaN: clamp it at 0 first")
def _(kl, gold):
    return fit(kl, gold) if (kl >= 0).all() else (math.nan, math.nan, math.nan)


# ----------------------------------------------------------------------------------------- 9.9

rating_table = Exercise("9.9", "rating_table")


def rating(sample, source, rater, positivity, sense=3):
    return {"sample": sample, "source": source, "rater": rater, "positivity": positivity, "sense": sense}


@rating_table.inputs
def _(generator):
    two = [rating("base-0", "base", "me", 2, 5), rating("policy-0", "policy", "me", 4, 1)]
    yield {"ratings": two, "score": "positivity"}
    yield {"ratings": two, "score": "sense"}
    three = [rating("base-0", "base", "me", 1), rating("base-0", "base", "you", 3), rating("base-1", "base", "me", 5)]
    three += [rating("policy-0", "policy", "me", 2), rating("policy-1", "policy", "me", 4), rating("policy-2", "policy", "me", 5)]
    yield {"ratings": three, "score": "positivity"}
    for count in (4, 6):
        ratings = []
        for place in range(count):
            for source in ("base", "policy"):
                for rater in ("me", "you")[: 1 + (place + (source == "base")) % 2]:
                    scores = 1 + torch.randint(5, (2,), generator=generator)
                    ratings.append(rating(f"{source}-{place}", source, rater, *scores.tolist()))
        order = torch.randperm(len(ratings), generator=generator).tolist()
        yield {"ratings": [ratings[place] for place in order], "score": "sense"}


def by_sample(ratings, score, source, middle=lambda xs: sum(xs) / len(xs)):
    """One number a sample: the raters' mean."""
    samples = dict.fromkeys(r["sample"] for r in ratings if r["source"] == source)
    return [middle([r[score] for r in ratings if r["sample"] == sample and r["source"] == source]) for sample in samples]


def table(base, policy, tie=0.5):
    wins = sum((p > b) + tie * (p == b) for p in policy for b in base) / (len(policy) * len(base))
    return {"base": sum(base) / len(base), "policy": sum(policy) / len(policy), "win_rate": wins}


@rating_table.oracle
def _(ratings, score):
    scores = {"base": {}, "policy": {}}
    for one in ratings:
        scores[one["source"]].setdefault(one["sample"], []).append(one[score])
    base, policy = ([float(np.mean(xs)) for xs in scores[side].values()] for side in ("base", "policy"))
    wins = stats.mannwhitneyu(policy, base).statistic / (len(policy) * len(base))
    return {"base": float(np.mean(base)), "policy": float(np.mean(policy)), "win_rate": float(wins)}


@rating_table.mistake("a sample that two rated counts twice: take the mean of its ratings first, so that each sample counts once")
def _(ratings, score):
    base, policy = ([r[score] for r in ratings if r["source"] == side] for side in ("base", "policy"))
    return table(base, policy)


@rating_table.mistake("this is the other column: look up the score that is asked for")
def _(ratings, score):
    other = "sense" if score == "positivity" else "positivity"
    return table(by_sample(ratings, other, "base"), by_sample(ratings, other, "policy"))


@rating_table.mistake("base and policy are swapped: the win rate is the policy's over the base")
def _(ratings, score):
    right = rating_table.right(ratings, score)
    return {"base": right["policy"], "policy": right["base"], "win_rate": 1 - right["win_rate"]}


@rating_table.mistake("ties count nothing in the win rate; scores from 1 to 5 tie often, and a tie counts half")
def _(ratings, score):
    return table(by_sample(ratings, score, "base"), by_sample(ratings, score, "policy"), tie=0)


@rating_table.mistake("of a sample that two rated only the last rating is left: take the mean of all of them")
def _(ratings, score):
    last = [by_sample(ratings, score, source, middle=lambda xs: xs[-1]) for source in ("base", "policy")]
    return table(*last)


@rating_table.mistake("the win rate is 1 or 0, by the means; compare each sample of the policy with each of the base")
def _(ratings, score):
    right = rating_table.right(ratings, score)
    return {**right, "win_rate": float(right["policy"] > right["base"])}
