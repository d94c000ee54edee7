import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import checkpoints, devices, ppo, runs
from rlhf_lib.files import RunError
from rlhf_lib.models.layers import pad
from rlhf_lib.models.lora import trunk_rows
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import ppo_critic, rollouts
from rlhf_lib.trainers.ppo_critic import PPOCriticConfig, scored, token_rewards, values_of
from rlhf_lib.trainers.rewards import PreferenceReward, answer_scores, fit_normaliser
from rlhf_lib.trainers.rollouts import trunk_logprobs

from .helpers import FAMILIES, branch, language_model, mutant, same, weights

TOKENIZER = CharTokenizer(list("\nabcdefgh"))  # END, UNKNOWN, the line break, and eight letters: 11 tokens
V, A, END = TOKENIZER.vocab_size, TOKENIZER.encode("a")[0], TOKENIZER.end_token
PROMPTS = [[2, 2], [3, 4, 5, 6, 7], [8], [4, 2, 9]]
SYSTEM = [9, 3, 3, 10, 4, 8, 2, 5, 7]  # as all of a chat's prompts begin with
LONG = [SYSTEM + prompt for prompt in PROMPTS]
TEMPERATURES = (1.0, 0.7, 1.6)


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def small(**changes):
    shape = dict(iterations=2, rollout_size=16, max_new_tokens=8, epochs=2, minibatch=8, lr=1e-2, critic_lr=1e-2)
    return PPOCriticConfig(**{**shape, **changes})


def four(family="llama", **options):
    """A base and its branches: a policy, the reference that it equals, and a critic that knows nothing."""
    base = language_model(family, **options)
    policy, reference = (branch(base, seed=1, spread=0.1) for _ in range(2))
    return SimpleNamespace(base=base, policy=policy, reference=reference, critic=branch(base, scalar=True))


def likes(tokens=(A,), sign=1.0):
    """A reward that grows with the share of some tokens; about 0 and 1 are its mean and deviation under even choices."""
    wanted = torch.tensor(list(tokens))

    def reward(rollout):
        share = (torch.isin(rollout.tokens, wanted) & rollout.mask).sum(1) / rollout.mask.sum(1)
        return sign * 8 * (share - 1 / V)

    return reward


def train(folder, models=None, reward=None, config=None, prompts=PROMPTS, module=ppo_critic, **options):
    m = models or four()
    prompts = [list(prompt) for prompt in prompts]
    return module.train(
        m.policy, m.critic, m.reference, TOKENIZER, prompts, reward or likes(), config or small(), folder, **options
    )


def records(folder):
    return runs.Metrics(folder).read("policy")


def drawn(model, count=12, length=6, seed=0, prompts=PROMPTS):
    some = [prompts[place % len(prompts)] for place in range(count)]
    return rollouts.draw(model, TOKENIZER, some, length, torch.Generator().manual_seed(seed))


def behind_the_end(rollout, seed=3):
    """The same rollout, with other tokens where nothing counts."""
    other = copy.copy(rollout)
    noise = torch.randint(V, rollout.tokens.shape, generator=torch.Generator().manual_seed(seed))
    other.tokens = torch.where(rollout.mask, rollout.tokens, noise)
    assert not torch.equal(other.tokens, rollout.tokens)
    return other


# ----------------------------------------------------------------------------------------- scores that go on from the trunk


@pytest.mark.parametrize("prompts", [PROMPTS, LONG])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_from_the_trunk_are_those_of_the_definition(family, layers, prompts):
    """The oracle reads one prompt with some of its completion at a time: no padding, no mask, no trunk, and nothing to come."""
    base = language_model(family, dropout=0.3)
    policy, critic = branch(base, layers, seed=1), branch(base, layers, seed=2, scalar=True)
    rollout = drawn(policy, 36, prompts=prompts)
    assert len(set(rollout.mask.sum(1).tolist())) > 2
    trunk, start = rollouts.trunk_of(policy, rollout)
    assert start == max(map(len, prompts)) and trunk[3] == (9 if prompts is LONG else 0)
    with torch.no_grad():
        found = {t: trunk_logprobs(policy, trunk, start, rollout.tokens, rollout.mask, t) for t in TEMPERATURES}
        values = values_of(critic, trunk, start, rollout.mask)
        for b, (prompt, tokens, mask) in enumerate(zip(rollout.prompts, rollout.tokens.tolist(), rollout.mask.tolist())):
            for place, token in enumerate(tokens):
                if not mask[place]:
                    assert values[b, place] == 0 and all(logprobs[b, place] == 0 for logprobs in found.values())
                    continue
                before = torch.tensor([prompt + tokens[:place]])
                logits = policy(before)[0, -1].double()
                for t, logprobs in found.items():
                    assert logprobs[b, place].item() == pytest.approx((logits / t).log_softmax(0)[token].item(), abs=1e-4)
                assert values[b, place].item() == pytest.approx(critic(before)[0, -1].item(), abs=1e-4)
    assert values[rollout.mask].std() > 0.1


@pytest.mark.parametrize("prompts", [PROMPTS, LONG])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_in_parts_is_the_trunk_and_its_rows_are_the_rows_of_the_scores(family, prompts):
    m = four(family)
    critic, rollout = branch(m.base, seed=2, scalar=True), drawn(m.policy, prompts=prompts)
    (whole, start), (parts, _) = rollouts.trunk_of(m.policy, rollout), rollouts.trunk_of(m.policy, rollout, batch=5)
    assert (whole[1] is None) == (parts[1] is None) == (family == "gpt2")  # learned positions have no table
    _, real = rollouts.whole(rollout, whole[3])  # (B, S)
    assert torch.equal(real.sum(1), torch.tensor([len(p) for p in rollout.prompts]) + rollout.mask.sum(1))
    torch.testing.assert_close(whole[0][real], parts[0][real], rtol=0, atol=1e-5)
    assert all(map(torch.equal, (*(whole[1] or ()), whole[2]), (*(parts[1] or ()), parts[2])))
    rows = torch.tensor([7, 0, 3])
    for trunk in (whole, parts):
        with torch.no_grad():
            logprobs = trunk_logprobs(m.policy, whole, start, rollout.tokens, rollout.mask)
            values = values_of(critic, whole, start, rollout.mask)
            some = trunk_rows(trunk, rows)
            found = trunk_logprobs(m.policy, some, start, rollout.tokens[rows], rollout.mask[rows])
            torch.testing.assert_close(found, logprobs[rows], rtol=0, atol=1e-5)
            torch.testing.assert_close(values_of(critic, some, start, rollout.mask[rows]), values[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, LONG])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_rows_of_like_length_are_those_of_all_at_once(family, temperature, prompts):
    m = four(family)
    critic, rollout = branch(m.base, seed=2, scalar=True), drawn(m.policy, prompts=prompts)
    other = branch(m.base, seed=3, spread=0.2)
    rollout.trunk, start = rollouts.trunk_of(m.policy, rollout)
    with torch.no_grad():
        wanted = [
            trunk_logprobs(one, rollout.trunk, start, rollout.tokens, rollout.mask, temperature) for one in (m.policy, other)
        ]
        wanted.append(values_of(critic, rollout.trunk, start, rollout.mask))
    for batch in (1, 5, 100):
        found = scored(m.policy, other, critic, rollout, start, temperature, batch)
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True), st.sampled_from([PROMPTS, LONG]))
def test_what_is_cut_off_is_padding_in_every_row_and_nothing_more_could_be(rows, prompts):
    m, rows = four(), torch.tensor(rows)
    rollout = drawn(m.policy, prompts=prompts)
    rollout.trunk, start = rollouts.trunk_of(m.policy, rollout)
    trunk, begin, tokens, mask = rollouts.cut(rollout, start, rows)
    prompts = pad(rollout.prompts, "left", "cpu")[1][rows]
    assert trunk[3] == rollout.trunk[3] and begin == int(prompts.any(0).sum())
    assert tokens.shape[1] == int(rollout.mask[rows].any(0).sum())
    assert trunk[0].shape[1] == begin + tokens.shape[1] == trunk[1][0].shape[2] == trunk[2].shape[3]
    assert torch.equal(tokens, rollout.tokens[rows, : tokens.shape[1]]) and torch.equal(
        mask, rollout.mask[rows, : tokens.shape[1]]
    )


def test_rows_come_by_their_length():
    rollout = drawn(four().policy)
    lengths = [len(prompt) + int(kept) for prompt, kept in zip(rollout.prompts, rollout.mask.sum(1))]
    order = rollouts.by_length(rollout).tolist()
    assert sorted(order) == list(range(12)) and [lengths[row] for row in order] == sorted(lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_trunk_without_padding_share_their_positions(family):
    model = branch(language_model(family), seed=1)
    tokens, rows = torch.randint(V, (5, 7), generator=torch.Generator().manual_seed(0)), torch.tensor([4, 1, 1])
    trunk = model.trunk(tokens)
    some = trunk_rows(trunk, rows)
    assert trunk[2] is some[2] is None and torch.equal(some[0], trunk[0][rows])
    assert family == "gpt2" or all(map(torch.equal, some[1], trunk[1]))
    torch.testing.assert_close(model.top(*some), model.hidden(tokens)[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", range(6))
def test_a_value_does_not_know_the_token_that_it_stands_before_nor_what_follows(place):
    m = four()
    critic, rollout = branch(m.base, seed=2, scalar=True), drawn(m.policy)
    rollout.mask = torch.ones_like(rollout.mask)
    other = copy.copy(rollout)
    other.tokens = torch.cat([rollout.tokens[:, :place], (rollout.tokens[:, place:] + 3) % V], 1)
    with torch.no_grad():
        one, two = (values_of(critic, *rollouts.trunk_of(m.policy, some), some.mask) for some in (rollout, other))
    torch.testing.assert_close(one[:, : place + 1], two[:, : place + 1], rtol=0, atol=1e-6)
    if place < 5:
        assert ((one - two)[:, place + 1].abs() > 1e-3).all()


@pytest.mark.parametrize("prompts", [PROMPTS, LONG])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_behind_the_end_changes_no_score_and_no_loss(family, prompts):
    m = four(family)
    critic, rollout = branch(m.base, seed=2, scalar=True), drawn(m.policy, prompts=prompts)
    losses = []
    for some in (rollout, behind_the_end(rollout)):
        trunk, start = rollouts.trunk_of(m.policy, some)
        logprobs = trunk_logprobs(m.policy, trunk, start, some.tokens, some.mask)
        values = values_of(critic, trunk, start, some.mask)
        some.trunk = trunk
        advantages = torch.randn(some.mask.shape, generator=torch.Generator().manual_seed(0))
        loss = ppo.policy_loss(logprobs, torch.zeros_like(logprobs) - 2, advantages, some.mask, 0.2).loss
        value_loss = ppo.value_loss(values, torch.zeros_like(values), advantages, some.mask, 0.2)
        scores = answer_scores(critic, some)
        gradients = torch.autograd.grad(loss + value_loss, [*m.policy.parameters(), *critic.parameters()])
        losses.append([logprobs, values, scores, loss, value_loss, *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*losses))


# ----------------------------------------------------------------------------------------- what every token is paid

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, -4.0]])
REFERENCE = torch.tensor([[-1.5, -1.0, -9.0], [-0.5, -1.25, -4.5]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def rewards_by_hand(module):
    """k1 is .5, -1 and, masked, 6; and 0, 1, .5. The second answer did not end."""
    scores, ended = torch.tensor([2.0, -1.0]), torch.tensor([True, False])
    found = module.token_rewards(scores, ended, LOGPROBS, REFERENCE, MASK, 0.1, 0.75)
    assert found[0].tolist() == pytest.approx([-0.05, 0.1 + 2, 0], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0, -0.1, -0.05 - 1 - 0.75], abs=1e-6)


def test_token_rewards_by_hand():
    rewards_by_hand(ppo_critic)


def test_the_penalty_has_no_gradient_and_nothing_is_read_behind_the_end():
    logprobs, reference = LOGPROBS.clone(), REFERENCE.clone()
    logprobs[0, 2], reference[0, 2] = math.nan, -math.inf
    scores = torch.zeros(2, requires_grad=True)
    found = token_rewards(scores, torch.ones(2).bool(), logprobs.requires_grad_(), reference, MASK, 0.5, 0.0)
    assert not found.requires_grad and found.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 7), st.floats(0, 2), st.floats(0, 2))
def test_the_rewards_of_a_completion_add_up_to_its_score_less_what_its_kl_costs(seed, rows, length, coefficient, penalty):
    generator = torch.Generator().manual_seed(seed)
    logprobs, reference = (-torch.rand(rows, length, generator=generator) * 5 for _ in range(2))
    scores, ended = torch.randn(rows, generator=generator), torch.rand(rows, generator=generator) < 0.5
    ends = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = torch.arange(length) < ends[:, None]
    found = token_rewards(scores, ended, logprobs, reference, mask, coefficient, penalty)
    assert (found[~mask] == 0).all()
    for row in range(rows):
        end = int(ends[row])
        kls = [float(logprobs[row, t] - reference[row, t]) for t in range(end)]
        assert found[row, : end - 1].tolist() == pytest.approx([-coefficient * kl for kl in kls[:-1]], abs=1e-4)
        total = float(scores[row]) - coefficient * sum(kls) - (0 if ended[row] else penalty)
        assert found[row].sum().item() == pytest.approx(total, abs=1e-3)


# ----------------------------------------------------------------------------------------- one update

UPDATE = dict(iterations=1, rollout_size=8, minibatch=8, max_new_tokens=4, epochs=1, lr=0.5, critic_lr=0.25, max_kl=1e3)
UPDATE |= dict(kl_coef=0.3, end_penalty=0.7, gamma=0.9, lam=0.8)


def one_update_is_right(module, folder, family="llama", temperature=0.8):
    """Log-probabilities, values, rewards, advantages and losses by their definitions: one token, one row at a time."""
    base = language_model(family, dropout=0.3, spread=0.35)
    (policy, critic, reference), oracle = (
        [branch(base, seed=seed, scalar=seed == 2, spread=0.1) for seed in (1, 2, 3)] for _ in range(2)
    )
    before, seen, norms, cut = weights(nn.ModuleList([policy, critic])), [], [], nn.utils.clip_grad_norm_
    scores = torch.randn(8, generator=torch.Generator().manual_seed(4))

    def reward(rollout):
        seen.append(rollout)
        return scores

    def look(parameters, limit):
        norms.append(cut(parameters, limit).item())

    config = PPOCriticConfig(**UPDATE, temperature=temperature)
    m = SimpleNamespace(policy=policy, critic=critic, reference=reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", look)
        patch.setattr(torch.optim, "Adam", torch.optim.SGD)
        train(folder, m, reward, config, module=module, seed=1)
    record, rollout = records(folder)[0], seen[0]
    rows = []
    for prompt, tokens, mask, score in zip(rollout.prompts, rollout.tokens.tolist(), rollout.mask.tolist(), scores.tolist()):
        length = tokens.index(END) + 1 if END in tokens[: sum(mask)] else 4
        assert mask == [True] * length + [False] * (4 - length)  # an answer ends with the end token
        row = []
        for place in range(length):
            read = torch.tensor([prompt + tokens[:place]])
            logprob, ref = ((m(read)[0, -1] / temperature).log_softmax(0)[tokens[place]] for m in (oracle[0], oracle[2]))
            value = oracle[1](read)[0, -1]
            paid = -0.3 * (logprob.item() - ref.item())
            if place == length - 1:
                paid += score - (0 if tokens[place] == END else 0.7)
            row.append([logprob, value, paid, logprob.item() - ref.item()])
        follows = carried = 0.0
        for step in reversed(row):
            carried = step[2] + 0.9 * follows - step[1].item() + 0.9 * 0.8 * carried
            follows = step[1].item()
            step.append(carried)
        rows.append(row)
    assert {len(row) for row in rows} > {4}  # some end early, some not at all
    steps = [step for row in rows for step in row]
    advantages = torch.tensor([step[4] for step in steps])
    white = (advantages - advantages.mean()) / advantages.std(correction=0)
    policy_loss = sum(-a * step[0] for a, step in zip(white.tolist(), steps)) / len(steps)
    value_loss = sum((step[1] - step[1].item() - step[4]) ** 2 for step in steps) / len(steps) / 2  # returns: advantage + value
    (policy_loss + value_loss).backward()

    assert record["kl"] == pytest.approx(sum(step[3] for step in steps) / 8, abs=1e-4)
    assert record["value_loss"] == pytest.approx(value_loss.item(), abs=1e-4)
    assert record["first_ratio"] == pytest.approx(1, abs=1e-5) and record["clip_fraction"] == 0
    after = nn.ModuleList([policy, critic]).state_dict()
    for place, (model, rate) in enumerate(((oracle[0], 0.5), (oracle[1], 0.25))):
        norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters()))
        assert norms[place] == pytest.approx(norm, rel=1e-3)
        for name, weight in model.named_parameters():
            moved = before[f"{place}.{name}"] - after[f"{place}.{name}"]
            torch.testing.assert_close(moved, rate / max(1, norm) * weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "temperature"), list(zip(FAMILIES, TEMPERATURES)))
def test_an_update_is_that_of_the_definitions(tmp_path, family, temperature):
    one_update_is_right(ppo_critic, tmp_path, family, temperature)


def steps_of(module, folder, family="llama", **changes):
    """The log-probabilities, old and new, and the masks of every optimiser step of one update."""
    steps, real = [], ppo.policy_loss

    def look(logprobs, old_logprobs, advantages, mask, clip):
        steps.append((logprobs.detach(), old_logprobs, mask))
        return real(logprobs, old_logprobs, advantages, mask, clip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "policy_loss", look)
        train(folder, four(family, dropout=0.3), config=small(iterations=1, **changes), module=module)
    return steps


def later_steps_leave_ratio_1(module, folder):
    """Each of the epochs takes every completion once, and from the second step on there is something to clip."""
    steps = steps_of(module, folder, epochs=3, minibatch=4, lr=3e-2)
    assert [len(mask) for _, _, mask in steps] == [4] * 12
    for epoch in range(3):
        old = torch.cat([old.sum(1) for _, old, _ in steps[4 * epoch : 4 * epoch + 4]])
        torch.testing.assert_close(old.sort().values, torch.cat([old.sum(1) for _, old, _ in steps[:4]]).sort().values)
    ratios = [(new - old)[mask].exp() for new, old, mask in steps]
    torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]), rtol=0, atol=1e-5)
    assert all((ratio - 1).abs().max() > 1e-3 for ratio in ratios[1:])
    assert records(folder)[0]["clip_fraction"] > 0


def test_every_later_step_of_an_update_leaves_ratio_1(tmp_path):
    later_steps_leave_ratio_1(ppo_critic, tmp_path)


def never_stops():
    """Generation that goes on behind the end token; minChatGPT at 311aa3a, src/gpt.py line 386, has nothing that stops it."""
    return mutant(rollouts, ("end_token=tokenizer.end_token", "end_token=None")).draw


SCORED = "scored(policy, reference, critic, rollout, start, config.temperature)  # (B, T) each"
AT_1 = "scored(policy, reference, critic, rollout, start, 1.0)"
K1 = 'ppo.kl_estimate(logprobs, ref_logprobs, "k1")'
UPDATED = "advantages[rows, short], seen, config.clip"
MUTANTS = {  # minChatGPT's are those of commit 311aa3a
    "the loss ignores the mask: minChatGPT, src/loss.py line 28": (UPDATED, UPDATED.replace("seen", "torch.ones_like(seen)")),
    "k3 upside down: minChatGPT, src/trainers.py line 177": (K1, 'ppo.kl_estimate(ref_logprobs, logprobs, "k3")'),
    "dropout in the update: minChatGPT, src/trainers.py line 256": ("critic}).eval()", "critic}).train()"),
    "old log-probabilities at temperature 1": (SCORED, f"{SCORED}\n        logprobs = {AT_1}[0]"),
    "old log-probabilities in bfloat16": (SCORED, f"{SCORED}\n        logprobs = logprobs.bfloat16().float()"),
    "the reference at temperature 1": (SCORED, f"{SCORED}\n        ref_logprobs = {AT_1}[1]"),
    "the update at temperature 1": ("begin, some, seen, config.temperature)", "begin, some, seen)"),
    "the value loss ignores the mask": (
        "returns[rows, short], seen, config.value_clip)",
        "returns[rows, short], torch.ones_like(seen), config.value_clip)",
    ),
    "the score at the last column": (
        "last = mask.sum(1, keepdim=True) - 1",
        "last = mask.sum(1, keepdim=True) * 0 + mask.shape[1] - 1",
    ),
    "the end costs, not its absence": ("(~ended)", "ended"),
    "the KL is rewarded": ("rewards = -kl_coef", "rewards = kl_coef"),
    "no whitening": ("advantages = ppo.masked_whiten(advantages, mask)", ""),
    "no bootstrapping": ("ppo.gae(rewards, values,", "ppo.gae(rewards, values * 0,"),
    "values of the place behind": ("critic.top(*trunk)[:, start - 1 : -1]", "critic.top(*trunk)[:, start:]"),
    "the value loss has the wrong sign": ("(loss + value_loss)", "(loss - value_loss)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_update_of_the_definitions_finds_a_mistake(tmp_path, name):
    with pytest.raises(AssertionError):
        one_update_is_right(mutant(ppo_critic, MUTANTS[name]), tmp_path, "modern")


def test_an_update_of_answers_that_go_on_behind_their_end_is_found(tmp_path):
    with pytest.raises(AssertionError):
        one_update_is_right(mutant(ppo_critic, draw=never_stops()), tmp_path)


def test_one_step_a_rollout_is_found(tmp_path):
    """minChatGPT at 311aa3a, src/trainers.py lines 253 to 270: the ratio is always 1 then, and clipping does nothing."""
    once = ("minibatches(len(kl), config.minibatch, config.epochs,", "minibatches(len(kl), len(kl), 1,")
    with pytest.raises(AssertionError):
        later_steps_leave_ratio_1(mutant(ppo_critic, once), tmp_path)


def test_rewards_by_hand_find_the_kl_upside_down():
    with pytest.raises(AssertionError):
        rewards_by_hand(mutant(ppo_critic, (K1, 'ppo.kl_estimate(ref_logprobs, logprobs, "k3")')))


@pytest.mark.parametrize(("family", "temperature"), list(zip(FAMILIES, TEMPERATURES)))
def test_at_first_the_ratio_is_1_nothing_is_clipped_and_the_kl_to_the_reference_is_0(tmp_path, family, temperature):
    """In bfloat16 too: whatever sampled, the three scores are computed the same way. And without dropout."""
    for half in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if half:
                for module in (devices, rollouts):
                    patch.setattr(module, "has_bf16", lambda device: True)
                    patch.setattr(module, "precision", lambda device, width=256: torch.bfloat16)
            models = four(family, dropout=0.4)
            for model in (models.policy, models.critic, models.reference):
                model.train()
            config = small(iterations=1, epochs=1, minibatch=16, temperature=temperature, lr=1e-7)
            train(tmp_path / str(half), models, config=config)
        record = records(tmp_path / str(half))[0]
        assert record["first_ratio"] == pytest.approx(1, abs=1e-5)
        assert record["clip_fraction"] == 0 and record["approx_kl"] == pytest.approx(0, abs=1e-8)
        assert record["kl"] == pytest.approx(0, abs=1e-5)


def test_a_ratio_that_left_the_clip_range_shows(tmp_path):
    """Every old log-probability is lowered by ln 1.5, so that the ratio is 1.5 everywhere."""
    older = mutant(ppo_critic, (SCORED, f"{SCORED}\n        logprobs = logprobs - {math.log(1.5)}"))
    train(tmp_path, config=small(minibatch=16, epochs=1, iterations=1, max_kl=1e3), module=older)
    stats = records(tmp_path)[0]
    assert stats["first_ratio"] == pytest.approx(1.5, abs=1e-4) and stats["clip_fraction"] == 1
    assert stats["approx_kl"] == pytest.approx(1.5 - 1 - math.log(1.5), abs=1e-4)


# ----------------------------------------------------------------------------------------- the loop

LEARNING = dict(iterations=8, rollout_size=32, minibatch=8, epochs=2, max_new_tokens=8, lr=2e-2, critic_lr=3e-2, kl_coef=0.02)


@pytest.fixture(scope="module", params=range(3))
def moved(request, tmp_path_factory):
    """A run whose reward is the share of the letter a, normalised on answers of the reference; one for each of three seeds."""
    seed, folder = request.param, tmp_path_factory.mktemp(f"moved-{request.param}")
    models = four(seed=seed)
    before = {name: weights(model) for name, model in vars(models).items()}
    normalise = fit_normaliser(likes()(drawn(models.reference, 256, 8, seed=5)))
    config = PPOCriticConfig(**LEARNING)
    given_ = copy.deepcopy(config)
    policy = train(folder, models, lambda rollout: normalise(likes()(rollout)), config, seed=seed)
    return SimpleNamespace(
        models=models, before=before, policy=policy, folder=folder, records=records(folder), config=config, given=given_,
        normalise=normalise,
    )  # fmt: skip


def test_it_learns(moved):
    """By more than one standard deviation of the reference's rewards, measured on new samples, and within max_kl."""
    first, last = (
        moved.normalise(likes()(drawn(model, 400, 8, seed=6))).mean().item() for model in (moved.models.reference, moved.policy)
    )
    assert abs(first) < 0.3 and last > first + 1
    assert all(record["kl"] <= moved.config.max_kl for record in moved.records)
    assert moved.records[-1]["kl"] > 0.5  # it went somewhere
    assert max(record["clip_fraction"] for record in moved.records[:-1]) > 0.05


def test_the_policy_and_the_critic_alone_are_trained(moved):
    for name in ("base", "reference"):
        model = getattr(moved.models, name)
        assert same(weights(model), moved.before[name])
        assert all(weight.grad is None for weight in model.parameters())
    for name in ("policy", "critic"):
        assert not any(
            torch.equal(moved.before[name][key], tensor) for key, tensor in weights(getattr(moved.models, name)).items()
        )
    assert moved.policy is moved.models.policy and not moved.policy.training and moved.config == moved.given


def test_the_folder_holds_the_policy_that_was_returned_and_what_was_measured_of_it(moved):
    loaded, tokenizer = checkpoints.load(moved.folder / "policy", base=moved.models.base)
    assert same(weights(loaded), weights(moved.policy)) and tokenizer.fingerprint() == TOKENIZER.fingerprint()
    metadata, last = checkpoints.read_metadata(moved.folder / "policy"), moved.records[-1]
    assert (metadata["iteration"], metadata["kl"], metadata["reward"]) == (last["step"], last["kl"], last["reward"])
    rollout = drawn(moved.policy, 400, 8, seed=7)
    trunk, start = rollouts.trunk_of(moved.policy, rollout)
    with torch.no_grad():
        policy, reference = (
            trunk_logprobs(model, trunk, start, rollout.tokens, rollout.mask) for model in (moved.policy, moved.models.reference)
        )
    kl = (policy - reference).sum(1)
    assert metadata["kl"] == pytest.approx(kl.mean().item(), abs=4 * math.hypot(metadata["kl_error"], kl.std().item() / 20))


def test_every_iteration_leaves_a_record_with_the_known_names(moved):
    names = {"kl", "kl_error", "kl_k3", "reward", "ended", "tokens", "entropy", "kl_coef"}
    learning = {"policy_loss", "value_loss", "clip_fraction", "approx_kl", "first_ratio", "explained_variance"}
    assert [record["step"] for record in moved.records] == list(range(len(moved.records)))
    for record in moved.records[:-1]:
        assert {"stage", "step"} | names | learning == record.keys()
        assert record["first_ratio"] == pytest.approx(1, abs=1e-4)
        assert 0 <= record["ended"] <= 1 <= record["tokens"] <= 8 and 0 < record["entropy"] < math.log(V)
    assert {"stage", "step"} | names <= moved.records[-1].keys()


def test_the_critic_learns_what_is_to_come(tmp_path):
    """While the policy stands still, its values explain more and more of the returns."""
    models = four()
    train(tmp_path, models, config=small(iterations=6, rollout_size=32, lr=1e-12, critic_lr=4e-2))
    explained = [record["explained_variance"] for record in records(tmp_path)[:-1]]
    assert explained[0] == pytest.approx(0, abs=1e-5)  # a critic of zeros explains nothing
    assert sum(explained[-3:]) / 3 > 0.3 and max(explained) <= 1


def test_where_there_is_nothing_to_explain_the_record_says_nothing_of_it(tmp_path):
    """A critic of zeros, no reward and no KL: all returns are 0. What is written is JSON, which knows no NaN."""
    config = small(iterations=1, end_penalty=0.0)
    train(tmp_path, reward=lambda rollout: torch.zeros(len(rollout)), config=config)
    assert "explained_variance" not in records(tmp_path)[0] and "value_loss" in records(tmp_path)[0]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    train(tmp_path / "penalty", config=small(iterations=1))
    assert records(tmp_path / "penalty")[0]["explained_variance"] == pytest.approx(0, abs=1e-5)


def test_a_reward_that_has_a_gradient_is_a_number_to_the_loop(tmp_path):
    weight, seen = torch.ones((), requires_grad=True), []
    watch = lambda rollout, scores: seen.append(scores.requires_grad) or {}  # noqa: E731
    policy = train(tmp_path / "graph", reward=lambda rollout: weight * likes()(rollout), watch=watch)
    assert seen == [False] * 3 and weight.grad is None
    assert same(weights(policy), weights(train(tmp_path / "plain")))


def test_a_reward_model_on_the_same_trunk_is_what_is_learned_from_and_stays_as_it_is(tmp_path):
    models = four()
    judge = branch(models.base, seed=6, scalar=True)
    sample = drawn(models.reference, 256, 8, seed=5)
    sample.trunk = rollouts.trunk_of(models.reference, sample)[0]
    pays = PreferenceReward(judge, fit_normaliser(answer_scores(judge, sample)))
    before = weights(judge)
    train(tmp_path, models, pays, PPOCriticConfig(**LEARNING))
    assert same(weights(judge), before) and all(weight.grad is None for weight in judge.parameters())
    done = records(tmp_path)
    assert abs(done[0]["reward"]) < 0.5 and done[-1]["reward"] > done[0]["reward"] + 0.5


def ends_are_counted(module, folder):
    """An answer whose last possible token is the end token has ended. With one token each, it is easily seen which."""
    seen = []
    reward = lambda rollout: seen.append(rollout.tokens) or torch.zeros(len(rollout))  # noqa: E731
    config = small(iterations=1, rollout_size=64, max_new_tokens=1, minibatch=64)
    train(folder, reward=reward, config=config, module=module)
    share = (seen[0] == END).float().mean().item()
    assert share > 0 and records(folder)[0]["ended"] == pytest.approx(share)


def test_an_answer_that_ends_with_its_last_token_has_ended(tmp_path):
    ends_are_counted(ppo_critic, tmp_path / "right")
    longer = ("ended = ((tokens == tokenizer.end_token) & mask).any(1)", "ended = mask.sum(1) < mask.shape[1]")
    with pytest.raises(AssertionError):
        ends_are_counted(mutant(ppo_critic, longer), tmp_path / "wrong")


def test_a_penalty_for_not_ending_makes_answers_end(tmp_path):
    shares = []
    for penalty in (0.0, 3.0):
        config = small(iterations=4, rollout_size=32, end_penalty=penalty, lr=3e-2)
        train(tmp_path / str(penalty), four(seed=2), lambda rollout: torch.zeros(len(rollout)), config)
        shares.append(records(tmp_path / str(penalty))[-1]["ended"])
    assert shares[1] > shares[0] + 0.3


def test_training_stops_at_max_kl_and_keeps_the_last_policy_within_it(tmp_path):
    kept, models = {}, four()
    config = small(iterations=40, lr=1e-2, max_kl=1.0, kl_coef=0.0)
    watch = lambda rollout, scores: kept.update({len(kept): weights(models.policy)}) or {}  # noqa: E731
    policy = train(tmp_path, models, config=config, watch=watch)
    done = records(tmp_path)
    assert 2 <= len(done) < 41 and all(record["kl"] <= 1 for record in done)
    metadata = checkpoints.read_metadata(tmp_path / "policy")
    assert 0 < metadata["kl"] <= 1 and metadata["iteration"] == done[-1]["step"]
    assert same(weights(policy), kept[metadata["iteration"]])
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert same(weights(train(tmp_path, config=config)), weights(policy))  # asked again, from the beginning
    assert checkpoints.read_metadata(tmp_path / "policy") == metadata and (tmp_path / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("target", [1e-3, 1e3])
def test_the_adaptive_coefficient_goes_where_it_leads_to_the_target(tmp_path, monkeypatch, target):
    """By (1 + e n / horizon) with e cut at a fifth and a horizon of ten rollouts."""
    used = []

    def look(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
        used.append(kl_coef)
        return token_rewards(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty)

    monkeypatch.setattr(ppo_critic, "token_rewards", look)
    train(tmp_path, config=small(iterations=5, kl_coef=0.1, kl_target=target, lr=3e-2))
    done, expected = records(tmp_path), 0.1
    assert used == [record["kl_coef"] for record in done[:-1]]  # the rewards are paid by what is logged
    for record in done:
        assert record["kl_coef"] == pytest.approx(expected, rel=1e-6)
        expected *= 1 + max(-0.2, min(0.2, record["kl"] / target - 1)) / 10
    grows = [late["kl_coef"] > early["kl_coef"] for early, late in itertools.pairwise(done[1:])]  # at first the KL is 0
    assert all(grow == (target < 1) for grow in grows) and len(grows) == 4


def test_ratio_and_value_are_each_cut_by_their_own_setting(tmp_path, monkeypatch):
    cuts, real = {}, {name: getattr(ppo, name) for name in ("policy_loss", "value_loss")}
    for name in real:

        def look(*arguments, name=name):
            cuts.setdefault(name, set()).add(arguments[-1])
            return real[name](*arguments)

        monkeypatch.setattr(ppo, name, look)
    train(tmp_path, config=small(iterations=1, clip=0.13, value_clip=0.31))
    assert cuts == {"policy_loss": {0.13}, "value_loss": {0.31}}


def test_the_entropy_of_even_choices_is_exact(tmp_path):
    train(tmp_path, four(spread=0), config=small(iterations=1, temperature=1.6))
    assert records(tmp_path)[0]["entropy"] == pytest.approx(math.log(V), abs=1e-5)


def test_a_fixed_coefficient_stays_and_a_higher_one_keeps_the_policy_closer(tmp_path):
    kls = []
    for coefficient in (0.0, 3.0):
        train(tmp_path / str(coefficient), config=small(iterations=4, lr=3e-2, kl_coef=coefficient))
        assert {record["kl_coef"] for record in records(tmp_path / str(coefficient))} == {coefficient}
        kls.append(records(tmp_path / str(coefficient))[-1]["kl"])
    assert kls[1] < 0.5 * kls[0]


def test_prompts_are_drawn_without_repetition_until_all_were_there(tmp_path):
    seen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        reward = lambda rollout: seen.append(rollout.prompts) or torch.zeros(len(rollout))  # noqa: E731
        train(tmp_path / name, reward=reward, config=small(rollout_size=6, minibatch=6, iterations=2), seed=seed)
    assert all(sorted(some[:4]) == sorted(PROMPTS) and some[4:] == some[:2] for some in seen)
    assert seen[:3] == seen[3:6] != seen[6:] and not seen[0] == seen[1] == seen[2]


def test_both_rates_hold_for_half_of_the_iterations_and_then_fall_to_zero(tmp_path, monkeypatch):
    rates = []

    class Noting(torch.optim.Adam):
        def step(self, *arguments):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    train(tmp_path, config=small(iterations=8, lr=4e-3, critic_lr=8e-3, epochs=1, minibatch=16))
    policy, critic = zip(*rates)
    assert policy == pytest.approx([4e-3] * 5 + [3e-3, 2e-3, 1e-3])  # by hand
    assert critic == pytest.approx([8e-3] * 5 + [6e-3, 4e-3, 2e-3])


def test_what_is_watched_is_logged_and_never_learned_from(tmp_path):
    def watch(rollout, scores):
        assert torch.equal(rollout.logprobs < 0, rollout.mask)  # the policy's
        return {"gold": float(rollout.mask.sum()), "mean": scores.mean().item()}

    watches = {"nothing": None, "length": watch}
    learned = {name: weights(train(tmp_path / name, watch=watch)) for name, watch in watches.items()}
    assert same(learned["nothing"], learned["length"]) and "gold" not in records(tmp_path / "nothing")[0]
    for record in records(tmp_path / "length"):
        assert record["gold"] == 16 * record["tokens"] and record["mean"] == record["reward"]


def test_what_generate_says_of_its_samples_is_not_used(tmp_path, monkeypatch):
    real = rollouts.generate

    def wrong(*arguments, **options):
        samples = real(*arguments, **options)
        return samples._replace(logprobs=samples.logprobs + 1)

    right = weights(train(tmp_path / "right"))
    monkeypatch.setattr(rollouts, "generate", wrong)
    assert same(weights(train(tmp_path / "wrong")), right)


# ----------------------------------------------------------------------------------------- stopping and going on

ADAPTIVE = small(iterations=3, rollout_size=8, kl_coef=0.1, kl_target=0.5, lr=2e-2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder, models = tmp_path_factory.mktemp("whole"), four()
    return folder, train(folder, models, config=ADAPTIVE), models.critic


@pytest.mark.parametrize(("saved", "stop"), [(0, 1), (1, 3), (2, 3), (3, 4), (4, 4)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, uninterrupted, saved, stop):
    whole, policy, critic = uninterrupted
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        train(tmp_path, config=ADAPTIVE)
    torch.manual_seed(1234)  # whatever the process did before it went on
    models = four()
    with interrupted() as done:
        resumed = train(tmp_path, models, config=ADAPTIVE)
    assert done == list(range(saved + 1, 5))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same(weights(resumed), weights(policy)) and same(weights(models.critic), weights(critic))
    assert checkpoints.read_metadata(tmp_path / "policy") == checkpoints.read_metadata(whole / "policy")


def test_a_reward_that_turns_nan_stops_the_run_and_the_last_policy_is_kept(tmp_path):
    calls, models = [], four()

    def reward(rollout):
        calls.append(1)
        return likes()(rollout) + (math.nan if len(calls) == 3 else 0)

    with pytest.raises(RunError, match=r"policy: the loss is nan at step 2; the last good weights are kept"):
        train(tmp_path, models, reward, small(iterations=6))
    kept, _ = checkpoints.load(tmp_path / "policy", base=models.base)  # refuses values that are not finite
    assert checkpoints.read_metadata(tmp_path / "policy")["iteration"] in (1, 2)
    assert not same(weights(kept), weights(four().policy))


def test_a_kl_that_explodes_stops_the_run_with_a_sentence(tmp_path):
    models = four()
    with pytest.raises(RunError, match=r"policy: the KL to the original model is .* at step 1; the last good weights are kept"):
        train(tmp_path, models, config=small(iterations=6, lr=1.0, max_kl=1e-3))
    assert checkpoints.read_metadata(tmp_path / "policy")["iteration"] == 0
    assert same(weights(checkpoints.load(tmp_path / "policy", base=models.base)[0]), weights(four().policy))


# ----------------------------------------------------------------------------------------- refused before the first step


def another_base(models):
    models.critic = branch(language_model(), scalar=True)


def more_layers(models):
    models.reference = branch(models.base, layers=2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": []}, "there are no prompts, or an empty one"),
        ({"prompts": [[3], []]}, "there are no prompts, or an empty one"),
        (
            {"prompts": [[3], [3] * 41]},
            r"the longest prompt and ppo\.max_new_tokens are 49 tokens, more than the context of 48",
        ),
        ({"models": another_base}, "must be branches of one base, of as many layers"),
        ({"models": more_layers}, "must be branches of one base, of as many layers"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path, changes, sentence):
    models = four()
    changes.get("models", id)(models)
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "run", models, prompts=changes.get("prompts", PROMPTS))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(
            ({name: 0}, rf"ppo\.{name} must be at least 1, got 0")
            for name in ("iterations", "max_new_tokens", "epochs", "minibatch")
        ),
        ({"rollout_size": 1}, r"ppo\.rollout_size must be at least 2, got 1"),
        *(
            ({name: value}, rf"ppo\.{name} must be above 0, got {value}")
            for name in ("lr", "critic_lr", "clip", "value_clip", "max_kl", "temperature")
            for value in (0.0, math.nan)
        ),
        *(
            ({name: value}, rf"ppo\.{name} must lie in \[0, 1\], got {value}")
            for name in ("gamma", "lam")
            for value in (-0.1, 1.1, math.nan)
        ),
        *(
            ({name: value}, rf"ppo\.{name} must not be negative, got {value}")
            for name in ("kl_coef", "kl_target", "end_penalty")
            for value in (-0.1, math.nan)
        ),
        ({"rollout_size": 96, "minibatch": 64}, r"ppo\.rollout_size must be a multiple of ppo\.minibatch, got 96 and 64"),
        ({"kl_coef": 0.0, "kl_target": 1.0}, r"ppo\.kl_target adapts ppo\.kl_coef by factors, so it needs one above 0"),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        PPOCriticConfig(**changes)
