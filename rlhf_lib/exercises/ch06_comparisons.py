"""Chapter 06: the losses on comparisons and on rankings."""

from functools import partial

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.ch06_reward_model import EPSILONS, LIMITS, loss_and_gradient, options
from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 6.8


def draw_choices(generator):
    yield {"chosen": torch.tensor([1.0]), "rejected": torch.tensor([0.0])}
    for size in (3, 10):
        chosen, rejected = 2 * torch.randn(2, size, generator=generator)
        yield {"chosen": chosen, "rejected": rejected}
    yield {"chosen": torch.tensor([4.0, -9.0, 2.0, -30.0]), "rejected": torch.tensor([-12.0, 17.0, 2.0, 50.0])}
    yield {"chosen": torch.tensor([-500.0, 500.0]), "rejected": torch.tensor([500.0, -500.0])}  # margins of -1000 and 1000


def loss_by_class(chosen, rejected):
    """A choice between two: cross-entropy, with the chosen one as the class."""
    return F.cross_entropy(torch.stack([chosen, rejected], dim=1), torch.zeros(len(chosen), dtype=torch.long))


LOSSES = {  # of a margin
    "log(sigmoid) underflows, or exp overflows, at a margin of -1000, and the loss is infinite; use logsigmoid":
        (lambda m: -m.sigmoid().log(), lambda m: (1 + (-m).exp()).log(), lambda m: (-m).exp().log1p()),
    "a bound inside the log, as binary_cross_entropy has one, hides the underflow, but the gradient is gone; use logsigmoid":
        lambda m: F.binary_cross_entropy(m.sigmoid(), torch.ones_like(m), reduction="none"),
    "nan_to_num puts an infinite loss out of sight, and the gradient stays NaN; use logsigmoid":
        tuple(lambda m, most=most: (-m.sigmoid().log()).nan_to_num(posinf=most) for most in (0.0, 10.0, 100.0, 1000.0)),
    "a small number inside the log, or a clamp, hides the underflow, but the gradient is gone where it matters; use logsigmoid":
        tuple(lambda m, eps=eps, inside=inside: -inside(m.sigmoid(), eps).log() for eps in EPSILONS for inside in
              (torch.add, torch.clamp, lambda p, eps: p.clamp(eps, 1 - eps))),
    "the margin is cut off at some number, and beyond it the gradient is gone; logsigmoid can take any margin":
        tuple(lambda m, most=most: F.softplus(-m.clamp(-most, most)) for most in LIMITS),
    "the minus sign is missing: an optimiser goes down, and would make the chosen answer worse": F.logsigmoid,
    "this is the probability of being wrong (or right); take minus the log-probability of being right":
        (lambda m: (-m).sigmoid(), torch.sigmoid),
    "a sigmoid is in it twice: logsigmoid takes the margin itself": lambda m: F.softplus(-m.sigmoid()),
    "this is a hinge loss, which stops learning at a margin of 1 (or 0); Bradley-Terry is -log sigmoid(margin)":
        tuple(lambda m, cut=cut, at=at: cut(at - m) for at in (1, 0) for cut in (torch.relu, lambda x: x.clamp(min=0))),
    "this is the margin, or minus the margin, itself; Bradley-Terry is -log sigmoid(margin)": (lambda m: m, lambda m: -m),
    "this is a squared error; Bradley-Terry is -log sigmoid(margin)":
        (lambda m: (1 - m) ** 2, lambda m: m**2, lambda m: (1 - m.sigmoid()) ** 2),
    "the sign of the margin is lost, by abs or by sorting, as if either answer could be better": lambda m: F.softplus(-m.abs()),
}  # fmt: skip


def compared(chosen, rejected, *, margin=torch.sub, loss=lambda m: F.softplus(-m), over=torch.mean):
    return over(loss(margin(chosen, rejected)))


pair_loss = Exercise(
    "6.8", "pair_loss",
    draw=draw_choices,
    right=loss_by_class,
    call=loss_and_gradient,
    formula=compared,
    mistakes={
        **options("loss", LOSSES),
        "exp of the rewards overflows at 1000; use logsigmoid of the margin":
            {"margin": lambda c, r: c.exp() / (c.exp() + r.exp()), "loss": lambda p: -p.log()},
        "the margin is turned round: chosen - rejected should be large": {"margin": lambda c, r: r - c},
        "only the chosen reward is in it; what counts is how far it is above the other": {"margin": lambda c, r: c},
        "each answer is judged by itself, chosen against 1 and rejected against 0; what counts is the difference":
            ({"margin": lambda c, r: torch.cat([c, -r])},
             lambda chosen, rejected: F.softplus(-chosen).mean() + F.softplus(rejected).mean()),
        "this is a difference of two logsigmoids; take the logsigmoid of the difference":
            {"margin": lambda c, r: F.logsigmoid(c) - F.logsigmoid(r), "loss": lambda m: -m},
        "every chosen answer is compared with every rejected one, (N, N); compare pair by pair":
            {"margin": lambda c, r: c[:, None] - r},
        "a number is taken off the margin, or added to it: which answer is better says its sign alone":
            tuple({"margin": lambda c, r, by=by: c - r - by} for by in (1, -1, 0.5, 0.1)),
        "the softmax runs over the pairs; it belongs to the two answers of each": {"loss": lambda m: -m.log_softmax(0)},
        "pairs with equal rewards are left out; their loss is ln 2, and its gradient parts them":
            {"margin": lambda c, r: (c - r)[c != r]},
        "a penalty on large rewards is in it; only the margins count":
            tuple(lambda chosen, rejected, by=by: compared(chosen, rejected) + by * (chosen**2 + rejected**2).mean()
                  for by in (1e-3, 1e-2, 0.1)),
        "this is the sum over the pairs; take the mean": {"over": torch.sum},
        "divided by the number of pairs twice: a mean is divided already": {"over": lambda losses: losses.mean() / len(losses)},
        "the margins were averaged before the loss, so a good pair hides a bad one: the mean comes last":
            {"margin": lambda c, r: (c - r).mean()},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 6.9


def draw_rankings(generator):
    yield {"rewards": torch.tensor([[1.0, 0.0]])}
    yield {"rewards": torch.tensor([[2.0, 1.0, 0.0]])}
    yield {"rewards": torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -2.0]])}  # all alike, as at the start
    yield {"rewards": torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])}  # in the wrong order, and none below 0
    for rows, count in ((3, 2), (2, 3), (1, 4), (4, 5)):
        yield {"rewards": 2 * torch.randn(rows, count, generator=generator)}
    yield {"rewards": torch.tensor([[-30.0, 10.0, -8.0], [3.0, -40.0, 40.0]])}
    yield {"rewards": torch.tensor([[-500.0, 0.0, 500.0], [500.0, 0.0, -500.0]])}


def loss_by_loop(rewards):
    pairs = [(row[i], row[j]) for row in rewards for i in range(len(row)) for j in range(i + 1, len(row))]
    return torch.stack([F.softplus(worse - better) for better, worse in pairs]).mean()


def ranking(rewards, *, use=lambda i, j: i < j, loss=lambda m: F.softplus(-m), over=lambda losses, k: losses.mean()):
    """`use` says which pairs of places (K, 1), (K) are compared, `over` makes one number of their losses (N, pairs)."""
    places = torch.arange(rewards.shape[1])
    margins = (rewards[:, :, None] - rewards[:, None])[:, use(places[:, None], places)]
    return over(loss(margins), len(places))


def plackett_luce(rewards):
    return sum(rewards[:, i:].logsumexp(1) - rewards[:, i] for i in range(rewards.shape[1])).mean()


def half_detached(rewards, better):
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    a, b = rewards[:, first], rewards[:, second]
    return F.softplus(b - a.detach() if better else b.detach() - a).mean()


def outside(rewards):
    return F.softplus(-(rewards[:, :, None] - rewards[:, None]).triu(1))


def right_ones_alone(rewards):
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    margins = rewards[:, first] - rewards[:, second]
    return F.softplus(-margins[margins > 0]).sum() / (margins > 0).sum().clamp(min=1)


def by_answer(rewards):
    """Each answer's losses against the worse ones are averaged first."""
    return torch.stack(
        [F.softplus(rewards[:, i + 1 :] - rewards[:, i : i + 1]).mean() for i in range(rewards.shape[1] - 1)]
    ).mean()


def by_distance(rewards):
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    apart = (second - first).float()
    return (F.softplus(rewards[:, second] - rewards[:, first]) * apart).sum(1).mean() / apart.sum()


ranked_loss = Exercise(
    "6.9", "ranked_loss",
    draw=draw_rankings,
    right=loss_by_loop,
    call=loss_and_gradient,
    formula=ranking,
    mistakes={
        **options("loss", LOSSES),
        "pairs in the wrong order are left out, and they are what there is to learn from: every pair counts": right_ones_alone,
        "divided by the number of pairs twice: a mean over the pairs is divided already":
            {"over": lambda losses, k: losses.mean() / losses.shape[1]},
        "the losses of a ranking's pairs are added up: average over its K (K - 1) / 2 pairs, or long rankings weigh more":
            {"over": lambda losses, k: losses.sum(1).mean()},
        "the sum over the rankings is not divided by their number: take the mean over the batch too":
            {"over": lambda losses, k: losses.mean(1).sum()},
        "all losses are added up: take the mean, over pairs and rankings": {"over": lambda losses, k: losses.sum()},
        "the sum of a ranking's losses is divided by K, K - 1, K^2 or K (K - 1); there are K (K - 1) / 2 pairs":
            tuple({"over": lambda losses, k, of=of: losses.sum(1).mean() / of(k)} for of in
                  (lambda k: k, lambda k: k - 1, lambda k: k**2, lambda k: k * (k - 1))),
        "only neighbours are compared; every better answer is compared with every worse one": {"use": lambda i, j: i + 1 == j},
        "only the best (or the worst) answer is compared with the others; these are ranked among themselves too":
            ({"use": lambda i, j: (i == 0) & (i < j)}, {"use": lambda i, j: (j == j.amax()) & (i < j)}),
        "only the best and the worst answer are compared; all pairs are": {"use": lambda i, j: (i == 0) & (j == j.amax())},
        "answers are compared with themselves: those pairs add log 2 and teach nothing": {"use": lambda i, j: i <= j},
        "both directions of each pair are in it, so it pushes every margin to 0: only better against worse":
            ({"use": lambda i, j: i != j}, {"use": lambda i, j: i > -j - 1}),
        "the order is turned round: the best answer stands first": {"use": lambda i, j: i > j},
        "the margins were averaged before the loss, so a good pair hides a bad one: the mean comes last":
            ({"loss": lambda m: F.softplus(-m.mean()), "over": lambda loss, k: loss}, {"loss": lambda m: F.softplus(-m.mean(1))}),
        "this is Plackett and Luce's loss, a softmax over the answers that are left; compare pair by pair":
            tuple(lambda rewards, of=of: plackett_luce(rewards) / of(rewards.shape[1]) for of in
                  (lambda k: 1, lambda k: k, lambda k: k - 1)),
        "outside the pairs the matrix of margins is 0, and each 0 adds log 2: choose the pairs before the loss":
            (lambda rewards: outside(rewards).mean(),
             lambda rewards: outside(rewards).mean() * 2 * rewards.shape[1] / (rewards.shape[1] - 1)),
        "pairs with equal rewards are left out; their loss is ln 2, and its gradient parts them":
            {"loss": lambda m: F.softplus(-m[m != 0])},
        "one reward of each pair is detached; the better one should rise and the worse one fall":
            (partial(half_detached, better=True), partial(half_detached, better=False)),
        "the last (or the first) answer is in no pair; every better answer is compared with every worse one":
            tuple({"use": lambda i, j, no=no: (i < j) & ((j.amax() == 1) | no(i, j))} for no in
                  (lambda i, j: j < j.amax(), lambda i, j: i > 0)),
        "pairs that are further apart in the ranking weigh more; all pairs weigh the same": by_distance,
        "the pairs of each answer are averaged first, and then the answers, so that the last pair weighs most; all weigh alike":
            by_answer,
        "rankings are compared with each other: the answers of one ranking stand in a row":
            (lambda rewards: ranking(rewards.T), lambda rewards: ranking(rewards.T) if len(rewards) > 1 else 0 * rewards.sum()),
    },
)  # fmt: skip
