"""The worked answers of chapter 12."""

import copy
import itertools

import torch
from torch.nn import functional as F


def leave_one_out(rewards):
    """What each completion is worth over the mean of the others of its group.

    Args:
        rewards: (N, G), a row for each prompt; G at least 2.

    Returns:
        (N, G).
    """
    ### BEGIN SOLUTION
    others = rewards.sum(1, keepdim=True) - rewards
    return rewards - others / (rewards.shape[1] - 1)
    ### END SOLUTION


def group_advantages(rewards, normaliser):
    """What each completion is worth over its group's mean, in a unit of the group.

    Args:
        rewards: (N, G), a row for each prompt; not negative where the mean divides.
        normaliser: "none", "deviation" or "mean".

    Returns:
        (N, G); 0 for a group whose rewards are all alike.
    """
    ### BEGIN SOLUTION
    mean = rewards.mean(1, keepdim=True)
    apart = rewards - mean
    if normaliser == "deviation":
        return apart / (apart.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if normaliser == "mean":
        return torch.where(mean > 0, apart / mean, 0)
    return apart
    ### END SOLUTION


def silent_share(p, group):
    """How many groups have rewards that are all alike, where a reward is 0 or 1.

    Args:
        p: (K,), the probability of a success.
        group: completions in a group.

    Returns:
        (K,), shares.
    """
    ### BEGIN SOLUTION
    return p**group + (1 - p) ** group
    ### END SOLUTION


def token_average(losses, mask, denominator):
    """The losses of tokens as one number.

    Args:
        losses: (B, T); anything where the mask is False.
        mask: (B, T) bool, True on a completion's tokens, of which there is at least one.
        denominator: "completion", "batch" or "constant".

    Returns:
        A tensor without dimensions.
    """
    ### BEGIN SOLUTION
    sums, lengths = torch.where(mask, losses, 0).sum(1), mask.sum(1)  # (B,)
    if denominator == "completion":
        return (sums / lengths).mean()
    if denominator == "batch":
        return sums.sum() / lengths.sum()
    return sums.mean() / mask.shape[1]
    ### END SOLUTION


def sequence_ratio(logprobs, old_logprobs, mask):
    """The geometric mean of the probability ratios of a completion's tokens.

    Args:
        logprobs, old_logprobs: (B, T), nats; the old ones get no gradient.
        mask: (B, T) bool, True on a completion's tokens, of which there is at least one.

    Returns:
        (B,).
    """
    ### BEGIN SOLUTION
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0)  # (B, T)
    return (log_ratio.sum(1) / mask.sum(1)).exp()
    ### END SOLUTION


def policy_gradient(
    rewards, logprobs, old_logprobs, mask, *, baseline, normaliser, clip, denominator, epsilon=0.2, expected=0.0, deviation=1.0
):
    """A policy-gradient loss with four switches.

    Args:
        rewards: (N, G), a row for each prompt.
        logprobs, old_logprobs: (N G, T), nats; row n G + g is completion g of prompt n.
        mask: (N G, T) bool, True on a completion's tokens.
        baseline: "none", "batch", "leave-one-out", "group" or "critic", which is `expected`.
        normaliser: "none", "deviation", "mean" or "fixed", which is `deviation`.
        clip: "none", "token" or "sequence".
        denominator: "completion", "batch" or "constant".
        epsilon: how far a ratio may leave 1.

    Returns:
        A tensor without dimensions, with a gradient to logprobs alone.
    """
    ### BEGIN SOLUTION
    mean = rewards.mean(1, keepdim=True)
    if baseline == "leave-one-out":
        advantages = leave_one_out(rewards)
    else:
        advantages = rewards - {"none": 0, "batch": rewards.mean(), "group": mean, "critic": expected}[baseline]
    if normaliser == "deviation":
        advantages = advantages / (rewards.var(1, keepdim=True, correction=0) + 1e-8).sqrt()
    elif normaliser == "mean":
        advantages = torch.where(mean > 0, advantages / mean, 0)
    elif normaliser == "fixed":
        advantages = advantages / deviation
    A = advantages.detach().reshape(-1, 1)  # (B, 1)

    if clip == "none":
        each = -A * logprobs
    else:
        if clip == "token":
            ratio = (logprobs - old_logprobs.detach()).exp()
        else:
            ratio = sequence_ratio(logprobs, old_logprobs, mask)[:, None].expand_as(logprobs)
        each = torch.maximum(-A * ratio, -A * ratio.clamp(1 - epsilon, 1 + epsilon))
    return token_average(each, mask, denominator)
    ### END SOLUTION


def expected_gradient(probs, paid, group, advantages):
    """Where a policy gradient points on average, by listing all groups.

    Args:
        probs: (V,), with which probability each token is drawn.
        paid: (V,), what each token earns.
        group: how many are drawn.
        advantages: a function of rewards (M, G), a row a group, that gives (M, G).

    Returns:
        (V,), the mean step in the logits.
    """
    ### BEGIN SOLUTION
    tokens = torch.tensor(list(itertools.product(range(len(probs)), repeat=group)))  # (M, G)
    chance = probs[tokens].prod(1)  # (M,)
    slopes = F.one_hot(tokens, len(probs)) - probs  # (M, G, V)
    steps = (advantages(paid[tokens])[:, :, None] * slopes).mean(1)  # (M, V)
    return chance @ steps
    ### END SOLUTION


def learn(
    policy,
    reference,
    reward,
    prompts,
    *,
    loss,
    generate,
    end_token,
    group,
    iterations,
    max_new_tokens,
    kl_coef,
    lr,
    seed,
    epochs=1,
    minibatch=4,
    max_kl=10.0,
    report=None,
):
    """Policy gradients without a critic: the completions of a prompt are compared with each other.

    Args:
        policy, reference: model(tokens) gives logits (B, L, V); the policy starts as the reference and is trained in place.
        reward: reward(prompts, tokens, mask) gives (B,) for a list of B prompts.
        prompts: a list of N lists of tokens, all of one length.
        loss: loss(rewards, logprobs, old_logprobs, mask) of (n, group), and (n group, T) each.
        generate: the sampler of exercise 4.10.
        end_token: ends a completion.
        group: completions of each prompt in a rollout.
        iterations: updates; each follows a rollout of completions of `max_new_tokens` tokens at most.
        kl_coef: price of a completion's KL, in reward per nat.
        lr: Adam's rate.
        seed: all random numbers follow from it.
        epochs, minibatch: passes over a rollout, and prompts in a step.
        max_kl: the run stops at a rollout whose mean KL, in nats, is above it, and the policy before is put back.
        report: called with each record as soon as it is complete.

    Returns:
        A list of dicts, one for each policy measured: iteration, reward, kl, silent, ratio.
    """
    ### BEGIN SOLUTION
    device = next(policy.parameters()).device
    policy.eval()
    reference.eval()
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    drawn = torch.Generator().manual_seed(seed)
    some = [prompt for prompt in prompts for _ in range(group)]
    start = torch.tensor(some, device=device)  # (B, P)
    B, P = start.shape

    def score(model, whole):
        """The log-probabilities (b, T) of completions, from prompts and completions (b, P + T)."""
        logprobs = model(whole)[:, P - 1 : -1].log_softmax(-1)
        return logprobs.gather(2, whole[:, P:, None])[:, :, 0]

    records, kept = [], None
    for iteration in range(iterations + 1):
        # Rollout: completions of every prompt, scored by both models.
        uniforms = torch.rand(B, max_new_tokens, generator=drawn).to(device)
        with torch.no_grad():
            tokens, _, mask = generate(policy, start, torch.ones_like(start, dtype=torch.bool), uniforms, end_token=end_token)
            whole = torch.cat([start, tokens], 1)  # (B, P + T)
            old, ref_logprobs = score(policy, whole), score(reference, whole)
        kl = torch.where(mask, old - ref_logprobs, 0).sum(1)  # (B,)
        if not kl.mean() <= max_kl:  # NaN too
            policy.load_state_dict(kept)
            break
        kept = copy.deepcopy(policy.state_dict())
        scores = reward(some, tokens, mask)
        table = scores.view(-1, group)
        silent = (table == table[:, :1]).all(1).float().mean().item()
        record = dict(iteration=iteration, reward=scores.mean().item(), kl=kl.mean().item(), silent=silent, ratio=1.0)
        if iteration < iterations:
            # Update: some prompts at a time, each with all its completions.
            paid = (scores - kl_coef * kl).view(-1, group)  # (N, G)
            ratios = []
            for _ in range(epochs):
                for groups in torch.randperm(len(prompts), generator=drawn).to(device).split(minibatch):
                    rows = (groups[:, None] * group + torch.arange(group, device=device)).flatten()
                    logprobs = score(policy, whole[rows])
                    loss(paid[groups], logprobs, old[rows], mask[rows]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    ratios.append((logprobs - old[rows])[mask[rows]].exp().mean().item())
            record["ratio"] = ratios[0]
        records.append(record)
        if report:
            report(record)
    return records
    ### END SOLUTION


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """The loss of direct preference optimisation, the mean over the pairs.

    Args:
        policy_chosen, policy_rejected: (N,), log-probabilities of whole answers, nats.
        ref_chosen, ref_rejected: (N,), the reference's.
        beta: reward per nat.

    Returns:
        A tensor without dimensions; finite at any margin.
    """
    ### BEGIN SOLUTION
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return -F.logsigmoid(beta * margin).mean()
    ### END SOLUTION


def kto_loss(policy, ref, desirable, kl, beta):
    """The loss of Kahneman-Tversky optimisation, the mean over the answers.

    Args:
        policy, ref: (N,), log-probabilities of whole answers, nats.
        desirable: (N,) bool.
        kl: a tensor without dimensions, nats; it gets no gradient.
        beta: reward per nat.

    Returns:
        A tensor without dimensions.
    """
    ### BEGIN SOLUTION
    gain = beta * (policy - ref - kl.detach())  # (N,)
    return torch.sigmoid(torch.where(desirable, -gain, gain)).mean()
    ### END SOLUTION


def best_and_control(rewards, uniforms):
    """The best completion of each prompt, and one that was drawn by chance, as rows of the rollout.

    Args:
        rewards: (N, G); completion g of prompt n is row n G + g.
        uniforms: (N,) in [0, 1).

    Returns:
        best, control: (N,) int64 each.
    """
    ### BEGIN SOLUTION
    N, G = rewards.shape
    first = torch.arange(N) * G  # the first row of each group
    return first + rewards.argmax(1), first + (uniforms * G).long()
    ### END SOLUTION


def importance_weights(logprobs, sampler_logprobs, mask, cap):
    """How much likelier each token is to the learner than to the copy that sampled it, at most `cap`.

    Args:
        logprobs, sampler_logprobs: (B, T), nats.
        mask: (B, T) bool.
        cap: above 1.

    Returns:
        (B, T), 1 where masked, without a gradient.
    """
    ### BEGIN SOLUTION
    log_ratio = torch.where(mask, logprobs - sampler_logprobs, 0)
    return log_ratio.detach().exp().clamp(max=cap)
    ### END SOLUTION
