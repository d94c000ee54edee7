"""What the probes of 12.11 and 12.12 stand on, against numbers by hand and the library's own sampler."""

import torch

from rlhf_lib.exercises import tiny_groups
from rlhf_lib.exercises.tiny_groups import GROUP, LENGTH, PROMPTS, completed, match, prices, rows_of, spoken, tiny


def test_the_reward_counts_the_prompts_own_tokens_by_hand():
    tokens = torch.tensor([[4, 9, 7, 3], [4, 4, 4, 4], [5, 6, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert match([[4, 7, 10]] * 3, tokens, mask).tolist() == [0.5, 0.5, 0.0]


def test_prompts_are_of_one_length_and_all_different():
    assert len({tuple(prompt) for prompt in PROMPTS}) == 16 and {len(prompt) for prompt in PROMPTS} == {3}


def test_what_was_sampled_is_scored_as_it_was_and_a_group_stands_together():
    policy = tiny(3, ends=0.8)
    some, tokens, logprobs, mask = completed(policy, torch.Generator().manual_seed(1))
    assert tokens.shape == (16 * GROUP, LENGTH) and some[:GROUP] == [PROMPTS[0]] * GROUP
    assert torch.allclose(spoken(policy, some, tokens)[mask], logprobs[mask], atol=1e-5)


def test_rows_are_found_by_their_old_log_probabilities_and_prices_are_masked_sums():
    old = -torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(4) < torch.tensor([[1], [2], [3], [4], [4], [2]])
    rollout = {"old": old, "ref": old - 0.5, "mask": mask}
    rows = torch.tensor([4, 0, 5])
    found, far = rows_of({"old": old[rows], "mask": mask[rows]}, rollout)
    assert found.tolist() == rows.tolist() and far.max() == 0
    assert prices(rollout).tolist() == [0.5, 1.0, 1.5, 2.0, 2.0, 1.0]


def test_a_model_is_no_nat_from_itself():
    found = {"policy": tiny_groups.weights(tiny(2))}
    assert abs(tiny_groups.true_kl(found, 2)) < 1e-6 < tiny_groups.true_kl(found, 3)


def learn_one_step_each(policy, reference, reward, prompts, *, loss, generate, end_token, group, iterations, max_new_tokens, lr,
                        seed, **_):  # fmt: skip
    """As little as `go` needs: a step on each half of a rollout, by one Adam."""
    drawn, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(policy.parameters(), lr)
    some = [prompt for prompt in prompts for _ in range(group)]
    start = torch.tensor(some)
    for _ in range(iterations):
        uniforms = torch.rand(len(some), max_new_tokens, generator=drawn)
        tokens, _, mask = generate(policy, start, start >= 0, uniforms, end_token=end_token)
        with torch.no_grad():
            old = spoken(policy, some, tokens)
        paid = reward(some, tokens, mask)
        for rows in torch.arange(len(some)).chunk(2):
            adam.zero_grad()
            new = spoken(policy, [some[row] for row in rows.tolist()], tokens[rows])
            loss(paid[rows].view(-1, group), new, old[rows], mask[rows]).backward()
            adam.step()


def test_a_run_taken_once_more_ends_at_the_same_weights_and_with_other_optimizers_elsewhere():
    found = tiny_groups.go(learn_one_step_each, 4, iterations=2, lr=1e-2)
    again = tiny_groups.replayed(found, 4, 1e-2)
    assert tiny_groups.apart(found["policy"], again) < 1e-3
    whole = tiny_groups.apart(tiny_groups.weights(tiny(4)), again)
    for options in ({"optimizer": "rollout"}, {"optimizer": "step"}, {"cleared": "run"}, {"cleared": "rollout"}):
        assert tiny_groups.apart(tiny_groups.replayed(found, 4, 1e-2, **options), again) > 0.1 * whole
    assert [len(tiny_groups.prompts_of(call, found["rollouts"][call["rollout"]])) for call in found["calls"]] == [8] * 4


def test_an_uneven_policy_is_off_in_a_minibatch_and_not_in_a_rollout():
    even, uneven = (tiny_groups.go(learn_one_step_each, 4, iterations=1, lr=1e-2, uneven=off) for off in (0.0, 0.1))
    for found, least, most in ((even, 0.0, 1e-5), (uneven, 0.05, 5.0)):
        call = found["calls"][0]
        assert least <= (call["new"] - call["old"])[call["mask"]].abs().max() <= most
        assert rows_of(call, found["rollouts"][0])[1].max() < 1e-5


def test_the_weights_of_two_models_are_apart_by_the_root_of_the_sum_of_squares():
    one, other = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.0)}, {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor(4.0)}
    assert tiny_groups.apart(one, other) == 5.0
