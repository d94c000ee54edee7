"""Chapter 08: the reward and its constants, which tokens count, the KL and what it costs, and PPO on a rollout."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import ch07_policy_gradients as ch07
from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- 8.1
def draw_rewards(generator):
    yield {"logits": torch.tensor([2.0]), "sentiment": "positive"}
    yield {"logits": torch.tensor([2.0, -1.0]), "sentiment": "negative"}
    for sentiment in ("positive", "negative"):
        yield {"logits": 3 * torch.randn(5, generator=generator), "sentiment": sentiment}
    for sentiment in ("positive", "negative"):
        yield {"logits": torch.tensor([-200.0, 0.0, 200.0, -15.0, 15.0, 60.0, -60.0, 1000.0, -1000.0]), "sentiment": sentiment}


def reward_by_numbers(logits, sentiment):
    sign = 1 if sentiment == "positive" else -1
    return torch.tensor([min(0.0, sign * x) - math.log1p(math.exp(-abs(x))) for x in logits.double().tolist()]).float()


def reward_formula(
    logits, sentiment, *, log=F.logsigmoid, logits_of=lambda x, sign: sign * x, positive=None, rest=False, end=lambda x: x
):
    """`log` makes the reward of the wanted sentiment's log-odds; `rest`: for negative, log(1 - p) of `positive`'s p."""
    if sentiment == "negative" and rest:
        return end((positive or torch.log)(1 - logits.sigmoid()))
    return end(log(logits_of(logits, 1 if sentiment == "positive" else -1)))


def other_negative(logits, sentiment, of):
    """Right for positive; for negative, what `of` makes of the log-odds."""
    return F.logsigmoid(logits) if sentiment == "positive" else of(logits)


SMALL = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
log_reward = Exercise(
    "8.1", "log_reward", draw=draw_rewards, right=reward_by_numbers, formula=reward_formula, mistakes={
        "log(sigmoid(x)), or -log(1 + exp(-x)), is minus infinity where sigmoid(x) is nearly 0: F.logsigmoid takes no such log":
            [{"log": lambda x: x.sigmoid().log()}, {"log": lambda x: x.sigmoid().log(), "rest": True}],
        "log(sigmoid(x)) in double precision breaks further out, at -1000: there it is minus infinity. F.logsigmoid never is":
            {"log": lambda x: x.double().sigmoid().log().float()},
        "a small number inside the log, or a bound, only hides the underflow: all hopeless texts get one reward: F.logsigmoid":
            [{"log": lambda x, log=log: log(x.sigmoid()), "positive": log, "rest": rest} for rest in (False, True) for log in (
                *(lambda p, eps=eps: (p + eps).log() for eps in SMALL),
                *(lambda p, eps=eps: p.clamp(min=eps).log() for eps in SMALL),
                *(lambda p, eps=eps: p.clamp(eps, 1 - eps).log() for eps in SMALL))],
        "x - log(1 + exp(x)) is minus infinity for large x, where exp(x) overflows: use F.logsigmoid":
            [{"log": lambda x, of=of, log=log: of(x) - log(of(x).exp())} for of in (torch.clone, torch.Tensor.double)
             for log in (torch.log1p, lambda y: (1 + y).log())],
        "positive is right; for negative, p rounds to 1 and log(1 - p) is minus infinity: take F.logsigmoid(-x)":
            [{"rest": True}, *(partial(other_negative, of=of) for of in (
                lambda x: (-x.sigmoid()).log1p(), lambda x: (-F.logsigmoid(x).exp()).log1p(),
                lambda x: (1 - F.logsigmoid(x).exp()).log(), lambda x: (-F.logsigmoid(x).expm1()).log()))],
        "this is the probability; its logarithm keeps on telling the bad from the very bad": {"log": torch.sigmoid},
        "these are the log-odds, which grow without end: put them through F.logsigmoid": {"log": lambda x: x + 0},
        "the sentiment is ignored: this rewards positive completions whatever is asked for": {"logits_of": lambda x, sign: x},
        "this rewards negative completions whatever is asked for: is the word \"positive\" written as it is given?":
            {"logits_of": lambda x, sign: -x},
        "a sigmoid is in it twice: F.logsigmoid takes log-odds, not probabilities":
            [{"log": lambda x: F.logsigmoid(x.sigmoid())},
             lambda logits, sentiment: F.logsigmoid(logits.sigmoid() * (1 if sentiment == "positive" else -1))],
        "the softmax runs over the completions; each is positive or negative by itself": {"log": lambda x: x.log_softmax(0)},
        "the log-odds of negative are -x, not 1 - x":
            partial(other_negative, of=lambda x: F.logsigmoid(1 - x)),
        "for negative, this is 0; take F.logsigmoid(-x)": partial(other_negative, of=lambda x: 0 * x),
        "the two sentiments have changed places": {"logits_of": lambda x, sign: -sign * x},
        "for negative, this turns the sign of log p(positive): a reward without a bound. Take log p(negative)":
            partial(other_negative, of=lambda x: -F.logsigmoid(x)),
        "for negative, this is 1 - log p(positive); take log(1 - p(positive)), which is F.logsigmoid(-x)":
            partial(other_negative, of=lambda x: 1 - F.logsigmoid(x)),
        "the log-odds, or the logarithm (as by F.binary_cross_entropy, at -100), are held within bounds; F.logsigmoid needs none":
            [{"log": lambda x: x.sigmoid().log().clamp(min=-100), "positive": lambda p: p.log().clamp(min=-100), "rest": rest}
             for rest in (True, False)]
            + [{"logits_of": lambda x, sign, most=most: (sign * x).clamp(-most, most)} for most in (5, 10, 15, 20, 30, 50, 100)],
        "this is one number for all completions, their mean or sum; each has a reward of its own":
            [{"end": torch.mean}, {"end": torch.sum}],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.2
def draw_normaliser(generator):
    yield {"base_rewards": torch.tensor([-3.0, -1.0]), "batches": [torch.tensor([-1.0, 0.0])]}
    yield {"base_rewards": torch.tensor([-3.0, -2.0, -1.0]), "batches": [torch.tensor(x) for x in ([-1.0, 0.0], [0.0, -0.5])]}
    yield {"base_rewards": torch.tensor([-2.0, -1.0, -1.25, -1.5]), "batches": [torch.tensor([-1.0, -0.5, -6.0])] * 2}
    for size, spread in ((6, 6.0), (21, 1.0)):
        base = -1 - spread * torch.rand(size, generator=generator) ** 2
        yield {"base_rewards": base, "batches": [-0.1 - torch.rand(count, generator=generator) for count in (4, 1, 5)]}
    near = -0.05 - 0.2 * torch.rand(140, generator=generator)  # all nearly the same
    yield {"base_rewards": near, "batches": [torch.tensor(x) for x in ([-0.1, -0.2], [-0.05])]}


def call_normaliser(function, base_rewards, batches):
    """What the fitted function makes of one batch after another; another run's, fitted in between, changes nothing."""
    normalise = function(base_rewards)
    function(2 * base_rewards + 1)
    return [normalise(batch) for batch in batches]


def normaliser_by_numbers(base_rewards):
    values = base_rewards.tolist()
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return lambda rewards: torch.tensor([(reward - mean) / std for reward in rewards.tolist()])


def normaliser_formula(
    base_rewards, *, mean=lambda base, x: base.mean(), std=lambda base, x: base.std(), make=lambda r, m, s: (r - m) / s
):
    return lambda rewards: make(rewards, mean(base_rewards, rewards), std(base_rewards, rewards))


def moving_normaliser(base_rewards, *, with_base=True, all_seen=True, late=False):
    seen = [base_rewards] if with_base else []

    def normalise(rewards):
        if all_seen or not seen:
            seen.append(rewards)
        known = torch.cat(seen[:-1] if late else seen)
        return (rewards - known.mean()) / known.std()

    return normalise


def shared_normaliser(base_rewards, shared={}):  # noqa: B006
    """Its constants are those of whoever was fitted last."""
    shared.update(mean=base_rewards.mean(), std=base_rewards.std())
    return lambda rewards: (rewards - shared["mean"]) / shared["std"]


def within(base):
    return base.max() - base.min()


fit_normaliser = Exercise(
    "8.2", "fit_normaliser", draw=draw_normaliser, call=call_normaliser, right=normaliser_by_numbers, formula=normaliser_formula,
    mistakes={
        "each batch is normalised by its own mean: then the mean reward is always 0 and progress cannot be seen or paid":
            [{"mean": lambda base, x: x.mean(), "std": lambda base, x, f=f: f(x)} for f in (
                torch.std, lambda x: x.std(correction=0), lambda x: x.std() + 1e-8, lambda x: x.std(correction=0) + 1e-8)],
        "the mean is each batch's own, so all that is gained is taken away again": {"mean": lambda base, x: x.mean()},
        "the deviation is each batch's own, so the unit changes all the time: both constants are the base's":
            [{"std": lambda base, x, f=f: f(x)} for f in (torch.std, lambda x: x.std(correction=0), lambda x: x.std() + 1e-8)],
        "the constants move with every batch: the same completion is worth less each time. Fit them once, on the base":
            [moving_normaliser, lambda base: moving_normaliser(base, with_base=False), partial(moving_normaliser, late=True)],
        "the constants are the first batch's": lambda base: moving_normaliser(base, with_base=False, all_seen=False),
        "the mean is not subtracted: all rewards are negative, so every completion is pushed down": {"mean": lambda base, x: 0},
        "the mean is added; subtract it": {"mean": lambda base, x: -base.mean()},
        "the mean is subtracted, but the deviation is not divided by": {"std": lambda base, x: 1},
        "this multiplies by the deviation; divide by it": {"std": lambda base, x: 1 / base.std()},
        "this divides by the variance; its root, the deviation, has the reward's unit": {"std": lambda base, x: base.var()},
        "the deviation is divided by n; torch's std divides by n - 1": {"std": lambda base, x: base.std(correction=0)},
        "the constants are those of the run that was fitted last: keep them in variables of the function, not outside it":
            shared_normaliser,
        "only the mean is divided: put brackets around the difference": {"make": lambda r, m, s: r - m / s},
        "another measure of the spread stands in place of the deviation, such as a mean or largest distance from the middle":
            [{"mean": lambda base, x, m=m: m(base), "std": lambda base, x, m=m, of=of: of((base - m(base)).abs())}
             for m in (torch.mean, torch.median) for of in (torch.mean, torch.median, torch.max)],
        "this divides first, and subtracts the mean in the old unit; subtract first": {"make": lambda r, m, s: r / s - m},
        "the range from smallest to largest stands in place of the deviation": [{"std": lambda base, x: within(base)},
            {"std": lambda base, x: within(base), "mean": lambda base, x: base.min()}],
        "the median is no mean": [{"mean": lambda base, x: base.median()}, {"mean": lambda base, x: base.quantile(0.5)}],
        "a small deviation is raised; divide by it as it is": [{"std": lambda base, x, most=most: base.std().clamp(min=most)}
            for most in (0.1, 0.5, 1.0)],
        "something is added to the deviation, if only a small number; divide by it as it is":
            [{"std": lambda base, x, eps=eps, of=of: of(base, eps)} for eps in (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)
             for of in (lambda base, eps: base.std() + eps, lambda base, eps: (base.var() + eps).sqrt())],
        "the normalised rewards are cut off": [{"make": lambda r, m, s, most=most: ((r - m) / s).clamp(-most, most)}
            for most in (1, 2, 3, 5, 10)],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.3
def draw_action_mask(generator):
    yield {"tokens": torch.tensor([[5, 7, 0, 4]]), "prompt_length": 1, "end_token": 0}
    yield {"tokens": torch.tensor([[3, 7, 5, 3, 4, 3, 6]]), "prompt_length": 1, "end_token": 3}
    yield {"tokens": torch.tensor([[6, 5, 7, 3, 8]]), "prompt_length": 2, "end_token": 0}
    yield {"tokens": torch.tensor([[1, 1, 4, 1], [1, 4, 1, 4], [0, 1, 2, 0]]), "prompt_length": 3, "end_token": 1}
    yield {"tokens": torch.tensor([[2, 2], [2, 0]]), "prompt_length": 1, "end_token": 2}
    for rows, length, prompt_length, end_token in ((2, 6, 2, 2), (5, 10, 3, 4), (7, 8, 1, 0)):
        tokens = torch.randint(6, (rows, length), generator=generator)
        tokens[0, prompt_length + 1], tokens[1, prompt_length:] = end_token, 5
        yield {"tokens": tokens, "prompt_length": prompt_length, "end_token": end_token}
    long = torch.tensor([[1], [5]]).repeat(1, 300)  # one row is padded with end tokens, the other has none
    long[0, 2:5] = 7
    yield {"tokens": long, "prompt_length": 2, "end_token": 1}


def mask_by_looking(tokens, prompt_length, end_token):
    return torch.tensor([
        [t >= prompt_length and end_token not in row[prompt_length:t] for t in range(1, len(row))] for row in tokens.tolist()
    ])  # fmt: skip


def mask_formula(
    tokens, prompt_length, end_token, *, cut=slice(1, None), start=lambda prompt_length: prompt_length, searched=None,
    stop="first", more=1, no_end=None, end=None, turned=False,
):  # fmt: skip
    """Actions are the positions from `start` to `more` behind the end token, which is looked for from `searched` on."""
    rows, end_token = [], end_token if end is None else end
    for row in tokens.tolist():
        first = prompt_length if searched is None else searched
        ends = [place for place in range(first, len(row)) if row[place] == end_token]
        last = ends[0 if stop == "first" else -1] + more if ends else prompt_length + (len(row) if no_end is None else no_end)
        last = (ends[1] + 1 if len(ends) > 1 else len(row)) if stop == "second" else last
        last = len(row) if stop == "never" else last
        counts = [start(prompt_length) <= place < last for place in range(len(row))]
        if stop == "others":
            counts = [place >= prompt_length and token != end_token for place, token in enumerate(row)]
        rows.append(counts[cut])
    return torch.tensor(rows) ^ turned


def mask_picture(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got.float(), expected.float(), "1 where a prediction is an action of the policy")


action_mask = Exercise(
    "8.3", "action_mask", draw=draw_action_mask, right=mask_by_looking, formula=mask_formula, picture=mask_picture, mistakes={
        "everything is True: the prompt and what stands behind the end token count too": {"start": lambda n: 0, "stop": "never"},
        "the prompt's tokens are not actions": [{"start": lambda n: 0}, {"start": lambda n: 0, "searched": 0}],
        "nothing stops at the end token: what stands behind it was never part of the completion": {"stop": "never"},
        "the end token itself is an action: the policy chose to stop there, and learns from it": {"more": 0},
        "the token behind the end token counts too; the end token is the last": {"more": 2},
        "only the end tokens are left out; all behind the first one has to go, and that one stays": {"stop": "others"},
        "this goes on to the last end token; the completion is over at the first": {"stop": "last"},
        "an end token in the prompt stops it all: look behind the prompt only": {"searched": 0},
        "the end token itself is an action, and one in the prompt stops nothing: count ends before each token, behind the prompt":
            {"searched": 0, "more": 0},
        "the end token itself is an action, and the prompt's tokens, which may be end tokens too, are none":
            {"start": lambda n: 0, "searched": 0, "more": 0},
        "this goes on to the second end token; the completion is over at the first": {"stop": "second"},
        "a completion that begins with the end token has that one action":
            lambda tokens, prompt_length, end_token: mask_formula(tokens, prompt_length, end_token)
            & ((tokens[:, prompt_length] != end_token)[:, None]),
        "the prediction of the last token is never an action here; it is one, if no end token stands before it":
            lambda tokens, prompt_length, end_token: mask_formula(tokens, prompt_length, end_token)
            & (torch.arange(1, tokens.shape[1]) < tokens.shape[1] - 1),
        "without an end token only one action is left: argmax of a row of zeros is 0; it counts to its end": {"no_end": 1},
        "without an end token no action is left; such a completion counts to its end": {"no_end": 0},
        "the mask is one position late: entry t is the prediction of token t + 1, so drop the first column": {"cut": slice(-1)},
        "there is one column for each token; drop the first: the mask is (B, L - 1), as there are predictions":
            {"cut": slice(None)},
        "the first token of the completion is left out; the policy has chosen it": {"start": lambda n: n + 1},
        "the last token of the prompt counts too; the policy did not choose it": {"start": lambda n: n - 1},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.4
def scored(generator, rows, steps):
    """Log-probabilities under two models, and a mask that is True on at least one token of each row; the first row is full."""
    logprobs, ref_logprobs = -3 * torch.rand(2, rows, steps, generator=generator) - 0.01
    return {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "mask": ch07.ragged(rows, steps, generator)}


def draw_completion_kl(generator):
    two = torch.ones(1, 2, dtype=torch.bool)
    yield {"logprobs": torch.tensor([[0.5, 0.5]]).log(), "ref_logprobs": torch.tensor([[0.25, 0.5]]).log(), "mask": two}
    for rows, steps in ((1, 1), (2, 3), (4, 6), (3, 3)):
        yield scored(generator, rows, steps)
    last = scored(generator, 3, 5)
    yield {**last, "ref_logprobs": torch.where(last["mask"], last["ref_logprobs"], -math.inf)}
    behind = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()  # prompts come first, as in 8.3
    logprobs, ref_logprobs = -3 * torch.rand(2, 2, 5, generator=generator) - 0.1
    yield {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "mask": behind}
    far = torch.tensor([[-0.5, -8.5, -1.5]])
    yield {"logprobs": far, "ref_logprobs": torch.tensor([[-25.5, -0.5, -1.0]]), "mask": far < 0}
    broken = torch.tensor([[-1.0, math.nan, -2.0], [-1.0, -0.5, -0.5]])  # a policy that says nothing about a real token
    yield {"logprobs": broken, "ref_logprobs": torch.full((2, 3), -1.5), "mask": torch.arange(3) < torch.tensor([[3], [2]])}
    long = torch.full((1, 300), -8.0)  # a completion whose probability is 0 in float32
    yield {"logprobs": long, "ref_logprobs": long - 0.125, "mask": long < 0}


def kl_of_rows(logprobs, ref_logprobs, mask):
    rows = zip(logprobs.double().tolist(), ref_logprobs.double().tolist(), mask.tolist())
    return torch.tensor([math.fsum(p - q for p, q, real in zip(*row) if real) for row in rows]).float()


def sum_formula(
    logprobs, ref_logprobs, mask, *, term=lambda x, p: x, real=lambda mask: mask, keep=torch.where, end=lambda total, mask: total
):
    """A sum over the real tokens of `term` of the log-ratio."""
    terms = term(logprobs - ref_logprobs, logprobs)
    return end(keep(real(mask), terms, torch.zeros(())).sum(1), mask)


def k3_term(x, p=None):
    return (-x).exp() - 1 + x


completion_kl = Exercise(
    "8.4", "completion_kl", draw=draw_completion_kl, right=kl_of_rows, formula=sum_formula, mistakes={
        "this is the mean over the tokens: the KL of a completion is their sum, so that long completions may differ more":
            {"end": lambda total, mask: total / mask.sum(1)},
        "the sum is divided by the width of the batch; do not divide at all": {"end": lambda total, mask: total / mask.shape[1]},
        "the ratio is upside down: KL(current || reference) adds up logprobs - ref_logprobs": {"term": lambda x, p: -x},
        "padding is part of the sum: the mask is ignored": {"real": torch.ones_like},
        "a product with the mask does not hide an infinity under it, since 0 times infinity is not a number: use torch.where":
            {"keep": lambda mask, x, zero: x * mask},
        "the mask is moved by one position: it belongs to the log-probabilities as it is":
            [{"real": lambda mask: F.pad(mask[:, 1:], (0, 1))}, {"real": lambda mask: F.pad(mask[:, :-1], (1, 0), value=True)},
             {"real": lambda mask: F.pad(mask[:, :-1], (1, 0))}],
        "infinities become 0, wherever they stand, and the mask is ignored: choose by the mask":
            {"real": torch.ones_like, "keep": lambda mask, x, zero: x.nan_to_num(0.0, 0.0, 0.0)},
        "the probability of a whole completion rounds to 0: add up the differences of logarithms":
            lambda logprobs, ref_logprobs, mask: (torch.where(mask, logprobs, 0).sum(1).exp()
                                                  / torch.where(mask, ref_logprobs, 0).sum(1).exp()).log(),
        "a single completion's estimate may well be negative; with abs the mean would be far too large":
            [{"term": lambda x, p: x.abs()}, {"end": lambda total, mask: total.abs()}],
        "negative estimates, of completions or of single tokens, become 0: then the mean is too large":
            [{"end": lambda total, mask: total.clamp(min=0)}, {"term": lambda x, p: x.clamp(min=0)}],
        "a NaN at a real token becomes 0, and the broken policy seems to be none: make 0 what is masked, and nothing else":
            {"keep": lambda mask, x, zero: (x * mask).nan_to_num()},
        "log-ratios of single tokens are cut off; they are used as they are": [
            {"term": lambda x, p, most=most: x.clamp(-most, most)} for most in (1, 2, 5, 10, 20)],
        "these are k3 terms; asked for is k1, the log-ratio itself": {"term": k3_term},
        "these are k2 terms; asked for is k1, the log-ratio": [{"term": lambda x, p: x**2 / 2}, {"term": lambda x, p: x**2}],
        "each log-ratio is multiplied by the token's probability, as in an exact sum; these are draws":
            {"term": lambda x, p: x * p.exp()},
        "these are ratios, without the logarithm": [{"term": lambda x, p: x.exp()}, {"term": lambda x, p: x.exp() - 1}],
        "return one number for each completion":
            [{"end": lambda total, mask: total.mean()}, {"end": lambda total, mask: total.sum()}],
        "these are bits; the log-probabilities are in nats, and so is the KL": {"end": lambda total, mask: total / math.log(2)},
        "the sum runs over the completions, dimension 0; it runs over the tokens, dimension 1":
            lambda logprobs, ref_logprobs, mask: sum_formula(logprobs.T, ref_logprobs.T, mask.T),
        "one of the two log-probabilities of padding is still in the sum; set their difference to 0 there":
            [lambda logprobs, ref_logprobs, mask: (torch.where(mask, logprobs, 0) - ref_logprobs).sum(1),
             lambda logprobs, ref_logprobs, mask: (logprobs - torch.where(mask, ref_logprobs, 0)).sum(1)],
        "the real tokens are cut into B pieces of one length; each completion has its own number of them":
            lambda logprobs, ref_logprobs, mask: (logprobs - ref_logprobs)[mask].reshape(len(mask), -1).sum(1),
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.5
def draw_advantages(generator):
    worked = {"logprobs": torch.tensor([[-1.0, -1.0, -2.0]]), "ref_logprobs": torch.tensor([[-1.5, -1.0, -2.25]])}
    yield {"rewards": torch.tensor([1.0]), **worked, "mask": torch.ones(1, 3, dtype=torch.bool), "kl_coef": 0.1}
    for rows, steps, kl_coef in ((1, 1, 0.3), (2, 3, 0.0), (2, 3, 0.5), (3, 3, 1.0), (4, 6, 0.2)):
        rewards = torch.randn(rows, generator=generator) + 0.5
        yield {"rewards": rewards, **scored(generator, rows, steps), "kl_coef": kl_coef}
    behind = torch.tensor([[False, True, True, False], [False, True, True, True]])  # prompts come first, as in 8.3
    far = [torch.tensor([row, row]) for row in ([-0.5, -0.5, -1.0, -3.0], [-9.0, -8.5, -12.0, -1.0])]
    rewards = torch.tensor([1.0, -0.5])
    yield {"rewards": rewards, "logprobs": far[0], "ref_logprobs": far[1], "mask": behind, "kl_coef": 0.25}
    yield {"rewards": torch.tensor([0.5, 1.5]), **scored(generator, 2, 140), "kl_coef": 0.1}
    last = scored(generator, 3, 5)
    padded = torch.where(last["mask"], last["ref_logprobs"], -math.inf)
    yield {"rewards": torch.tensor([0.5, -1.0, 1.5]), **last, "ref_logprobs": padded, "kl_coef": 0.3}


def call_advantages(function, logprobs, **others):
    """The advantages, and the gradient that they send back to the log-probabilities, which should be none."""
    logprobs = logprobs.clone().requires_grad_()
    advantages = function(logprobs=logprobs, **others)
    if advantages.requires_grad:
        advantages.sum().backward()
    through = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
    return {"advantages": advantages, "gradient of the logprobs": through}


def advantages_by_sums(rewards, logprobs, ref_logprobs, mask, kl_coef):
    out = torch.zeros(mask.shape)
    for row, reward in enumerate(rewards.tolist()):
        to_come = 0.0
        for t in reversed(mask[row].nonzero()[:, 0].tolist()):
            to_come += (logprobs[row, t] - ref_logprobs[row, t]).item()
            out[row, t] = reward - kl_coef * to_come
    return out


def to_go(x, mask, dim=1):
    return x.flip(dim).cumsum(dim).flip(dim)


def by_product(mask, x, zero):
    return x * mask


def as_it_is(mask, x, zero):
    return x


def worth_formula(
    rewards, logprobs, ref_logprobs, mask, kl_coef, *, term=lambda x: x, over=to_go, detach=True, masked=torch.where,
    zero=torch.where, price=lambda kl_coef: kl_coef, pay=lambda rewards, mask: rewards,
):  # fmt: skip
    """`masked` and `zero` make the log-ratios and the result 0 where the mask is False."""
    kl = term(logprobs - ref_logprobs)
    kl = kl.detach() if detach else kl
    return zero(mask, pay(rewards[:, None], mask) - price(kl_coef) * over(masked(mask, kl, 0), mask), 0)


def with_products(mistakes):
    """Each of the options of `worth_formula` also with products in the place of torch.where."""
    products = {"masked": by_product}, {"zero": by_product}, {"masked": by_product, "zero": by_product}

    def all_ways(what):
        ways = what if isinstance(what, list) else [what]
        return [more for way in ways for more in [way, *({**one, **way} for one in products if isinstance(way, dict))]]

    return {sentence: all_ways(what) for sentence, what in mistakes.items()}


def last_of(mask):
    """True at each row's last real token."""
    return mask & ~F.pad(mask[:, 1:], (0, 1))


def advantages_picture(arguments, got, expected):
    from rlhf_lib import plots

    title = "advantages, one row a completion"
    return plots.side_by_side(got["advantages"], expected["advantages"], title, mask=arguments["mask"])


token_advantages = Exercise(
    "8.5", "token_advantages", draw=draw_advantages, call=call_advantages, right=advantages_by_sums, formula=worth_formula,
    picture=advantages_picture, mistakes=with_products({
        "a product with the mask does not hide an infinity under it, since 0 times infinity is not a number: use torch.where":
            [{"masked": by_product}, {"masked": by_product, "zero": by_product}],
        "the KL passes a gradient on: detach it. The penalty is a number that the policy receives": {"detach": False},
        "the sign of the KL is wrong: it pays for running away":
            [{"term": lambda x: -x}, {"term": lambda x: -x, "detach": False}],
        "each token pays for the whole completion's KL; it cannot change what came before it, so only what is still to come":
            {"over": lambda x, mask: x.sum(1, keepdim=True)},
        "each token pays for its own KL alone; what follows counts too: sum from the token to the end":
            {"over": lambda x, mask: x},
        "this sums the KL up to the token; sum what is to come: flip, cumsum, flip back": {"over": lambda x, _: x.cumsum(1)},
        "the sums are not flipped back": {"over": lambda x, mask: x.flip(1).cumsum(1)},
        "the token's own log-ratio is left out: the sum begins at t": {"over": lambda x, mask: to_go(x, mask) - x},
        "this sums over the completions; the tokens are the second dimension": {"over": lambda x, mask: to_go(x, mask, 0)},
        "the KL to come is averaged over its tokens; it is their sum":
            {"over": lambda x, mask: to_go(x, mask) / to_go(mask.float(), mask).clamp(min=1)},
        "the KL to come is divided by a number of tokens, of the completion or of the row; it is a plain sum":
            [{"over": lambda x, mask: to_go(x, mask) / mask.sum(1, keepdim=True)},
             {"over": lambda x, mask: to_go(x, mask) / mask.shape[1]}],
        "the KL to come is discounted; it is a plain sum":
            [{"over": lambda x, mask, by=by: ch07.returns_formula(x, by)} for by in (0.9, 0.95, 0.99)],
        "each token pays for the mean of its completion's log-ratios; it pays for the sum of those to come":
            {"over": lambda x, mask: x.sum(1, keepdim=True) / mask.sum(1, keepdim=True)},
        "the coefficient multiplies the reward, too; it is the price of the KL alone":
            lambda rewards, logprobs, ref_logprobs, mask, kl_coef: kl_coef * worth_formula(
                rewards, logprobs, ref_logprobs, mask, 1.0),
        "the mean over all tokens is taken off, or they are whitened; that is a step of its own":
            [lambda rewards, logprobs, ref_logprobs, mask, kl_coef, n=n: torch.where(mask, ch07.whitened_real(
                worth_formula(rewards, logprobs, ref_logprobs, mask, kl_coef), mask, n), 0) for n in (None, 0, 1)],
        "k3 of each token is charged; asked for is the log-ratio itself": {"term": k3_term},
        "a negative log-ratio becomes 0 or loses its sign": [{"term": torch.abs}, {"term": lambda x: x.clamp(min=0)}],
        "log-ratios are cut off; they are used as they are":
            [{"term": lambda x, most=most: x.clamp(-most, most)} for most in (1, 2, 5, 10)],
        "the reward stands at the last token only; without a value function it is the advantage of every token":
            [{"pay": lambda rewards, mask: rewards * last_of(mask)},
             {"pay": lambda rewards, mask: rewards * (torch.arange(mask.shape[1]) == mask.shape[1] - 1)}],
        "the reward is shared out among the tokens; every token gets all of it":
            [{"pay": lambda r, mask: r / mask.sum(1, keepdim=True)}, {"pay": lambda r, mask: r / mask.shape[1]}],
        "the rewards (B,) are laid along the tokens: make (B, 1) of them, rewards[:, None]":
            {"pay": lambda rewards, mask: rewards[:, 0]},
        "padding flows into the sum: set the KL to 0 where the mask is False before you sum":
            [{"masked": as_it_is}, {"masked": as_it_is, "over": lambda x, mask: x.sum(1, keepdim=True) - x.cumsum(1) + x}],
        "padding has an advantage too; it should be 0 there": [{"zero": as_it_is}, {"zero": as_it_is, "masked": as_it_is}],
    }))  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.6
def draw_baseline(generator):
    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 9.0]])
    yield {"worth": values, "mask": mask, "baseline": torch.full((3,), 0.25)}
    ended = torch.tensor([[True, False], [True, False]])
    yield {"worth": values[:, 1:], "mask": ended, "baseline": torch.tensor([0.25, 0.5])}
    for rows, steps in ((1, 2), (3, 4), (6, 5)):
        mask = ch07.ragged(rows, steps, generator)
        mask[:, steps - 1] &= rows == 3  # at the end nobody is going any more
        worth = torch.where(mask, 1, 4) + torch.randn(rows, steps, generator=generator)
        yield {"worth": worth, "mask": mask, "baseline": torch.randn(steps, generator=generator)}
    yield {"worth": torch.tensor([[1.0, 3.0], [2.0, 9.0]]), "mask": ended, "baseline": torch.zeros(2)}  # as before any rollout
    behind = torch.tensor([[False, True, True], [True, True, False], [False, True, True]])  # prompts come first, as in 8.3
    worth = torch.tensor([[7.0, 30.0, 1.0], [2.0, 4.0, 8.0], [9.0, -1.0, -25.0]])
    yield {"worth": worth, "mask": behind, "baseline": torch.tensor([0.5, 1.0, -0.5])}
    nobody = torch.tensor([[False, True, False], [False, True, True]])  # both still read their prompts at the first position
    yield {"worth": torch.tensor([[5.0, 1.0, 2.0], [3.0, -2.0, 4.0]]), "mask": nobody, "baseline": torch.tensor([0.5, 1.0, 0.0])}
    yield {"worth": torch.randn(140, 2, generator=generator), "mask": ch07.ragged(140, 2, generator), "baseline": torch.ones(2)}


def by_position(x, mask, empty=0.0):
    """The mean of the real values at each position, by a loop."""
    columns = [x[:, t][mask[:, t]] for t in range(x.shape[1])]
    return torch.stack([column.mean() if len(column) else torch.tensor(empty) for column in columns])


def baseline_formula(
    worth, mask, baseline, *, over=lambda worth, mask, baseline: worth - baseline, zero=True,
    following=lambda w, m, b: (w * m).sum(0) / m.sum(0).clamp(min=1),
):  # fmt: skip
    advantages = over(worth, mask, baseline)
    return torch.where(mask, advantages, 0) if zero else advantages, following(worth, mask, baseline)


def scaled(worth, mask, baseline, correction, shift=0):
    real = (worth - baseline)[mask]
    return (worth - baseline - shift * real.mean()) / (real.std(correction=correction) + 1e-8)


with_baseline = Exercise(
    "8.6", "with_baseline", draw=draw_baseline, formula=baseline_formula,
    right=lambda worth, mask, baseline: (torch.where(mask, worth - baseline, 0), by_position(worth, mask)), mistakes={
        "the baseline is this rollout's own mean, which every completion is part of; subtract the one handed in":
            {"over": lambda w, m, b: w - by_position(w, m)},
        "the baseline is added; subtract it": {"over": lambda w, m, b: w + b},
        "one number is subtracted everywhere; the baseline has one for each position":
            [{"over": lambda w, m, b: w - b.mean()},
             {"over": lambda w, m, b: w - w[m].mean()}],
        "the next baseline is one mean for all positions; early and late tokens are worth different amounts, so one for each":
            {"following": lambda w, m, b: w[m].mean().expand(m.shape[1]).clone()},
        "the next baseline divides by all completions; at a position only those count that are still going there":
            {"following": lambda w, m, b: (w * m).mean(0)},
        "padding is part of the next baseline: what stands under the mask does not count":
            [{"following": lambda w, m, b: w.mean(0)},
             {"following": lambda w, m, b: w.sum(0) / m.sum(0).clamp(min=1)}],
        "the next baseline is a sum; take the mean": {"following": lambda w, m, b: (w * m).sum(0)},
        "the next baseline divides by one completion too many; where none is left, clamp the number to 1":
            {"following": lambda w, m, b: (w * m).sum(0) / (m.sum(0) + 1)},
        "where no completion is left the next baseline is 0 / 0; it should be 0 there":
            {"following": lambda w, m, b: by_position(w, m, empty=math.nan)},
        "where no completion is left the next baseline is the old one; it should be 0 there":
            {"following": lambda w, m, b: torch.where(m.any(0), by_position(w, m), b)},
        "the next baseline is the mean of the advantages; it has to follow what tokens are worth, before the subtraction":
            {"following": lambda w, m, b: by_position(w - b, m)},
        "the next baseline is mixed with the old one; it is this rollout's mean alone":
            [{"following": lambda w, m, b, share=share: share * b + (1 - share) * by_position(w, m)}
             for share in (0.5, 0.9, 0.1, 0.95, 0.05, 0.99, 0.01)],
        "a worth of 0 is not counted, as if it were padding; count the mask":
            {"following": lambda w, m, b: (w * m).sum(0) / ((w * m) != 0).sum(0).clamp(min=1)},
        "completions that are over take part in the next baseline, with the old one; only those count that are still going":
            {"following": lambda w, m, b: torch.where(m, w, b).mean(0)},
        "the number of completions is raised to 2; a single one is its own mean":
            {"following": lambda w, m, b: (w * m).sum(0) / m.sum(0).clamp(min=2)},
        "completions are counted by their numbers of tokens, as if each began at the first position; count the mask itself":
            {"following": lambda w, m, b: (w * m).sum(0) / (torch.arange(m.shape[1]) < m.sum(1)[:, None]).sum(0).clamp(min=1)},
        "the advantages are cut off; they are worth less baseline, however large":
            [{"over": lambda w, m, b, most=most: (w - b).clamp(-most, most)} for most in (1, 2, 3, 5, 10, 20)],
        "the next baseline is a median; take the mean":
            {"following": lambda w, m, b: torch.where(m, w, math.nan).nanmedian(0).values.nan_to_num(0.0)},
        "the next baseline is a mean for each completion, over its tokens; it has one number for each position":
            {"following": lambda w, m, b: (w * m).sum(1) / m.sum(1)},
        "the next baseline is the one handed in": {"following": lambda w, m, b: b + 0},
        "this stops at the first position where nobody is going; in prompts nobody is, and completions come behind them":
            {"following": lambda w, m, b: by_position(w, m) * m.any(0).cumprod(0)},
        "padding has an advantage of minus the baseline; it should be 0 there":
            [{"zero": False}, {"zero": False, "over": lambda w, m, b: w * m - b}],
        "the advantages are divided by their deviation as well; here they are the difference alone":
            [{"over": lambda *given, c=c, shift=shift: scaled(*given, c, shift)} for c in (0, 1) for shift in (0, 1)],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 8.7
def draw_update(generator):
    for rows, steps, V, minibatch, epochs, stale, temperature, clip, rate in (
        (2, 2, 4, 1, 1, 0.0, 0.7, 0.2, 1.0), (4, 3, 4, 2, 2, 0.4, 1.3, 0.1, 1.0), (5, 4, 3, 2, 3, 0.5, 0.5, 0.3, 0.5),
        (3, 5, 5, 4, 2, 0.0, 2.0, 0.15, 2.0), (9, 1, 3, 4, 2, 0.3, 0.8, math.inf, 0.5), (3, 4, 4, 2, 2, 0.0, 1.0, 0.2, 0.3),
    ):  # fmt: skip
        weight = torch.randn(V, V, generator=generator)
        if clip == 0.2 and rows == 3:  # exp makes 0 of two tokens' probabilities
            weight -= torch.tensor([0.0, 0.0, 110.0, 120.0])
        tokens = torch.randint(V, (rows, steps + 1), generator=generator)
        old = (weight / temperature).log_softmax(-1)[tokens[:, :-1], tokens[:, 1:]]  # (B, T)
        yield {
            "weight": weight, "tokens": tokens, "old_logprobs": old + stale * torch.randn(rows, steps, generator=generator),
            "advantages": torch.randn(rows, steps, generator=generator) + 0.3, "mask": ch07.ragged(rows, steps, generator),
            "temperature": temperature, "epochs": epochs, "minibatch": minibatch, "clip": clip, "rate": rate,
        }  # fmt: skip


def call_update(function, weight, rate, **others):
    """The policy's weight after the update, and the clip fractions. The policy looks at one token only, and has dropout."""
    policy = nn.Sequential(nn.Embedding.from_pretrained(weight.clone(), freeze=False), nn.Dropout1d(0.5))
    clip_fractions = function(policy, torch.optim.SGD(policy.parameters(), lr=rate), **others)
    return {"weight": policy[0].weight, "clip fractions": clip_fractions}


def update_by_hand(policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip):
    """The gradient of a softmax policy in closed form."""
    weight, fractions = policy[0].weight, []
    for start in [*range(0, len(tokens), minibatch)] * epochs:
        gradient, outside, count = torch.zeros_like(weight), 0, 0
        for row in range(start, min(start + minibatch, len(tokens))):
            for t in mask[row].nonzero()[:, 0].tolist():
                here, chosen, advantage = tokens[row, t], tokens[row, t + 1], advantages[row, t]
                logprobs = (weight.detach()[here] / temperature).log_softmax(-1)
                p, ratio = logprobs.exp(), (logprobs[chosen] - old_logprobs[row, t]).exp()
                outside, count = outside + int(abs(ratio - 1) > clip), count + 1
                if not ((ratio > 1 + clip and advantage > 0) or (ratio < 1 - clip and advantage < 0)):
                    gradient[here] -= advantage * ratio * (F.one_hot(chosen, len(p)) - p) / temperature
        weight.grad = gradient / count
        optimizer.step()
        fractions.append(outside / count)
    return fractions


def update_formula(
    policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip, *, made="", dropout=False,
    cut=False, read=0, chosen=1, score=lambda logits, t: (logits / t).log_softmax(-1), real=lambda mask: mask,
    weigh=lambda a, real: a, result=lambda fractions, losses, epochs: fractions, clip_gradient=lambda policy: None, late=False,
    again="", loss_of=None, **loss_options,
):  # fmt: skip
    """`made` and the options of policy_loss_formula make mistakes; `read`, `chosen`: which position is scored, on which token;
    `late`: the clip fractions are those after the steps; `again`: dropout is on from the second "epoch" or "minibatch" on;
    `loss_of`: the loss, where it is not that of policy_loss_formula."""
    policy.train(dropout)
    fractions, losses, width, order = [], [], mask.shape[1], torch.arange(len(tokens))

    def of_tokens(some):
        logits = policy(some[:, :-1]) if cut else policy(some)[:, read : read + width]  # (b, T, V)
        return score(logits, temperature).gather(2, some[:, chosen : chosen + width, None])[..., 0]

    for rows in ch07.minibatches(len(tokens), minibatch, epochs, made):
        order = torch.randperm(len(tokens)) if made == "shuffled" and rows.start == 0 else order
        start, rows = rows, order[rows] if made == "shuffled" else rows
        if made == "old anew each epoch" and rows.start == 0:
            logprobs = score(policy(tokens)[:, :-1], temperature).detach()
            old_logprobs = logprobs.gather(2, tokens[:, 1:, None])[..., 0]
        logprobs = of_tokens(tokens[rows])
        old, some = logprobs.detach() if "ratio 1" in made else old_logprobs[rows], real(mask[rows])
        loss, outside = ch07.policy_loss_formula(logprobs, old, weigh(advantages[rows], some), some, clip, **loss_options)
        loss = loss_of(logprobs, advantages[rows], some) if loss_of else loss
        ch07.descend(optimizer, loss, start, made, lambda: clip_gradient(policy), len(tokens))
        if late:
            outside = ch07.policy_loss_formula(of_tokens(tokens[rows]), old, advantages[rows], some, clip)[1]
        fractions, losses = [*fractions, outside.item()], [*losses, loss.item()]
        if again == "minibatch" or (again == "epoch" and start.stop >= len(tokens)):
            policy.train()
    return result(fractions, losses, epochs)


def in_epochs(values, epochs):
    return torch.tensor(values).view(epochs, -1)


def scaled_by(a, of, correction, guarded):
    """Advantages less the mean of `of`, and divided by its deviation, where there is one and `guarded` says to ask."""
    few = correction is None or (guarded and len(of) < 2)
    return (a - of.mean()) / (1 if few else of.std(correction=correction) + 1e-8)


SCALED = [
    lambda a, real, of=of, c=c, guarded=guarded: scaled_by(a, of(a, real), c, guarded)
    for of in (lambda a, real: a[real], lambda a, real: a.flatten()) for c in (None, 0, 1) for guarded in (True, False)
]  # fmt: skip
update_policy = Exercise(
    "8.7", "update_policy", draw=draw_update, call=call_update, right=update_by_hand, formula=update_formula, tolerance=1e-4,
    mistakes={
        "the logits are not divided by the temperature: the first ratio is not 1":
            {"score": lambda logits, t: logits.log_softmax(-1)},
        "the logits are multiplied by the temperature; divide by it": {"score": lambda logits, t: (logits * t).log_softmax(-1)},
        "the temperature divides the log-probabilities; divide the logits":
            {"score": lambda logits, t: logits.log_softmax(-1) / t},
        "these are probabilities, and the ratio needs log-probabilities": {"score": lambda logits, t: (logits / t).softmax(-1)},
        "exp makes 0 of an unlikely token's log-probability, and softmax of its probability: log_softmax, a difference, one exp":
            [{"ratio": lambda new, old: new.exp() / old.exp()},
             *({"score": lambda logits, t, eps=eps: ((logits / t).softmax(-1) + eps).log()} for eps in (0, 1e-12, 1e-10, 1e-8))],
        "dropout is on, and was off in the rollout: the ratio compares two policies before any step; call policy.eval() first":
            [{"dropout": True}, {"dropout": True, "cut": True}],
        "the first epoch, or minibatch, is right, and dropout is on from the second on: policy.train() belongs behind them all":
            [{"again": again, "cut": cut} for again in ("epoch", "minibatch") for cut in (False, True)],
        **ch07.LOOP_MISTAKES,
        **ch07.mean_mistakes({}, {"share": "real"}),
        "the last token is never scored: cut the last position off the logits and the first off the tokens, and no more":
            {"real": lambda mask: mask & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)},
        "each token is scored by the logits at its own place, which have seen it: logits at t predict token t + 1": {"read": 1},
        "this scores the token that stands at t; logits at t predict token t + 1": {"chosen": 0},
        "the clip fractions of the last epoch alone are returned; every minibatch of every epoch has one":
            {"result": lambda fractions, losses, epochs: in_epochs(fractions, epochs)[-1].tolist()},
        "there is one clip fraction for each epoch; every minibatch has one":
            [{"result": lambda fractions, losses, epochs: in_epochs(fractions, epochs).mean(1).tolist()},
             {"result": lambda fractions, losses, epochs: in_epochs(fractions, epochs)[:, -1].tolist()}],
        "the clip fractions are measured after the step; each belongs to the loss that the step went down": {"late": True},
        "the clip fraction counts only where clipping changes the loss; it counts every ratio outside, whatever the advantage":
            {"outside": lambda ratio, clip, advantages: (ratio - 1) * advantages.sign() > clip},
        "the rows are shuffled; here everyone goes through them in their own order": {"made": "shuffled"},
        "the gradient's norm is clipped; here each step takes it as it is":
            [{"clip_gradient": lambda policy, most=most: nn.utils.clip_grad_norm_(policy.parameters(), most)}
             for most in (0.1, 0.5, 1.0)],
        "these are the losses; return the clip fractions": {"result": lambda fractions, losses, epochs: losses},
        "the loss has no ratio, and policy_loss is asked for the clip fraction alone; go down the loss that it returns": [
            {"loss_of": lambda logprobs, a, real, mean=mean: -ch07.MEANS[mean](logprobs * a, real)}
            for mean in ("real", "all", "wide", "sum")],
        "the advantages are shifted or scaled once more, in each minibatch or before; they are ready for use": [
            *({"weigh": weigh} for weigh in SCALED),
            *(lambda *given, advantages, mask, weigh=weigh, **named: update_formula(
                *given, advantages=weigh(advantages, mask), mask=mask, **named) for weigh in SCALED)],
    })  # fmt: skip
