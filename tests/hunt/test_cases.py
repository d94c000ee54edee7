"""The cases: every program runs, records what it says, and reads as one screen."""

import ast
import math

import pytest
from matplotlib.figure import Figure

from rlhf_lib.hunt import CASES, figure, run, tell
from rlhf_lib.hunt.cases import number, text_of

FAST = ("02", "03", "15", "18")


def test_a_case_is_found_by_its_number_in_whatever_form():
    assert number(7) == number("7") == number("07") == "07"
    with pytest.raises(KeyError, match="there is no case 20; there are 01, 02"):
        number(20)


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_program_is_one_function_of_one_screen(case):
    text = text_of(case, "mend")
    (function,) = ast.parse(text).body
    assert function.name == "mend" and ast.get_docstring(function) and function.args.args[0].arg == "seed"
    assert 15 <= len(text.splitlines()) <= 52
    assert "program_" not in text


@pytest.mark.parametrize("case", FAST)
def test_the_same_seed_gives_the_same_records_and_another_seed_others(case):
    first, again, other = (repr(run(case, seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("case", FAST)
def test_the_curves_are_those_that_the_case_names(case):
    curves = run(case)["curves"]
    assert list(curves) == list(CASES[case].curves)
    assert len({len(curve) for curve in curves.values()}) == 1
    assert all(isinstance(one, float) for curve in curves.values() for one in curve)


def test_options_are_the_programs_own_arguments():
    assert len(run("15", steps=7)["curves"]["loss"]) == 7
    with pytest.raises(TypeError):
        run("15", epochs=7)


def test_a_figure_has_a_panel_for_each_curve_and_a_line_for_each_record():
    fig = figure("15", run("15"), run("15", 1), labels=("given", "mended"))
    assert isinstance(fig, Figure) and [ax.get_title() for ax in fig.axes] == ["loss", "accuracy"]
    assert [len(ax.lines) for ax in fig.axes] == [2, 2]
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["given", "mended"]
    assert fig.axes[0].lines[0].get_ydata()[0] == pytest.approx(run("15")["curves"]["loss"][0])


def test_four_panels_stand_in_two_rows():
    curves = {name: [0.0, 1.0] for name in CASES["06"].curves}
    rows = {ax.get_subplotspec().rowspan.start for ax in figure("06", {"curves": curves}).axes}
    assert len(curves) == 4 and rows == {0, 1}


def test_rounding_is_drawn_as_a_line():
    (ax, _) = figure("05", {"curves": {"reward": [1e-7, -2e-7, 3e-7], "kl": [0.0, 1.0, 2.0]}}).axes
    low, high = ax.get_ylim()
    assert high - low == pytest.approx(0.1)


def test_a_record_in_figures_leaves_out_what_is_no_number_and_counts_equal_samples(capsys):
    curves = {"loss": [2.0, math.nan, 0.5, 3.0], "accuracy": [math.nan]}
    tell("15", {"curves": curves, "test_accuracy": 0.75, "samples": ["ab", "cd", "ab"]})
    head, loss, accuracy, test, samples = capsys.readouterr().out.splitlines()
    assert head.split() == ["first", "smallest", "largest", "last"]
    assert loss.split() == ["loss", "2.000", "0.500", "3.000", "3.000"] and accuracy.split() == ["accuracy", *["nan"] * 4]
    assert test.split() == ["test_accuracy", "0.750"] and samples == "samples, 2 of 3 different: ab (2 times), cd"
