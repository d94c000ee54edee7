"""Chapter 08: the reward and its constants, which tokens count, the KL and what it costs, and PPO on a rollout."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 8.1

log_reward = Exercise("8.1", "log_reward")


@log_reward.inputs
def _(generator):
    yield {"logits": torch.tensor([2.0]), "sentiment": "positive"}
    yield {"logits": torch.tensor([2.0, -1.0]), "sentiment": "negative"}
    for sentiment in ("positive", "negative"):
        yield {"logits": 3 * torch.randn(5, generator=generator), "sentiment": sentiment}
    for sentiment in ("positive", "negative"):
        yield {"logits": torch.tensor([-200.0, 0.0, 200.0]), "sentiment": sentiment}


@log_reward.oracle
def _(logits, sentiment):
    sign = 1 if sentiment == "positive" else -1
    return torch.tensor([min(0.0, sign * x) - math.log1p(math.exp(-abs(x))) for x in logits.double().tolist()]).float()


def towards(logits, sentiment):
    """The log-odds of the wanted sentiment."""
    return logits if sentiment == "positive" else -logits


@log_reward.mistake(
    "log(sigmoid(x)) is minus infinity as soon as sigmoid(x) rounds to 0: use F.logsigmoid, which never takes that log"
)
def _(logits, sentiment):
    return towards(logits, sentiment).sigmoid().log()


@log_reward.mistake(
    "the small number inside the log only hides the underflow: all hopeless completions get one reward. Use F.logsigmoid"
)
def _(logits, sentiment):
    return (towards(logits, sentiment).sigmoid() + 1e-8).log()


@log_reward.mistake(
    "positive is right; for negative, log(1 - p) underflows: its log-odds are minus the logits, so F.logsigmoid(-x)"
)
def _(logits, sentiment):
    return F.logsigmoid(logits) if sentiment == "positive" else (1 - logits.sigmoid()).log()


@log_reward.mistake("this is the probability; the reward is its logarithm, which keeps on telling the bad from the very bad")
def _(logits, sentiment):
    return towards(logits, sentiment).sigmoid()


@log_reward.mistake(
    "these are the log-odds, which grow without end; the log-probability cannot pass 0: put them through F.logsigmoid"
)
def _(logits, sentiment):
    return towards(logits, sentiment).clone()


@log_reward.mistake("the sentiment is ignored: this rewards positive completions whatever is asked for")
def _(logits, sentiment):
    return F.logsigmoid(logits)


@log_reward.mistake("for negative, this turns the sign of log p(positive): a reward without a bound. Take log p(negative)")
def _(logits, sentiment):
    return F.logsigmoid(logits) if sentiment == "positive" else -F.logsigmoid(logits)


# ----------------------------------------------------------------------------------------- 8.2

fit_normaliser = Exercise("8.2", "fit_normaliser")


@fit_normaliser.inputs
def _(generator):
    yield {"base_rewards": torch.tensor([-3.0, -1.0]), "batches": [torch.tensor([-1.0, 0.0])]}
    yield {"base_rewards": torch.tensor([-3.0, -2.0, -1.0]), "batches": [torch.tensor([-1.0, 0.0]), torch.tensor([0.0, -0.5])]}
    for size in (6, 20):
        base = -1 - 3 * torch.rand(size, generator=generator)
        batches = [-0.1 - torch.rand(count, generator=generator) for count in (4, 3, 5)]
        yield {"base_rewards": base, "batches": batches}


@fit_normaliser.call
def _(function, base_rewards, batches):
    """What the fitted function makes of one batch after another."""
    normalise = function(base_rewards)
    return [normalise(batch) for batch in batches]


@fit_normaliser.oracle
def _(base_rewards):
    values = base_rewards.tolist()
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return lambda rewards: torch.tensor([(reward - mean) / std for reward in rewards.tolist()])


@fit_normaliser.mistake(
    "each batch is normalised by its own mean: then the mean reward is always 0 and progress cannot be seen or paid"
)
def _(base_rewards):
    return lambda rewards: (rewards - rewards.mean()) / rewards.std()


@fit_normaliser.mistake(
    "the mean is each batch's own, so all that a batch has gained is taken away again: both constants are the base's"
)
def _(base_rewards):
    std = base_rewards.std()
    return lambda rewards: (rewards - rewards.mean()) / std


@fit_normaliser.mistake(
    "the constants move with every batch: the same completion is worth less each time. Fit them once, on the base"
)
def _(base_rewards):
    seen = [base_rewards]

    def normalise(rewards):
        seen.append(rewards)
        return (rewards - torch.cat(seen).mean()) / torch.cat(seen).std()

    return normalise


@fit_normaliser.mistake(
    "the mean is not subtracted: log-probabilities are all negative, so every completion would be pushed down"
)
def _(base_rewards):
    std = base_rewards.std()
    return lambda rewards: rewards / std


@fit_normaliser.mistake("the mean is subtracted, but the deviation is not divided by")
def _(base_rewards):
    mean = base_rewards.mean()
    return lambda rewards: rewards - mean


@fit_normaliser.mistake("this divides by the variance; its root, the standard deviation, has the reward's unit")
def _(base_rewards):
    mean, variance = base_rewards.mean(), base_rewards.var()
    return lambda rewards: (rewards - mean) / variance


@fit_normaliser.mistake("the deviation is divided by n; torch's std, which is asked for here, divides by n - 1")
def _(base_rewards):
    mean, std = base_rewards.mean(), base_rewards.std(correction=0)
    return lambda rewards: (rewards - mean) / std


# ----------------------------------------------------------------------------------------- 8.3

action_mask = Exercise("8.3", "action_mask")


@action_mask.inputs
def _(generator):
    yield {"tokens": torch.tensor([[5, 7, 0, 4]]), "prompt_length": 1, "end_token": 0}
    yield {"tokens": torch.tensor([[0, 7, 3, 0, 4, 0, 6]]), "prompt_length": 1, "end_token": 0}
    yield {"tokens": torch.tensor([[6, 5, 7, 3, 8]]), "prompt_length": 2, "end_token": 0}
    for rows, length, prompt_length in ((2, 6, 2), (5, 10, 3)):
        tokens = torch.randint(6, (rows, length), generator=generator)
        yield {"tokens": tokens, "prompt_length": prompt_length, "end_token": 2}


def actions(tokens, prompt_length, end_token, shift=1, prompt=False, end=True, after="none", no_end="all"):
    """The mask by a loop over rows and positions; the options make the mistakes."""
    rows = []
    for row in tokens.tolist():
        completion = row[prompt_length:]
        ends = [place for place, token in enumerate(completion) if token == end_token]
        stop = len(completion) if no_end == "all" or ends else 1
        if ends and after != "all":
            stop = (ends[-1] if after == "last" else ends[0]) + end
        counts = [prompt] * prompt_length + [place < stop for place in range(len(completion))]
        if after == "others":
            counts = [prompt] * prompt_length + [token != end_token for token in completion]
        rows.append(counts[shift:] if shift else counts[:-1])
    return torch.tensor(rows)


@action_mask.oracle
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token)


@action_mask.mistake("everything is True: the prompt and what stands behind the end token would be trained on too")
def _(tokens, prompt_length, end_token):
    return torch.ones_like(tokens[:, 1:], dtype=torch.bool)


@action_mask.mistake("the prompt's tokens are not actions: the policy did not choose them")
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, prompt=True)


@action_mask.mistake("nothing stops at the end token: what stands behind it was never part of the completion")
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, after="all")


@action_mask.mistake("the end token itself is an action: the policy chose to stop there, and learns from it")
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, end=False)


@action_mask.mistake(
    "only the end tokens themselves are left out; all that stands behind the first one has to go, and the end token stays"
)
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, after="others")


@action_mask.mistake("this goes on to the last end token; the completion is over at the first")
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, after="last")


@action_mask.mistake("an end token in the prompt stops the completion before it began: look for it behind the prompt only")
def _(tokens, prompt_length, end_token):
    before = (tokens == end_token).int().cumsum(1) - (tokens == end_token).int()
    return ((before == 0) & (torch.arange(tokens.shape[1]) >= prompt_length))[:, 1:]


@action_mask.mistake(
    "without an end token only one action is left: argmax of a row of zeros is 0. Such a completion counts to its end"
)
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, no_end="first")


@action_mask.mistake(
    "the mask is one position late: entry t belongs to the prediction of token t + 1, so drop the first column, not the last"
)
def _(tokens, prompt_length, end_token):
    return actions(tokens, prompt_length, end_token, shift=0)


@action_mask.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got.float(), expected.float(), "1 where a prediction is an action of the policy")


# ----------------------------------------------------------------------------------------- 8.4

completion_kl = Exercise("8.4", "completion_kl")


def scored(generator, rows, steps):
    """Log-probabilities under two models, and a mask that is True on at least one token of each row; the first row is full."""
    logprobs, ref_logprobs = -3 * torch.rand(2, rows, steps, generator=generator)
    lengths = torch.randint(1, steps, (rows, 1), generator=generator)
    lengths[0] = steps
    return {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "mask": torch.arange(steps) < lengths}


@completion_kl.inputs
def _(generator):
    two = torch.ones(1, 2, dtype=torch.bool)
    yield {"logprobs": torch.tensor([[0.5, 0.5]]).log(), "ref_logprobs": torch.tensor([[0.25, 0.5]]).log(), "mask": two}
    for rows, steps in ((2, 3), (4, 6)):
        yield scored(generator, rows, steps)


def log_ratios(logprobs, ref_logprobs, mask):
    return torch.where(mask, logprobs - ref_logprobs, 0)


@completion_kl.oracle
def _(logprobs, ref_logprobs, mask):
    rows = zip(logprobs.double().tolist(), ref_logprobs.double().tolist(), mask.tolist())
    return torch.tensor([math.fsum(p - q for p, q, real in zip(*row) if real) for row in rows]).float()


@completion_kl.mistake(
    "this is the mean over the tokens: the KL of a completion is their sum, so that long completions may differ more"
)
def _(logprobs, ref_logprobs, mask):
    return log_ratios(logprobs, ref_logprobs, mask).sum(1) / mask.sum(1)


@completion_kl.mistake("the sum is divided by the width of the batch, padding included; do not divide at all")
def _(logprobs, ref_logprobs, mask):
    return log_ratios(logprobs, ref_logprobs, mask).mean(1)


@completion_kl.mistake("the ratio is upside down: KL(current || reference) adds up logprobs - ref_logprobs")
def _(logprobs, ref_logprobs, mask):
    return -log_ratios(logprobs, ref_logprobs, mask).sum(1)


@completion_kl.mistake("padding is part of the sum: the mask is ignored")
def _(logprobs, ref_logprobs, mask):
    return (logprobs - ref_logprobs).sum(1)


@completion_kl.mistake("a single completion's estimate may well be negative; with abs the mean would be far too large")
def _(logprobs, ref_logprobs, mask):
    return log_ratios(logprobs, ref_logprobs, mask).abs().sum(1)


@completion_kl.mistake(
    "these are k3 terms; asked for is k1, the log-ratio itself, whose sum is the log-ratio of the whole completion"
)
def _(logprobs, ref_logprobs, mask):
    ratios = log_ratios(logprobs, ref_logprobs, mask)
    return ((-ratios).exp() - 1 + ratios).sum(1)


@completion_kl.mistake("this is one number for the batch; return one for each completion")
def _(logprobs, ref_logprobs, mask):
    return log_ratios(logprobs, ref_logprobs, mask).sum(1).mean()


@completion_kl.mistake("these are bits; the log-probabilities are in nats, and so is the KL")
def _(logprobs, ref_logprobs, mask):
    return log_ratios(logprobs, ref_logprobs, mask).sum(1) / math.log(2)


# ----------------------------------------------------------------------------------------- 8.5

token_advantages = Exercise("8.5", "token_advantages")


@token_advantages.inputs
def _(generator):
    worked = {"logprobs": torch.tensor([[-1.0, -1.0, -2.0]]), "ref_logprobs": torch.tensor([[-1.5, -1.0, -2.25]])}
    yield {"rewards": torch.tensor([1.0]), **worked, "mask": torch.ones(1, 3, dtype=torch.bool), "kl_coef": 0.1}
    for rows, steps, kl_coef in ((2, 3, 0.0), (2, 3, 0.5), (4, 6, 0.2)):
        rewards = torch.randn(rows, generator=generator)
        yield {"rewards": rewards, **scored(generator, rows, steps), "kl_coef": kl_coef}


@token_advantages.call
def _(function, logprobs, **others):
    """The advantages, and the gradient that they send back to the log-probabilities, which should be none."""
    logprobs = logprobs.clone().requires_grad_()
    advantages = function(logprobs=logprobs, **others)
    if advantages.requires_grad:
        advantages.sum().backward()
    through = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
    return {"advantages": advantages, "gradient of the logprobs": through}


def worth(rewards, logprobs, ref_logprobs, mask, kl_coef, over="to go", detach=True, kl_mask=True):
    """Reward less penalty at every position, padding included; the options make the mistakes."""
    kl = logprobs - ref_logprobs
    kl = torch.where(mask, kl, 0) if kl_mask else kl
    kl = kl.detach() if detach else kl
    total = kl.sum(1, keepdim=True)
    spent = {"to go": total - kl.cumsum(1) + kl, "all": total.expand_as(kl), "own": kl, "so far": kl.cumsum(1)}[over]
    return rewards[:, None] - kl_coef * spent


@token_advantages.oracle
def _(rewards, logprobs, ref_logprobs, mask, kl_coef):
    out = torch.zeros(mask.shape)
    for row, reward in enumerate(rewards.tolist()):
        for t in mask[row].nonzero()[:, 0].tolist():
            later = [s for s in range(t, mask.shape[1]) if mask[row, s]]
            out[row, t] = reward - kl_coef * sum((logprobs[row, s] - ref_logprobs[row, s]).item() for s in later)
    return out


@token_advantages.mistake(
    "the KL passes a gradient on: detach it. The penalty is part of the reward, a number that the policy receives"
)
def _(mask, **others):
    return torch.where(mask, worth(mask=mask, **others, detach=False), 0)


@token_advantages.mistake("the sign of the KL is wrong: this pays the policy for every nat that it runs away")
def _(mask, kl_coef, **others):
    return torch.where(mask, worth(mask=mask, kl_coef=-kl_coef, **others), 0)


@token_advantages.mistake(
    "each token pays for the whole completion's KL; it cannot change what came before it, so only what is still to come"
)
def _(mask, **others):
    return torch.where(mask, worth(mask=mask, **others, over="all"), 0)


@token_advantages.mistake("each token pays for its own KL alone; what follows from it counts too: sum from the token to the end")
def _(mask, **others):
    return torch.where(mask, worth(mask=mask, **others, over="own"), 0)


@token_advantages.mistake("this sums the KL up to the token; sum what is still to come: flip, cumsum, flip back")
def _(mask, **others):
    return torch.where(mask, worth(mask=mask, **others, over="so far"), 0)


@token_advantages.mistake("the reward stands at the last token only; without a value function it is the advantage of every token")
def _(rewards, mask, **others):
    penalty = worth(torch.zeros_like(rewards), mask=mask, **others)
    last = F.one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    return torch.where(mask, penalty + torch.where(last, rewards[:, None], 0), 0)


@token_advantages.mistake("padding flows into the sum: set the KL to 0 where the mask is False before you sum")
def _(mask, **others):
    return torch.where(mask, worth(mask=mask, **others, kl_mask=False), 0)


@token_advantages.mistake("padding has an advantage too; it should be 0 there")
def _(mask, **others):
    return worth(mask=mask, **others)


@token_advantages.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    title = "advantages, one row a completion"
    return plots.side_by_side(got["advantages"], expected["advantages"], title, mask=arguments["mask"])


# ----------------------------------------------------------------------------------------- 8.6

with_baseline = Exercise("8.6", "with_baseline")


@with_baseline.inputs
def _(generator):
    mask = torch.tensor([[True, True, True], [True, True, False]])
    values = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    yield {"worth": values, "mask": mask, "baseline": torch.full((3,), 0.25)}
    yield {"worth": values[:, :2], "mask": torch.tensor([[True, False], [True, False]]), "baseline": torch.tensor([0.25, 0.5])}
    for rows, steps in ((3, 4), (6, 5)):
        lengths = torch.randint(1, steps + 1, (rows, 1), generator=generator)
        lengths[0], lengths[1] = steps, 1
        mask = torch.arange(steps) < lengths
        yield {
            "worth": torch.where(mask, 1 + torch.randn(rows, steps, generator=generator), 0),
            "mask": mask, "baseline": torch.randn(steps, generator=generator),
        }  # fmt: skip


def by_position(x, mask, empty=0.0):
    """The mean of the real values at each position, by a loop."""
    columns = [x[:, t][mask[:, t]] for t in range(x.shape[1])]
    return torch.stack([column.mean() if len(column) else torch.tensor(empty) for column in columns])


@with_baseline.oracle
def _(worth, mask, baseline):
    return torch.where(mask, worth - baseline, 0), by_position(worth, mask)


@with_baseline.mistake("the baseline is this rollout's own mean, which every completion is part of; subtract the one handed in")
def _(worth, mask, baseline):
    return torch.where(mask, worth - by_position(worth, mask), 0), by_position(worth, mask)


@with_baseline.mistake("the baseline is added; what a token is worth over the baseline is the difference")
def _(worth, mask, baseline):
    return torch.where(mask, worth + baseline, 0), by_position(worth, mask)


@with_baseline.mistake(
    "the next baseline is one mean for all positions; early and late tokens are worth different amounts, so one for each"
)
def _(worth, mask, baseline):
    return torch.where(mask, worth - baseline, 0), worth[mask].mean().expand(mask.shape[1]).clone()


@with_baseline.mistake("the next baseline divides by all completions; at a position only those count that are still going there")
def _(worth, mask, baseline):
    return torch.where(mask, worth - baseline, 0), torch.where(mask, worth, 0).mean(0)


@with_baseline.mistake("where no completion is left the next baseline is 0 / 0; it should be 0 there")
def _(worth, mask, baseline):
    return torch.where(mask, worth - baseline, 0), by_position(worth, mask, empty=math.nan)


@with_baseline.mistake(
    "the next baseline is the mean of the advantages; it has to follow what tokens are worth, before the subtraction"
)
def _(worth, mask, baseline):
    return torch.where(mask, worth - baseline, 0), by_position(worth - baseline, mask)


@with_baseline.mistake("padding has an advantage of minus the baseline; it should be 0 there")
def _(worth, mask, baseline):
    return worth - baseline, by_position(worth, mask)


# ----------------------------------------------------------------------------------------- 8.7

update_policy = Exercise("8.7", "update_policy", tolerance=1e-4)


@update_policy.inputs
def _(generator):
    V = 4
    for rows, steps, minibatch, epochs, stale in ((2, 2, 1, 1, 0.0), (4, 3, 2, 2, 0.4), (6, 5, 3, 2, 0.4)):
        weight = torch.randn(V, V, generator=generator)
        tokens = torch.randint(V, (rows, steps + 1), generator=generator)
        temperature = 0.7
        old = (weight / temperature).log_softmax(-1)[tokens[:, :-1], tokens[:, 1:]]  # (B, T)
        lengths = torch.randint(1, steps, (rows, 1), generator=generator)
        lengths[0] = steps
        mask = torch.arange(steps) < lengths
        yield {
            "weight": weight, "tokens": tokens, "old_logprobs": old + stale * torch.randn(rows, steps, generator=generator),
            "advantages": torch.randn(rows, steps, generator=generator), "mask": mask,
            "temperature": temperature, "epochs": epochs, "minibatch": minibatch, "clip": 0.2,
        }  # fmt: skip


@update_policy.call
def _(function, weight, **others):
    """The policy's weight after the update, and the clip fractions. The policy looks at one token only, and has dropout."""
    policy = nn.Sequential(nn.Embedding.from_pretrained(weight.clone(), freeze=False), nn.Dropout(0.5))
    clip_fractions = function(policy, torch.optim.SGD(policy.parameters(), lr=1.0), **others)
    return {"weight": policy[0].weight, "clip fractions": clip_fractions}


def clipped_loss(logprobs, old, advantages, mask, clip, rows=False):
    ratio = (logprobs - old).exp()
    losses = -torch.stack([ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages]).amin(0)
    outside = ((ratio - 1).abs() > clip)[mask].float().mean().item()
    if rows:  # every completion's own mean first
        return ((losses * mask).sum(1) / mask.sum(1)).mean(), outside
    return losses[mask].mean(), outside


def updates_of(policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip, mistake=""):
    """PPO's epochs; `mistake` says which one to make."""
    if not mistake.startswith("dropout"):
        policy.eval()
    if mistake == "one step":
        minibatch, epochs = len(tokens), 1
    if mistake == "temperature":
        temperature = 1.0
    if mistake == "mask":
        mask = torch.ones_like(mask)
    if mistake == "last token":
        mask = mask & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)
    fractions = []
    for _ in range(epochs):
        for rows in torch.arange(len(tokens)).split(minibatch):
            if mistake == "dropout, tokens cut":
                logits = policy(tokens[rows, :-1]) / temperature  # (b, T, V)
            else:
                logits = policy(tokens[rows]) / temperature  # (b, T + 1, V)
                logits = logits[:, 1:] if mistake == "own position" else logits[:, :-1]
            logprobs = logits.log_softmax(-1).gather(2, tokens[rows, 1:, None])[..., 0]
            old = logprobs.detach() if mistake == "ratio 1" else old_logprobs[rows]
            loss, outside = clipped_loss(logprobs, old, advantages[rows], mask[rows], clip, rows=mistake == "rows")
            loss.backward()
            if mistake != "piled up":
                optimizer.step()
                optimizer.zero_grad()
            fractions.append(outside)
    if mistake == "piled up":
        optimizer.step()
    return fractions


@update_policy.oracle
def _(policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip):
    """Gradient descent by hand: the gradient of a softmax policy in closed form."""
    weight, fractions = policy[0].weight, []
    with torch.no_grad():
        for start in [*range(0, len(tokens), minibatch)] * epochs:
            gradient, outside, count = torch.zeros_like(weight), 0, 0
            for row in range(start, min(start + minibatch, len(tokens))):
                for t in mask[row].nonzero()[:, 0].tolist():
                    here, chosen, advantage = tokens[row, t], tokens[row, t + 1], advantages[row, t]
                    p = (weight[here] / temperature).softmax(-1)
                    ratio = p[chosen] / old_logprobs[row, t].exp()
                    outside, count = outside + int(abs(ratio - 1) > clip), count + 1
                    if (ratio > 1 + clip and advantage > 0) or (ratio < 1 - clip and advantage < 0):
                        continue
                    gradient[here] -= advantage * ratio * (F.one_hot(chosen, len(p)) - p) / temperature
            weight -= gradient / count
            fractions.append(outside / count)
    return fractions


@update_policy.mistake(
    "the logits are not divided by the temperature: what was sampled at 0.7 is scored at 1, and the first ratio is not 1"
)
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="temperature")


@update_policy.mistake("dropout is on, so the ratio compares two random networks: call policy.eval() before the update")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="dropout")


@update_policy.mistake("dropout is still on in the update, and was off in the rollout: call policy.eval() first")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="dropout, tokens cut")


@update_policy.mistake("gradients pile up until one step at the end, so the ratio is always 1: step after each minibatch")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="piled up")


@update_policy.mistake("the action mask is ignored: padding is trained on, and counted in the clip fraction")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="mask")


@update_policy.mistake(
    "the last token is never scored: cut the last position off the logits and the first off the tokens, and no more"
)
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="last token")


@update_policy.mistake("each token is scored by the logits at its own place, which have seen it: logits at t predict token t + 1")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="own position")


@update_policy.mistake(
    "the old log-probabilities are computed anew, so the ratio is always 1 and nothing is clipped: keep the rollout's"
)
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="ratio 1")


@update_policy.mistake("there is one optimiser step for the whole rollout; take one for each minibatch, in each epoch")
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="one step")


@update_policy.mistake(
    "this averages over each completion first, so a token of a short one weighs more; take the mean over all real tokens"
)
def _(policy, optimizer, **others):
    return updates_of(policy, optimizer, **others, mistake="rows")


# ----------------------------------------------------------------------------------------- 8.8

rollout_sizes = Exercise("8.8", "rollout_sizes")


@rollout_sizes.inputs
def _(generator):
    yield {"clip_fractions": [0.005, 0.004, 0.003], "completions": 256, "most": 1024}
    yield {"clip_fractions": [0.05, 0.005, 0.004, 0.003, 0.002], "completions": 256, "most": 1024}
    yield {"clip_fractions": [0.004, 0.003, 0.05, 0.002, 0.001, 0.003, 0.002], "completions": 128, "most": 1024}
    yield {"clip_fractions": [0.3, 0.3, 0.3, 0.3, 0.001], "completions": 128, "most": 1024}
    yield {"clip_fractions": [0.002] * 9, "completions": 128, "most": 500}
    for _ in range(2):
        drawn = 0.009 * torch.rand(12, generator=generator) + 0.02 * (torch.rand(12, generator=generator) < 0.2)
        yield {"clip_fractions": drawn.tolist(), "completions": 64, "most": 512}


def sizes_of(clip_fractions, completions, most, wait=3, in_a_row=True, reset=True, rare=lambda share: share < 0.01, bound=None):
    sizes, count = [], 0
    for share in clip_fractions:
        count = count + 1 if rare(share) else (0 if in_a_row else count)
        if count >= wait and (bound or 2 * completions <= most):
            completions = min(2 * completions, bound or most)
            count = 0 if reset else count
        sizes.append(completions)
    return sizes


@rollout_sizes.oracle
def _(clip_fractions, completions, most):
    """By looking back: a doubling happens where the last three shares, all since the last doubling, are small."""
    sizes, since = [], 0
    for step in range(len(clip_fractions)):
        now = sizes[-1] if sizes else completions
        last = clip_fractions[max(since, step - 2) : step + 1]
        if len(last) == 3 and max(last) < 0.01 and now * 2 <= most:
            now, since = now * 2, step + 1
        sizes.append(now)
    return sizes


@rollout_sizes.mistake("the rollout grows at every rare update; wait for three in a row, one may be chance")
def _(**arguments):
    return sizes_of(**arguments, wait=1)


@rollout_sizes.mistake("this waits for a fourth update in a row; the third one is enough")
def _(**arguments):
    return sizes_of(**arguments, wait=4)


@rollout_sizes.mistake("this counts rare updates in all; one with enough clipping in between sets the count back to 0")
def _(**arguments):
    return sizes_of(**arguments, in_a_row=False)


@rollout_sizes.mistake("after a doubling the count has to start at 0 again, or the next rare update doubles at once")
def _(**arguments):
    return sizes_of(**arguments, reset=False)


@rollout_sizes.mistake("the rollout grows past `most`")
def _(**arguments):
    return sizes_of(**arguments, bound=10**9)


@rollout_sizes.mistake("a doubling that would pass `most` is not cut down to it, but left out: minibatches must still fit")
def _(**arguments):
    return sizes_of(**arguments, bound=arguments["most"])


@rollout_sizes.mistake(
    "this grows when clipping is frequent; then steps are too long already. It grows when clipping is rare, below 1 %"
)
def _(**arguments):
    return sizes_of(**arguments, rare=lambda share: share >= 0.01)


# ----------------------------------------------------------------------------------------- 8.9

kept_iteration = Exercise("8.9", "kept_iteration")


def spread(*means):
    """KLs of two completions each, with these means."""
    return [torch.tensor([mean - 1.0, mean + 1.0]) for mean in means]


@kept_iteration.inputs
def _(generator):
    yield {"kls": [torch.tensor([0.0]), torch.tensor([8.0]), torch.tensor([12.0])], "max_kl": 10.0}
    yield {"kls": spread(0.0, 4.0, 6.0), "max_kl": 10.0}
    yield {"kls": spread(0.0, 5.0, math.nan, 6.0), "max_kl": 10.0}
    yield {"kls": spread(0.0, 8.0, 12.0, 9.0), "max_kl": 10.0}
    yield {"kls": [torch.zeros(3), torch.tensor([0.0, 1.0, 14.0]), torch.tensor([4.0, 5.0, 20.0])], "max_kl": 10.0}
    for count in (6, 10):
        means = 1.5 * torch.rand(count, generator=generator).cumsum(0)
        kls = [torch.zeros(8), *(mean + torch.randn(8, generator=generator) for mean in means)]
        yield {"kls": kls, "max_kl": 0.8 * means[-1].item()}


@kept_iteration.oracle
def _(kls, max_kl):
    within = [float(sum(kl.tolist())) / len(kl) <= max_kl for kl in kls]
    return within.index(False) - 1 if False in within else len(kls) - 1


@kept_iteration.mistake("this is the policy that passed the limit; keep the one before, the last that was measured within it")
def _(kls, max_kl):
    return min(kept_iteration.right(kls, max_kl) + 1, len(kls) - 1)


@kept_iteration.mistake("training never stops: this is the last iteration, whatever its KL is")
def _(kls, max_kl):
    return len(kls) - 1


@kept_iteration.mistake(
    "this finds the last one within the limit anywhere; training stops the first time that the limit is passed"
)
def _(kls, max_kl):
    return max(place for place, kl in enumerate(kls) if kl.mean() <= max_kl)


@kept_iteration.mistake("a KL that is NaN is not > max_kl, so this trains on with a broken policy: ask whether not kl <= max_kl")
def _(kls, max_kl):
    past = [place for place, kl in enumerate(kls) if kl.mean() > max_kl]
    return past[0] - 1 if past else len(kls) - 1


@kept_iteration.mistake("one completion over the limit stops this; single estimates are noise, and the limit is for their mean")
def _(kls, max_kl):
    past = [place for place, kl in enumerate(kls) if not kl.max() <= max_kl]
    return past[0] - 1 if past else len(kls) - 1


@kept_iteration.mistake("this adds the completions up; the limit is for the mean of a completion")
def _(kls, max_kl):
    past = [place for place, kl in enumerate(kls) if not kl.sum() <= max_kl]
    return past[0] - 1 if past else len(kls) - 1
