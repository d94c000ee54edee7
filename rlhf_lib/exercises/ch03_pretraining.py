"""Chapter 03: the loss, the scores, the schedule, Adam, and clipping; the other exercises are in ch03_steps."""

import functools
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise

LN2 = math.log(2)
ALL, FIRST, LAST = slice(None), slice(-1), slice(1, None)  # all places, the first ones (not the last), the last (not the first)


# ----------------------------------------------------------------------------------------- 3.1
def draw_loss(generator):
    tokens, mask, ln3 = torch.tensor([[0, 1, 1]]), torch.ones(1, 3, dtype=torch.bool), math.log(3)
    yield {"logits": torch.tensor([[[0.0, ln3], [0.0, 0.0], [ln3, 0.0]]]), "tokens": tokens, "mask": mask}
    many = (150, *torch.randint(1, 150, (33,), generator=generator).tolist())
    for lengths, vocabulary in (((2,), 4), ((4, 2), 3), ((5, 2, 1), 3), ((3, 7, 1, 5), 6), (many, 3)):  # of 1: nothing to predict
        logits = 2 * torch.randn(len(lengths), max(lengths), vocabulary, generator=generator)
        drawn = torch.randint(vocabulary, logits.shape[:2], generator=generator)
        if lengths != many:
            yield {"logits": logits, "tokens": drawn, "mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]}
    yield {"logits": torch.tensor([[[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]]]), "tokens": tokens, "mask": mask}
    yield {"logits": logits, "tokens": drawn, "mask": torch.arange(max(many)) < torch.tensor(many)[:, None]}


def loss_and_gradient(function, logits, tokens, mask):
    logits = logits.clone().requires_grad_()
    loss = function(logits, tokens, mask)
    loss.backward()
    return {"loss": loss, "gradient": torch.zeros_like(logits) if logits.grad is None else logits.grad}


def loss_by_places(logits, tokens, mask):
    rows, places = mask[:, 1:].nonzero().T
    before = logits[rows, places]  # (N, V)
    return (before.logsumexp(1) - before[range(len(before)), tokens[rows, places + 1]]).mean()


def loss_of(
    logits, tokens, mask, *, said=FIRST, wanted=LAST, counted=LAST, scores=lambda x: x.log_softmax(-1),
    mean=lambda c, m: c[m].mean(),
):  # fmt: skip
    """The loss; `said`, `wanted`, `counted`: the places of logits, tokens, mask; `mean` gets costs and mask, (B, T - 1)."""
    costs = -scores(logits[:, said]).gather(2, tokens[:, wanted, None])[..., 0]
    return mean(costs, mask[:, counted])


Exercise("3.1", "next_token_loss", draw=draw_loss, call=loss_and_gradient, right=loss_by_places, formula=loss_of, mistakes={
    "each token is scored by the logits of its own position, which have seen it; those before it predict it":
        ({"said": ALL, "wanted": ALL, "counted": ALL}, {"said": LAST}),
    "the shift goes the wrong way: logits at t predict the token at t + 1, so drop the last logits, the first token":
        ({"said": LAST, "wanted": FIRST}, {"said": LAST, "wanted": FIRST, "counted": FIRST}),
    "padding is scored too: a target counts only where the mask is True":
        ({"mean": lambda c, m: c.mean()}, lambda x, y, m: loss_of(x, y * m, m | True)),
    "the last target of each row is left out": {"mean": lambda c, m: c[m & F.pad(m[:, 1:], (0, 1))].mean()},
    "the first target of each row is left out": {"mean": lambda c, m: c[:, 1:][m[:, 1:]].mean()},
    "the mask is multiplied into the logits, and padding still costs ln V: leave it out of the mean": (
        lambda x, y, m: loss_of(x * m[..., None], y, m | True),
        lambda x, y, m: loss_of(x * F.pad(m[:, 1:], (0, 1))[..., None], y, m | True)),
    "the mask is upside down: the loss is that of the padding":
        ({"mean": lambda c, m: c[~m].mean()}, {"mean": lambda c, m: (c * ~m).sum() / (~m).sum().clamp(min=1)}),
    "this uses the mask of the inputs, mask[:, :-1]; what must be real is the target, mask[:, 1:]": {"counted": FIRST},
    "token 0 is taken for padding: it is a token like any other, and the mask says what is padding":
        (lambda x, y, m: loss_of(x, y, m & (y != 0)), lambda x, y, m: loss_of(x, y, y != 0)),
    "the sum over real targets is divided by all places; divide by the number of real ones":
        ({"mean": lambda c, m: (c * m).mean()}, {"mean": lambda c, m: (c * m).sum() / (m.numel() + len(m))}),
    "the sum is divided by all real tokens; a row's first is no target": {"mean": lambda c, m: c[m].sum() / (m.sum() + len(m))},
    "the sum is divided by the rows; divide by the number of real targets": {"mean": lambda c, m: c[m].sum() / len(m)},
    "this is the mean of the rows' means, so a token of a short row weighs more: average over tokens": (
        {"mean": lambda c, m: ((c * m).sum(1) / m.sum(1)).mean()},
        {"mean": lambda c, m: ((c * m).sum(1) / m.sum(1).clamp(min=1)).mean()},
        {"mean": lambda c, m: torch.stack([costs[real].mean() for costs, real in zip(c, m)]).mean()},
        {"mean": lambda c, m: torch.stack([costs[real].mean() for costs, real in zip(c, m) if real.any()]).mean()}),
    "this is the sum over the targets; take their mean, or the step grows with the batch": {"mean": lambda c, m: c[m].sum()},
    "the rows are strung together before the shift, so the end of a row predicts the beginning of the next: shift first":
        [lambda x, y, m, of=of: loss_of(*(one[of(m)][None] for one in (x, y, m))) for of in (torch.clone, torch.ones_like)],
    "softmax is taken twice: cross_entropy takes logits, not probabilities": {"scores": lambda x: x.softmax(-1).log_softmax(-1)},
    "there is no softmax: this is minus the logit of the target": {"scores": lambda x: x},
    "exp of a large logit is infinite: log_softmax and cross_entropy take the largest away first":
        {"scores": lambda x: x - x.exp().sum(-1, keepdim=True).log()},
    "transpose and reshape mix the logits of several positions: flatten(0, 1), or transpose alone, leave each its own":
        {"scores": lambda x: x.mT.reshape(x.shape).log_softmax(-1)},
    "these are the costs of the likeliest token at each position; it is the target's that count":
        {"scores": lambda x: x.log_softmax(-1).max(-1, keepdim=True).values.expand(x.shape)},
    "the targets are smoothed (label_smoothing); a target costs minus the logarithm of its own probability":
        [{"scores": lambda x, s=s: (1 - s) * x.log_softmax(-1) + s * x.log_softmax(-1).mean(-1, keepdim=True)}
         for s in (0.1, 0.05)],
    "the softmax runs over the positions; the vocabulary is the last dimension":
        ({"scores": lambda x: x.log_softmax(1)}, lambda x, y, m: loss_of(x.log_softmax(1), y, m, scores=lambda x: x)),
    "log(softmax) turns a very small probability into log(0) = -inf; use log_softmax or cross_entropy":
        {"scores": lambda x: x.softmax(-1).log()},
    "something keeps the probability away from 0, and caps what a sure mistake costs; log_softmax needs no help":
        [{"scores": change} for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12) for change in
         (lambda x, eps=eps: (x.softmax(-1) + eps).log(), lambda x, eps=eps: x.softmax(-1).clamp(min=eps).log())]
        + [{"scores": lambda x, top=top: x.clamp(-top, top).log_softmax(-1)} for top in (10, 20, 30, 50, 80, 100)],
    "this is made of the targets' probabilities; a token costs minus the logarithm of its probability":
        [{"scores": scores} for scores in (lambda x: x.softmax(-1), lambda x: -x.softmax(-1), lambda x: x.softmax(-1) - 1)],
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.2
def draw_scores(generator):
    yield {"losses": torch.tensor([LN2, 3 * LN2]), "counts": torch.tensor([30, 10]), "characters": 100}
    for batches, size, letters in ((2, 5, 2), (3, 64, 3), (6, 48, 4)):
        losses, counts = 1 + 3 * torch.rand(batches, generator=generator), torch.full((batches,), size)
        counts[-1] = torch.randint(1, size - 1, (1,), generator=generator)  # the last batch is smaller
        yield {"losses": losses, "counts": counts, "characters": letters * int(counts.sum()) - 1}
    losses, counts = 0.5 + torch.rand(4, generator=generator), torch.randint(1, 40, (4,), generator=generator)
    yield {"losses": losses, "counts": counts, "characters": 200}
    yield {"losses": torch.tensor([1.75]), "counts": torch.tensor([12]), "characters": 40}
    yield {"losses": torch.tensor([21.0, 26.0]), "counts": torch.tensor([3, 1]), "characters": 9}  # worse than any guess
    yield {"losses": torch.tensor([2.0, 2.0, 3.0]), "counts": torch.tensor([4, 1, 3]), "characters": 20}  # two of one loss
    losses, counts = 3 + torch.rand(140, generator=generator), torch.randint(1, 10, (140,), generator=generator)
    yield {"losses": losses, "counts": counts, "characters": 4000}  # exp of all its nats is infinite


def scores_by_token(losses, counts, characters):
    """Each token written out: the geometric mean of 1 / p, and the length of the whole text in bits."""
    costs = [loss for loss, count in zip(losses.tolist(), counts.tolist()) for _ in range(count)]
    perplexity = math.prod(math.exp(cost / len(costs)) for cost in costs)
    return math.fsum(costs) / len(costs), perplexity, math.log2(math.e) * math.fsum(costs) / characters


def scores_of(
    losses, counts, characters, *, nats=lambda x, n: (x * n).sum(), tokens=torch.sum, loss=lambda n, t, c: n / t,
    perplexity=lambda x, n, loss: math.exp(loss), bits=lambda n, t, c: n / LN2 / c,
):  # fmt: skip
    """The three scores, of which `loss` and `bits` are made of nats, tokens and characters."""
    text = nats(losses.double(), counts).item(), tokens(counts).item(), characters
    return loss(*text), perplexity(losses.double(), counts, loss(*text)), bits(*text)


def some_equal(losses, counts, characters, which):
    """The three scores, of which those at the places True in `which` take every batch for equally long."""
    scores = [scores_of(losses, mean, characters) for mean in (counts, counts.float().mean().expand(len(counts)))]
    return tuple(scores[equal][place] for place, equal in enumerate(which))


def by_product(chance, root, told):
    """A product over all tokens, of their probabilities (`chance` -1) or of what is one over these."""

    def scores(losses, counts, characters):
        loss, _, bits = scores_of(losses, counts, characters)
        product = math.prod(math.exp(chance * one) for one, count in zip(losses.tolist(), counts.tolist()) for _ in range(count))
        perplexity = root(product, int(counts.sum()))
        return (math.log(perplexity), perplexity, math.log(perplexity) / loss * bits) if told else (loss, perplexity, bits)

    return scores


def by_table(losses, counts, characters):
    """The scores of a dict of the counts by their loss."""
    table = dict(zip(losses.tolist(), counts.tolist()))
    return scores_of(torch.tensor([*table]), torch.tensor([*table.values()]), characters)


def as_the_first(counts):
    """The counts, of which all but the last are the first."""
    return torch.cat([counts[:1].expand(len(counts) - 1), counts[-1:]])


Exercise("3.2", "perplexity_and_bits", draw=draw_scores, right=scores_by_token, formula=scores_of, mistakes={
    "every batch weighs the same here; the last one is shorter, so weigh each by its tokens":
        [lambda losses, counts, characters, which=which: some_equal(losses, counts, characters, which)
         for which in itertools.product((0, 1), repeat=3) if any(which)]
        + [{"nats": lambda x, n: x.sum(), "tokens": lambda n: torch.tensor(len(n))}],
    "every batch but the last is taken to be as large as the first; each has its own number of tokens":
        {"nats": lambda x, n: (x * as_the_first(n)).sum(), "tokens": lambda n: as_the_first(n).sum()},
    "the loss is held at a largest value before the exponential is taken; a perplexity may be as large as it comes":
        [{"perplexity": lambda x, n, loss, top=top, far=far: math.exp(loss) if loss < top else far} for top in (10, 20)
         for far in (math.exp(top), math.inf)],
    "the batches' means are divided by all tokens; multiply each by its tokens first": {"nats": lambda x, n: x.sum()},
    "each batch's mean is divided by its tokens; multiply it by them": {"nats": lambda x, n: (x / n).sum()},
    "this averages the batches' perplexities; average the losses first, take the exponential once":
        ({"perplexity": lambda x, n, loss: x.exp() @ n.double() / n.sum()}, {"perplexity": lambda x, n, loss: x.exp().mean()}),
    "the probabilities are averaged (exp(-loss)) before the logarithm is taken; average the losses":
        {"nats": lambda x, n: -n.sum() * ((-x).exp() @ n.double() / n.sum()).log()},
    "perplexity is exp(loss): the loss is in nats, and 2 ** loss is for bits": {"perplexity": lambda x, n, loss: 2**loss},
    "the loss is divided by the characters; it is in nats per token": (
        {"loss": lambda n, t, c: n / c},
        {"loss": lambda n, t, c: n / c, "perplexity": lambda x, n, loss: math.exp((x * n).sum() / n.sum())}),
    "these are bits per token; the same text has fewer tokens than characters: divide by characters":
        {"bits": lambda n, t, c: n / t / LN2},
    "a token's loss is divided by all characters; take the whole text's": {"bits": lambda n, t, c: n / t / LN2 / c},
    "these are nats per character; a bit is ln 2 nats, so divide by ln 2": {"bits": lambda n, t, c: n / c},
    "the nats are multiplied by ln 2; there are fewer nats than bits, so divide by it": {"bits": lambda n, t, c: n * LN2 / c},
    "the bits are made with a logarithm to base 10; a bit is ln 2 nats, and math.log is the natural logarithm":
        ({"bits": lambda n, t, c: n / math.log10(2) / c}, {"bits": lambda n, t, c: n / math.log(10) / c}),
    "the logarithm of the nats is taken; nats become bits when they are divided by ln 2":
        ({"bits": lambda n, t, c: math.log2(n / c)}, {"bits": lambda n, t, c: math.log2(n / t) * t / c}),
    "tokens and characters are swapped: bits per character = bits per token * tokens / characters":
        {"bits": lambda n, t, c: n / t / LN2 * c / t},
    "the perplexity is the root of a product over all tokens, and a long text makes it infinite, or 0: exp of the mean loss": (
        *(by_product(chance, root, told) for told in (True, False) for chance, root in (
            (1, lambda x, n: x ** (1 / n)), (-1, lambda x, n: x ** (-1 / n)), (-1, lambda x, n: 1 / x ** (1 / n)))),
        {"perplexity": lambda x, n, loss: math.exp((x * n).sum()) ** (1 / n.sum().item())}),
    "batches of one and the same loss are counted once: a dict by the losses has one place for them; take the pairs": by_table,
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.3
def draw_rates(generator):
    yield {"peak": 1.0, "warmup": 2, "steps": 6}
    yield {"peak": 0.5, "warmup": 0, "steps": 4}
    yield {"peak": 3.0, "warmup": 1, "steps": 3}
    for warmup, steps in ((2, 6), (4, 6), (4, 9)):  # each has but one number that an input before it has not
        yield {"peak": 2.0, "warmup": warmup, "steps": steps}
    for steps in (10, 40):
        peak = 0.1 + torch.rand(1, generator=generator).item()
        yield {"peak": peak, "warmup": torch.randint(3, steps // 2, (1,), generator=generator).item(), "steps": steps}
    yield {"peak": 0.003, "warmup": 7, "steps": 20}  # as small as Adam's
    yield {"peak": 0.8, "warmup": 150, "steps": 1100}


def rate_by_tables(step, peak, warmup, steps):
    return tables(peak, warmup, steps)[step]


@functools.lru_cache
def tables(peak, warmup, steps):
    """The two lines as tables, built without a formula: steps numbered from 1 upwards, then downwards."""
    return torch.cat([torch.linspace(0, peak, warmup + 1)[1:], torch.linspace(peak, 0, steps - warmup + 1)[:-1]]).tolist()


def rate_of(step, peak, warmup, steps, *, rise=lambda t, w: (t + 1) / w, fall=lambda t, w, n: (n - t) / (n - w), more=0):
    """The rate at step t, with a warm-up of w (or `more`) out of n steps."""
    return peak * (rise(step, warmup) if step < warmup + more else fall(step, warmup, steps))


def rates_of_run(function, **given):
    rates = [function(step, *given.values()) for step in range(given["steps"])]
    if any(rate is None for rate in rates):
        raise TypeError(f"there is no rate for step {rates.index(None)}: end each case with a return")
    numbers = all(isinstance(rate, (int, float)) for rate in rates)
    return {"rates": torch.tensor([float(rate) for rate in rates]), "rates are numbers": numbers}


def rates_picture(arguments, got, expected):
    from rlhf_lib import plots

    figure, (ax,) = plots.figure(1)
    ax.plot(expected["rates"].tolist(), color=plots.GREY, marker="o", markersize=4, label="expected")
    ax.plot(got["rates"].tolist(), color=plots.ORANGE, marker="x", label="came out")
    plots.legend(ax.set(title="Learning rate", xlabel="step", ylabel="rate") and ax)
    return figure


Exercise("3.3", "learning_rate", draw=draw_rates, right=rate_by_tables, formula=rate_of, picture=rates_picture, call=rates_of_run,
    mistakes={
    "step 0 has rate 0, so it does nothing: in the warm-up the rate is peak * (step + 1) / warmup":
        ({"rise": lambda t, w: t / w}, {"rise": lambda t, w: t / (w - 1)}, {"rise": lambda t, w: t / max(1, w - 1)},
         lambda t, peak, w, n: peak * t / (w - 1) if t < w else rate_of(t, peak, w, n)),
    "there is no warm-up: the first steps, while Adam knows two or three gradients, should be small":
        ({"rise": lambda t, w: 1.0}, lambda t, peak, w, n: peak * (n - t) / (n - w), lambda t, peak, w, n: peak * (n - t) / n),
    "the warm-up falls; it rises to the peak": ({"rise": lambda t, w: (w - t) / w}, {"rise": lambda t, w: (w - t - 1) / w}),
    "the peak comes one step late: the warm-up's last step, warmup - 1, has it": {"rise": lambda t, w: (t + 1) / (w + 1)},
    "the warm-up is one step too long and rises above the peak: it is over when step < warmup is no longer so":
        ({"more": 1}, lambda t, peak, w, n: rate_of(t, peak, w, n, more=min(1, w))),
    "the warm-up is one step too short, and the fall begins above the peak: it lasts while step < warmup": {"more": -1},
    "the rate never falls: after the warm-up it goes down to zero in a line": {"fall": lambda t, w, n: 1.0},
    "the fall is counted from step 0, so the rate drops behind the warm-up: count from `warmup`":
        ({"fall": lambda t, w, n: (n - t) / n}, lambda t, peak, w, n: peak * min((t + 1) / max(1, w), (n - t) / n),
         lambda t, peak, w, n: peak * min(1, (t + 1) / max(1, w)) * (n - t) / n),
    "the fall is too flat to reach 0 at `steps`: it has steps - warmup steps for it": {"fall": lambda t, w, n: 1 - (t - w) / n},
    "at step `warmup` the rate is below the peak: the fall takes steps - warmup steps from there, not one more":
        ({"fall": lambda t, w, n: (n - t) / (n - w + 1)}, {"fall": lambda t, w, n: (n - t) / (n - max(0, w - 1))}),
    "the rate is rounded: leave it as it is":
        [lambda t, peak, w, n, to=to: round(rate_of(t, peak, w, n), to) for to in range(1, 5)],
    "the last step has rate 0 and is wasted: zero is reached at `steps`, which is never taken":
        ({"fall": lambda t, w, n: (n - 1 - t) / (n - 1 - w)}, {"fall": lambda t, w, n: (n - 1 - t) / (n - w)}),
    "this falls along a cosine, not in a line": {"fall": lambda t, w, n: (1 + math.cos(math.pi * (t - w) / (n - w))) / 2},
    "this falls along a curve; here it is a straight line":
        [{"fall": lambda t, w, n, power=power: ((n - t) / (n - w)) ** power} for power in (0.5, 2)],
    "the rate stays at or above a tenth of the peak; here it falls in a line towards 0": (
        {"fall": lambda t, w, n: max(0.1, (n - t) / (n - w))}, {"fall": lambda t, w, n: 0.1 + 0.9 * (n - t) / (n - w)},
        lambda t, peak, w, n: max(0.1 * peak, rate_of(t, peak, w, n))),
    "the larger of the two lines is taken; the rate is the smaller one":
        lambda t, peak, w, n: peak * max((t + 1) / max(1, w), (n - t) / (n - w)),
    "// divides without a remainder, and shares of 1 become 0: divide with /": (
        {"rise": lambda t, w: (t + 1) // w, "fall": lambda t, w, n: (n - t) // (n - w)},
        lambda t, peak, w, n: peak * (t + 1) // w if t < w else peak * (n - t) // (n - w)),
    "without a warm-up this divides by zero: warmup = 0 means that step 0 has the peak rate": (
        lambda t, peak, w, n: peak * min((t + 1) / w, (n - t) / (n - w)),
        lambda t, peak, w, n: min(peak * (t + 1) / w, peak * (n - t) / (n - w))),
    "the example's warm-up of 2 and its 6 steps are written in": lambda t, peak, w, n: rate_of(t, peak, 2, 6),
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.4
def draw_adam(generator):
    rates = {"rate": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    start = {"parameter": torch.tensor([1.0]), "gradient": torch.tensor([2.0]), "m": torch.zeros(1), "v": torch.zeros(1)}
    yield {**start, "step": 1, **rates}
    still = {"parameter": torch.tensor([1.0, -2.0]), "gradient": torch.zeros(2), "m": torch.tensor([0.5, -0.25])}
    yield {**still, "v": torch.tensor([0.04, 0.09]), "step": 3, **rates}
    small = {"gradient": torch.tensor([1e-4, -3e-4]), "m": torch.zeros(2), "v": torch.zeros(2)}
    yield {"parameter": torch.tensor([0.5, 0.25]), **small, "step": 1, **rates}
    for shape, step, *rates in (
        ((3,), 2, 0.3, 0.8, 0.95, 1e-6), ((2, 3), 1, 0.05, 0.9, 0.99, 0.1), ((4, 2), 30, 0.5, 0.95, 0.98, 0.2),
        ((), 3, 2.0, 0.5, 0.9, 0.3), ((2,), 2000, 0.4, 0.9, 0.999, 1e-3),
    ):  # fmt: skip
        parameter, gradient, m = torch.randn(3, *shape, generator=generator)
        gradient.flatten()[:-1][:1] = 0.0  # not where it is a single number
        v = 0.1 + torch.rand(shape, generator=generator)
        yield {"parameter": parameter, "gradient": gradient, "m": m * (step > 1), "v": v * (step > 1), "step": step,
               **dict(zip(("rate", "beta1", "beta2", "eps"), rates))}  # fmt: skip


def adam_by_torch(parameter, gradient, m, v, step, rate, beta1, beta2, eps):
    """torch.optim.Adam, put into the state in which it would be before this step."""
    weight = nn.Parameter(parameter.clone())
    optimizer = torch.optim.Adam([weight], lr=rate, betas=(beta1, beta2), eps=eps)
    optimizer.state[weight] = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]


def adam(
    parameter, gradient, m, v, step, rate, beta1, beta2, eps, *, by=lambda a, b, t: (1 - a**t, 1 - b**t), old=lambda beta: beta,
    new=(0, 0), square=lambda g, m: g**2, move=lambda m, v, eps, g: m / (v.sqrt() + eps), out=lambda x, m, v, _: (x, m, v),
):  # fmt: skip
    """`by` makes the divisors of m and v of the betas and the step; `new`: whether the new part of m and v counts in full."""
    m = old(beta1) * m + (1 if new[0] else 1 - old(beta1)) * gradient
    v = old(beta2) * v + (1 if new[1] else 1 - old(beta2)) * square(gradient, m)
    corrected = [average / divisor for average, divisor in zip((m, v), by(beta1, beta2, step))]
    return out(parameter - rate * move(*corrected, eps, gradient), m, v, corrected)


Exercise("3.4", "adam_step", draw=draw_adam, right=adam_by_torch, formula=adam, mistakes={
    "the second beta is set to the first: v must decay by beta2, which is slower than beta1":
        lambda beta1, beta2, **others: adam(beta1=beta1, beta2=beta1, **others),
    "the bias correction is missing: m and v start at 0, so divide them by 1 - beta ** step before you use them":
        {"by": lambda a, b, t: (1, 1)},
    "only m is corrected for its start at 0: divide v by 1 - beta2 ** step too": {"by": lambda a, b, t: (1 - a**t, 1)},
    "only v is corrected for its start at 0: divide m by 1 - beta1 ** step too": {"by": lambda a, b, t: (1, 1 - b**t)},
    "the bias correction takes step - 1: steps are counted from 1, so that the first divides by 1 - beta":
        {"by": lambda a, b, t: (1 - a ** (t - 1), 1 - b ** (t - 1))},
    "the bias correction has beta * step; it is a power, beta ** step": {"by": lambda a, b, t: (1 - a * t, 1 - b * t)},
    "the bias correction is left out in later steps; at step 2000 and beta2 0.999 it still divides v by 0.86":
        [{"by": lambda a, b, t, last=last: (1 - a**t, 1 - b**t) if t <= last else (1, 1)} for last in (10, 50, 100, 1000)],
    "the bias correction multiplies; divide by 1 - beta ** step": {"by": lambda a, b, t: (1 / (1 - a**t), 1 / (1 - b**t))},
    "m and v are not each corrected with their own beta: beta1 belongs to m, beta2 to v":
        [{"by": lambda a, b, t, of=of: of(1 - a**t, 1 - b**t)}
         for of in (lambda x, y: (x, x), lambda x, y: (y, y), lambda x, y: (y, x))],
    "v is corrected behind its root; divide it before you take the root": {"by": lambda a, b, t: (1 - a**t, (1 - b**t) ** 2)},
    "the corrected m and v are returned; the running averages themselves must be kept, or the next step corrects twice":
        {"out": lambda new, m, v, corrected: (new, *corrected)},
    "the averages from before the step are returned; return the new ones":
        lambda m, v, **others: adam(m=m, v=v, **others, out=lambda new, *_: (new, m, v)),
    "the change of the parameter is returned, not the parameter after it":
        lambda parameter, **others: adam(parameter=parameter, **others, out=lambda new, m, v, _: (new - parameter, m, v)),
    "v averages the gradient; it is the average of its square": ({"square": lambda g, m: g}, {"square": lambda g, m: g.abs()}),
    "v averages the square of m; it is the average of the gradient's square": {"square": lambda g, m: m**2},
    "the squared gradient is averaged over the whole tensor; v has one average for each weight":
        {"square": lambda g, m: (g**2).mean()},
    "what is new in an average is not multiplied by 1 - beta": ({"new": (1, 1)}, {"new": (1, 0)}, {"new": (0, 1)}),
    "the weights of old and new are exchanged: the old average has beta, the gradient 1 - beta": {"old": lambda beta: 1 - beta},
    "the gradient itself makes the step; m, its average, does": {"move": lambda m, v, eps, g: g / (v.sqrt() + eps)},
    "the step is divided by v; divide by its square root, so that the size of the gradient cancels":
        {"move": lambda m, v, eps, g: m / (v + eps)},
    "eps is added inside the root; Adam adds it to the root":
        ({"move": lambda m, v, eps, g: m / (v + eps).sqrt()}, {"move": lambda m, v, eps, g: m / (v + eps**2).sqrt()}),
    "eps is only a lower bound here; Adam adds it to the root": {"move": lambda m, v, eps, g: m / v.sqrt().clamp(min=eps)},
    "the v of before this step divides; take the new one":
        lambda v, beta2, step, **others: adam(v=v, beta2=beta2, step=step, **others, move=lambda m, _, eps, g: (
            m / ((v / (1 - beta2**step)).sqrt() + eps))),
    "nothing moves where the gradient is zeros; m is not, and the averages and the step go on": (
        lambda parameter, gradient, m, v, **others: adam(parameter, gradient, m, v, **others) if gradient.any() else (
            parameter, m, v),
        lambda parameter, gradient, **others: (adam(parameter, gradient, **others)[0] if gradient.any() else parameter,
                                               *adam(parameter, gradient, **others)[1:])),
    "there is weight decay in it (AdamW); this is Adam alone":
        [lambda parameter, rate, decay=decay, **others: adam(parameter=parameter, rate=rate, **others, out=lambda new, m, v, _: (
            new - rate * decay * parameter, m, v)) for decay in (0.01, 0.1)],
    "eps is added to the root of v before v is corrected; correct first":
        lambda eps, beta2, step, **others: adam(beta2=beta2, step=step, eps=eps / math.sqrt(1 - beta2**step), **others),
    "this goes up the gradient: subtract the step": {"move": lambda m, v, eps, g: -m / (v.sqrt() + eps)},
    "the usual betas of 0.9 and 0.999 are written in: use the arguments": (
        lambda beta1, beta2, **others: adam(beta1=0.9, beta2=0.999, **others),
        lambda beta1, beta2, eps, **others: adam(beta1=0.9, beta2=0.999, eps=1e-8, **others)),
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.5
def draw_gradients(generator):
    yield {"gradients": [torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([6.0])], "max_norm": 1.0}
    yield {"gradients": [torch.tensor([0.9]), torch.tensor([1.2])], "max_norm": 2.5}
    for scale, max_norm in ((2.0, 0.8), (0.1, 0.7), (3.0, 4.0), (1e-7, 0.6)):
        drawn = [scale * torch.randn(shape, generator=generator) for shape in ((2, 3), (3,), ())]
        yield {"gradients": drawn, "max_norm": max_norm}
    yield {"gradients": [torch.zeros(2), torch.zeros(1, 2)], "max_norm": 0.5}
    equal = [torch.tensor([3.0, 4.0]), torch.tensor([[4.0], [3.0]]), torch.tensor([0.0, -5.0])]  # each has the norm 5
    yield {"gradients": equal, "max_norm": 2.0}
    yield {"gradients": [*torch.randn(130, 2, generator=generator)], "max_norm": 1.5}


def clipped_and_norm(function, gradients, max_norm):
    clipped, norm = function(gradients, max_norm)
    parts = clipped if isinstance(clipped, (list, tuple)) else []  # the norm, where the two have changed places
    return {"clipped": clipped, "norm": norm, "tensors are new": not any(one is old for one in parts for old in gradients)}


def clip_by_torch(gradients, max_norm):
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(weights, max_norm)
    return [weight.grad for weight in weights], norm


def norm_of(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


def clip(
    gradients, max_norm, *, norm=norm_of, scale=lambda norm, most: min(1.0, most / (norm + 1e-6)),
    clipped=lambda x, most, scale: x * scale, told=lambda norm, scale: norm,
):  # fmt: skip
    norm = norm(gradients)
    factor = scale(norm, max_norm)
    return [clipped(gradient, max_norm, factor) for gradient in gradients], told(norm, factor)


Exercise("3.5", "clip_gradient", draw=draw_gradients, call=clipped_and_norm, right=clip_by_torch, formula=clip, mistakes={
    "each tensor is clipped by its own norm, which turns the gradient: take one norm over all of them":
        {"clipped": lambda x, most, scale: clip([x], most)[0][0]},
    "single values are cut off at max_norm, which turns the gradient: scale all by one factor":
        {"clipped": lambda x, most, scale: x.clamp(-most, most)},
    "nothing is scaled: the gradient comes back as it was": {"scale": lambda norm, most: 1},
    "the tensors that were given come back where nothing is to be scaled; return new ones":
        lambda xs, most: (xs, norm_of(xs)) if norm_of(xs) <= most else clip(xs, most),
    "a gradient shorter than max_norm is scaled too: leave it as it is":
        [{"scale": scale} for scale in (lambda norm, most: most / (norm + 1e-6), lambda norm, most: most / norm,
                                        lambda norm, most: most / norm if norm else 1.0)],
    "max for min: what is too long stays, what is short grows": {"scale": lambda norm, most: max(1, most / (norm + 1e-6))},
    "the fraction is upside down: multiply by max_norm / norm":
        ({"scale": lambda norm, most: norm / most}, {"scale": lambda norm, most: min(1, norm / most)}),
    "the factor lacks max_norm: what is too long gets the norm 1": {"scale": lambda norm, most: 1 / norm if norm > most else 1},
    "what is added to the norm is not small enough: the clipped gradient is too short; 1e-6 will do":
        [{"scale": lambda norm, most, more=more: min(1, most / (norm + more))} for more in (1e-3, 0.01, 0.1, 1.0)],
    "this adds the tensors' norms; it is the root of the sum of their squares": {"norm": lambda xs: sum(x.norm() for x in xs)},
    "this is the largest of the tensors' norms, or their mean; the norm of all is the root of the sum of their squares":
        ({"norm": lambda xs: max(x.norm() for x in xs)}, {"norm": lambda xs: sum(x.norm() for x in xs) / len(xs)}),
    "the tensors' norms are not squared before they are added": {"norm": lambda xs: sum(x.norm() for x in xs) ** 0.5},
    "the square root is missing: this is the squared norm": {"norm": lambda xs: norm_of(xs) ** 2},
    "this adds absolute values; the norm is the root of the sum of squares": {"norm": lambda xs: sum(x.abs().sum() for x in xs)},
    "this is the largest absolute value, not the norm": {"norm": lambda xs: max(x.abs().max() for x in xs)},
    "this is the root of the mean of squares, not of the sum":
        {"norm": lambda xs: norm_of(xs) / sum(x.numel() for x in xs) ** 0.5},
    "tensors of one norm, or of one shape, are counted once: a set or a dict has one place for them; take the list": (
        {"norm": lambda xs: sum(square for square in {float(x.square().sum()) for x in xs}) ** 0.5},
        {"norm": lambda xs: norm_of([*{x.shape: x for x in xs}.values()])}),
    "the last tensor is left out of the norm": {"norm": lambda xs: norm_of(xs[:-1])},
    "gradients that are all 0 become NaN, 0 / 0: scale only what is too long, or add a tiny number to the norm":
        {"scale": lambda norm, most: norm.clamp(max=most) / norm},
    "the factor is squared: multiply by max_norm / norm": {"scale": lambda norm, most: min(1, most / (norm + 1e-6)) ** 2},
    "this is the norm of the first tensor alone": {"norm": lambda xs: xs[0].norm()},
    "clipped gradients and norm have changed places: return (clipped, norm)": lambda xs, most: clip(xs, most)[::-1],
    "the norm returned is the one after clipping; the one before it is worth a curve, as it shows what happened":
        {"told": lambda norm, scale: norm * scale},
    "the factor is returned in place of the norm": {"told": lambda norm, scale: scale},
})  # fmt: skip
