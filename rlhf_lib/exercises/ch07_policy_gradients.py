"""Chapter 07: REINFORCE, generalised advantage estimation, clipping, and the diagnostics of PPO."""

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise


def ragged(rows, steps, generator):
    """A mask (rows, steps), True on each row's first steps: none is missing in the first row, one or more in the second."""
    lengths = torch.randint(1, steps + 1, (rows, 1), generator=generator)
    lengths[0], lengths[1] = steps, torch.randint(1, steps, (1,), generator=generator)
    return torch.arange(steps) < lengths


# ----------------------------------------------------------------------------------------- 7.1

discounted_returns = Exercise("7.1", "discounted_returns")


@discounted_returns.inputs
def _(generator):
    yield {"rewards": torch.tensor([0.0, 0.0, 1.0]), "gamma": 0.5}
    for length in (1, 4, 9):
        yield {"rewards": torch.randn(length, generator=generator), "gamma": 0.9}


@discounted_returns.oracle
def _(rewards, gamma):
    powers = torch.arange(len(rewards))
    return torch.stack([(rewards[t:] * gamma ** powers[: len(rewards) - t]).sum() for t in range(len(rewards))])


@discounted_returns.mistake("these are returns without a discount: multiply what comes after a step by gamma")
def _(rewards, gamma):
    return rewards.flip(0).cumsum(0).flip(0)


@discounted_returns.mistake("this sums the rewards before each step; a return is made of what comes after it, so go backwards")
def _(rewards, gamma):
    out, total = [], torch.zeros(())
    for reward in rewards:
        total = reward + gamma * total
        out.append(total)
    return torch.stack(out)


@discounted_returns.mistake("the step's own reward is missing: the return at t begins with r_t, undiscounted")
def _(rewards, gamma):
    returns = discounted_returns.right(rewards, gamma)
    return returns - rewards


@discounted_returns.mistake(
    "here r_t is discounted by gamma ** t, counted from the start of the episode; count from the step itself"
)
def _(rewards, gamma):
    return (rewards * gamma ** torch.arange(len(rewards))).flip(0).cumsum(0).flip(0)


@discounted_returns.mistake("this discounts the step's own reward too: gamma belongs on what follows only")
def _(rewards, gamma):
    return gamma * discounted_returns.right(rewards, gamma)


# ----------------------------------------------------------------------------------------- 7.2

reinforce_loss = Exercise("7.2", "reinforce_loss")


@reinforce_loss.inputs
def _(generator):
    yield {"logits": torch.tensor([[0.0, 1.0]]), "actions": torch.tensor([1]), "advantages": torch.tensor([2.0])}
    for steps, count in ((3, 2), (8, 4)):
        logits = torch.randn(steps, count, generator=generator)
        actions = torch.randint(count, (steps,), generator=generator)
        yield {"logits": logits, "actions": actions, "advantages": torch.randn(steps, generator=generator)}


@reinforce_loss.call
def _(function, logits, actions, advantages):
    """The loss and its gradients: with respect to the logits, and to the advantages, which should have none."""
    logits, advantages = logits.clone().requires_grad_(), advantages.clone().requires_grad_()
    loss = function(logits, actions, advantages)
    loss.backward()
    through = torch.zeros_like(advantages) if advantages.grad is None else advantages.grad
    return {"loss": loss, "gradient of the logits": logits.grad, "gradient of the advantages": through}


@reinforce_loss.oracle
def _(logits, actions, advantages):
    return (F.cross_entropy(logits, actions, reduction="none") * advantages.detach()).mean()


@reinforce_loss.mistake("the sign is turned round: an optimiser goes down, so the loss is minus what you want more of")
def _(logits, actions, advantages):
    return (logits.log_softmax(-1)[range(len(actions)), actions] * advantages.detach()).mean()


@reinforce_loss.mistake("these are probabilities; the gradient of the expected return needs log-probabilities")
def _(logits, actions, advantages):
    return -(logits.softmax(-1)[range(len(actions)), actions] * advantages.detach()).mean()


@reinforce_loss.mistake("raw logits are not log-probabilities: put them through log_softmax first")
def _(logits, actions, advantages):
    return -(logits[range(len(actions)), actions] * advantages.detach()).mean()


@reinforce_loss.mistake("the softmax runs over the steps; it belongs to the actions, which are the last dimension")
def _(logits, actions, advantages):
    return -(logits.log_softmax(0)[range(len(actions)), actions] * advantages.detach()).mean()


@reinforce_loss.mistake("the advantages pass a gradient on: detach them, they are a weight and not something to learn here")
def _(logits, actions, advantages):
    return -(logits.log_softmax(-1)[range(len(actions)), actions] * advantages).mean()


@reinforce_loss.mistake("this is the sum over the steps; take the mean, or the step size grows with the batch")
def _(logits, actions, advantages):
    return len(actions) * reinforce_loss.right(logits, actions, advantages)


# ----------------------------------------------------------------------------------------- 7.3

gae = Exercise("7.3", "gae")


@gae.inputs
def _(generator):
    worked = {"rewards": torch.tensor([[0.0, 0.0, 1.0]]), "values": torch.tensor([[0.1, 0.2, 0.3]])}
    yield {**worked, "gamma": 1.0, "lam": 0.95, "mask": torch.ones(1, 3, dtype=torch.bool)}
    for rows, steps, gamma, lam in ((2, 3, 0.9, 0.8), (3, 7, 0.99, 0.95), (2, 4, 0.9, 0.0), (2, 4, 0.9, 1.0)):
        mask = ragged(rows, steps, generator)
        rewards, values = torch.randn(2, rows, steps, generator=generator)
        yield {"rewards": rewards, "values": values, "gamma": gamma, "lam": lam, "mask": mask}


def padded(advantages, values, mask):
    """Advantages and returns, both 0 where the mask is False."""
    return torch.where(mask, advantages, 0), torch.where(mask, advantages + values, 0)


def gae_loop(rewards, values, gamma, lam, mask, decay=None, last=0.0, bootstrap=1, ignore_mask=False):
    """GAE by its definition, row by row, a sum over the steps to come; the options make the mistakes."""
    advantages = torch.zeros_like(rewards)
    decay = gamma * lam if decay is None else decay
    for row in range(len(rewards)):
        real = list(range(rewards.shape[1])) if ignore_mask else mask[row].nonzero()[:, 0].tolist()
        r, v = rewards[row, real], values[row, real]
        following = torch.cat([v[1:], v[-1:] * last])
        delta = r + gamma * following * bootstrap - v
        for place, t in enumerate(real):
            advantages[row, t] = sum(decay**k * one for k, one in enumerate(delta[place:]))
    return advantages


@gae.oracle
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask), values, mask)


@gae.mistake("the mask is not used: a masked step has no reward, no value and no advantage, and hands nothing back")
def _(rewards, values, gamma, lam, mask):
    advantages = gae_loop(rewards, values, gamma, lam, mask, ignore_mask=True)
    return advantages, advantages + values


@gae.mistake(
    "padding is part of the sum: the mask is put on afterwards, but rewards and values of padding have flowed back already"
)
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask, ignore_mask=True), values, mask)


@gae.mistake("the real steps are right; at masked steps both advantages and returns have to be 0")
def _(rewards, values, gamma, lam, mask):
    advantages = gae_loop(rewards, values, gamma, lam, mask)
    return advantages, advantages + values


@gae.mistake("the sum decays by lambda alone; each step back costs gamma * lambda")
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask, decay=lam), values, mask)


@gae.mistake("behind the last step there is no next state: its value is 0, not the last step's own")
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask, last=1.0), values, mask)


@gae.mistake("the value of the next state is missing: delta_t = r_t + gamma V_(t+1) - V_t")
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask, bootstrap=0), values, mask)


@gae.mistake("only one step is looked at: these are the deltas, not yet their decaying sum")
def _(rewards, values, gamma, lam, mask):
    return padded(gae_loop(rewards, values, gamma, lam, mask, decay=0.0), values, mask)


@gae.mistake("the returns are the plain sum of rewards to come; the value function's target is advantage + value")
def _(rewards, values, gamma, lam, mask):
    to_go = torch.where(mask, rewards, 0).flip(1).cumsum(1).flip(1)
    return gae_loop(rewards, values, gamma, lam, mask), torch.where(mask, to_go, 0)


@gae.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got[0], expected[0], "advantages: your rows, and what was expected", mask=arguments["mask"])


# ----------------------------------------------------------------------------------------- 7.4

masked_whiten = Exercise("7.4", "masked_whiten")


@masked_whiten.inputs
def _(generator):
    yield {"x": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    yield {
        "x": torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]),
        "mask": torch.tensor([[True, True, False], [True, False, False]]),
    }
    for rows, steps in ((3, 5), (4, 8)):
        mask = ragged(rows, steps, generator)
        yield {"x": 5 + 3 * torch.randn(rows, steps, generator=generator), "mask": mask}
    yield {"x": torch.full((1, 3), 2.0), "mask": torch.ones(1, 3, dtype=torch.bool)}


@masked_whiten.call
def _(function, x, mask):
    """Only what stands at real positions counts."""
    return function(x, mask)[mask]


def whitened(x, mask, unbiased=False, eps=1e-8, shift=True):
    real = x[mask]
    return (x - real.mean() * shift) / (real.var(unbiased=unbiased) + eps).sqrt()


@masked_whiten.oracle
def _(x, mask):
    return whitened(x, mask)


@masked_whiten.mistake("padding takes part in the mean and the variance: use the real positions alone")
def _(x, mask):
    return whitened(x, torch.ones_like(mask))


@masked_whiten.mistake("the variance is divided by n - 1; here it is the biased one, divided by n")
def _(x, mask):
    return whitened(x, mask, unbiased=True)


@masked_whiten.mistake("this divides by the variance; its root, the standard deviation, makes the spread 1")
def _(x, mask):
    return (x - x[mask].mean()) / (x[mask].var(unbiased=False) + 1e-8)


@masked_whiten.mistake("the mean is gone, but the spread is not 1: divide by the standard deviation")
def _(x, mask):
    return x - x[mask].mean()


@masked_whiten.mistake("the mean is still in it: subtract it first")
def _(x, mask):
    return whitened(x, mask, shift=False)


@masked_whiten.mistake("each row is whitened by itself; a batch of advantages is whitened as one")
def _(x, mask):
    rows = [whitened(x[row : row + 1], mask[row : row + 1]) for row in range(len(x))]
    return torch.cat(rows)


@masked_whiten.mistake("when all values are equal this divides 0 by 0: add a small eps to the variance, inside the root")
def _(x, mask):
    return whitened(x, mask, eps=0.0)


# ----------------------------------------------------------------------------------------- 7.5

policy_loss = Exercise("7.5", "policy_loss")


@policy_loss.inputs
def _(generator):
    one = {"old_logprobs": torch.zeros(1, 1), "mask": torch.ones(1, 1, dtype=torch.bool), "clip": 0.2}
    yield {"logprobs": torch.tensor([[1.5]]).log(), "advantages": torch.tensor([[1.0]]), **one}
    yield {"logprobs": torch.tensor([[1.5]]).log(), "advantages": torch.tensor([[-1.0]]), **one}
    for rows, steps in ((2, 3), (4, 6)):
        old = -torch.rand(rows, steps, generator=generator) * 3
        new = old + 0.4 * torch.randn(rows, steps, generator=generator)
        mask = ragged(rows, steps, generator)
        advantages = torch.randn(rows, steps, generator=generator)
        yield {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask, "clip": 0.2}


@policy_loss.call
def _(function, logprobs, **others):
    """The loss, the share of clipped tokens, and the gradient of the loss."""
    logprobs = logprobs.clone().requires_grad_()
    loss, clip_fraction = function(logprobs, **others)
    loss.backward()
    return {"loss": loss, "clip_fraction": clip_fraction, "gradient": logprobs.grad}


@policy_loss.oracle
def _(logprobs, old_logprobs, advantages, mask, clip):
    losses, clipped = [], []
    for new, old, advantage in zip(logprobs[mask], old_logprobs[mask], advantages[mask]):
        ratio = torch.exp(new - old)
        bound = 1 + clip if advantage > 0 else 1 - clip
        outside = ratio > bound if advantage > 0 else ratio < bound  # past the bound on the side that pays: no gradient
        losses.append(-(torch.full_like(ratio, bound) if outside else ratio) * advantage)
        clipped.append(float(abs(ratio - 1) > clip))
    return torch.stack(losses).mean() + 0 * logprobs.sum(), torch.tensor(clipped).mean()


def surrogate(logprobs, old_logprobs, advantages, mask, clip, pick=torch.minimum, over=None):
    ratio = (logprobs - old_logprobs).exp()
    gains = pick(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    over = mask if over is None else over
    return -gains[over].mean(), ((ratio - 1).abs() > clip).float()[over].mean()


@policy_loss.mistake("the sign is turned round: the loss is minus the smaller of the two products")
def _(logprobs, old_logprobs, advantages, mask, clip):
    loss, clip_fraction = surrogate(logprobs, old_logprobs, advantages, mask, clip)
    return -loss, clip_fraction


@policy_loss.mistake("this takes the larger product: the clipped objective is a lower bound, so it takes the smaller")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return surrogate(logprobs, old_logprobs, advantages, mask, clip, pick=torch.maximum)


@policy_loss.mistake("the ratio is always clipped: without the minimum, a step in the wrong direction has no gradient to undo it")
def _(logprobs, old_logprobs, advantages, mask, clip):
    loss, fraction = surrogate(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: clipped)
    return loss + 0 * logprobs.sum(), fraction


@policy_loss.mistake("nothing is clipped: the ratio may run away from 1 as far as it likes")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return surrogate(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: plain)


@policy_loss.mistake("padding is part of the mean: the mask is ignored")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return surrogate(logprobs, old_logprobs, advantages, mask, clip, over=torch.ones_like(mask))


@policy_loss.mistake("the sum is divided by all positions, padding included; divide by the number of real ones")
def _(logprobs, old_logprobs, advantages, mask, clip):
    loss, fraction = surrogate(logprobs, old_logprobs, advantages, mask, clip)
    return loss * mask.float().mean(), fraction * mask.float().mean()


@policy_loss.mistake("each row is averaged by itself, so a token of a short row counts more; take one mean over all real tokens")
def _(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (logprobs - old_logprobs).exp()
    gains = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped = ((ratio - 1).abs() > clip).float()
    rows = [-torch.stack([-x[real].mean() for x, real in zip(each, mask)]).mean() for each in (gains, clipped)]
    return -rows[0], rows[1]


@policy_loss.mistake("the ratio is upside down: new over old, exp(logprobs - old_logprobs)")
def _(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (old_logprobs - logprobs).exp()
    gains = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gains[mask].mean(), ((ratio - 1).abs() > clip).float()[mask].mean()


@policy_loss.mistake("this uses the difference of the log-probabilities as the ratio; take its exponential")
def _(logprobs, old_logprobs, advantages, mask, clip):
    ratio = logprobs - old_logprobs
    gains = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gains[mask].mean(), ((ratio - 1).abs() > clip).float()[mask].mean()


# ----------------------------------------------------------------------------------------- 7.6

value_loss = Exercise("7.6", "value_loss")


@value_loss.inputs
def _(generator):
    row = torch.ones(1, 1, dtype=torch.bool)
    for value, old, target in ((1.0, 0.0, 1.0), (1.0, 0.0, 0.0), (3.0, 2.0, 4.0)):
        yield {"values": row * value, "old_values": row * old, "returns": row * target, "mask": row, "clip": 0.2}
    for rows, steps in ((2, 3), (4, 6)):
        mask = ragged(rows, steps, generator)
        values, old_values, returns = torch.randn(3, rows, steps, generator=generator)
        yield {"values": values, "old_values": old_values, "returns": returns, "mask": mask, "clip": 0.2}


@value_loss.call
def _(function, values, **others):
    """The loss, and its gradient."""
    values = values.clone().requires_grad_()
    loss = function(values, **others)
    loss.backward()
    return {"loss": loss, "gradient": values.grad}


def squares(values, old_values, returns, mask, clip, pick=torch.maximum, half=0.5, over=None):
    near = old_values + (values - old_values).clamp(-clip, clip)
    return half * pick((values - returns) ** 2, (near - returns) ** 2)[mask if over is None else over].mean() + 0 * values.sum()


@value_loss.oracle
def _(values, old_values, returns, mask, clip):
    losses = []
    for value, old, target in zip(values[mask], old_values[mask], returns[mask]):
        bound = old + clip if value > old else old - clip
        held = (value - old).abs() > clip and (bound - target).abs() > (value - target).abs()  # then there is no gradient
        losses.append(((bound if held else value) - target) ** 2 / 2)
    return torch.stack(losses).mean() + 0 * values.sum()


@value_loss.mistake("this takes the smaller error; the larger one makes the bound that keeps the value near the old one")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip, pick=torch.minimum)


@value_loss.mistake("nothing is clipped here: compare with the error of the value held within clip of the old one")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip, pick=lambda plain, near: plain)


@value_loss.mistake("only the held value's error is here: a value that has gone the wrong way gets no gradient to come back")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip, pick=lambda plain, near: near)


@value_loss.mistake("the half in front is missing")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip, half=1.0)


@value_loss.mistake("padding is part of the mean: the mask is ignored")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip, over=torch.ones_like(mask))


@value_loss.mistake("the sum is divided by all positions, padding included; divide by the number of real ones")
def _(values, old_values, returns, mask, clip):
    return squares(values, old_values, returns, mask, clip) * mask.float().mean()


@value_loss.mistake("the value itself is clipped into [-clip, clip]; clip how far it moved from the old value")
def _(values, old_values, returns, mask, clip):
    return 0.5 * torch.maximum((values - returns) ** 2, (values.clamp(-clip, clip) - returns) ** 2)[mask].mean()


# ----------------------------------------------------------------------------------------- 7.7

kl_estimate = Exercise("7.7", "kl_estimate")


@kl_estimate.inputs
def _(generator):
    yield {"logprobs": torch.tensor([0.5]).log(), "ref_logprobs": torch.tensor([0.25]).log()}
    for size in (3, 12):
        logprobs, ref_logprobs = -torch.rand(2, size, generator=generator) * 3
        yield {"logprobs": logprobs, "ref_logprobs": ref_logprobs}


@kl_estimate.oracle
def _(logprobs, ref_logprobs):
    rows = []
    for current, reference in zip(logprobs.double().tolist(), ref_logprobs.double().tolist()):
        r = torch.tensor(reference - current, dtype=torch.float64).exp()
        rows.append([-r.log(), r.log() ** 2 / 2, r - 1 - r.log()])
    return torch.tensor(rows).float().T.unbind()


@kl_estimate.mistake("the ratio is upside down in all three: it is reference over current, r = exp(ref_logprobs - logprobs)")
def _(logprobs, ref_logprobs):
    return kl_estimate.right(ref_logprobs, logprobs)


@kl_estimate.mistake("k3's ratio is upside down (k1 and k2 are right): its r is reference over current too")
def _(logprobs, ref_logprobs):
    k1, k2, _ = kl_estimate.right(logprobs, ref_logprobs)
    return k1, k2, k1.exp() - 1 - k1


@kl_estimate.mistake("k1 has the wrong sign: with it in a reward, the policy would be paid for running away")
def _(logprobs, ref_logprobs):
    k1, k2, k3 = kl_estimate.right(logprobs, ref_logprobs)
    return -k1, k2, k3


@kl_estimate.mistake("the half in k2 is missing: k2 = (log r)^2 / 2")
def _(logprobs, ref_logprobs):
    k1, k2, k3 = kl_estimate.right(logprobs, ref_logprobs)
    return k1, 2 * k2, k3


@kl_estimate.mistake("k3 = (r - 1) - log r; the -1 is missing, so it is not 0 where both models agree")
def _(logprobs, ref_logprobs):
    k1, k2, k3 = kl_estimate.right(logprobs, ref_logprobs)
    return k1, k2, k3 + 1


@kl_estimate.mistake("these are means over the tokens; return a value for each token, the mean is taken by whoever has the mask")
def _(logprobs, ref_logprobs):
    return tuple(k.mean() for k in kl_estimate.right(logprobs, ref_logprobs))


# ----------------------------------------------------------------------------------------- 7.8

explained_variance = Exercise("7.8", "explained_variance")


@explained_variance.inputs
def _(generator):
    yield {"values": torch.tensor([1.0, 2.0, 3.0]), "returns": torch.tensor([1.0, 2.0, 4.0])}
    yield {"values": torch.tensor([2.0, 3.0, 4.0]), "returns": torch.tensor([1.0, 2.0, 3.0])}
    for size in (5, 20):
        values, noise = torch.randn(2, size, generator=generator)
        yield {"values": values, "returns": 2 * values + noise + 3}


@explained_variance.oracle
def _(values, returns):
    errors = (returns - values).tolist()
    targets = returns.tolist()
    spread = [sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / len(xs) for xs in (errors, targets)]
    return torch.tensor(1 - spread[0] / spread[1])


@explained_variance.mistake("this is the share that is left unexplained; subtract it from 1")
def _(values, returns):
    return (returns - values).var() / returns.var()


@explained_variance.mistake("it is divided by the variance of the values; what is to be explained is the returns")
def _(values, returns):
    return 1 - (returns - values).var() / values.var()


@explained_variance.mistake("the mean squared error counts a constant offset too; take the variance of returns - values")
def _(values, returns):
    return 1 - ((returns - values) ** 2).mean() / returns.var(unbiased=False)


@explained_variance.mistake(
    "this is the squared correlation, which does not see values of the wrong scale; use Var(returns - values)"
)
def _(values, returns):
    return torch.corrcoef(torch.stack([values, returns]))[0, 1] ** 2


@explained_variance.mistake("standard deviations are not variances: square them")
def _(values, returns):
    return 1 - (returns - values).std() / returns.std()


# ----------------------------------------------------------------------------------------- 7.9

ppo_epochs = Exercise("7.9", "ppo_epochs", tolerance=1e-4)


@ppo_epochs.inputs
def _(generator):
    for rows, minibatch, epochs, clip in ((4, 2, 1, 0.2), (5, 2, 2, 5.0), (8, 4, 3, 0.2)):
        states = torch.randn(rows, 3, generator=generator)
        weight = torch.randn(3, 2, generator=generator) / 2
        actions = torch.randint(2, (rows,), generator=generator)
        old = (states @ weight).log_softmax(-1)[range(rows), actions]
        advantages = 4 * torch.randn(rows, generator=generator)
        advantages += 2 * advantages.sign()  # none so small that it does not matter
        if epochs == 3:
            old[0] -= 0.5 * advantages[0].sign()  # the rollout's policy is a little older: this ratio is outside at once
        yield {
            "weight": weight, "states": states, "actions": actions, "old_logprobs": old, "advantages": advantages,
            "epochs": epochs, "minibatch": minibatch, "clip": clip, "max_norm": 0.5,
        }  # fmt: skip


@ppo_epochs.call
def _(function, weight, **others):
    """The policy's weight after the update, with plain gradient descent at rate 1."""
    weight = weight.clone().requires_grad_()
    function(weight, torch.optim.SGD([weight], lr=1.0), **others)
    return weight


def epochs_of(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm, mistake=""):
    if mistake in ("one step", "one step, ratio 1", "whole rollout"):
        minibatch = len(states)
    if mistake in ("one step", "one step, ratio 1", "one epoch"):
        epochs = 1
    if mistake == "rest left out":
        states = states[: len(states) // minibatch * minibatch]
    for start in [*range(0, len(states), minibatch)] * epochs:
        rows = slice(start, start + minibatch)
        logprobs = (states[rows] @ weight).log_softmax(-1).gather(1, actions[rows, None])[:, 0]
        old = logprobs.detach() if "ratio 1" in mistake else old_logprobs[rows]
        ratio = (logprobs - old).exp()
        near = ratio if mistake == "ratio free" else ratio.clamp(1 - clip, 1 + clip)
        if mistake == "early clip":
            torch.nn.utils.clip_grad_norm_([weight], max_norm)
        (-torch.minimum(ratio * advantages[rows], near * advantages[rows]).mean()).backward()
        if mistake != "early clip":
            torch.nn.utils.clip_grad_norm_([weight], max_norm)
        optimizer.step()
        if mistake != "kept gradient":
            optimizer.zero_grad()


@ppo_epochs.oracle
def _(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    """Gradient descent by hand: the gradient of a softmax policy in closed form."""
    with torch.no_grad():
        for start in [*range(0, len(states), minibatch)] * epochs:
            gradient = torch.zeros_like(weight)
            for state, action, old, advantage in zip(
                *(x[start : start + minibatch] for x in (states, actions, old_logprobs, advantages))
            ):
                p = (state @ weight).softmax(-1)
                ratio = p[action] / old.exp()
                if (ratio > 1 + clip and advantage > 0) or (ratio < 1 - clip and advantage < 0):
                    continue
                gradient -= (
                    advantage * ratio * torch.outer(state, F.one_hot(action, 2) - p) / len(states[start : start + minibatch])
                )
            weight -= gradient * min(1.0, max_norm / (gradient.norm().item() + 1e-6))


@ppo_epochs.mistake(
    "there is one optimiser step for the whole rollout: the ratio is always 1 and clipping never acts; step after each minibatch"
)
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="one step")


@ppo_epochs.mistake(
    "one optimiser step for the whole rollout, and new log-probabilities on both sides of the ratio: it is 1, nothing is clipped"
)
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="one step, ratio 1")


@ppo_epochs.mistake(
    "the old log-probabilities are computed anew in each step, so the ratio is always 1: keep those of the rollout"
)
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="ratio 1")


@ppo_epochs.mistake(
    "gradients are never clipped, or clipped before backward, when the new ones are not there yet: clip between backward and step"
)
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="early clip")


@ppo_epochs.mistake("the gradients of earlier minibatches are still there: call zero_grad after each step")
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="kept gradient")


@ppo_epochs.mistake("the rollout is passed over only once: repeat it `epochs` times")
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="one epoch")


@ppo_epochs.mistake(
    "the rollout is not cut into minibatches: each epoch takes a single step, so the policy moves less than it could"
)
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="whole rollout")


@ppo_epochs.mistake("the last minibatch is left out when it is smaller than the others: it counts too")
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="rest left out")


@ppo_epochs.mistake("the ratio is not clipped: nothing stops the policy from following one rollout too far")
def _(weight, optimizer, **others):
    epochs_of(weight, optimizer, **others, mistake="ratio free")
