"""Programs in which a policy learns: what gives each away in the first minute, as it was given and as it is mended."""

import statistics

import pytest

from rlhf_lib.exercises.ch13_bug_hunt import chain_kl
from rlhf_lib.hunt import run
from tests.hunt.repairs import made, mended

SEEDS = (11, 12, 13)


def both(case, seed, **options):
    return [one(seed, **options) for one in (made(case), mended(case))]


@pytest.mark.parametrize("seed", SEEDS)
def test_one_step_a_rollout_never_clips(seed):
    given, right = (one["curves"] for one in both("03", seed))
    assert max(given["clip_fraction"]) == 0 and max(given["approx_kl"]) < 1e-6
    assert max(right["clip_fraction"]) > 0.1 and right["reward"][-1] > given["reward"][-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reward_that_its_own_batch_normalises_is_flat(seed):
    given, right = (one["curves"] for one in both("05", seed))
    assert max(map(abs, given["reward"])) < 1e-5 and right["reward"][-1] > 4
    assert right["kl"][-1] > given["kl"][-1] + 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kl_upside_down_is_beyond_the_true_one(seed):
    given, right = (
        statistics.median(one["curves"]["kl"][-7:]) / chain_kl(one["policy"], one["reference"], 12) for one in both("08", seed)
    )
    assert given > 2.5 and right == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mean_of_ratios_is_near_minus_one_and_stops_nothing(seed):
    given, right = (one["curves"] for one in both("12", seed, rollouts=10))
    assert max(given["approx_kl"]) < -0.8 and set(given["passes"]) == {20}
    assert min(right["approx_kl"]) >= 0 and min(right["passes"]) < 10


def test_the_controller_is_shown_too_little_and_texts_that_end_earn_nothing():
    given, right = (one["curves"] for one in both("14", 11))
    assert all(later < before for before, later in zip(given["beta"], given["beta"][1:]))
    assert max(right["beta"]) > 0.2
    assert sum(given["score"][-50:]) / 50 < 0.2 and sum(right["score"][-50:]) / 50 > 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_all_samples_are_one(seed):
    given, right = both("16", seed)
    assert len(set(given["samples"])) <= 3 and len(set(right["samples"])) > 40
    assert given["curves"]["reward"][-1] > 9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sound_writer_learns_though_it_looks_odd(seed):
    curves = run("17", seed)["curves"]
    assert min(curves["kl"][:30]) < 0.3 and min(curves["clip_fraction"]) == 0  # one could take it for a mistake
    assert sum(curves["score"][-30:]) > sum(curves["score"][:30])
    assert sum(curves["reward"][-30:]) > sum(curves["reward"][:30])


def test_values_of_padding_rise_above_every_reward():
    given, right = (one["curves"] for one in both("19", 11))
    assert max(given["value"]) > 8 and max(right["value"]) < 4.2
    assert given["value_error"][-1] > 20 > right["value_error"][-1]
