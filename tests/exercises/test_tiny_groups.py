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
