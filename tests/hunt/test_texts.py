"""Programs that learn from texts: what gives each away in the first minute, as it was given and as it is mended."""

import math

import pytest

from tests.hunt.repairs import made, mended

SEEDS = (11, 12, 13)


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_without_and_with_a_limit(seed):
    given, right = (one(seed, steps=120)["curves"] for one in (made("01"), mended("01")))
    assert set(given["gradient_norm"]) == {0.0} and max(given["moved"]) > 2.2
    assert min(right["gradient_norm"]) > 0 and max(right["moved"]) < 1.5


def test_the_two_halves_of_a_writer_without_its_mask():
    """The loss is the same in both, since only the writing is another."""
    given, right = (one(11, steps=40) for one in (made("07"), mended("07")))
    assert given["curves"] == right["curves"] and given["samples"] != right["samples"]
    assert [one[:12] for one in given["samples"]] == [one[:12] for one in right["samples"]]


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_without_an_end(seed):
    given, right = (one(seed) for one in (made("09"), mended("09")))
    assert sum(one.endswith(".") for one in given["samples"]) < 10
    assert all(one.endswith(".") for one in right["samples"])
    assert 2 * given["curves"]["loss"][-1] < 1.2 * right["curves"]["loss"][-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_loss_of_dpo(seed):
    given, right = (one(seed, steps=1)["curves"]["loss"][0] for one in (made("13"), mended("13")))
    assert abs(given - math.log(2)) > 5e-3 and right == pytest.approx(math.log(2), abs=1e-6)
