"""Bands by hand, each way of leaving one, what cannot be compared; and the stored runs, healthy and broken on purpose."""

import json
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks import bands as made_by
from rlhf_lib import bands, course
from rlhf_lib.bands import LIKELY

STORED = json.loads(bands.FILE.read_text(encoding="utf-8"))


def entry(runs, at=(0, 1, 2, 3, 4), margin=0.5, **more):
    """Stored runs of the curves in `runs`, {curve: lists of values}."""
    curves = {curve: {"unit": "nats", "margin": margin, "runs": values} for curve, values in runs.items()}
    return {"what": "", "from": "2 runs", "settings": {"preset": "laptop"}, "x": "step", "at": list(at), "curves": curves, **more}


@pytest.fixture
def stored(monkeypatch):
    """A dict to put entries into, in place of data/bands.json."""
    found = {}
    monkeypatch.setattr(bands, "stored", lambda: found)
    return found


def steps(**curves):
    """Records of curves, {name: values}, at the steps 0, 1, 2, ...; None leaves a value out."""
    count = max(map(len, curves.values()))
    return [{"step": x} | {name: ys[x] for name, ys in curves.items() if ys[x] is not None} for x in range(count)]


@pytest.fixture(autouse=True)
def laptop(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_PRESET", "laptop")
    monkeypatch.setattr(course, "HOME", tmp_path)


# ----------------------------------------------------------------------------------------- the band


def test_a_band_is_the_runs_widened_by_the_largest_spread_near_by_and_at_least_by_the_margin(stored):
    stored["a"] = entry({"loss": [[1.0, 2.0, None, 7.0], [3.0, 2.25, None, None]]}, at=(0, 1, 2, 5))
    assert bands.band("a", "loss") == ([0, 1, 5], [-1.0, 0.0, 5.0], [5.0, 4.25, 9.0])
    stored["a"]["curves"]["loss"]["floor"] = 0.25
    assert bands.band("a", "loss")[1] == [0.25, 0.5, 5.0]
    stored["a"]["curves"]["loss"]["start"] = 0.125
    assert bands.band("a", "loss") == ([0, 1, 5], [0.875, 0.5, 5.0], [3.125, 4.25, 9.0])
    stored["b"] = entry({"loss": [[0.0] * 6, [0.0, 0.0, 0.0, 3.0, 1.0, 0.0]]}, at=range(6))
    at, low, high = bands.band("b", "loss")
    assert at == [*range(6)] and low == [-0.5, -3, -3, -3, -3, -3] and high == [0.5, 3, 3, 6, 4, 3]


def test_between_two_points_a_band_is_a_line_and_beyond_them_there_is_none():
    points = ([0, 2, 4], [0.0, 2.0, 2.0], [1.0, 5.0, 5.0])
    found = {x: bands.between(x, points) for x in (-0.1, 0, 0.5, 2, 3, 4, 4.1)}
    assert found == {-0.1: None, 0: (0, 1), 0.5: (0.5, 2.0), 2: (2, 5), 3: (2, 5), 4: (2, 5), 4.1: None}
    assert bands.between(3, ([3], [1.0], [2.0])) == (1.0, 2.0) and bands.between(2, ([3], [1.0], [2.0])) is None


@pytest.mark.parametrize(
    "ys, left",
    [
        ([2.0, 2.4, 1.6, 2.5, 1.5], (None, "")),  # the border belongs to the band
        ([2.0, 2.6, 2.0, 1.4, 2.0], (None, "")),  # a point alone is noise
        ([2.0, 2.6, 1.4, 2.6, 2.0], (None, "")),  # two in a row, but on two sides
        ([2.0, 1.4, 2.6, 2.7, 2.0], (2, "above")),
        ([2.6, 2.0, 2.0, 2.0, 2.0], (0, "above")),
        ([2.0, 2.0, 2.0, 2.0, 1.4], (4, "below")),
    ],
)
def test_a_curve_leaves_with_two_points_in_a_row_or_its_first_or_its_last(ys, left):
    assert bands.first_outside("kl", [(x, y, 1.5, 2.5) for x, y in enumerate(ys)]) == left


def test_of_two_sides_the_one_that_is_only_better_is_passed_over():
    compared = [(x, y, 1.5, 2.5) for x, y in enumerate([2.0, 3.0, 3.0, 1.0, 1.0])]
    assert bands.first_outside("length", compared) == (3, "below")
    assert bands.first_outside("length", compared[:3]) == (1, "above")
    assert bands.first_outside("kl", compared) == (1, "above")


def test_a_sentence_says_where_which_value_against_which_band_and_why(stored):
    stored["a"] = entry({"kl": [[0.0, 1.0, 2.0, 3.0, 4.0]]})
    assert bands.compare("a", steps(kl=[0.0, 1.2, 1.8, 3.3, 4.4])) == ["Within the bands of 2 runs: kl."]
    assert bands.compare("a", steps(kl=[0.0, 1.75, 3.0, 5.0, 7.0])) == [
        "kl lies above its band at step 1: 1.750, where 0.500 to 1.500 is expected; likely: too high a learning rate; or the old "
        "log-probabilities are computed anew in every step."
    ]


WAYS = {  # how: a healthy curve, one that leaves its band, and the causes that are named
    "flat": ({"loss": [7.6, 6.0, 5.0, 4.0, 3.0]}, {"loss": [7.6, 7.6, 7.61, 7.6, 7.6]}, "no-step rate-low"),
    "first": ({"loss": [7.6, 6.0, 5.0, 4.0, 3.0]}, {"loss": [9.6, 8.0, 6.0, 4.0, 3.0]}, "first-weights units"),
    "any": ({"loss": [7.6, 6.0, 5.0, 4.0, 3.0]}, {"loss": [7.6, 6.0, 9.0, 8.0, 8.0]}, "rate-high rate-low gradients-add-up"),
    "early": ({"kl": [0.0, 1.0, 2.0, 3.0, 4.0]}, {"kl": [0.0, 3.0, 5.0, 7.0, 9.0]}, "rate-high old-recomputed"),
    "late": ({"kl": [0.0, 1.0, 2.0, 3.0, 4.0]}, {"kl": [0.0, 1.0, 2.0, 4.0, 6.0]}, "kl-unpaid rate-high"),
    "begins": ({"kl": [0.0, 1.0, 2.0, 3.0, 4.0]}, {"kl": [1.5, 2.0, 3.0, 4.0, 5.0]}, "two-scores"),
    "ratio": ({"ratio": [1.0] * 5}, {"ratio": [1.7] * 5}, "two-scores other-temperature dropout"),
    "clip": ({"clip_fraction": [2.0, 1.9, 1.8, 1.7, 1.6]}, {"clip_fraction": [0.0] * 5}, "one-step old-recomputed rate-low"),
    "by heart": (
        {"loss": [7.0, 6.0, 5.0, 4.0, 4.0], "val_loss": [7.0, 6.0, 5.0, 5.0, 5.0]},
        {"loss": [7.0, 6.0, 5.0, 4.0, 4.0], "val_loss": [7.0, 6.0, 6.0, 7.0, 8.0]},
        "by-heart half-shifted",
    ),
    "both": (
        {"loss": [7.0, 6.0, 5.0, 4.0, 4.0], "val_loss": [7.0, 6.0, 5.0, 5.0, 5.0]},
        {"loss": [7.0, 6.0, 8.0, 8.0, 9.0], "val_loss": [7.0, 6.0, 7.0, 7.0, 8.0]},
        "rate-high rate-low",
    ),
    "gamed": (
        {"reward": [0.0, 1.0, 2.0, 3.0, 4.0], "gold": [0.0, 1.0, 2.0, 3.0, 4.0]},
        {"reward": [0.0, 1.0, 2.0, 4.0, 6.0], "gold": [0.0, 1.0, 2.0, 1.0, 0.0]},
        "gamed",
    ),
    "poor": (
        {"reward": [0.0, 1.0, 2.0, 3.0, 4.0], "gold": [0.0, 1.0, 2.0, 3.0, 4.0]},
        {"reward": [0.0, 1.0, 1.0, 1.0, 1.0], "gold": [0.0, 1.0, 1.0, 1.0, 1.0]},
        "sign rate-low",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_cause_depends_on_the_curve_the_side_and_the_way_it_left(way, stored):
    healthy, broken, causes = WAYS[way]
    stored["a"] = entry({curve: [values] for curve, values in healthy.items()})
    told = bands.compare("a", steps(**broken))
    assert told[-1].split("likely: ")[1] == "; or ".join(LIKELY[name] for name in causes.split()) + "."


def test_every_cause_has_a_name_and_every_stored_curve_has_causes_on_both_sides():
    names = {name for some in bands.LEAVING.values() for name in some.split()}
    assert names <= LIKELY.keys() and bands.LIKELY.keys() - bands.CAUSES.keys() <= names | {"log"}
    curves = {curve for found in STORED.values() for curve in found["curves"]}
    assert {curve for curve, _, _ in bands.LEAVING} == curves
    for curve in curves:
        for side in bands.SIDES:
            assert bands.likely(curve, [""], side).startswith("; likely: "), (curve, side)


# ----------------------------------------------------------------------------------------- what cannot be compared


@pytest.mark.parametrize(
    "records, sentence",
    [
        ([], "Nothing to compare: no record says its step."),
        (None, "Nothing to compare: no record says its step."),
        ("loss", "Nothing to compare: no record says its step."),
        ([{"loss": 1.0}, 7, {"step": math.nan, "loss": 1.0}], "Nothing to compare: no record says its step."),
        (steps(other=[1.0] * 5), "loss is missing: no record has it."),
        (steps(loss=[3.0, 2.0, math.nan, math.nan, math.nan]), "loss is no finite number at step 2; likely: "),
        (steps(loss=[3.0, 2.0, math.inf, 1.0, 1.0]), "loss is no finite number at step 2; likely: "),
        (steps(loss=[3.0, 2.0, "1.0", 1.0, 1.0]), "loss is no finite number at step 2; likely: "),
        (steps(loss=[3.0, 2.0, True, 1.0, 1.0]), "loss is no finite number at step 2; likely: "),
        ([{"step": 9, "loss": 1.0}], "loss has no point from step 0 to 4, where the stored runs have theirs."),
        (steps(loss=[3.0, 2.0]), "The run ends at step 1, the stored ones at 4."),
        (steps(loss=[3.0, 2.0, None, None, 1.0]), "Within the bands of 2 runs: loss."),
        (steps(loss=[3.0, 2.0, 1.0, 1.0, 1.0])[::-1], "Within the bands of 2 runs: loss."),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(records, sentence, stored):
    stored["a"] = entry({"loss": [[3.0, 2.0, 1.0, 1.0, 1.0]]})
    (told,) = bands.compare("a", records)
    assert told.startswith(sentence) and told.endswith(".")


def test_a_run_that_its_kl_has_stopped_is_told_so(stored):
    stored["a"] = entry({"kl": [[0.0, 1.0, 2.0, 3.0, 4.0]]})
    assert bands.compare("a", steps(kl=[0.0])) == [f"The run ends at step 0, the stored ones at 4; likely: {bands.SHORT}."]


VALUES = st.one_of(
    st.none(), st.booleans(), st.text(max_size=2), st.integers(-9, 9), st.floats(width=32), st.lists(st.integers())
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(["step", "loss", "val_loss", "kl"]), VALUES, max_size=4), max_size=8)


@settings(max_examples=50, deadline=None)
@given(RECORDS)
def test_whatever_was_logged_is_told_in_sentences(records):
    found = {"a": entry({name: [[3.0, 2.0, 1.0, 1.0, 1.0]] for name in ("loss", "val_loss", "kl")})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "stored", lambda: found)
        told = bands.compare("a", records)
    assert told and all(sentence.endswith(".") for sentence in told)


def test_a_name_that_is_not_there_is_told_with_those_that_are(stored):
    stored["03"] = entry({})
    with pytest.raises(KeyError, match="no band called '04'; there are 03"):
        bands.compare("04", [])


def test_another_size_another_corpus_and_models_of_ones_own_are_not_compared(stored, monkeypatch):
    stored["a"] = entry({"loss": [[0.0] * 5]}, settings={"preset": "laptop", "models": "published", "corpus": "plays"})
    far = steps(loss=[9.0] * 5)
    assert "lies above" in bands.compare("a", far)[0]
    start = "Not compared: the band is of runs with "
    assert bands.compare("a", far, corpus="mine.txt") == [f"{start}corpus plays, and this one has corpus mine.txt."]
    assert bands.compare("a", far, preset="gpu") == [f"{start}preset laptop, and this one has preset gpu."]
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    monkeypatch.setattr(course, "choices", lambda: {"models": "own", "preset": "laptop"})
    said = f"{start}preset laptop, models published, and this one has preset smoke, models own."
    assert bands.compare("a", far) == [said]


# ----------------------------------------------------------------------------------------- the figure


def shaded(ax):
    return [path.get_extents().extents.tolist() for one in ax.collections for path in one.get_paths()]


def test_the_band_is_shaded_behind_the_curve(stored, monkeypatch):
    stored["a"] = entry({"loss": [[1.0] * 5, [2.0] * 5], "kl": [[0.0] * 5]})
    fig = bands.figure("a", steps(loss=[1.5] * 5, kl=[0.25] * 5))
    loss, kl = fig.axes
    assert shaded(loss) == [[0.0, 0.0, 4.0, 3.0]] and shaded(kl) == [[0.0, 0.0, 4.0, 0.5]]  # a KL is at least 0
    assert loss.lines[0].get_ydata().tolist() == [1.5] * 5 and loss.get_ylabel() == "nats" and loss.get_xlabel() == "step"
    assert loss.collections[0].get_zorder() < loss.lines[0].get_zorder()
    odd = [*steps(loss=[1.0, None, "x", math.nan, 2.0]), {"loss": 3.0}, None]
    assert bands.figure("a", odd).axes[0].lines[0].get_xydata().tolist() == [[0.0, 1.0], [4.0, 2.0]]
    assert bands.figure("a", None).axes[0].lines[:] == []
    monkeypatch.setenv("RLHF_PRESET", "smoke")
    assert [shaded(ax) for ax in bands.figure("a", steps(loss=[1.5] * 5)).axes] == [[], []]


def test_no_band_reaches_what_its_curve_cannot_be(stored):
    runs = {
        "length": ([20.0, 490.0], [0, 500]),
        "explained_variance": ([-3.0, 0.9], [-3.5, 1]),
        "clip_fraction": ([0.1, 0.9], [0, 1]),
        "held_out_accuracy": ([0.4, 0.8], [0, 1]),
        "reward": ([-2.0, 2.0], [-2.5, 2.5]),
    }
    stored["a"] = entry({curve: [values] for curve, (values, _) in runs.items()}, at=(0, 1))
    stored["a"]["curves"]["length"]["margin"] = 50
    drawn = bands.figure("a", []).axes[: len(runs)]
    for ax, (_, (least, most)) in zip(drawn, runs.values()):
        ((_, low, _, high),) = shaded(ax)
        assert (low, high) == (least, most), ax.get_title()
    told = " ".join(bands.compare("a", steps(clip_fraction=[0.7, 0.7])))
    assert "clip_fraction lies above its band at step 0: 0.700, where 0.000 to 0.600 is expected" in told


@pytest.mark.parametrize("name", STORED)
def test_a_figure_of_the_stored_runs_has_words_units_and_few_whole_ticks(name):
    found = STORED[name]
    fig = bands.figure(name, records_of(found, 0), **found["settings"])
    FigureCanvasAgg(fig).draw()
    for ax, (curve, one) in zip(fig.axes, found["curves"].items()):
        assert "_" not in ax.get_title() + ax.get_xlabel() and ax.get_ylabel() == one["unit"]
        assert one["unit"] or "new to old" in ax.get_title(), curve
        low, high = ax.get_xlim()
        marks = [label.get_text() for label in ax.get_xticklabels() if low <= label.get_position()[0] <= high]
        assert 2 <= len(marks) <= 4 and all(re.fullmatch(r"\d{1,3}(,\d{3})*", mark) for mark in marks), (curve, marks)
    (legend,) = fig.legends
    alone = len(found["curves"][next(iter(found["curves"]))]["runs"]) == 1
    said = "one stored run, with a margin" if alone else "stored runs, widened"
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted([said, "this run"])
    box = legend.get_window_extent()
    assert all(box.y0 >= ax.get_window_extent().y1 for ax in fig.axes) and box.x1 - box.x0 <= fig.bbox.width


def test_sentences_are_printed_in_lines_of_a_hundred_without_a_broken_word(stored, capsys):
    stored["a"] = entry({"kl": [[0.0, 1.0, 2.0, 3.0, 4.0]]})
    records = steps(kl=[0.0, 1.75, 3.0, 5.0, 7.0])
    bands.tell("a", records)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 100
    assert " ".join(line.strip() for line in lines) == bands.compare("a", records)[0]


# ----------------------------------------------------------------------------------------- the stored runs


def records_of(found, run):
    """A stored run as its loop has logged it."""
    rows = {x: {found["x"]: x} for x in found["at"]}
    for curve, one in found["curves"].items():
        for x, value in zip(found["at"], one["runs"][run]):
            rows[x] |= {} if value is None else {curve: value}
    return [rows[x] for x in found["at"]]


def all_runs():
    for name, found in STORED.items():
        for run in range(len(next(iter(found["curves"].values()))["runs"])):
            if name != "06 labels":  # put together from several runs
                yield name, run


@pytest.mark.parametrize("name, run", list(all_runs()))
def test_every_stored_run_lies_within_its_band(name, run):
    found = STORED[name]
    assert bands.compare(name, records_of(found, run), **found["settings"]) == [
        f"Within the bands of {found['from']}: {', '.join(found['curves'])}."
    ]


def broken(found, fault):
    """The records of a run that was broken on purpose."""
    rows = {}
    for curve, points in found["faults"][fault].items():
        for x, y in points:
            rows.setdefault(x, {found["x"]: x})[curve] = y
    return [rows[x] for x in sorted(rows)]


FAULTS = {  # (name, fault): the curve that tells it, the side, and a cause that is named
    ("03", "head"): ("loss", "above", "first-weights"),
    ("03", "little-text"): ("val_loss", "above", "by-heart"),
    ("03", "no-step"): ("loss", "above", "no-step"),
    ("03", "not-shifted"): ("loss", "below", "not-shifted"),
    ("03", "rate"): ("loss", "above", "rate-high"),
    ("07", "low-rate"): ("length", "below", "rate-low"),
    ("07", "sign"): ("length", "below", "sign"),
    ("07 panels", "old-anew"): ("clip_fraction", "below", "old-recomputed"),
    ("07 panels", "one-step"): ("clip_fraction", "below", "one-step"),
    ("07 panels", "rate"): ("approx_kl", "above", "rate-high"),
    ("07 panels", "sign"): ("length", "below", "sign"),
    ("08 loop", "old-anew"): ("kl", "above", "old-recomputed"),
    ("08 loop", "rate"): ("", "", "short"),
    ("08 loop", "temperature"): ("ratio", "above", "other-temperature"),
    ("11 policy", "low-price"): ("kl", "above", "kl-unpaid"),
    ("12 loop", "rate"): ("kl", "above", "rate-high"),
}


def test_each_run_that_was_broken_on_purpose_is_tried():
    assert {(name, fault) for name, found in STORED.items() for fault in found["faults"]} == FAULTS.keys()


@pytest.mark.parametrize("name, fault", FAULTS)
def test_a_run_that_was_broken_on_purpose_is_told_with_its_cause(name, fault):
    found, (curve, side, cause) = STORED[name], FAULTS[name, fault]
    told = bands.compare(name, broken(found, fault), **found["settings"])
    if cause == "short":
        assert told[0].startswith("The run ends at") and bands.SHORT in told[0]
        return
    (sentence,) = [one for one in told if one.startswith(f"{curve} lies {side} its band")]
    assert LIKELY[cause] in sentence


def test_a_band_of_the_other_seeds_holds_nearly_every_seed(monkeypatch):
    """So a run that is as it should be is rarely told anything: of the curves of all stored runs one in fifteen at most."""
    told, curves = [], 0
    for name, run in all_runs():
        found = json.loads(json.dumps(STORED[name]))
        if len(found["curves"][next(iter(found["curves"]))]["runs"]) < 3:
            continue
        records = records_of(found, run)
        for one in found["curves"].values():
            del one["runs"][run]
        monkeypatch.setattr(bands, "stored", lambda name=name, found=found: {name: found})
        told += [one for one in bands.compare(name, records, **found["settings"]) if not one.startswith("Within")]
        curves += len(found["curves"])
    print(len(told), "of", curves)
    assert curves > 60 and len(told) <= curves / 15, told


def test_a_reward_model_that_says_negative_to_all_is_told():
    majority = 0.66  # "negative" to all is right on so many of chapter 06's held-out passages
    (sentence,) = bands.compare("06 labels", [{"labels": count, "accuracy": majority} for count in (300, 1000, 3000)])
    assert "accuracy lies below its band at labels 3000" in sentence and LIKELY["majority"] in sentence


def test_a_reward_model_whose_weights_do_not_move_is_told():
    """Its head begins at zero: it costs ln 2 on all passages, after any number of epochs."""
    told = bands.compare(
        "06", [{"epoch": epoch, "train_loss": math.log(2), "held_out_loss": math.log(2)} for epoch in (1, 2, 4, 8)]
    )
    assert "train_loss lies above its band at epoch 2" in told[0] and LIKELY["no-step"] in told[0]


def test_held_out_passages_that_are_learned_from_are_told():
    records = records_of(STORED["06"], 0)
    leaked = [{**one, "held_out_loss": one["train_loss"]} for one in records]
    (sentence,) = bands.compare("06", leaked)
    assert "held_out_loss lies below its band" in sentence and LIKELY["leak"] in sentence


def test_a_kl_that_begins_above_0_is_told():
    records = records_of(STORED["08 loop"], 0)
    (sentence,) = bands.compare("08 loop", [{**records[0], "kl": 0.2}, *records[1:]])
    assert "kl lies above its band at iteration 0: 0.200" in sentence and LIKELY["two-scores"] in sentence


def test_any_two_healthy_runs_mixed_stay_within():
    """Between the runs of a band there is no outside."""
    drawn = random.Random(0)
    for name in ("03", "08 loop", "11 policy"):
        found = STORED[name]
        one, other, share = records_of(found, 0), records_of(found, 1), drawn.random()
        mixed = [{key: share * a[key] + (1 - share) * b[key] for key in a} for a, b in zip(one, other)]
        assert bands.compare(name, mixed, **found["settings"])[0].startswith("Within")


# ----------------------------------------------------------------------------------------- the command


def test_the_file_is_what_the_command_makes_of_the_run_folders(tmp_path):
    """The folders, written back from the file: of the pipelines' runs one folder holds all stages."""
    for name, found in STORED.items():
        plan = made_by.STORED.get(name)
        if plan is None:
            continue
        runs_there = {f"seed-{run}": records_of(found, run) for run in range(len(next(iter(found["curves"].values()))["runs"]))}
        runs_there |= {f"fault-{fault}": broken(found, fault) for fault in found["faults"]}
        for run, records in runs_there.items():
            own = name in made_by.RUNS or run.startswith("fault")
            folder = tmp_path / (name if own else name.split()[0]) / run
            for record in records:
                stage, step = plan.get("stage", "run"), record.get("step", 0)
                made_by.runs.Metrics(folder).log(stage, step, **{key: value for key, value in record.items() if key != "step"})
            before = (
                json.loads(text)
                if (folder / "settings.json").exists() and (text := (folder / "settings.json").read_text())
                else {}
            )
            (folder / "settings.json").write_text(json.dumps(before | found["settings"]))
    assert made_by.collect(tmp_path) == STORED


def test_a_missing_folder_and_a_line_that_is_not_there_are_named(tmp_path):
    with pytest.raises(made_by.RunError, match="03 holds no seed-0"):
        made_by.collect(tmp_path)
    with pytest.raises(made_by.RunError, match=r"03_pretraining.ipynb: not once in the cells imports, pretrain: no such line"):
        made_by.scene("03", ("imports", "pretrain"), ("no such line", ""))


def test_a_fault_is_a_change_of_the_chapters_own_code():
    """Trained here, for two steps: the loss is the same at the first, and without the optimiser's step at the second too."""
    code = made_by.scene("03", ("imports", "learning_rate", "validation_loss", "pretrain"))
    still = made_by.scene("03", ("imports", "learning_rate", "validation_loss", "pretrain"), ("        optimizer.step()\n", ""))
    tokens, found = made_by.torch.arange(200) % 7, {}
    for name, one in (("as it is", code), ("no step", still)):
        made_by.torch.manual_seed(0)
        model = made_by.torch.nn.Sequential(made_by.torch.nn.Embedding(7, 8), made_by.torch.nn.Linear(8, 7))
        knobs = dict(steps=6, batch=4, context=8, lr=0.1, warmup=1, seed=0)
        found[name] = [record["loss"] for record in one["pretrain"](model, tokens, tokens, **knobs)]
    assert found["as it is"][0] == found["no step"][0]
    assert found["as it is"][-1] < found["no step"][-1] - 0.5
