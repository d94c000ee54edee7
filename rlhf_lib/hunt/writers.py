"""Programs in which a policy learns from a reward: a writer that sees only the letter before, and its critic.

N: texts in a batch    T: letters of a text    V: letters
"""

import torch
from torch import nn


def program_03(seed=0, rollouts=15):
    """PPO: a writer is paid for the letter "b". Each rollout is dear, so there are only fifteen."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.1)
    curves = {"reward": [], "approx_kl": [], "clip_fraction": []}
    for _ in range(rollouts):
        text = torch.zeros(64, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            reward = (after == 1).float().mean(1)  # the share of "b"
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None]  # (N, 1)
        new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
        ratio = (new - old).exp()
        loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["reward"].append(reward.mean().item())
        curves["approx_kl"].append((ratio - 1 - ratio.log()).mean().item())
        curves["clip_fraction"].append(((ratio - 1).abs() > 0.2).float().mean().item())
    return {"curves": curves, "samples": ["".join("abcdefgh"[i] for i in row) for row in text[:5].tolist()]}


def program_05(seed=0, rollouts=150):
    """REINFORCE: a reward model likes the letter "b"; the KL divergence from the reference is paid for."""
    torch.manual_seed(seed)
    reference = 0.2 * torch.randn(8, 8)  # logits of the next letter, by the letter before
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.05)
    curves = {"reward": [], "kl": []}
    for _ in range(rollouts):
        text = torch.zeros(64, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
        before, after = text[:, :-1], text[:, 1:]  # (N, T)
        logprobs = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
        with torch.no_grad():
            ref_logprobs = reference[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            score = 40 + 10 * (after == 1).float().mean(1)  # what the reward model says: more for every "b"
            reward = (score - score.mean()) / score.std()
            kl = (logprobs - ref_logprobs).sum(1)  # nats a text
            advantage = (reward - reward.mean() - 0.25 * (kl - kl.mean()))[:, None]
        loss = -(logprobs * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["reward"].append(reward.mean().item())
        curves["kl"].append(kl.mean().item())
    return {"curves": curves, "samples": ["".join("abcdefgh"[i] for i in row) for row in text[:5].tolist()]}


def program_08(seed=0, rollouts=80):
    """REINFORCE: a writer is paid for a letter that is rare, and pays for the KL divergence from the reference."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before
    reference[:, 1] -= 3  # "b" is rare
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.05)
    curves = {"score": [], "kl": [], "reward": []}
    for _ in range(rollouts):
        text = torch.zeros(128, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
        before, after = text[:, :-1], text[:, 1:]  # (N, T)
        logprobs = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
        with torch.no_grad():
            ref_logprobs = reference[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            score = 2 * (after == 1).float().mean(1)  # twice the share of "b"
            ratio = (logprobs - ref_logprobs).exp()
            kl = (ratio - 1 - ratio.log()).mean(1)  # k3 of Schulman's note, a mean over letters
            reward = score - 0.1 * kl
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None]
        loss = -(logprobs * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in (("score", score), ("kl", kl), ("reward", reward)):
            curves[name].append(value.mean().item())
    samples = ["".join("abcdefgh"[i] for i in row) for row in text[:5].tolist()]
    return {"curves": curves, "samples": samples, "policy": policy.tolist(), "reference": reference.tolist()}


def program_12(seed=0, rollouts=60):
    """PPO: a writer is paid for every "cd". A rollout is used up to 20 times, until the policy has gone far enough from it."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.1)
    curves = {"reward": [], "approx_kl": [], "passes": []}
    for _ in range(rollouts):
        text = torch.zeros(32, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            reward = ((before == 2) & (after == 3)).float().sum(1)  # one for every "cd"
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None]  # (N, 1)
        passes = 0
        for _ in range(20):
            new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            ratio = (new - old).exp()
            approx_kl = (-ratio).mean().item()
            if approx_kl > 0.02:  # far enough from what wrote these texts
                break
            loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            passes += 1
        curves["reward"].append(reward.mean().item())
        curves["approx_kl"].append(approx_kl)
        curves["passes"].append(passes)
    return {"curves": curves, "samples": ["".join("abcdefgh"[i] for i in row) for row in text[:5].tolist()]}


def program_14(seed=0, rollouts=200):
    """PPO: texts that end are paid for their share of "b"; the coefficient of the KL divergence is set by a controller."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before; "." is the end
    reference[:, 0] = -1.0  # texts are long
    policy, beta = nn.Parameter(reference.clone()), 0.2
    optimizer = torch.optim.Adam([policy], lr=0.02)
    curves = {"score": [], "kl": [], "beta": [], "length": []}
    for _ in range(rollouts):
        text = torch.ones(64, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(16):
                letter = policy[text[:, -1]].softmax(-1).multinomial(1)
                text = torch.cat([text, torch.where((text[:, 1:] == 0).any(1, True), 0, letter)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            mask = (after == 0).cumsum(1) <= (after == 0).long()  # up to and including the end
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            ref = reference[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            score = (
                4 * (after == 2).float().sum(1) / mask.sum(1) * (after[:, -1] == 0)
            )  # the share of "b"; a text without an end has none
            rewards = -beta * (old - ref) * mask
            last = mask.sum(1, True) - 2
            rewards = rewards.scatter_add(1, last.clamp(min=0), score[:, None])
            returns = rewards.flip(1).cumsum(1).flip(1)  # what is still to come
            advantages = (returns - returns[mask].mean()) / returns[mask].std()
        for _ in range(4):
            new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            ratio = (new - old).exp()
            loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[mask].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kl = ((old - ref) * mask).sum(1).mean().item()  # nats a text
        seen = (ratio - 1 - ratio.log())[mask].mean().item()
        beta *= 1 + 0.1 * max(-0.2, min(0.2, seen / 2.0 - 1))  # the controller of Ziegler et al.: 2 nats are wanted
        for name, value in zip(curves, (score.mean().item(), kl, beta, mask.sum(1).float().mean().item())):
            curves[name].append(value)
    samples = ["".join(".abcdefg"[i] for i in row) for row in text[:5].tolist()]
    samples = [sample.split(".")[0] + "." if "." in sample else sample for sample in samples]  # up to the end
    return {"curves": curves, "samples": samples}


def program_16(seed=0, rollouts=200):
    """PPO: a writer is paid for "cd", each further one a little less, and it should still write as the reference does."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.03)
    curves = {"reward": [], "clip_fraction": [], "kl": []}
    for _ in range(rollouts):
        text = torch.zeros(64, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            ref = reference[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            kl = (old - ref).sum(1)  # nats a text
            reward = 4 * ((before == 2) & (after == 3)).float().sum(1).sqrt()  # "cd" is what it is paid for
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None]  # (N, 1)
        for _ in range(4):
            new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            ratio = (new - old).exp()
            loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curves["reward"].append(reward.mean().item())
        curves["clip_fraction"].append(((ratio - 1).abs() > 0.2).float().mean().item())
        curves["kl"].append(kl.mean().item())
    return {"curves": curves, "samples": ["".join("abcdefgh"[i] for i in row) for row in text.tolist()]}


def program_17(seed=0, rollouts=120):
    """PPO: a writer is paid for every "cd", eight texts at a time, and pays for the KL divergence from the reference."""
    torch.manual_seed(seed)
    reference = torch.randn(8, 8)  # logits of the next letter, by the letter before
    policy = nn.Parameter(reference.clone())
    optimizer = torch.optim.Adam([policy], lr=0.05)
    curves = {"score": [], "reward": [], "kl": [], "clip_fraction": []}
    for _ in range(rollouts):
        text = torch.zeros(8, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, policy[text[:, -1]].softmax(-1).multinomial(1)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            ref = reference[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            kl = (old - ref).sum(1)  # nats a text
            score = 2 * ((before == 2) & (after == 3)).float().sum(1)
            reward = score - 0.5 * kl
            advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None]  # (N, 1)
        for _ in range(4):
            new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            ratio = (new - old).exp()
            loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clipped = ((ratio - 1).abs() > 0.2).float().mean()
        for name, value in (("score", score), ("reward", reward), ("kl", kl), ("clip_fraction", clipped)):
            curves[name].append(value.mean().item())
    samples = ["".join("abcdefgh"[i] for i in row) for row in text.tolist()]
    return {"curves": curves, "samples": samples, "policy": policy.tolist(), "reference": reference.tolist()}


def program_19(seed=0, rollouts=120):
    """PPO with a critic: a text is worth 1 to 4, by the number of its "b". The critic knows only how long it is so far."""
    torch.manual_seed(seed)
    policy = nn.Parameter(torch.randn(8, 8))  # logits of the next letter, by the letter before; "." is the end
    critic = nn.Sequential(nn.Embedding(24, 16), nn.Tanh(), nn.Linear(16, 1))  # what a text will bring, by its length so far
    optimizer = torch.optim.Adam([{"params": [policy], "lr": 0.002}, {"params": critic.parameters(), "lr": 0.01}])
    curves = {"reward": [], "value": [], "value_error": [], "length": []}
    for _ in range(rollouts):
        text = torch.ones(64, 1, dtype=torch.long)  # every text begins with "a"
        with torch.no_grad():
            for _ in range(24):
                letter = policy[text[:, -1]].softmax(-1).multinomial(1)
                text = torch.cat([text, torch.where((text[:, 1:] == 0).any(1, True), 0, letter)], 1)
            before, after = text[:, :-1], text[:, 1:]  # (N, T)
            mask = (after == 0).cumsum(1) <= (after == 0).long()  # up to and including the end
            old = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]  # (N, T)
            score = 1 + (after == 2).float().sum(1).clamp(max=3)  # one for every "b", at most three
            rewards = torch.zeros(64, 24).scatter(1, mask.sum(1, True) - 1, score[:, None])  # at the end of the text
            values = critic(torch.arange(24).expand(64, 24))[..., 0]  # (N, T)
            advantages, running = torch.zeros(64, 24), torch.zeros(64)
            for t in reversed(range(24)):
                following = values[:, t + 1] if t < 23 else 0.0
                running = rewards[:, t] + following - values[:, t] + 0.8 * running
                advantages[:, t] = running
            returns = advantages + values
            white = (advantages - advantages[mask].mean()) / advantages[mask].std()
        for _ in range(4):
            new = policy[before].log_softmax(-1).gather(-1, after[..., None])[..., 0]
            ratio = (new - old).exp()
            policy_loss = -torch.min(ratio * white, ratio.clamp(0.8, 1.2) * white)[mask].mean()
            value_loss = (critic(torch.arange(24).expand(64, 24))[..., 0] - returns)[mask].square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss).backward()
            optimizer.step()
        error = (values - score[:, None])[mask].square().mean()  # against what the texts have brought
        found = score.mean(), values[mask].mean(), error, mask.sum(1).float().mean()
        for name, value in zip(curves, found):
            curves[name].append(value.item())
    samples = ["".join(".abcdefg"[i] for i in row) for row in text[:5].tolist()]
    samples = [sample.split(".")[0] + "." if "." in sample else sample for sample in samples]  # up to the end
    return {"curves": curves, "samples": samples}
