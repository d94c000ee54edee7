"""How an exercise is declared, and found again."""

import pytest

from rlhf_lib import exercises
from rlhf_lib.exercises import BUILDS, CHAPTERS, EXERCISES, Exercise, declare, find, load
from rlhf_lib.files import RunError


@pytest.fixture
def empty(monkeypatch):
    """No exercise is declared, and none is loaded."""
    table = {}
    monkeypatch.setattr(declare, "EXERCISES", table)
    monkeypatch.setattr(declare, "load", lambda: None)
    return table


def made(number, name, **changes):
    """An exercise with as little as there may be."""
    return Exercise(number, name, **{"draw": lambda generator: [], "right": abs, "mistakes": {}, **changes})


def formula(x, *, sign=1, step=0):
    return sign * x + step


def test_a_declared_exercise_is_found_by_its_name(empty):
    one, two = made("99.1", "one"), made("99.2", "two")
    assert empty == {"one": one, "two": two}
    assert find("one") is one and find("two") is two
    assert (one.number, one.name, one.tolerance, one.mistakes) == ("99.1", "one", 1e-5, {})


def test_a_name_is_given_once(empty):
    one = made("99.1", "one")
    with pytest.raises(ValueError, match="two exercises are called one"):
        made("99.2", "one")
    assert empty == {"one": one}


def test_a_module_that_comes_later_with_an_exercise_of_another_asks_for_a_fresh_kernel(monkeypatch, tmp_path):
    load()
    later = "from rlhf_lib.exercises import Exercise\nExercise('99.1', 'gae', draw=None, right=None, mistakes={})\n"
    (tmp_path / "ch99_later.py").write_text(later)
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    monkeypatch.setattr(declare, "__file__", str(tmp_path / "declare.py"))
    with pytest.raises(RunError, match=r"^the course's files have changed since this notebook was opened: restart the kernel$"):
        find("gae")
    monkeypatch.setattr(declare, "LOADED", [])
    with pytest.raises(ValueError, match="two exercises are called gae"):  # in a fresh kernel too: the course is wrong
        find("gae")


def test_an_unknown_name_is_answered_with_the_known_ones(empty):
    made("99.1", "one")
    made("99.2", "two")
    with pytest.raises(KeyError, match="no exercise 'three'; there are one, two"):
        find("three")


def test_a_row_of_mistakes_may_be_a_function_options_or_several_of_both(empty):
    other = lambda x: 0  # noqa: E731
    table = {
        "a function": other,
        "an option": {"sign": -1},
        "two options at once": {"sign": -1, "step": 5},
        "several": ({"step": 1}, other, [{"step": 2}]),
    }
    mistakes = made("99.1", "one", formula=formula, mistakes=table).mistakes
    assert list(mistakes) == list(table)
    assert {sentence: [one(3) for one in functions] for sentence, functions in mistakes.items()} == {
        "a function": [0],
        "an option": [-3],
        "two options at once": [2],
        "several": [4, 0, 5],
    }


def test_options_without_a_formula_are_refused_and_nothing_is_declared(empty):
    with pytest.raises(ValueError, match=r"one has options \{'sign': -1\} for a mistake, but no formula"):
        made("99.1", "one", mistakes={"turned": ({"sign": -1},)})
    assert empty == {}


def test_a_function_is_called_by_the_names_of_its_arguments_unless_call_says_otherwise(empty):
    assert made("99.1", "one").run(lambda a, b: a - b, b=1, a=10) == 9
    twice = made("99.2", "two", call=lambda function, a, b: {"first": function(a), "second": function(b)})
    assert twice.run(lambda x: x * x, a=2, b=3) == {"first": 4, "second": 9}


# ----------------------------------------------------------------------------------------- all chapters


def test_every_chapters_module_is_loaded_with_exercises_of_its_own_number():
    load()
    before = dict(EXERCISES)
    load()
    assert before == EXERCISES  # a second time declares nothing
    declared = {one.number.split(".")[0] for one in (*EXERCISES.values(), *BUILDS.values())}
    assert declared == {str(int(chapter)) for chapter in CHAPTERS}
    assert all(module.startswith(f"ch{chapter}_") for chapter, module in CHAPTERS.items())
    assert all(name == one.name for name, one in EXERCISES.items())
    numbers = [one.number for one in EXERCISES.values()]
    assert len(set(numbers)) == len(numbers)


def test_to_find_an_exercise_nothing_has_to_be_loaded_before(empty, monkeypatch):
    monkeypatch.setattr(declare, "load", lambda: empty or made("99.1", "one"))
    assert find("one").number == "99.1"


def test_all_is_declared_that_a_check_needs():
    load()
    for name, one in EXERCISES.items():
        assert callable(one.draw_inputs) and callable(one.right) and callable(one.run), name
        assert one.draw_picture is None or callable(one.draw_picture), name
        assert all(sentence and not sentence.endswith(".") and functions for sentence, functions in one.mistakes.items()), name
        assert 0 <= one.tolerance <= 1e-2, name
