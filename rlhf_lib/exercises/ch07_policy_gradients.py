"""Chapter 07: REINFORCE, generalised advantage estimation, clipping, and PPO on a rollout."""

import math
from functools import partial

import torch
from torch.distributions import Categorical
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise


def ragged(rows, steps, generator):
    """A mask (rows, steps), True on each row's first steps: none is missing in the first row, one or more in the second."""
    lengths = torch.randint(1, steps + 1, (rows, 1), generator=generator)
    lengths[0], lengths[1:2] = steps, torch.randint(1, max(2, steps), (1,), generator=generator)
    return torch.arange(steps) < lengths


# ----------------------------------------------------------------------------------------- 7.1
def draw_returns(generator):
    yield {"rewards": torch.tensor([0.0, 0.0, 1.0]), "gamma": 0.5}
    for length, gamma in ((1, 0.3), (4, 0.9), (3, 0.0), (5, 1.0), (9, 0.8), (60, 0.1)):  # 0.1 ** 60 is 0 in float32
        yield {"rewards": 2 * torch.randn(length, generator=generator), "gamma": gamma}
    yield {"rewards": torch.tensor([0.0, 2.0, 0.0, 0.0, -1.0, 0.0]), "gamma": 0.5}
    yield {"rewards": torch.tensor([0.001, *[0.0] * 12, 1000.0]), "gamma": 0.5}  # far away, and still much
    yield {"rewards": torch.ones(300), "gamma": 1.0}  # a long episode at CartPole


def returns_by_definition(rewards, gamma):
    powers = gamma ** torch.arange(len(rewards))
    return torch.stack([(rewards[t:] * powers[: len(rewards) - t]).sum() for t in range(len(rewards))])


def returns_formula(rewards, gamma, *, power=lambda ahead, s: ahead, keep=lambda ahead: ahead >= 0, fixed=None):
    """Along the last dimension, for each step t: the sum over those s that `keep` keeps, by s - t, of gamma ** power r_s."""
    s = torch.arange(rewards.shape[-1])
    ahead = s - s[:, None]
    weight = torch.where(keep(ahead), float(gamma if fixed is None else fixed) ** power(ahead, s).clamp(min=0), 0)
    return (weight * rewards[..., None, :]).sum(-1)


def divided_again(rewards, gamma, least=0.0):
    discounts = gamma ** torch.arange(len(rewards))
    return (rewards * discounts).flip(0).cumsum(0).flip(0) / discounts.clamp(min=least)


def anew_at_each(rewards, gamma):
    sums = [0.0]
    for reward in rewards.flip(0):
        sums.append(reward + gamma * sums[-1] * (reward == 0))
    return torch.stack(sums[:0:-1])


def whitened(x, correction):
    """x less its mean, over its deviation with this correction, where it is not None."""
    return (x - x.mean()) / (1 if correction is None else x.std(correction=correction) + 1e-8)


discounted_returns = Exercise(
    "7.1", "discounted_returns", draw=draw_returns, right=returns_by_definition, formula=returns_formula, mistakes={
        "these are returns without a discount: multiply what comes after a step by gamma": {"fixed": 1.0},
        "this sums the rewards before each step; a return is made of what comes after it, so go backwards":
            {"power": lambda ahead, s: -ahead, "keep": lambda ahead: ahead <= 0},
        "the step's own reward is missing: the return at t begins with r_t, undiscounted":
            [{"keep": lambda ahead: ahead > 0}, {"keep": lambda ahead: ahead > 0, "power": lambda ahead, s: ahead - 1}],
        "r_t is discounted by gamma ** t, from the start of the episode; count from the step itself":
            {"power": lambda ahead, s: s},
        "this discounts the step's own reward too: gamma belongs on what follows only": {"power": lambda ahead, s: ahead + 1},
        "only the next step is added; a return goes on to the episode's end": {"keep": lambda ahead: (ahead == 0) | (ahead == 1)},
        "the sum breaks off after a fixed number of steps; a return goes on to the episode's end":
            [{"keep": lambda ahead, most=most + more: (ahead >= 0) & (ahead < most)} for most in (10, 20, 32, 50, 64, 100, 200)
             for more in (0, 1)],
        "with gamma = 1 every step has the whole episode's return; that too is made of what comes from the step on":
            lambda rewards, gamma: returns_formula(rewards, gamma, keep=(lambda ahead: ahead == ahead) if gamma == 1 else
                                                   (lambda ahead: ahead >= 0)),
        "gamma comes in once; each further step away costs another": {"power": lambda ahead, s: ahead.clamp(max=1)},
        "every step has the whole episode's return; an action is paid only for what comes from its own step on":
            {"power": lambda ahead, s: s, "keep": lambda ahead: ahead == ahead},
        "dividing by gamma ** t gives 0 / 0 when that is 0: go backwards, which needs no division": divided_again,
        "dividing by gamma ** t with a bound below it is wrong where that is smaller: go backwards, which needs no division":
            [lambda rewards, gamma, least=10.0**-n: divided_again(rewards, gamma, least) for n in (12, 10, 8, 6, 4)],
        "r_t is discounted by its distance from the end; count from the step whose return it is":
            {"power": lambda ahead, s: s[-1] - s},
        "the returns are shifted or scaled by their own mean and deviation; return them as they are":
            [lambda rewards, gamma, n=n: whitened(returns_formula(rewards, gamma), n) for n in (0, 1, None)],
        "a reward that is not 0 starts the sum anew, as for Pong; here everything up to the episode's end counts": anew_at_each,
        "the sum is divided by the number of its steps; a return is a sum, not a mean":
            lambda rewards, gamma: returns_formula(rewards, gamma) / torch.arange(len(rewards), 0, -1),
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.2
def draw_reinforce(generator):
    logits, actions, advantages = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([1, 0]), torch.tensor([2.0, 1.0])
    yield {"logits": logits, "actions": actions, "advantages": advantages}
    yield {"logits": logits[:1], "actions": actions[:1], "advantages": advantages[:1]}
    for steps, count in ((1, 3), (3, 2), (4, 4), (8, 5)):
        actions = torch.randint(count, (steps,), generator=generator)
        advantages = torch.randn(steps, generator=generator)
        actions[0], advantages[1:2] = 0, -1 - advantages[1:2].abs()
        yield {"logits": 2 * torch.randn(steps, count, generator=generator), "actions": actions, "advantages": advantages}
    far = torch.tensor([[0.0, 200.0], [200.0, 0.0]])  # softmax makes 0 of the smaller ones
    yield {"logits": far, "actions": torch.tensor([0, 0]), "advantages": torch.tensor([0.5, 1.0])}
    far = torch.tensor([[0.0, 1.0], [200.0, 199.0]])  # one row lies far below the other
    yield {"logits": far, "actions": torch.tensor([1, 0]), "advantages": torch.tensor([1.0, -2.0])}
    for advantages in (torch.tensor([1.5, 0.0, -0.5]), torch.randn(130, generator=generator)):  # a 0 is an advantage too
        steps = len(advantages)
        actions = torch.randint(3, (steps,), generator=generator)
        yield {"logits": torch.randn(steps, 3, generator=generator), "actions": actions, "advantages": advantages}


def call_reinforce(function, logits, actions, advantages):
    """The loss and its gradients: with respect to the logits, and to the advantages, which should have none."""
    logits, advantages = logits.clone().requires_grad_(), advantages.clone().requires_grad_()
    loss = function(logits, actions, advantages)
    loss.backward()
    through = torch.zeros_like(advantages) if advantages.grad is None else advantages.grad
    return {"loss": loss, "gradient of the logits": logits.grad, "gradient of the advantages": through}


def log_far_below(x, most):
    """Log-probabilities by hand, with `most`, the largest logit of all, subtracted from every row."""
    return x - most - (x - most).exp().sum(-1, keepdim=True).log()


def reinforce_formula(
    logits, actions, advantages, *, log=lambda x: x.log_softmax(-1), take=lambda x, actions: x[range(len(actions)), actions],
    weigh=lambda a: a, detach=True, sign=-1, mean=torch.mean,
):  # fmt: skip
    return sign * mean(take(log(logits), actions) * weigh(advantages.detach() if detach else advantages))


reinforce_loss = Exercise(
    "7.2", "reinforce_loss", draw=draw_reinforce, call=call_reinforce, formula=reinforce_formula,
    right=lambda logits, actions, advantages: (F.cross_entropy(logits, actions, reduction="none") * advantages.detach()).mean(),
    mistakes={
        "the sign is turned round: an optimiser goes down, so the loss is minus the objective":
            [{"sign": 1}, {"sign": 1, "detach": False}],
        "these are probabilities; the gradient of the expected return needs log-probabilities": {"log": lambda x: x.softmax(-1)},
        "raw logits are not log-probabilities: put them through log_softmax first": {"log": lambda x: x},
        "softmax makes 0 of a small probability, whose logarithm is -inf: take log_softmax, which needs no such 0":
            [*({"log": lambda x, eps=eps: (x.softmax(-1) + eps).log()} for eps in (0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-5)),
             *({"log": lambda x: x.softmax(-1), "take": take} for take in (
                 lambda p, actions: p[range(len(actions)), actions].log(), lambda p, actions: Categorical(p).log_prob(actions)))],
        "the largest logit of all steps is subtracted, so a row far below it becomes 0: take each row's own, as log_softmax does":
            [{"log": lambda x: log_far_below(x, x.max().detach())}, {"log": lambda x: log_far_below(x, x.max())}],
        "steps whose advantage is 0 are left out of the mean; it runs over all of them": lambda logits, actions, advantages:
            reinforce_formula(logits, actions, advantages, mean=torch.sum) / (advantages != 0).sum(),
        "the softmax runs over the steps; it belongs to the actions, the last dimension": {"log": lambda x: x.log_softmax(0)},
        "the advantages pass a gradient on: detach them, they are a weight and not something to learn here": {"detach": False},
        "the log-probabilities are detached in the advantages' place":
            {"log": lambda x: x.log_softmax(-1).detach(), "detach": False},
        "this is the sum over the steps; take the mean, or the step size grows with the batch": {"mean": torch.sum},
        "every log-probability meets every advantage, as in (T, 1) times (T,) or a product of means: multiply step by step":
            [{"take": lambda x, actions: x.gather(1, actions[:, None])}, {"weigh": torch.mean}],
        "x[:, actions] takes all actions from each row, (T, T); take one from each: gather, or x[range(T), actions]":
            {"take": lambda x, actions: x[:, actions]},
        "an entropy bonus is in it; here the loss is the policy gradient's alone":
            [lambda logits, actions, advantages, by=by: reinforce_formula(logits, actions, advantages)
             + by * (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean() for by in (0.001, 0.01, 0.1)],
        "the last step (or the first) is left out; the mean runs over all of them":
            [lambda logits, actions, advantages, some=some: reinforce_formula(*(
                x[some] if len(actions) > 1 else x for x in (logits, actions, advantages)))
             for some in (slice(None, -1), slice(1, None))],
        "the advantages are shifted or scaled by their own mean and deviation; they are to be used as they are":
            [{"weigh": lambda a, c=c: whitened(a, c)} for c in (None, 0, 1)],
        "the log-probabilities of all actions are added up; only the one that was taken counts": {"take": lambda x, _: x.sum(1)},
        "this is the log-probability of the likeliest action; the one that was taken counts": {"take": lambda x, _: x.amax(1)},
        "right with two actions only: every action but 0 is read as action 1; take the one that was taken, as gather does":
            {"take": lambda x, actions: x[range(len(actions)), actions.clamp(max=1)]},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.3
def draw_gae(generator):
    worked = {"rewards": torch.tensor([[0.0, 0.0, 1.0]]), "values": torch.tensor([[0.1, 0.2, 0.3]])}
    for gamma, lam in ((0.5, 0.8), (1.0, 0.95)):
        yield {**worked, "gamma": gamma, "lam": lam, "mask": torch.ones(1, 3, dtype=torch.bool)}
    settings = ((1, 1, 0.9, 0.7), (2, 3, 0.9, 0.8), (2, 4, 0.8, 0.0), (2, 4, 0.7, 1.0), (2, 3, 0.0, 0.6), (3, 5, 1.0, 0.5))
    for rows, steps, gamma, lam in (*settings, (4, 7, 0.99, 0.9)):
        mask = ragged(rows, steps, generator)
        rewards, values = torch.randn(2, rows, steps, generator=generator)
        yield {"rewards": rewards, "values": values + 1, "gamma": gamma, "lam": lam, "mask": mask}
    rewards, values = torch.randn(2, 3, 4, generator=generator)
    first = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()  # the first row is the shortest
    yield {"rewards": rewards, "values": values, "gamma": 0.9, "lam": 0.7, "mask": first}
    rewards, values = torch.randn(2, 1, 260, generator=generator)
    yield {"rewards": rewards, "values": values, "gamma": 1.0, "lam": 0.99, "mask": torch.ones(1, 260, dtype=torch.bool)}


def gae_backwards(rewards, values, gamma, lam, mask):
    rows = []
    for reward, value, real in zip(rewards.tolist(), values.tolist(), mask.tolist()):
        row = [0.0] * (len(real) + 1)
        for t in reversed(range(sum(real))):
            following = value[t + 1] if t + 1 < sum(real) else 0.0
            row[t] = reward[t] + gamma * following - value[t] + gamma * lam * row[t + 1]
        rows.append(row[:-1])
    advantages = torch.tensor(rows)
    return advantages, torch.where(mask, advantages + values, 0)


def gae_formula(
    rewards, values, gamma, lam, mask, *, rates=lambda g, lam: (g, g * lam), own=1.0, behind="nothing", forwards=False,
    zero="rewards, values, advantages, returns", returns=lambda advantages, values, to_go, gamma: advantages + values,
):  # fmt: skip
    """All steps at once. `rates`: the weight of the next value, and the decay; `behind`: what the last real step sees."""
    weight, decay = rates(gamma, lam)
    r, v = (torch.where(mask | (name not in zero), x, 0) for name, x in (("rewards", rewards), ("values", values)))
    following = F.pad((values if behind == "padding" else v)[:, 1:], (0, 1))
    if behind in ("first", "column"):
        following = torch.cat([v[:, 1:], v[:, :1] if behind == "first" else v[:, -1:]], 1)
    if behind == "itself":
        following = torch.where(mask & ~F.pad(mask[:, 1:], (0, 1)), v, following)
    delta = r + weight * following - own * v
    delta = torch.where(mask, delta, 0) if "rewards, values" in zero else delta
    back = {"power": lambda ahead, s: -ahead, "keep": lambda ahead: ahead <= 0} if forwards else {}
    advantages = returns_formula(delta, decay, **back)
    advantages = torch.where(mask, advantages, 0) if "advantages" in zero else advantages
    targets = returns(advantages, values, lambda gamma: returns_formula(r, gamma), gamma)
    return advantages, torch.where(mask, targets, 0) if "returns" in zero else targets


def gae_divided(rewards, values, gamma, lam, mask, keep=torch.mul):
    powers = (gamma * lam) ** torch.arange(rewards.shape[1])
    deltas = gae_formula(rewards, values, gamma, 0.0, mask)[0]
    advantages = (deltas * powers).flip(1).cumsum(1).flip(1) / powers
    return keep(advantages, mask), keep(advantages + torch.where(mask, values, 0), mask)


def gae_whitened(rewards, values, gamma, lam, mask, *, correction, first):
    advantages, returns = gae_formula(rewards, values, gamma, lam, mask)
    real = advantages[mask]
    white = torch.where(mask, (advantages - real.mean()) / (real.std(correction=correction) + 1e-8), 0)
    return white, torch.where(mask, white + values, 0) if first else returns


def gae_picture(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got[0], expected[0], "advantages: your rows, and what was expected", mask=arguments["mask"])


gae = Exercise(
    "7.3", "gae", draw=draw_gae, right=gae_backwards, formula=gae_formula, picture=gae_picture, mistakes={
        "the mask is not used: a masked step has no reward, no value and no advantage, and hands nothing back": {"zero": ""},
        "padding flows back into the real steps: set its rewards and values to 0 before the loop, and its advantage in the loop":
            [*({"zero": f"{name}advantages, returns"} for name in ("", "rewards, ", "values, ")),
             lambda rewards, values, gamma, lam, mask: gae_formula(rewards, values * mask, gamma, lam, mask, zero=""),
             lambda rewards, values, gamma, lam, mask: gae_formula(rewards * mask, values, gamma, lam, mask, zero="")],
        "the returns are not 0 at masked steps: they hold the values of padding": {"zero": "rewards, values, advantages"},
        "the last real step sees the value of the padding behind it, which should be 0": {"behind": "padding"},
        "behind the last step there is no next state: its value is 0, not the last step's own":
            [{"behind": "itself"}, {"behind": "column"}],
        "the last step's next value is that of the first step, as torch.roll brings it; it is 0": {"behind": "first"},
        "the last step has no advantage: the loop ends a step too early, or begins one too late":
            lambda rewards, values, gamma, lam, mask: gae_formula(
                torch.cat([rewards[:, :-1], values[:, -1:]], 1), values, gamma, lam, mask),
        "the first step has no advantage: the loop goes down to step 0":
            lambda rewards, values, gamma, lam, mask: [
                torch.cat([x, y], 1) for x, y in zip((0 * values[:, :1], torch.where(mask, values, 0)[:, :1]), (
                    part[:, 1:] for part in gae_formula(rewards, values, gamma, lam, mask)))],
        "each delta is weighed by 1 - lambda, as in a mean; GAE adds up the deltas with (gamma * lambda)^k alone":
            lambda rewards, values, gamma, lam, mask: [
                (1 - lam) * gae_formula(rewards, values, gamma, lam, mask)[0] + base for base in (0, values * mask)],
        "rows and steps have changed places: a row is an episode, and time runs along the second dimension":
            lambda rewards, values, gamma, lam, mask: [
                x.T for x in gae_backwards(rewards.T, values.T, gamma, lam, mask.T)],
        "the sum decays by lambda alone; each step back costs gamma * lambda": {"rates": lambda g, lam: (g, lam)},
        "the sum decays by gamma alone; each step back costs gamma * lambda": {"rates": lambda g, lam: (g, g)},
        "the next value is not discounted: delta_t = r_t + gamma V_(t+1) - V_t": {"rates": lambda g, lam: (1, g * lam)},
        "gamma is not used at all: it discounts the next value, and is part of the decay": {"rates": lambda g, lam: (1, lam)},
        "the next value is discounted by gamma * lambda; there it is gamma alone": {"rates": lambda g, lam: (g * lam, g * lam)},
        "gamma or lambda is a constant here: use the arguments":
            [{"rates": lambda g, lam: (0.99, 0.9405)}, {"rates": lambda g, lam: (1, 0.95)}],
        "the value of the next state is missing: delta_t = r_t + gamma V_(t+1) - V_t": {"rates": lambda g, lam: (0, g * lam)},
        "the value of the state itself is missing: delta_t = r_t + gamma V_(t+1) - V_t": {"own": 0.0},
        "both values have the wrong sign: delta_t = r_t + gamma V_(t+1) - V_t": {"own": -1, "rates": lambda g, d: (-g, g * d)},
        "only one step is looked at: these are the deltas, not yet their decaying sum": {"rates": lambda g, lam: (g, 0)},
        "the deltas before each step are added up; an advantage is made of those from it on: go backwards": {"forwards": True},
        "dividing by (gamma * lambda) ** t gives 0 / 0 when that is 0: go backwards, which needs no division":
            [gae_divided, partial(gae_divided, keep=lambda x, mask: torch.where(mask, x, 0))],
        "the advantages are whitened; that is a step of its own, after this one":
            [lambda c=c, f=f, **given: gae_whitened(**given, correction=c, first=f) for c in (0, 1) for f in (False, True)],
        "the returns are the sum of rewards to come alone; the value function's target is advantage + value":
            [{"returns": lambda _a, _v, to_go, gamma: to_go(1.0)}, {"returns": lambda _a, _v, to_go, gamma: to_go(gamma)}],
        "the values are not added in the returns, which are advantage + value":
            [{"returns": lambda advantages, *_: advantages}, {"returns": lambda advantages, values, *_: advantages - values}],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.4
def draw_whiten(generator):
    yield {"x": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    padded = torch.tensor([[True, True, False], [True, False, False]])
    yield {"x": torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 8.0]]), "mask": padded}
    yield {"x": torch.full((1, 3), 2.0), "mask": torch.ones(1, 3, dtype=torch.bool)}
    yield {"x": torch.tensor([[5.0, 7.0]]), "mask": torch.tensor([[True, False]])}
    for rows, steps, middle, spread in ((3, 5, 5, 3), (4, 8, -2, 0.5), (2, 4, 0, 1e-4)):  # 1e-8 counts in the last
        x = middle + spread * torch.randn(rows, steps, generator=generator)
        yield {"x": x, "mask": ragged(rows, steps, generator)}
    holes = (torch.rand(4, 3, generator=generator) < 0.5) | torch.eye(4, 3, dtype=torch.bool)
    yield {"x": 1 + torch.randn(4, 3, generator=generator), "mask": holes}
    x = torch.tensor([[4.0, 1.0, math.nan], [2.0, math.inf, -math.inf]])  # nothing under the mask matters
    yield {"x": x, "mask": padded}
    x = torch.randn(8, 130, generator=generator)
    x[0, 0] = 1000.0  # more than 30 deviations away
    yield {"x": x, "mask": (torch.arange(130) < 129).repeat(8, 1)}


def whiten_by_numbers(x, mask):
    real = x[mask].tolist()
    mean = math.fsum(real) / len(real)
    return (x - mean) / math.sqrt(math.fsum((one - mean) ** 2 for one in real) / len(real) + 1e-8)


def whiten_formula(x, mask, *, real=lambda x, m: x[m], n=0, eps=1e-8, shift=1, scale=lambda v, eps: (v + eps).sqrt(), by=None):
    if by is not None:  # each row (0) or column (1) by itself
        return torch.cat([whiten_formula(*pair, n=n) for pair in zip(x.split(1, by), mask.split(1, by))], by)
    values = real(x, mask)
    return (x - values.mean() * shift) / scale(values.var(correction=n), eps)


def whiten_by_products(x, mask, over=(torch.sum, torch.sum)):
    """`over`: what the sums for the mean and for the variance are divided by."""
    mean = (x * mask).sum() / over[0](mask)
    return (x - mean) / (((x - mean) ** 2 * mask).sum() / over[1](mask) + 1e-8).sqrt()


masked_whiten = Exercise(
    "7.4", "masked_whiten", draw=draw_whiten, right=whiten_by_numbers, formula=whiten_formula,
    call=lambda function, x, mask: function(x, mask)[mask],  # only what stands at real positions counts
    mistakes={
        "padding takes part in mean and variance: use the real positions alone":
            [{"real": lambda x, mask: x, "n": n} for n in (0, 1)],
        "padding is set to 0, and these zeros take part in the mean and the variance: use the real positions alone":
            [{"real": lambda x, mask: x * mask, "n": n} for n in (0, 1)],
        "a sum is divided by the number of all positions, padding included; divide by the number of real ones":
            [lambda x, mask, by=by: whiten_by_products(x, mask, (torch.numel, by)) for by in (torch.numel, torch.sum)],
        "the padding is multiplied by 0, which leaves a NaN as it is: choose the real entries, with x[mask] or torch.where":
            whiten_by_products,
        "the mask is turned round: mean and variance are those of the padding":
            [{"real": lambda x, mask: x[~mask]}, {"real": lambda x, mask: x[~mask] if not mask.all() else x},
             {"real": lambda x, mask: x[~mask] if not mask.all() else 0 * x}],
        "the variance is divided by n - 1; here it is the biased one, divided by n": {"n": 1},
        "this divides by the variance; its root, the standard deviation, makes the spread 1": {"scale": lambda v, eps: v + eps},
        "the mean is gone, but the spread is not 1: divide by the standard deviation": {"scale": lambda v, eps: 1},
        "the mean is still in it: subtract it first": {"shift": 0},
        "the mean is that of all positions, padding included, though the variance is right":
            lambda x, mask: (x - x.mean()) / (x[mask].var(correction=0) + 1e-8).sqrt(),
        "the variance is that of all positions, with padding set to 0; divide by the number of real ones":
            [lambda x, mask, n=n: whiten_formula(x, mask, scale=lambda v, eps: (
                torch.where(mask, x - x[mask].mean(), 0).var(correction=n) + eps).sqrt()) for n in (0, 1)],
        "the mean is right, but the padding's squares are in the variance: add up those of the real entries alone":
            [lambda x, mask, over=over, fill=fill: (x - x[mask].mean()) / (
                (fill(x, mask) - x[mask].mean()).square().sum() / over(mask) + 1e-8).sqrt()
             for over in (torch.sum, torch.numel, lambda mask: mask.sum() - 1, lambda mask: mask.numel() - 1)
             for fill in (lambda x, mask: torch.where(mask, x, 0), lambda x, mask: x)],
        "the mean is one of the rows' means, so a short row counts more; all real entries count the same":
            lambda x, mask: (x - (mean := torch.stack([row[real].mean() for row, real in zip(x, mask)]).mean()))
            / ((x[mask] - mean).square().mean() + 1e-8).sqrt(),
        "this multiplies by the standard deviation; divide by it": {"scale": lambda v, eps: 1 / (v + eps).sqrt()},
        "this is scaled from the smallest to the largest value, to 0 and 1; give it mean 0 and variance 1":
            lambda x, mask: (x - x[mask].min()) / (x[mask].max() - x[mask].min() + 1e-8),
        "a single real entry is left as it is; it is its own mean, so 0 comes out":
            lambda x, mask: x if mask.sum() == 1 else whiten_formula(x, mask),
        "each row is whitened by itself; a batch of advantages is whitened as one": [{"by": 0}, {"by": 0, "n": 1}],
        "each column is whitened by itself; a batch of advantages is whitened as one": [{"by": 1}, {"by": 1, "n": 1}],
        "when all values are equal this divides 0 by 0: add a small eps to the variance, inside the root": {"eps": 0.0},
        "1e-8 stands outside the root; it belongs inside, added to the variance":
            [{"scale": lambda v, eps: v.sqrt() + eps}, {"scale": lambda v, eps: v.sqrt().clamp(min=eps)}],
        "the result is cut off at some number; what lies far out stays there":
            [lambda x, mask, most=most: whiten_formula(x, mask).clamp(-most, most) for most in (2, 3, 5, 10, 20)],
        "what is added to the variance is not 1e-8": [{"eps": eps} for eps in (1e-10, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)],
    })  # fmt: skip

# ----------------------------------------------------------------------------------------- 7.5
MEANS = {  # over the real positions, and what is taken for it
    "real": lambda x, mask: x[mask].mean(),
    "all": lambda x, mask: x.mean(),
    "wide": lambda x, mask: (x * mask).sum() / mask.numel(),
    "narrow": lambda x, mask: x.sum() / mask.sum(),
    "rows": lambda x, mask: ((x * mask).sum(1) / mask.sum(1)).mean(),
    "sum": lambda x, mask: x[mask].sum(),
    "padding": lambda x, mask: x[~mask].mean(),
    "padding, by a product": lambda x, mask: (x * ~mask).sum() / (~mask).sum(),
    "padding, at least 1": lambda x, mask: (x * ~mask).sum() / (~mask).sum().clamp(min=1),
}


def mean_mistakes(*others):
    """Rows for a table: the option `mean` of a formula, together with each of some other options."""
    return {sentence: [{"mean": kind, **other} for kind in kinds for other in others] for kinds, sentence in {
        ("all",): "padding is part of the mean: the mask is ignored",
        ("wide",): "the sum is divided by all positions, padding included; divide by the number of real ones",
        ("narrow",): "padding is part of the sum, which is divided by the number of real positions",
        ("rows",): "each row is averaged by itself, so a token of a short row counts more; take one mean over all real tokens",
        ("sum",): "this is the sum over the real positions; take their mean",
        tuple(kind for kind in MEANS if "padding" in kind): "the mask is turned round: this is the mean over the padding",
    }.items()}  # fmt: skip


def draw_policy_loss(generator):
    one = {"old_logprobs": torch.zeros(1, 1), "mask": torch.ones(1, 1, dtype=torch.bool)}
    for ratio, advantage, clip in ((1.5, 1.0, 0.2), (1.5, -1.0, 0.2), (1.25, 2.0, 0.1), (0.5, 2.0, 0.3), (1.45, -0.5, 0.4)):
        yield {"logprobs": torch.tensor([[ratio]]).log(), "advantages": torch.tensor([[advantage]]), **one, "clip": clip}
    unlikely = {"logprobs": torch.tensor([[-200.0]]), "old_logprobs": torch.tensor([[-200.5]])}  # exp makes 0 of them
    yield {**unlikely, "advantages": torch.ones(1, 1), "mask": one["mask"], "clip": 0.7}
    far = {"logprobs": torch.tensor([[-0.5, -8.5]]), "old_logprobs": torch.tensor([[-8.5, -0.5]])}
    yield {**far, "advantages": torch.tensor([[-1.0, 1.0]]), "mask": torch.ones(1, 2, dtype=torch.bool), "clip": 0.2}
    holes = torch.tensor([[False, True, True], [True, False, True]])
    new, old = -torch.rand(2, 2, 3, generator=generator)
    advantages = torch.tensor([[3.0, -1.0, 2.0], [-0.5, 4.0, 0.0]])
    yield {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": holes, "clip": math.inf}  # nothing is clipped
    for rows, steps, clip in ((2, 3, 0.1), (4, 6, 0.3), (5, 8, 0.2)):
        old = -torch.rand(rows, steps, generator=generator) * 3
        new = old + 0.4 * torch.randn(rows, steps, generator=generator)
        new[0, :2] = old[0, :2] + torch.tensor([0.5, -0.6])  # outside on both sides
        new[1, 0], mask = old[1, 0] + 0.05, ragged(rows, steps, generator)
        advantages = torch.randn(rows, steps, generator=generator)
        yield {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask, "clip": clip}


def call_policy_loss(function, logprobs, **others):
    """The loss, the share of clipped tokens, and the gradient of the loss."""
    logprobs = logprobs.clone().requires_grad_()
    loss, clip_fraction = function(logprobs, **others)
    if not getattr(clip_fraction, "requires_grad", False):  # else the two have changed places
        loss.backward()
    return {"loss": loss, "clip_fraction": clip_fraction, "gradient": logprobs.grad}


def policy_loss_by_cases(logprobs, old_logprobs, advantages, mask, clip):
    losses, clipped = [], []
    for new, old, advantage in zip(logprobs[mask], old_logprobs[mask], advantages[mask]):
        ratio = torch.exp(new - old)
        bound = 1 + clip if advantage > 0 else 1 - clip
        outside = ratio > bound if advantage > 0 else ratio < bound  # past the bound on the side that pays: no gradient
        losses.append(-(torch.full_like(ratio, bound) if outside else ratio) * advantage)
        clipped.append(float(abs(ratio - 1) > clip))
    return torch.stack(losses).mean() + 0 * logprobs.sum(), torch.tensor(clipped).mean()


def policy_loss_formula(
    logprobs, old_logprobs, advantages, mask, clip, *, ratio=lambda new, old: (new - old).exp(), sign=-1, pick=torch.minimum,
    near=lambda ratio, clip: ratio.clamp(1 - clip, 1 + clip), product=lambda near, a, clip: near * a, mean="real", share="",
    fixed=None, outside=lambda ratio, clip, advantages: (ratio - 1).abs() > clip,
):  # fmt: skip
    """`near`: the clipped ratio; `outside`: what the clip fraction counts; `share`: its mean, where it is not the loss's."""
    rho, clip = ratio(logprobs, old_logprobs), clip if fixed is None else fixed
    gains = pick(rho * advantages, product(near(rho, clip), advantages, clip))
    counted = outside(rho, clip, advantages).float()
    return sign * MEANS[mean](gains, mask) + 0 * logprobs.sum(), MEANS[share or mean](counted, mask)


def smaller_mean(logprobs, old_logprobs, advantages, mask, clip):
    given = logprobs, old_logprobs, advantages, mask, clip
    plain, clipped = (policy_loss_formula(*given, pick=lambda *two, i=i: two[i]) for i in (0, 1))
    return torch.maximum(plain[0], clipped[0]), plain[1]


def whitened_real(x, mask, correction):
    real = x[mask]
    return (x - real.mean()) / (1 if correction is None or len(real) < 2 else real.std(correction=correction) + 1e-8)


policy_loss = Exercise(
    "7.5", "policy_loss", draw=draw_policy_loss, call=call_policy_loss, right=policy_loss_by_cases, formula=policy_loss_formula,
    mistakes={
        "the sign is turned round: the loss is minus the smaller of the two products": {"sign": 1},
        "this takes the larger product: the clipped objective is a lower bound, so it takes the smaller": {"pick": torch.maximum},
        "the ratio is always clipped: without the minimum, nothing undoes a step in the wrong direction":
            {"pick": lambda plain, clipped: clipped},
        "nothing is clipped: the ratio may run away from 1 as far as it likes": {"pick": lambda plain, clipped: plain},
        **mean_mistakes({}, {"share": "real"}),
        "the ratio is upside down: new over old, exp(logprobs - old_logprobs)": {"ratio": lambda new, old: (old - new).exp()},
        "exp makes 0 of the log-probability of an unlikely token, and 0 / 0 is NaN: subtract first, then one exp":
            [{"ratio": lambda new, old, eps=eps: new.exp() / (old.exp() + eps)} for eps in (0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-5)],
        "the log-ratio is held within bounds; it is used as it is, however far the policy has moved":
            [{"ratio": lambda new, old, most=most: (new - old).clamp(-most, most).exp()} for most in (1, 2, 3, 5)],
        "logprobs.detach() stands in place of old_logprobs, so every ratio is 1":
            {"ratio": lambda new, old: (new - new.detach()).exp()},
        "the smaller ratio is taken, before the product: a negative advantage needs the larger one. Take the smaller product":
            {"near": lambda ratio, clip: ratio.clamp(max=1 + clip), "pick": lambda plain, clipped: clipped,
             "outside": lambda ratio, clip, _: (ratio - 1).abs() > clip},
        "a ratio outside the bounds counts as 0; it is clipped to the nearer bound":
            [{"near": lambda ratio, clip: ratio * ((ratio - 1).abs() <= clip), **other}
             for other in ({"pick": lambda plain, clipped: clipped}, {})],
        "the lower bound is 1 - clip, not 1 / (1 + clip)":
            [{"near": lambda ratio, clip: ratio.clamp(1 / (1 + clip), 1 + clip), **other} for other in (
                {}, {"outside": lambda ratio, clip, _: (ratio < 1 / (1 + clip)) | (ratio > 1 + clip)})],
        "the smaller of two means is taken; take the smaller product at each position, then the mean": smaller_mean,
        "an infinite clip times an advantage of 0 is not a number: clip the ratio first, then multiply":
            {"product": lambda near, a, clip: torch.where(a > 0, (1 + clip) * a, (1 - clip) * a)},
        "the advantages are shifted or scaled by their own mean and deviation; they are to be used as they are":
            [lambda logprobs, old_logprobs, advantages, mask, clip, n=n: policy_loss_formula(
                logprobs, old_logprobs, whitened_real(advantages, mask, n), mask, clip) for n in (None, 0, 1)],
        "this uses the difference of the log-probabilities as the ratio; take its exponential":
            [{"ratio": lambda new, old: new - old}, {"ratio": lambda new, old: new - old + 1}],
        "one log-probability is divided by the other; take exp of their difference": {"ratio": lambda new, old: new / old},
        "the difference of the log-probabilities is clipped, to -clip and clip; clip its exponential, to 1 - clip and 1 + clip":
            [{"near": lambda ratio, clip: ratio.log().clamp(-clip, clip).exp(), **other}
             for other in ({}, {"outside": lambda ratio, clip, _: ratio.log().abs() > clip})],
        "the ratio is clipped to -clip and clip; the bounds lie around 1": {"near": lambda ratio, clip: ratio.clamp(-clip, clip)},
        "the ratio has one bound only; it is clipped on both sides":
            [{"near": lambda ratio, clip: ratio.clamp(max=1 + clip)}, {"near": lambda ratio, clip: ratio.clamp(min=1 - clip)},
             {"near": lambda ratio, clip: ratio.clamp(max=1 + clip), "outside": lambda ratio, clip, _: ratio > 1 + clip},
             {"near": lambda ratio, clip: ratio.clamp(min=1 - clip), "outside": lambda ratio, clip, _: ratio < 1 - clip}],
        "the product of ratio and advantage is clipped; clip the ratio, then multiply":
            {"near": lambda ratio, _: ratio, "product": lambda ratio, a, clip: (ratio * a).clamp(1 - clip, 1 + clip)},
        "the argument clip is not used: 0.2 is written in": {"fixed": 0.2},
        "the clip fraction counts one side only; ratios above 1 + clip and below 1 - clip are both outside":
            [{"outside": lambda ratio, clip, _: ratio > 1 + clip}, {"outside": lambda ratio, clip, _: ratio < 1 - clip}],
        "this clip fraction counts only where clipping changes the loss; count every ratio outside, whatever the advantage":
            {"outside": lambda ratio, clip, advantages: (ratio - 1) * advantages.sign() > clip},
        "the clip fraction looks at the log of the ratio; a ratio is outside when it is more than clip away from 1":
            {"outside": lambda ratio, clip, _: ratio.log().abs() > clip},
        "the clip fraction is the share inside the bounds": {"outside": lambda ratio, clip, _: (ratio - 1).abs() <= clip},
        "the clip fraction is a count; it is a share, from 0 to 1": {"share": "sum"},
        "padding is part of the clip fraction (the loss is right)": [{"share": "all"}, {"share": "wide"}, {"share": "narrow"}],
        "the pair is the wrong way round: first the loss": lambda *given, **named: policy_loss_formula(*given, **named)[::-1],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 7.9
def draw_epochs(generator):
    for rows, minibatch, epochs, clip, max_norm, rate, momentum, stale in (
        (2, 1, 1, 0.3, 0.5, 1.0, 0.0, 0), (4, 2, 1, 0.2, 0.5, 1.0, 0.5, 0), (5, 2, 2, math.inf, 0.5, 0.5, 0.0, 0),
        (8, 3, 3, 0.2, 0.3, 1.0, 0.0, 1), (9, 4, 2, 0.1, 50.0, 0.05, 0.0, 1), (3, 5, 2, 0.4, 2.0, 0.3, 0.0, 0),
        (4, 2, 4, 0.5, 2.0, 0.5, 0.0, 0), (2, 1, 2, 0.2, 0.5, 0.2, 0.0, "unlikely"), (6, 2, 4, 0.5, 3.0, 1.0, 0.0, 0),
    ):  # fmt: skip
        states, weight = torch.randn(rows, 4, generator=generator), torch.randn(4, 3, generator=generator) / 2
        actions = torch.randint(3, (rows,), generator=generator)
        if stale == "unlikely":  # exp makes 0 of two of the three probabilities, and those actions were taken
            states[:, 3], actions = 1.0, torch.tensor([1, 2])
            weight[3] -= torch.tensor([0.0, 120.0, 130.0])
        old = (states @ weight).log_softmax(-1)[range(rows), actions]
        advantages = 4 * torch.randn(rows, generator=generator)
        advantages += 2 * advantages.sign()  # none so small that it does not matter
        if stale == 1:  # the rollout's policy is a little older: some ratios are outside at once, on either side
            old[:4] += torch.tensor([-0.6, 0.6, 0.6, -0.6]) * advantages[:4].sign()
        yield {
            "weight": weight, "states": states, "actions": actions, "old_logprobs": old, "advantages": advantages,
            "epochs": epochs, "minibatch": minibatch, "clip": clip, "max_norm": max_norm, "rate": rate, "momentum": momentum,
        }  # fmt: skip


def call_epochs(function, weight, rate, momentum, **others):
    """The policy's weight after the update, by gradient descent at some rate, with momentum or without."""
    weight = weight.clone().requires_grad_()
    function(weight, torch.optim.SGD([weight], lr=rate, momentum=momentum), **others)
    return weight


def epochs_by_hand(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    """The gradient of a softmax policy in closed form."""
    for start in [*range(0, len(states), minibatch)] * epochs:
        rows = range(start, min(start + minibatch, len(states)))
        weight.grad = torch.zeros_like(weight)
        for row in rows:
            logprobs = (states[row] @ weight.detach()).log_softmax(-1)
            p, ratio, advantage = logprobs.exp(), (logprobs[actions[row]] - old_logprobs[row]).exp(), advantages[row]
            if not ((ratio > 1 + clip and advantage > 0) or (ratio < 1 - clip and advantage < 0)):
                score = torch.outer(states[row], F.one_hot(actions[row], len(p)) - p)
                weight.grad -= advantage * ratio * score / len(rows)
        weight.grad *= min(1.0, max_norm / (weight.grad.norm().item() + 1e-6))
        optimizer.step()


def minibatches(count, size, epochs, made=""):
    """The rows of one minibatch after another, each a slice; `made`: the mistake that is made."""
    size = math.ceil(count / size) if made == "so many" else size
    size = math.ceil(count / math.ceil(count / size)) if made == "equal" else size
    size = count if made in ("one step", "one step, ratio 1", "whole rollout") else size
    epochs = 1 if made in ("one step", "one step, ratio 1", "one epoch") else epochs
    starts = [*range(0, {"rest left out": count // size * size, "last left out": count - size}.get(made, count), size)]
    starts = [start for start in starts for _ in range(epochs)] if made == "epochs inside" else starts * epochs
    return [slice(start, start + size) for start in starts]


def descend(optimizer, loss, rows, made="", clip_gradient=lambda: None, count=0):
    """backward, clipping, step, zero_grad; or what `made` makes of that. `count`: the number of all rows."""
    if made == "step first":
        optimizer.step()
    if made == "step first" or (made == "zeroed once an epoch" and rows.start == 0):
        optimizer.zero_grad()
    loss.backward()
    if made == "step and clip once an epoch" and rows.stop < count:
        return
    clip_gradient()
    if made == "zeroed too early":
        optimizer.zero_grad()
    if made == "step once an epoch" and rows.stop < count:
        return
    if made != "step first":
        optimizer.step()
    if made not in ("step first", "never zeroed", "zeroed once an epoch"):
        optimizer.zero_grad()


LOOP_MISTAKES = {  # of PPO's loops, here and in chapter 08
    "there is one optimiser step for the whole rollout, so clipping never acts; step after each minibatch": {"made": "one step"},
    "one optimiser step for the whole rollout, and new log-probabilities on both sides of the ratio":
        {"made": "one step, ratio 1"},
    "the old log-probabilities are computed anew in each step, so the ratio is always 1: keep the rollout's": {"made": "ratio 1"},
    "the old log-probabilities are computed anew in each epoch: keep the rollout's": {"made": "old anew each epoch"},
    "gradients of earlier minibatches are still there: zero them after each step":
        [{"made": "never zeroed"}, {"made": "zeroed once an epoch"}],
    "nothing has moved: step is missing, or finds no gradient (zero_grad belongs before backward or behind step)":
        {"made": "zeroed too early"},
    "the optimiser steps before backward, on the gradient of the minibatch before: backward comes first": {"made": "step first"},
    "the rollout is passed over only once: repeat it `epochs` times": {"made": "one epoch"},
    "all epochs are spent on one minibatch before the next one's turn: go through all, then again": {"made": "epochs inside"},
    "the rollout is not cut into minibatches: each epoch takes a single step": {"made": "whole rollout"},
    "the last minibatch is left out when it is smaller than the others: it counts too": {"made": "rest left out"},
    "the last minibatch is never reached: go up to the number of rows, range(0, N, minibatch)": {"made": "last left out"},
    "`minibatch` is taken for the number of minibatches, as by chunk; it is the number of rows in one": {"made": "so many"},
    "the minibatches are made equally large, as by chunk; each has `minibatch` rows, and the last what is left":
        {"made": "equal"},
    "there is one optimiser step an epoch, on the gradients of all its minibatches: step after each of them":
        [{"made": "step once an epoch"}, {"made": "step and clip once an epoch"}],
    "the ratio is not clipped: nothing stops the policy from following one rollout too far": {"pick": lambda plain, _: plain},
    "the ratio is always clipped: take the smaller of both products": {"pick": lambda _, clipped: clipped},
    "this takes the larger of the two products; take the smaller": {"pick": torch.maximum},
    "this goes uphill: the loss is minus the objective": {"sign": 1},
    "the argument clip is not used: 0.2 is written in": {"fixed": 0.2},
    "the ratio is upside down: new over old": {"ratio": lambda new, old: (old - new).exp()},
    "the ratio is a difference of log-probabilities; take its exponential": {"ratio": lambda new, old: new - old},
}  # fmt: skip


def epochs_formula(
    weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm, *, made="", softmax=-1,
    log=lambda logits, dim: logits.log_softmax(dim), when="before",
    clip_gradient=torch.nn.utils.clip_grad_norm_, norm=None, weigh=lambda a, minibatch: a, rate=None, kl=None, limit=None,
    **loss_options,
):  # fmt: skip
    """`made` and the options of policy_loss_formula make the mistakes; `kl` of the log-ratios ends it all beyond a `limit`,
    looked at `when`: "before" a step, or after an "epoch"."""
    order = torch.arange(len(states))
    if rate:
        optimizer.param_groups[0].update(lr=rate, momentum=0.0)
    for rows in minibatches(len(states), minibatch, epochs, made):
        if made == "old anew each epoch" and rows.start == 0:
            old_logprobs = (states @ weight.detach()).log_softmax(-1).gather(1, actions[:, None])[:, 0]
        order = torch.randperm(len(states)) if made == "shuffled" and rows.start == 0 else order
        some = order[rows]
        logprobs = log(states[some] @ weight, softmax).gather(1, actions[some, None])[:, 0]
        old = logprobs.detach() if "ratio 1" in made else old_logprobs[some]
        over = kl and kl(logprobs.detach() - old).mean() > limit
        if over and when == "before":
            return
        real = torch.ones_like(old, dtype=torch.bool)
        loss = policy_loss_formula(logprobs, old, weigh(advantages[some], minibatch), real, clip, **loss_options)[0]
        descend(optimizer, loss, rows, made, lambda: clip_gradient([weight], norm or max_norm), len(states))
        if over and rows.stop >= len(states):
            return


def scaled_to_norm(parameters, max_norm):
    parameters[0].grad *= max_norm / (parameters[0].grad.norm() + 1e-6)


ppo_epochs = Exercise(
    "7.9", "ppo_epochs", draw=draw_epochs, call=call_epochs, right=epochs_by_hand, formula=epochs_formula, tolerance=1e-4,
    mistakes={
        **LOOP_MISTAKES,
        "the optimiser is passed over: the steps' size is a constant": [{"rate": rate} for rate in (1e-4, 1e-3, 0.01, 0.1, 1.0)],
        "the rows are shuffled; here everyone goes through them in their own order": {"made": "shuffled"},
        "gradients are never clipped, or when none is there: clip between backward and step": {"clip_gradient": lambda *_: None},
        "each entry of the gradient is clipped; clip its norm": {"clip_gradient": torch.nn.utils.clip_grad_value_},
        "the gradient is always scaled to max_norm; leave a shorter one as it is": {"clip_gradient": scaled_to_norm},
        "the argument max_norm is not used: a constant is written in": [{"norm": 0.5}, {"norm": 1.0}],
        "the losses of a minibatch are added up; take their mean": {"mean": "sum"},
        "the loss is divided by `minibatch` where the last one is smaller":
            {"weigh": lambda a, minibatch: a * len(a) / minibatch},
        "the advantages are shifted or scaled once more, in each minibatch or before; they are ready for use":
            [*({"weigh": lambda a, _, n=n: whitened(a, n)} for n in (None, 0, 1)),
             *({"weigh": lambda a, _, n=n: whitened(a, n) if len(a) > 1 else a} for n in (None, 0, 1)),
             *(lambda *given, advantages, n=n, **named: epochs_formula(*given, advantages=whitened(advantages, n), **named)
               for n in (None, 0, 1))],
        "the softmax runs over the steps; it belongs to the actions, the last dimension": {"softmax": 0},
        "this stops before all epochs are done, as with a limit on the KL; here every epoch is gone through":
            [{"kl": kl, "limit": limit, "when": when} for when in ("before", "epoch")
             for kl in (lambda x: -x, lambda x: x.exp() - 1 - x) for limit in (0.01, 0.015, 0.02, 0.03, 0.05)],
        "exp makes 0 of an unlikely action's log-probability, and softmax of its probability: log_softmax, a difference, one exp":
            [{"ratio": lambda new, old: new.exp() / old.exp()},
             *({"log": lambda x, dim, eps=eps: (x.softmax(dim) + eps).log()} for eps in (0, 1e-12, 1e-10, 1e-8))],
    })  # fmt: skip
