"""Chapter 06: reading the last real token, pooling, soft labels, scores and accuracy."""

import math
from functools import lru_cache, partial

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.ch04_sampling import tiny_gpt
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.layers import evaluating, pad

LIMITS = (5, 10, 15, 20, 30, 50, 80, 88, 100)  # at which logarithms, or what goes into exp, are cut off
EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def marks(*rows):
    """A mask out of words of x and -."""
    return torch.tensor([[one == "x" for one in row] for row in rows])


def masks(generator, sizes=((4, 5), (7, 9))):
    """Masks (B, T) of real tokens, which are in one piece, padded on the left or on the right."""
    yield from (marks("xx-"), marks("-xx"), marks("x", "x"), marks("xxx-", "xx--"), marks("-xxx", "xxxx", "x---", "---x"))
    for rows, steps in sizes:
        lengths = torch.randint(1, steps, (rows, 1), generator=generator)
        left = torch.arange(rows)[:, None] % 2 == 1  # every other row is padded on the left
        mask = torch.where(left, torch.arange(steps) >= steps - lengths, torch.arange(steps) < lengths)
        mask[rows // 2] = True
        yield mask
    yield marks("x" * 258 + "--")  # beyond 8 bits


def options(name, table):
    """{sentence: functions} as mistakes: every function is the formula's option `name`."""
    return {sentence: tuple({name: one} for one in (of if isinstance(of, tuple) else (of,))) for sentence, of in table.items()}


# ----------------------------------------------------------------------------------------- 6.1


def draw_tokens(generator):
    yield {"x": torch.tensor([[1.0, 2.0, 9.0]]), "mask": marks("xx-")}
    for mask in masks(generator):
        yield {"x": torch.randn(mask.shape, generator=generator), "mask": mask}
    yield {"x": torch.tensor([[5.0, 7.0, 0.0, 8.0], [6.0, -2.0, 4.0, 0.0]]), "mask": marks("xxx-", "--xx")}  # real zeros
    far = torch.tensor([[2e100, -3e100, 7e100], [5e100, 1e100, -4e100]], dtype=torch.float64)  # float32 ends at 3e38
    yield {"x": far, "mask": marks("xx-", "-xx")}


def with_gradient(function, **given):
    """What the function makes of its first argument, and whether a gradient flows back to that."""
    name, x = next(iter(given.items()))
    output = function(**{**given, name: x.clone().requires_grad_().clone()})
    return {"values": output, "a gradient flows": getattr(output, "requires_grad", False)}


def last_by_loop(x, mask):
    return torch.stack([row[real][-1] for row, real in zip(x, mask)])


def last_place(mask):
    return (mask * torch.arange(mask.shape[1])).amax(1)


def at(place, beyond="clamp"):
    """A function that reads each row of x (B, T, ...) at place(mask) (B,); `beyond` the ends it clamps, wraps, or raises."""

    def read(x, mask):
        places, size = place(mask), x.shape[1]
        if beyond == "gather" and x.dim() == 2:
            return x.gather(1, places[:, None])[:, 0]
        return x[torch.arange(len(x)), {"clamp": places.clamp(0, size - 1), "wrap": places % size}.get(beyond, places)]

    return read


def of_real(make):
    """A function that makes one value of each row's real tokens."""
    return lambda x, mask: torch.stack([make(row[real]) for row, real in zip(x, mask)])


LAST = at(last_place)
READS = {
    "the last column is read, padding included; read each row's last real token": lambda x, mask: x[:, -1],
    "counting the real tokens finds the last one only when the padding is on the right": at(lambda mask: mask.sum(1) - 1),
    "the number of real tokens was taken for the place of the last one; places count from 0, and padding may stand in front":
        tuple(at(lambda mask: mask.sum(1), beyond) for beyond in ("clamp", "wrap", "gather", "index")),
    "this reads the first real token: nothing has been read there yet": at(lambda mask: mask.int().argmax(1)),
    "the first column is read: nothing has been read there yet, and it may be padding": lambda x, mask: x[:, 0],
    "off by one: this reads the token before the last real one":
        (at(lambda mask: last_place(mask) - 1), at(lambda mask: last_place(mask) - 1, "wrap"),
         at(lambda mask: torch.maximum(last_place(mask) - 1, mask.int().argmax(1)))),
    "where the padding begins is sought, and a row without any behind it gives 0: argmax of zeros is 0":
        at(lambda mask: (mask.int().diff(dim=1) == -1).int().argmax(1)),
    "off by one: this reads the place after the last real token":
        tuple(at(lambda mask: last_place(mask) + 1, beyond) for beyond in ("clamp", "wrap", "gather", "index")),
    "the side of the padding is found out once for the whole batch; each row has its own":
        tuple(at(lambda mask, right=right: mask.sum(1) - 1 if right(mask) else 0 * mask.sum(1) + mask.shape[1] - 1) for right
              in (lambda m: m[0, 0], lambda m: m[:, 0].all(), lambda m: m[:, 0].any(), lambda m: not m[:, -1].any())),
    "places are counted in a type that does not hold them all, of 8 bits or bfloat16; take whole numbers of 64 bits":
        tuple(at(lambda mask, of=of: (mask * torch.arange(mask.shape[1]).to(of)).argmax(1))
              for of in (torch.uint8, torch.int8, torch.bfloat16)),
    "this is the mean over the real tokens; only the last one has read the whole passage": of_real(lambda real: real.mean(0)),
}  # fmt: skip


last_token = Exercise(
    "6.1", "last_token",
    draw=draw_tokens,
    right=last_by_loop,
    call=with_gradient,
    formula=lambda x, mask, *, read=LAST: read(x, mask),
    mistakes=options("read", {
        **READS,
        "this is the place of the last real token, or its distance from the end; return what x has there":
            (lambda x, mask: last_place(mask), lambda x, mask: mask.flip(1).int().argmax(1)),
        "the last token is sought from the end, and read as if from the beginning: the place is T - 1 less the distance":
            at(lambda mask: mask.flip(1).int().argmax(1)),
        "this is the sum of the real tokens; only the last one has read the whole passage": of_real(torch.sum),
        "this is the largest value among the real tokens; which token it is must not depend on the values": of_real(torch.max),
        "a real token whose value is 0 is taken for padding; ask the mask": lambda x, mask: LAST(x, (x * mask) != 0),
        "float64 goes through float32, as in torch.zeros(B), which does not hold every number: keep the type of `x`":
            lambda x, mask: LAST(x, mask).float(),
        "no gradient flows back to `x`: .item(), .tolist(), torch.tensor(...) or .detach() cuts it off; index `x` itself":
            lambda x, mask: LAST(x, mask).detach(),
    }),
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.2


def draw_hidden(generator):
    yield {"hidden": torch.tensor([[[1.0], [3.0], [8.0]]]), "mask": marks("xx-")}
    zeros = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [2.0, 6.0]], [[7.0, 3.0], [0.0, 0.0], [0.0, 9.0]]])  # some real states are 0
    yield {"hidden": zeros, "mask": marks("xxx", "-xx")}
    for mask in masks(generator, ((2, 4), (5, 7))):
        yield {"hidden": 1 + 2 * torch.randn(*mask.shape, 3, generator=generator), "mask": mask}
    mask = marks("--xx", "xxx-")
    hidden = torch.randn(2, 4, 3, generator=generator).masked_fill(~mask[..., None], 3e7)  # beside which float32 holds no unit
    yield {"hidden": hidden, "mask": mask}


def pooled(hidden, mask, *, weights=lambda mask: mask, count=lambda mask: mask.sum(1, keepdim=True), read=None):
    """The sum of the states with the `weights` (B, T), divided by the `count` (B, 1); or what `read` says."""
    return read(hidden, mask) if read else torch.einsum("bt,btc->bc", weights(mask).float(), hidden) / count(mask)


def not_zero(hidden, mask, whole):
    """Divided by the number of real states (or, feature by feature, of real values) that are not 0."""
    real = (hidden * mask[..., None]) != 0
    return (hidden * mask[..., None]).sum(1) / (real.any(2, keepdim=True) if whole else real).sum(1).clamp(min=1)


def by_running_sums(hidden, mask):
    sums, rows = F.pad(hidden.cumsum(1), (0, 0, 1, 0)), torch.arange(len(hidden))
    return (sums[rows, last_place(mask) + 1] - sums[rows, mask.int().argmax(1)]) / mask.sum(1, keepdim=True)


def compare_pooled(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got["values"], expected["values"], "a row is a passage, a column a feature")


mean_pool = Exercise(
    "6.2", "mean_pool",
    draw=draw_hidden,
    right=lambda hidden, mask: of_real(lambda real: real.mean(0))(hidden, mask),
    call=with_gradient,
    formula=pooled,
    picture=compare_pooled,
    mistakes={
        "padding is part of the mean, so a passage's score depends on the batch that it is in: use the mask":
            {"weights": torch.ones_like, "count": lambda mask: mask.shape[1]},
        "padding was set to zero but still counted: divide by the number of real tokens, not by the length":
            {"count": lambda mask: mask.shape[1]},
        "padding is in the sum, though not in the count: set it to zero before you add up": {"weights": torch.ones_like},
        "this is the sum over the real tokens; divide it by their number": {"count": lambda mask: 1},
        "each row is divided by the batch's average number of real tokens; divide it by its own":
            {"count": lambda mask: mask.sum(1).float().mean()},
        "the numbers of real tokens, (B,), lie along the features here: they need a last dimension, (B, 1)":
            {"count": lambda mask: mask.sum(1)},
        "later tokens weigh more here; in a mean all real tokens weigh the same":
            {"weights": lambda mask: mask * torch.arange(1, mask.shape[1] + 1),
             "count": lambda mask: (mask * torch.arange(1, mask.shape[1] + 1)).sum(1, keepdim=True)},
        "a number of real tokens below 2 is raised; a single token is its own mean":
            {"count": lambda mask: mask.sum(1, keepdim=True).clamp(min=2)},
        "all rows are divided by the same number, that of rows, or of all or the most real tokens; divide each by its own":
            ({"count": len}, {"count": lambda mask: mask.sum()}, {"count": lambda mask: mask.sum(1).amax()}),
        "the number of real tokens is one too small or too large":
            tuple({"count": lambda mask, by=by, least=least: (mask.sum(1, keepdim=True) + by).clamp(min=least)}
                  for by, least in ((-1, 0), (-1, 1), (1, 0))),
        "the sum is divided by the root of the number of real tokens": {"count": lambda mask: mask.sum(1, keepdim=True).sqrt()},
        "real states that are 0 are not counted, as if they were padding; count the mask":
            (lambda hidden, mask: not_zero(hidden, mask, whole=True), lambda hidden, mask: not_zero(hidden, mask, whole=False)),
        "the weights are a softmax of the mask, in which padding still has some: divide the mask by its sum":
            {"weights": lambda mask: mask.float().softmax(1), "count": lambda mask: 1},
        "real tokens are counted in 8 bits, or in bfloat16, which do not hold every number: take whole numbers of 64 bits":
            tuple({"count": lambda mask, of=of: mask.sum(1, keepdim=True, dtype=torch.int64).to(of)}
                  for of in (torch.uint8, torch.int8)),
        "no gradient flows back to `hidden`: .tolist(), torch.tensor(...) or .detach() cuts it off":
            {"read": lambda x, mask: pooled(x, mask).detach()},
        "a difference of running sums loses the real states beside large numbers in padding: set padding to zero before":
            {"read": by_running_sums},
        "this averages over the width; average over the tokens, dim=1, and keep (B, C)": {"read": lambda x, mask: x.mean(2)},
        "this is one mean for the whole batch; each passage has its own":
            {"read": lambda x, mask: x[mask].mean(0).expand(len(x), -1)},
        "this is the largest value of each feature, max-pooling; take the mean": {"read": of_real(lambda real: real.amax(0))},
        "this is the median of each feature; take the mean":
            ({"read": of_real(lambda real: real.median(0).values)}, {"read": of_real(lambda real: real.quantile(0.5, dim=0))}),
        "this is the middle between the smallest and the largest value; take the mean":
            {"read": of_real(lambda real: (real.amax(0) + real.amin(0)) / 2)},
        "this is the last (or the first) real token; take the mean over all real ones":
            ({"read": last_by_loop}, {"read": of_real(lambda real: real[0])}),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.3


def draw_labelled(generator):
    yield {"logits": torch.tensor([[2.0, -1.0, 9.0]]), "mask": marks("xx-"), "targets": torch.tensor([1.0])}
    yield {"logits": torch.tensor([[0.0]]), "mask": marks("x"), "targets": torch.tensor([0.5])}  # ln 2
    for mask in masks(generator, ((5, 4), (8, 6))):
        targets = torch.tensor([0.5, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0])[torch.randperm(8, generator=generator)][: len(mask)]
        yield {"logits": 2 * torch.randn(mask.shape, generator=generator), "mask": mask, "targets": targets}
    sure = torch.tensor([[-1000.0], [60.0], [1000.0], [1000.0]])  # sure and wrong, wrong, right, and sure of a neutral one
    yield {"logits": sure, "mask": marks("x", "x", "x", "x"), "targets": torch.tensor([1.0, 0.0, 1.0, 0.5])}


def loss_and_gradient(function, **given):
    """The loss, and its gradient with respect to what is no mask and no target."""
    wanted = {name: one.clone().requires_grad_() for name, one in given.items() if name not in ("mask", "targets")}
    loss = function(**{**given, **wanted})
    loss.backward()
    return {"loss": loss, **{f"gradient of {name}": one.grad for name, one in wanted.items()}}


def soft_by_logaddexp(logits, targets, mask):
    z = last_by_loop(logits, mask)
    return (torch.logaddexp(z, torch.zeros_like(z)) - targets * z).mean()  # -t log p - (1 - t) log(1 - p)


def binary(z, t):
    return F.binary_cross_entropy_with_logits(z, t, reduction="none")


def by_logs(z, t, inside=lambda p: p):
    p = z.sigmoid()
    return -(t * inside(p).log() + (1 - t) * inside(1 - p).log())


def label_loss(logits, targets, mask, *, read=LAST, loss=binary, target=lambda t: t, over=lambda each, t, mask: each.mean()):
    return over(loss(read(logits, mask), target(targets)), targets, mask)


def everywhere(logits, targets, mask, weights=lambda mask: mask / mask.sum()):
    return (binary(logits, targets[:, None].expand(logits.shape)) * weights(mask)).sum()


def at_all(logits, targets, mask):
    return everywhere(logits, targets, mask, weights=lambda mask: torch.full(mask.shape, 1 / mask.numel()))


soft_label_loss = Exercise(
    "6.3", "soft_label_loss",
    draw=draw_labelled,
    right=soft_by_logaddexp,
    call=loss_and_gradient,
    formula=label_loss,
    mistakes={
        **options("read", READS),
        "the label is held against every real token; the early ones have not read the passage yet":
            (everywhere, partial(everywhere, weights=lambda mask: mask / mask.sum(1, keepdim=True) / len(mask))),
        "the label is held against every position, padding and early ones too; only each row's last real token counts":
            (at_all, lambda logits, targets, mask: at_all(logits * mask, targets, mask)),
        "neutral passages are left out of the loss; they say where the middle is: target 0.5":
            tuple({"over": over} for over in (
                lambda losses, t, mask: losses[t != 0.5].mean(), lambda losses, t, mask: (losses * (t != 0.5)).mean(),
                lambda losses, t, mask: (losses * (t != 0.5)).sum() / (t != 0.5).sum().clamp(min=1))),
        "neutral passages count as negative: keep the soft target 0.5": {"target": lambda t: (t > 0.5).float()},
        "neutral passages count as positive: keep the soft target 0.5": {"target": lambda t: (t >= 0.5).float()},
        "the least loss that is possible, ln 2 for a neutral passage, is taken off; leave it in":
            {"over": lambda losses, t, mask: (losses - (t == 0.5) * math.log(2)).mean()},
        "this is the sum over the batch; take the mean": {"over": lambda losses, t, mask: losses.sum()},
        "the sum is divided by the number of real tokens, not of rows": {"over": lambda each, t, mask: each.sum() / mask.sum()},
        "the targets, or the signs of the log-odds, are turned round: a target of 1 is positive": {"target": lambda t: 1 - t},
        "a sigmoid is in it twice: the operator with logits takes log-odds, not probabilities":
            {"loss": lambda z, t: binary(z.sigmoid(), t)},
        "every log-odds is held against every target, as where (B, 1) meets (B,); each row has its own: bring both to (B,)":
            {"loss": lambda z, t: binary(*torch.broadcast_tensors(z[:, None], t))},
        "squared errors hardly learn from a passage that is sure and wrong; take the cross-entropy":
            ({"loss": lambda z, t: (z.sigmoid() - t) ** 2}, {"loss": lambda z, t: (z.sigmoid() - t) ** 2 / 2}),
        "a neutral passage has no gradient here, since 2 t - 1 is 0 for it: its loss is the mean of those of both labels":
            {"loss": lambda z, t: F.softplus(-(2 * t - 1) * z)},
        "the operator's arguments have changed places: log-odds come first, then the targets":
            {"loss": lambda z, t: binary(t, z)},
        "log-odds are subtracted from targets as if they were probabilities; take the cross-entropy":
            ({"loss": lambda z, t: (z - t) ** 2}, {"loss": lambda z, t: (z - t).abs()}),
        "of the two parts, -t log p and -(1 - t) log(1 - p), one is missing":
            ({"loss": lambda z, t: -t * F.logsigmoid(z)}, {"loss": lambda z, t: -(1 - t) * F.logsigmoid(-z)}),
        "the sigmoid rounds to 0 or 1 for large log-odds, and the gradient is gone: work on log-odds instead":
            {"loss": lambda z, t: F.binary_cross_entropy(z.sigmoid(), t, reduction="none")},
        "log(sigmoid) underflows to log 0, or exp overflows, and that is infinity or NaN: work on log-odds, as the operator does":
            tuple({"loss": loss} for loss in (
                by_logs, lambda z, t: (1 + z.exp()).log() - t * z, lambda z, t: z.exp().log1p() - t * z,
                lambda z, t: (1 + (-z).exp()).log() + (1 - t) * z, lambda z, t: (-z).exp().log1p() + (1 - t) * z,
                lambda z, t: t * (1 + (-z).exp()).log() + (1 - t) * (1 + z.exp()).log())),
        "the log-odds are cut off at some number, and beyond it the gradient is gone; the operator can take any":
            tuple({"loss": lambda z, t, most=most: binary(z.clamp(-most, most), t)} for most in LIMITS),
        "nan_to_num puts the NaN of a sigmoid's logarithm out of sight, and the gradient stays one: work on log-odds instead":
            tuple({"loss": by_logs, "over": over} for over in (lambda losses, t, mask: losses.nan_to_num().mean(),
                                                               lambda losses, t, mask: losses.mean().nan_to_num())),
        "a small number inside the logarithm, or a clamp, removes the infinity and the gradient with it; work on log-odds":
            tuple({"loss": partial(by_logs, inside=inside)} for eps in EPSILONS for inside in
                  (lambda p, eps=eps: p + eps, lambda p, eps=eps: p.clamp(min=eps), lambda p, eps=eps: p.clamp(eps, 1 - eps))),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.4


def draw_label_tokens(generator):
    yield {"logits": torch.tensor([[[1.0, 2.0, 0.0]]]), "mask": marks("x"), "positive": 1, "negative": 0}
    for mask in masks(generator, ((3, 4), (5, 6))):
        positive, negative, *_ = torch.randperm(4, generator=generator).tolist()
        logits = 2 * torch.randn(*mask.shape, 4, generator=generator)
        yield {"logits": logits, "mask": mask, "positive": positive, "negative": negative}
    for logits in ([500.0, -500.0, 0.0], [-500.0, 500.0, 0.0], [1.0, 2.0, 120.0]):
        yield {"logits": torch.tensor([[logits]]), "mask": marks("x"), "positive": 1, "negative": 0}


def reward_by_cross_entropy(logits, mask, positive, negative):
    rows = last_by_loop(logits, mask)[:, [negative, positive]]
    return -F.cross_entropy(rows, torch.ones(len(rows), dtype=torch.long), reduction="none")


def label_reward(logits, mask, positive, negative, *, read=LAST, tokens=lambda p, n: (p, n),
                 score=lambda p, n, every: F.logsigmoid(p - n)):  # fmt: skip
    """`score` makes the reward of the logits of the two tokens, (B,), and of those of every one, (B, V)."""
    every = read(logits, mask)
    return score(*(every[:, token] for token in tokens(positive, negative)), every)


def at_every(logits, mask, positive, negative, divide=False):
    rewards = F.logsigmoid(logits[..., positive] - logits[..., negative]) * mask
    return rewards.sum(1) / (mask.sum(1) if divide else 1)


label_token_reward = Exercise(
    "6.4", "label_token_reward",
    draw=draw_label_tokens,
    right=reward_by_cross_entropy,
    formula=label_reward,
    mistakes={
        **options("read", READS),
        "normalised over the whole vocabulary: compare the two label tokens with each other alone":
            {"score": lambda p, n, every: p - every.logsumexp(-1)},
        "this is the probability; return its logarithm": {"score": lambda p, n, every: (p - n).sigmoid()},
        "softmax (or sigmoid, or exp) and then log underflows to minus infinity, or overflows: use log_softmax or logsigmoid":
            tuple({"score": score} for score in (
                lambda p, n, every: (p - n).sigmoid().log(), lambda p, n, every: (p.exp() / (p.exp() + n.exp())).log(),
                lambda p, n, every: p - (p.exp() + n.exp()).log(), lambda p, n, every: -(1 + (n - p).exp()).log(),
                lambda p, n, every: -(1 + (n - every.logsumexp(-1)).exp() / (p - every.logsumexp(-1)).exp()).log())),
        "a small number inside the logarithm hides the underflow: use log_softmax, or logsigmoid of the difference":
            tuple({"score": lambda p, n, every, eps=eps: ((p - n).sigmoid() + eps).log()} for eps in EPSILONS),
        "this rewards the negative label: positive and negative are exchanged": {"tokens": lambda p, n: (n, p)},
        "the token numbers are those of the example, 1 and 0: use `positive` and `negative`": {"tokens": lambda p, n: (1, 0)},
        "this is the difference of the logits, the log-odds, which has no upper end; a log-probability stops at 0":
            {"score": lambda p, n, every: p - n},
        "this is logsigmoid of the positive logit alone; take the difference to the negative one":
            {"score": lambda p, n, every: F.logsigmoid(p)},
        "this is a difference of two logsigmoids; take the logsigmoid of the difference":
            {"score": lambda p, n, every: F.logsigmoid(p) - F.logsigmoid(n)},
        "the softmax runs over the batch; it belongs to the two tokens of each row":
            {"score": lambda p, n, every: p - p.logsumexp(0)},
        "the difference is cut off at some number; logsigmoid can take any":
            tuple({"score": lambda p, n, every, most=most: F.logsigmoid((p - n).clamp(-most, most))} for most in LIMITS),
        "this is the mean over the batch; return a reward for each row":
            ({"score": lambda p, n, every: F.logsigmoid(p - n).mean()}, {"score": lambda p, n, every: F.logsigmoid(p - n).sum()}),
        "the smaller of the two numbers is taken for negative: use `positive` and `negative` as they are given":
            ({"tokens": lambda p, n: (max(p, n), min(p, n))}, {"tokens": lambda p, n: (min(p, n), max(p, n))}),
        "this is a difference of probabilities; return a log-probability":
            {"score": lambda p, n, every: p.sub(every.logsumexp(-1)).exp() - n.sub(every.logsumexp(-1)).exp()},
        "this adds up, or averages over, all real tokens; the label is predicted once, after the last one":
            (at_every, partial(at_every, divide=True)),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.5


def draw_rows(generator):
    for count, batch, pooling in ((2, 2, "last"), (5, 2, "mean"), (7, 3, "last"), (3, 1, "mean"), (4, 9, "last")):
        lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
        lengths[:2] = 7, 3  # a long one in front of a short one
        rows = [torch.randint(12, (length,), generator=generator).tolist() for length in lengths]
        rows[1][-1] = 0  # a real token with the number that padding has
        if count == 7:
            rows[-1] = list(rows[0])  # two equal rows
        weights = int(torch.randint(1_000_000, (1,), generator=generator))
        yield {"weights": weights, "pooling": pooling, "rows": rows, "batch": batch}


def tiny_reward_model(seed, pooling):
    """A reward model with weights drawn from `seed`; in training mode, with dropout."""
    model = RewardModel(tiny_gpt(seed), pooling, dropout=0.3)
    model.score.weight.data.normal_(std=0.4, generator=torch.Generator().manual_seed(seed))
    return model.train()


@lru_cache(maxsize=16)
def untouched(seed, pooling):
    """`tiny_reward_model` as it was made, to compare with."""
    return tiny_reward_model(seed, pooling)


def scores_and_batches(function, weights, pooling, rows, batch):
    """The log-odds; if they are the same every time, how they came about, and what is left behind."""

    def once(run):
        torch.default_generator.manual_seed(run)
        model, sizes, right = tiny_reward_model(weights, pooling), [], []
        hidden, logits = model.body.hidden, model.logits
        model.body.hidden = lambda tokens, *rest, **named: sizes.append(len(tokens)) or hidden(tokens, *rest, **named)
        model.logits = lambda tokens, mask=None: right.append(mask is None or bool(mask[:, 0].all())) or logits(tokens, mask)
        return function(model, [list(row) for row in rows], batch), sizes, right, model

    scores, sizes, right, model = once(1)
    if isinstance(scores, torch.Tensor) and not torch.allclose(scores, once(2)[0], equal_nan=True):
        raise RuntimeError("the same rows got other scores the second time: dropout, or something else that is drawn, was on")
    fresh = untouched(weights, pooling)
    same = all(map(torch.equal, model.state_dict().values(), fresh.state_dict().values()))
    return {
        "scores": scores,
        "has a graph": getattr(scores, "requires_grad", False),
        "what `logits` gets is padded on the right": all(right),
        "batches": len(sizes),
        "more rows than `batch` at once": any(size > batch for size in sizes),
        "the model is as before": same and model.config == fresh.config and all(one.requires_grad for one in model.parameters()),
    }


@torch.no_grad()
def padded_left(model, rows, batch):
    """With the padding on the left the last column is each row's last real token."""
    model.eval()
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return torch.cat([model(*pad(group, "left"))[:, -1] for group in groups])


def scored(model, rows, batch, *, read=lambda model, tokens, mask: model.logits(tokens, mask), mode=False, grad=False, size=None,
           part=None, fill=lambda some: pad(some, "right"), order=None, back=torch.argsort, end=lambda all: all):  # fmt: skip
    """`order` sorts the rows before they are scored, `back` makes of it the order in which the scores are returned;
    `part` makes the scores of those of the whole batches, and of the number of rows."""
    size, places = size(rows) if size else batch, order(rows) if order else list(range(len(rows)))
    groups = [[rows[place] for place in places[start : start + size]] for start in range(0, len(rows), size)]
    with torch.set_grad_enabled(grad), evaluating(model):
        model.train(mode)
        scores = [read(model, *fill(group)) for group in groups if len(group) == size or not part]
        return end(part(scores, len(rows)) if part else torch.cat(scores)[back(torch.tensor(places))])


def looked_up(model, rows, batch, order):
    """Each score is put in the place where the row's tokens stand first."""
    scores, some = torch.zeros(len(rows)), [rows[place] for place in order(rows)]
    scores[[rows.index(row) for row in some]] = scored(model, some, batch)
    return scores


SORTS = [lambda rows, sign=sign: sorted(range(len(rows)), key=lambda place: sign * len(rows[place])) for sign in (1, -1)]
score_rows = Exercise(
    "6.5", "score_rows",
    tolerance=1e-4,
    draw=draw_rows,
    right=padded_left,
    call=scores_and_batches,
    formula=scored,
    mistakes={
        "the scores are others each time: dropout is still on; call model.eval() first": {"mode": True},
        "the model was not told what is padding: give it the mask": {"read": lambda model, tokens, mask: model(tokens)[:, -1]},
        "the last column is read, padding included; read each row's last real token":
            {"read": lambda model, tokens, mask: model(tokens, mask)[:, -1]},
        "this is the mean of the log-odds at all places of a row; those at its last real token have read it whole":
            ({"read": lambda model, tokens, mask: (model(tokens, mask) * mask).sum(1) / mask.sum(1)},
             {"read": lambda model, tokens, mask: model(tokens, mask).mean(1)}),
        "the mask is turned round: True marks the real tokens": {"read": lambda model, tokens, mask: model.logits(tokens, ~mask)},
        "the mask is a place too long, or too short: token t is real where t is less than the length":
            ({"read": lambda model, tokens, mask: model.logits(tokens, F.pad(mask[:, :-1], (1, 0), value=True))},
             {"read": lambda model, tokens, mask: model.logits(tokens, mask & F.pad(mask[:, 1:], (0, 1)))}),
        "the rows are padded on the left, and the mask says on the right":
            {"fill": lambda some: (pad(some, "left")[0], pad(some, "right")[1])},
        "the rows are padded on the left; `model.logits` wants them on the right": {"fill": lambda some: pad(some, "left")},
        "a real token 0 is taken for padding; make the mask from the lengths of the rows":
            {"read": lambda model, tokens, mask: model.logits(tokens, tokens != 0)},
        "the scores are in order of length: put them back into the order of `rows`":
            tuple({"order": order, "back": lambda places: torch.arange(len(places))} for order in SORTS),
        "the sorting by length is done twice, not undone: scores[places] = ..., with the places on the left":
            tuple({"order": order, "back": lambda places: places} for order in SORTS),
        "the place of a row is looked up by its tokens, and of two equal rows only the first is found: sort places, not rows":
            tuple(partial(looked_up, order=order) for order in SORTS),
        "the last, smaller batch is left out: every row needs a score":
            tuple({"part": part} for part in (
                lambda found, count: torch.cat(found), lambda found, count: torch.cat([torch.zeros(0), *found]),
                lambda found, count: torch.cat([*found, torch.zeros(count - sum(map(len, found)))]))),
        "the longer rows were cut to the shortest of their batch: pad the shorter ones instead":
            {"fill": lambda group: pad([row[: min(map(len, group))] for row in group], "right")},
        "a graph was built for a gradient that nobody wants: score under torch.no_grad()": {"grad": True},
        "all rows are scored at once, and a long list does not fit into memory; score `batch` of them at a time": {"size": len},
        "every row is scored by itself, which takes long; score `batch` of them at a time": {"size": lambda rows: 1},
        "these are probabilities; return the log-odds": {"end": torch.sigmoid},
        "these are the logarithms of probabilities, the reward; return the log-odds": {"end": F.logsigmoid},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.6


def draw_judged(generator):
    yield {"logits": torch.tensor([1.0, -2.0, 2.0, 3.0]), "targets": torch.tensor([1.0, 0.0, 0.0, 0.5])}
    yield {"logits": torch.tensor([1.0, 3.0]), "targets": torch.tensor([1.0, 0.5])}
    yield {"logits": torch.tensor([-0.4, 2.0, 0.9]), "targets": torch.tensor([0.0, 0.0, 0.0])}
    yield {"logits": torch.tensor([1.5, 1.5, -0.7]), "targets": torch.tensor([1.0, 1.0, 1.0])}  # two are equal
    yield {"logits": torch.tensor([4e-4, 3e-4, -4e-4]), "targets": torch.tensor([1.0, 1.0, 0.0])}
    # four positive (two right, one of them at log-odds 0.3), three negative (two right), five neutral (four above 0)
    logits = torch.tensor([2.0, 0.3, -1.0, -0.2, -1.5, -0.1, 0.8, 1.0, 0.4, 2.0, 0.6, -0.7])
    yield {"logits": logits, "targets": torch.tensor([1.0] * 4 + [0.0] * 3 + [0.5] * 5)}
    for size in (9, 30, 1600):
        targets = torch.randint(3, (size,), generator=generator) / 2
        targets[:3] = torch.tensor([0.0, 0.5, 1.0])
        yield {"logits": 2 * (targets - 0.5) + torch.randn(size, generator=generator), "targets": targets}


def with_type(function, **given):
    figure = function(**given)
    return {"value": figure, "is a tensor": isinstance(figure, torch.Tensor)}


def share_by_loop(logits, targets):
    right = [(z > 0) == (t == 1) for z, t in zip(logits.tolist(), targets.tolist()) if t != 0.5]
    return torch.tensor(sum(right) / len(right))


def on_side(z, t):
    return (z > 0) == (t > 0.5)


def accuracy(logits, targets, *, use=lambda t: t != 0.5, right=on_side, over=torch.mean):
    return over(right(logits, targets)[use(targets)].float())


def counted_once(logits, targets, of):
    pairs = of((z, t) for z, t in zip(logits.tolist(), targets.tolist()) if t != 0.5)
    return share_by_loop(*map(torch.tensor, zip(*getattr(pairs, "items", pairs.copy)())))


EVERY = torch.isfinite  # of targets: all of them
clear_accuracy = Exercise(
    "6.6", "clear_accuracy",
    draw=draw_judged,
    right=share_by_loop,
    call=with_type,
    formula=accuracy,
    mistakes={
        "this is the share that is called positive, whatever the targets say; which ones are on the right side?":
            ({"right": lambda z, t: z > 0}, {"use": EVERY, "right": lambda z, t: z > 0}),
        "a negative passage is never right here, as where log-odds are multiplied by a target of 0: is it below even odds?":
            {"right": lambda z, t: (z > 0) & (t > 0.5)},
        "neutral passages count as wrong: they have no right side, so leave them out above and below the line":
            {"use": EVERY, "right": lambda z, t: on_side(z, t) & (t != 0.5)},
        "neutral passages count as negative: leave them out": {"use": EVERY},
        "neutral passages count as positive: leave them out": {"use": EVERY, "right": lambda z, t: (z > 0) == (t >= 0.5)},
        "neutral passages count as right: leave them out": {"use": EVERY, "right": lambda z, t: on_side(z, t) | (t == 0.5)},
        "neutral passages count as half right: leave them out":
            {"use": EVERY, "right": lambda z, t: torch.where(t == 0.5, 0.5, on_side(z, t).float())},
        "only neutral passages are counted: leave them out, and count the others": {"use": lambda t: t == 0.5},
        "only positive (or only negative) passages are counted; both are clear":
            ({"use": lambda t: t == 1}, {"use": lambda t: t == 0}),
        "targets of 0 were left out in place of the neutral ones, 0.5": {"use": lambda t: t != 0},
        "which passages are clear is taken from the log-odds; the targets say it":
            tuple(lambda logits, targets, far=far: on_side(logits, targets)[(logits.sigmoid() - 0.5).abs() > far].float().mean()
                  for far in (0.05, 0.1, 0.2, 0.25)),
        "this is the precision, or the F1 score; accuracy is the share of clear passages on the right side":
            (lambda logits, targets: (targets[(targets != 0.5) & (logits > 0)] == 1).float().mean(),
             lambda logits, targets: 2 * ((logits > 0) & (targets == 1)).sum()
             / ((logits > 0) & (targets != 0.5)).sum().add((targets == 1).sum()).clamp(min=1)),
        "this is the mean of two accuracies, of positive and of negative passages; count both kinds together":
            tuple(lambda logits, targets, mean=mean: mean(torch.stack([accuracy(logits, targets, use=lambda t, one=one: t == one)
                  for one in (0, 1)])) for mean in (torch.nanmean, torch.mean, lambda both: both.nan_to_num().mean())),
        "the shares of parts of the passages are averaged, though the last part is smaller; count all together":
            tuple({"over": lambda right, size=size: torch.stack([part.mean() for part in right.split(size)]).mean()}
                  for size in (32, 64, 128, 256, 1000)),
        "log-odds are compared with 0.5 (or 1); even odds are log-odds of 0":
            ({"right": lambda z, t: (z > 0.5) == (t > 0.5)}, {"right": lambda z, t: (z > 1) == (t > 0.5)}),
        "log-odds are compared with their mean or median; even odds are log-odds of 0":
            ({"right": lambda z, t: (z > z.mean()) == (t > 0.5)}, {"right": lambda z, t: (z > z.median()) == (t > 0.5)},
             {"right": lambda z, t: (z >= z.mean()) == (t > 0.5)}),
        "log-odds are rounded as if they were probabilities; are they above 0?": {"right": lambda z, t: z.round() == t},
        "log-odds near 0 are taken for 0, by rounding or with a margin; what is above 0 is positive, however little":
            tuple({"right": lambda z, t, least=least: (z > least) == (t > 0.5)} for least in (1e-3, 1e-2, 0.05, 0.1))
            + tuple({"right": lambda z, t, n=n: (z.sigmoid().round(decimals=n) > 0.5) == (t > 0.5)} for n in (1, 2, 3)),
        "passages with equal log-odds and targets count once, as in a set or a dict; each one counts":
            tuple(partial(counted_once, of=of) for of in (set, dict)),
        "every passage is taken for positive: a sigmoid is always above 0; ask for 0.5": {"right": lambda z, t: t > 0.5},
        "this is the mean probability of the right side; count which ones are above one half":
            {"right": lambda z, t: torch.where(t > 0.5, z, -z).sigmoid()},
        "this is the error rate, the share that is wrong": {"right": lambda z, t: ~on_side(z, t)},
        "this is the number of right ones; return their share": {"over": torch.sum},
        "this is a Python number; return a scalar tensor": {"over": lambda right: right.mean().item()},
    },
)  # fmt: skip
