"""Programs that judge: what gives each away in the first minute, as it was given and as it is mended."""

import math

import pytest

from rlhf_lib.hunt import run
from tests.hunt.repairs import made, mended

SEEDS = (11, 12, 13)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_candidate_against_its_equal(seed):
    given, right = (one(seed, prompts=3000, better=0.0)["curves"]["win_rate"][-1] for one in (made("02"), mended("02")))
    # the judge says "B" where noise of variance 3 is above -1.5
    assert given == pytest.approx(0.5 * (1 + math.erf(1.5 / math.sqrt(6))), abs=0.03)
    assert right == pytest.approx(0.5, abs=0.03)


def test_scores_of_a_frozen_head_stay_together():
    given, right = (one(11)["curves"]["margin"][-1] for one in (made("04"), mended("04")))
    assert 10 * given < right


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gap_of_the_sound_reward_model_is_honest(seed):
    record = run("06", seed)
    curves = record["curves"]
    assert curves["train_loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert curves["train_accuracy"][-1] == 1.0 and curves["validation_loss"][-1] > 1.5  # it looks bad,
    assert 0.55 < record["test_accuracy"] < 0.8  # and what was kept foresees a third set as well as the second
    assert abs(record["test_accuracy"] - max(curves["validation_accuracy"])) < 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_the_test_that_are_learnt_from(seed):
    given, right = run("10", seed), mended("10")(seed)
    assert len(set(given["train"]) & set(given["test"])) >= 30 and not set(right["train"]) & set(right["test"])
    assert given["curves"]["test_accuracy"][-1] > right["curves"]["test_accuracy"][-1] + 0.1


def test_padding_changes_the_loss_only_where_it_is_averaged():
    given, right = ([one(11, steps=2, width=w)["curves"]["loss"][0] for w in (24, 60)] for one in (made("11"), mended("11")))
    assert abs(given[0] - given[1]) > 1e-3 and right[0] == pytest.approx(right[1], abs=1e-6)


@pytest.mark.parametrize("answers", [3, 4, 5])
def test_the_first_loss_of_a_ranking(answers):
    given, right = (one(11, steps=1, answers=answers)["curves"]["loss"][0] for one in (made("15"), mended("15")))
    assert given == pytest.approx(math.log(2) / math.comb(answers, 2), abs=1e-6)
    assert right == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_endless_texts_make_the_loss_no_number(seed):
    given, right = (one(seed)["curves"] for one in (made("18"), mended("18")))
    assert math.isnan(given["loss"][-1]) and set(given["gradient_norm"]) == {0.0}
    assert all(map(math.isfinite, right["loss"])) and right["gradient_norm"][0] > 0
    assert sum(right["accuracy"][-30:]) / 30 > 0.75
