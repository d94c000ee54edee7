"""Chapter 07's checks: answers written differently from the solutions, the worked examples, and the published mistakes."""

import math
from functools import reduce

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from rlhf_lib import ppo
from rlhf_lib.exercises import answer, draw, find, verdict


def returns_by_recursion(rewards, gamma):
    if not len(rewards):
        return rewards
    rest = returns_by_recursion(rewards[1:], gamma)
    return torch.cat([rewards[:1] + (gamma * rest[:1] if len(rest) else 0), rest])


def reinforce_by_distributions(logits, actions, advantages):
    return -torch.dot(Categorical(logits=logits).log_prob(actions), advantages.detach()) / len(actions)


def gae_by_matrix(rewards, values, gamma, lam, mask):
    """All steps at once: A = W delta, with W[t, s] = (gamma lam)^(s - t) for s >= t."""
    real = mask.float()
    rewards, values = rewards * real, values * real
    delta = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    steps = torch.arange(mask.shape[1], device=mask.device)
    ahead = steps[None, :] - steps[:, None]
    weight = torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp(min=0), 0)
    advantages = (delta @ weight.T) * real
    return advantages, (advantages + values) * real


def whiten_by_layer_norm(x, mask):
    out = torch.full_like(x, -77.0)  # what stands under the mask is nobody's business
    out[mask] = F.layer_norm(x[mask], (int(mask.sum()),), eps=1e-8)
    return out


def policy_loss_by_bounds(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    gain = torch.where(advantages >= 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip)) * advantages
    clipped = (ratio < 1 - clip) | (ratio > 1 + clip)
    return -(gain * mask).sum() / mask.sum(), (clipped & mask).sum() / mask.sum()


def value_loss_by_mse(values, old_values, returns, mask, clip):
    values, old_values, returns = values[mask], old_values[mask], returns[mask]
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    losses = [F.mse_loss(guess, returns, reduction="none") for guess in (values, near)]
    return torch.stack(losses).amax(0).sum() / (2 * mask.sum())


def estimates_by_kernel(logprobs, ref_logprobs):
    return tuple(ppo.kl_estimate(logprobs, ref_logprobs, kind) for kind in ("k1", "k2", "k3"))


def explained_by_moments(values, returns):
    error = returns - values
    return 1 - ((error**2).mean() - error.mean() ** 2) / ((returns**2).mean() - returns.mean() ** 2)


def epochs_by_kernel(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    """PyTorch's own data loader, distributions and the library's kernel."""
    data = torch.utils.data.TensorDataset(states, actions, old_logprobs, advantages)
    for _ in range(epochs):
        for some, done, old, advantage in torch.utils.data.DataLoader(data, batch_size=minibatch):
            optimizer.zero_grad()
            logprobs = Categorical(logits=some @ weight).log_prob(done)
            ppo.policy_loss(logprobs, old, advantage, torch.ones_like(logprobs, dtype=torch.bool), clip).loss.backward()
            weight.grad *= max_norm / max(max_norm, weight.grad.norm().item())  # the gradient may be 0: all clipped
            optimizer.step()


ALTERNATIVES = {
    "discounted_returns": returns_by_recursion,
    "reinforce_loss": reinforce_by_distributions,
    "gae": gae_by_matrix,
    "masked_whiten": whiten_by_layer_norm,
    "policy_loss": policy_loss_by_bounds,
    "value_loss": value_loss_by_mse,
    "kl_estimate": estimates_by_kernel,
    "explained_variance": explained_by_moments,
    "ppo_epochs": epochs_by_kernel,
}

KERNELS = {  # the library's own functions, which the chapter goes on with
    "gae": lambda rewards, values, gamma, lam, mask: ppo.gae(rewards, values, gamma, lam, mask),
    "masked_whiten": ppo.masked_whiten,
    "policy_loss": lambda *given, **named: ppo.policy_loss(*given, **named)[:2],
    "value_loss": ppo.value_loss,
    "explained_variance": lambda values, returns: ppo.explained_variance(values, returns, torch.ones_like(values).bool()),
}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


@pytest.mark.parametrize("name", KERNELS)
def test_the_library_itself_passes(name):
    found = verdict(name, KERNELS[name])
    assert found.passed, found.message


# ----------------------------------------------------------------------------------------- published mistakes, by name


def one_step_per_rollout(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    """minChatGPT's: log-probabilities of the same policy on both sides of the ratio, and one step."""
    logprobs = (states @ weight).log_softmax(-1)[range(len(actions)), actions]
    ratio = (logprobs - logprobs.detach()).exp()
    (-torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()).backward()
    torch.nn.utils.clip_grad_norm_([weight], max_norm)
    optimizer.step()


def clipped_before_backward(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    for _ in range(epochs):
        for start in range(0, len(states), minibatch):
            some = slice(start, start + minibatch)
            ratio = (Categorical(logits=states[some] @ weight).log_prob(actions[some]) - old_logprobs[some]).exp()
            gains = torch.minimum(ratio * advantages[some], ratio.clamp(1 - clip, 1 + clip) * advantages[some])
            optimizer.zero_grad()
            torch.nn.utils.clip_grad_norm_([weight], max_norm)
            (-gains.mean()).backward()
            optimizer.step()


def inverted_k3(logprobs, ref_logprobs):
    ratio = (logprobs - ref_logprobs).exp()
    return logprobs - ref_logprobs, (logprobs - ref_logprobs) ** 2 / 2, ratio - 1 - ratio.log()


def unmasked(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (logprobs - old_logprobs).exp()
    loss = torch.max(-advantages * ratio, -advantages * ratio.clip(1 - clip, 1 + clip))
    return loss.mean(), ((ratio - 1).abs() > clip).float().mean()


def whitened_by_masked_sums(x, mask):
    """TRL's masked_mean and masked_var: products with the mask."""
    mean = (x * mask).sum() / mask.sum()
    return (x - mean) * torch.rsqrt(((x - mean) ** 2 * mask).sum() / mask.sum() + 1e-8)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("masked_whiten", whitened_by_masked_sums, "the padding is multiplied by 0, which leaves a NaN as it is"),
        ("ppo_epochs", one_step_per_rollout, "one optimiser step for the whole rollout, and new log-probabilities on both sides"),
        ("ppo_epochs", clipped_before_backward, "clip between backward and step"),
        ("kl_estimate", inverted_k3, "k3's ratio is upside down"),
        ("policy_loss", unmasked, "the mask is ignored"),
    ],
)
def test_a_published_mistake_is_called_by_its_name(name, wrong, words, seed):
    found = verdict(name, wrong, seed)
    assert not found.passed
    assert words in found.message


# ----------------------------------------------------------------------------------------- what is special here


def test_a_worked_example_comes_first():
    """The cards work these out by hand."""
    returns = find("discounted_returns")
    assert returns.right(**draw("discounted_returns")[0]).tolist() == [0.25, 0.5, 1.0]
    step = answer("reinforce_loss", find("reinforce_loss").right, draw("reinforce_loss")[:1])[0]
    assert step["loss"].item() == pytest.approx(0.9699, abs=1e-4)
    advantages, targets = find("gae").right(**draw("gae")[0])
    torch.testing.assert_close(advantages, torch.tensor([[0.092, 0.23, 0.7]]))
    torch.testing.assert_close(targets, torch.tensor([[0.192, 0.43, 1.0]]))
    white = answer("masked_whiten", find("masked_whiten").right, draw("masked_whiten")[:1])[0]
    torch.testing.assert_close(white, torch.tensor([-1.3416, -0.4472, 0.4472, 1.3416]), atol=1e-4, rtol=0)
    good, bad = answer("policy_loss", find("policy_loss").right, draw("policy_loss")[:2])
    assert [good["loss"].item(), good["gradient"].item()] == pytest.approx([-1.2, 0.0])
    assert [bad["loss"].item(), bad["gradient"].item()] == pytest.approx([1.5, 1.5])
    held, lost = answer("value_loss", find("value_loss").right, draw("value_loss")[:2])
    assert [held["loss"].item(), held["gradient"].item()] == pytest.approx([0.32, 0.0])
    assert [lost["loss"].item(), lost["gradient"].item()] == pytest.approx([0.5, 1.0])
    first = draw("explained_variance")[0]
    assert find("explained_variance").right(**first).item() == pytest.approx(6 / 7)
    assert (first["returns"] - first["values"]).tolist() == [1.0, 1.0, 2.0]


def test_some_inputs_are_long_or_have_an_infinite_limit():
    """A sum that is cut off, or a limit that is divided by, is right on all the others."""
    assert max(len(given["rewards"]) for given in draw("discounted_returns")) > 256
    assert max(given["mask"].shape[1] for given in draw("gae")) > 256
    assert max(given["mask"].sum() for given in draw("masked_whiten")) > 1000
    assert max(len(given["returns"]) for given in draw("explained_variance")) > 1000
    for name in ("policy_loss", "value_loss", "ppo_epochs"):
        assert any(given["clip"] == math.inf for given in draw(name))


def test_a_rollout_is_not_cut_into_equal_minibatches():
    inputs = [(len(given["states"]), given["minibatch"]) for given in draw("ppo_epochs")]
    assert any(math.ceil(rows / math.ceil(rows / size)) != min(rows, size) for rows, size in inputs)


def test_the_smallest_failing_input_is_shown():
    found = verdict("discounted_returns", lambda rewards, gamma: rewards * 0 + 1)
    assert found.arguments["rewards"].tolist() == [0.0, 0.0, 1.0]
    assert "came out: [1.0, 1.0, 1.0]" in found.message
    assert "expected: [0.25, 0.5, 1.0]" in found.message


def test_a_padded_rollout_is_shown_when_only_the_mask_is_wrong():
    """Wrong under padding alone, in a way that has no name: the first input that fails is the first one with padding."""

    def half_masked(rewards, values, gamma, lam, mask):
        advantages, returns = ppo.gae(rewards, values, gamma, lam, mask)
        return advantages + (~mask) * 3, returns

    found = verdict("gae", half_masked)
    assert not found.passed
    assert found.arguments["mask"].shape == (2, 3)
    assert not found.arguments["mask"].all()


def test_no_gradient_may_pass_where_the_loss_alone_is_right():
    """The loss is compared together with its gradient."""

    def without_gradient(values, old_values, returns, mask, clip):
        return ppo.value_loss(values.detach(), old_values, returns, mask, clip) + 0 * values.sum()

    assert not verdict("value_loss", without_gradient).passed

    def frozen_ratio(logprobs, old_logprobs, advantages, mask, clip):
        loss, fraction, _ = ppo.policy_loss(logprobs.detach(), old_logprobs, advantages, mask, clip)
        return loss + 0 * logprobs.sum(), fraction

    assert not verdict("policy_loss", frozen_ratio).passed


def test_the_estimators_mean_is_the_kl_that_the_card_works_out():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.3, 0.3])
    k1, _, k3 = find("kl_estimate").right(p.log(), q.log())
    exact = kl_divergence(Categorical(p), Categorical(q))
    assert exact.item() == pytest.approx(0.20078, abs=1e-5)
    for each in (k1, k3):
        assert (p * each).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def test_the_update_is_compared_by_where_the_policy_ends():
    """Doing nothing to the weight is no answer, and neither is a single plain step."""
    assert not verdict("ppo_epochs", lambda weight, optimizer, **others: None).passed
    inputs = draw("ppo_epochs")
    ends = answer("ppo_epochs", find("ppo_epochs").right, inputs)
    for given, end in zip(inputs, ends):
        steps = given["epochs"] * math.ceil(len(given["states"]) / given["minibatch"])
        moved = (end - given["weight"]).norm().item()
        assert 0.01 < moved <= steps * given["max_norm"] * given["rate"] + 1e-4  # a step is at most rate * max_norm long
    assert any(len(given["states"]) % given["minibatch"] for given in inputs)  # a smaller last minibatch is among them


def test_returns_built_up_by_a_fold_pass_as_well():

    def folded(rewards, gamma):
        return torch.stack(reduce(lambda done, r: [r + gamma * (done[0] if done else 0), *done], rewards.flip(0), []))

    assert verdict("discounted_returns", folded).passed


# ----------------------------------------------------------------------------------------- frequent mistakes, by name


def by_two_exps(logprobs, old_logprobs, advantages, mask, clip):
    ratio = logprobs.exp() / old_logprobs.exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -gain[mask].mean(), ((ratio - 1).abs() > clip)[mask].float().mean()


def smaller_ratio(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (logprobs - old_logprobs).exp()
    gain = torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * advantages
    return -gain[mask].mean(), ((ratio - 1).abs() > clip)[mask].float().mean()


def gae_to_the_last_but_one(rewards, values, gamma, lam, mask):
    rewards, values = rewards * mask, values * mask
    advantages, carried = torch.zeros_like(rewards), torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1] - 1)):
        carried = mask[:, t] * (rewards[:, t] + gamma * values[:, t + 1] - values[:, t] + gamma * lam * carried)
        advantages[:, t] = carried
    return advantages, advantages + values


def held_and_detached(values, old_values, returns, mask, clip):
    near = old_values + (values - old_values).clamp(-clip, clip).detach()
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())[mask].mean()


def epochs_with(chunks=torch.split, step=True, most=math.inf):
    def learner(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
        for _ in range(epochs):
            for rows in chunks(torch.arange(len(states)), minibatch):
                logprobs = Categorical(logits=states[rows] @ weight).log_prob(actions[rows])
                if (old_logprobs[rows] - logprobs).mean() > most:
                    return
                real = torch.ones_like(logprobs, dtype=torch.bool)
                ppo.policy_loss(logprobs, old_logprobs[rows], advantages[rows], real, clip).loss.backward()
                torch.nn.utils.clip_grad_norm_([weight], max_norm)
                if step:
                    optimizer.step()
                optimizer.zero_grad()

    return learner


def one_step_an_epoch(weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm):
    for _ in range(epochs):
        optimizer.zero_grad()
        for rows in torch.arange(len(states)).split(minibatch):
            logprobs = Categorical(logits=states[rows] @ weight).log_prob(actions[rows])
            real = torch.ones_like(logprobs, dtype=torch.bool)
            ppo.policy_loss(logprobs, old_logprobs[rows], advantages[rows], real, clip).loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], max_norm)
        optimizer.step()


def as_for_pong(rewards, gamma):
    returns, running = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * (running if rewards[t] == 0 else 0.0)
        returns[t] = running
    return returns


def likely(logits, actions):
    return logits.softmax(-1)[torch.arange(len(actions)), actions].log()


def whitened_with_zeros(x, mask):
    x, count = x.masked_fill(~mask, 0), mask.sum()
    mean = x.sum() / count
    return (x - mean) / (((x - mean) ** 2).sum() / count + 1e-8).sqrt()


def gae_with_values_masked(rewards, values, gamma, lam, mask):
    return ppo.gae(rewards, values * mask, gamma, lam, torch.ones_like(mask))


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("policy_loss", by_two_exps, "unlikely token"),
        ("policy_loss", smaller_ratio, "the smaller ratio"),
        ("gae", gae_to_the_last_but_one, "last step has no advantage"),
        ("masked_whiten", lambda x, mask: (x - x.mean()) / (x[mask].var(correction=0) + 1e-8).sqrt(), "padding included"),
        ("value_loss", held_and_detached, "detached"),
        ("reinforce_loss", lambda logits, actions, advantages: -(
            logits.log_softmax(-1)[:, actions] * advantages.detach()).mean(), "all actions from each row"),
        ("ppo_epochs", epochs_with(torch.chunk), "number of minibatches"),
        ("ppo_epochs", epochs_with(step=False), "step is missing"),
        ("ppo_epochs", epochs_with(most=0.02), "before all epochs are done"),
        ("ppo_epochs", one_step_an_epoch, "one optimiser step an epoch"),
        ("reinforce_loss", lambda logits, actions, advantages: -(torch.where(
            actions > 0, *logits.log_softmax(-1).T[[1, 0]]) * advantages.detach()).mean(), "read as action 1"),
        ("discounted_returns", as_for_pong, "starts the sum anew"),
        ("reinforce_loss", lambda logits, actions, advantages: -(
            likely(logits, actions) * advantages.detach()).mean(), "take log_softmax"),
        ("reinforce_loss", lambda logits, actions, advantages: -(likely(logits, actions) * advantages).mean(), "two things"),
        ("masked_whiten", whitened_with_zeros, "the padding's squares"),
        ("gae", gae_with_values_masked, "padding flows back"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, says):
    assert says in verdict(name, function).mistake


def test_a_vector_is_not_said_to_have_rows():
    found = verdict("discounted_returns", lambda rewards, gamma: find("discounted_returns").right(rewards, gamma).flip(0))
    assert found.mistake == "what comes back is read from the end to the beginning along its last dimension"


def test_a_ratio_of_two_exps_is_right_but_for_unlikely_tokens():
    found = verdict("policy_loss", by_two_exps)
    assert found.arguments["logprobs"].item() == -200 and math.isnan(found.got["loss"])
