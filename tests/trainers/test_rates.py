import pytest

from rlhf_lib.trainers.rates import level_then_down, up_then_down


def test_up_over_a_tenth_of_the_steps_and_down_by_hand():
    factors = [up_then_down(step, 20) for step in range(20)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])  # the rise has 0.1 * 20 + 1 steps
    assert factors[3:6] == pytest.approx([17 / 18, 16 / 18, 15 / 18])
    assert factors[-2:] == pytest.approx([2 / 18, 1 / 18])


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 100])
def test_the_factor_is_above_0_and_never_above_1_and_turns_once(steps):
    factors = [up_then_down(step, steps) for step in range(steps)]
    top = factors.index(max(factors))
    assert 0 < min(factors) <= max(factors) <= 1
    assert factors[: top + 1] == sorted(factors[: top + 1]) and factors[top:] == sorted(factors[top:], reverse=True)


def test_level_over_half_of_the_iterations_and_down_by_hand():
    assert [level_then_down(iteration, 8) for iteration in range(8)] == pytest.approx([1] * 5 + [0.75, 0.5, 0.25])
    assert [level_then_down(iteration, 3) for iteration in range(3)] == pytest.approx([1, 1, 2 / 3])
    assert level_then_down(0, 1) == 1
