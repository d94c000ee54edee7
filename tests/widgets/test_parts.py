import asyncio

import ipywidgets
import pytest
from matplotlib import pyplot as plt

from rlhf_lib import plots, widgets
from rlhf_lib.widgets import parts

HOSTILE = "<script>alert(\"x\")</script> & 'quoted'"


def test_the_public_names_are_offered_by_the_package():
    assert len(set(widgets.__all__)) == len(widgets.__all__) >= 20
    assert all(hasattr(widgets, name) for name in widgets.__all__)
    assert callable(widgets.labelling) and callable(widgets.sampler) and callable(widgets.explorer)  # not the modules


def test_text_is_escaped_wherever_it_is_shown():
    for shown in (parts.framed(parts.escape(HOSTILE), HOSTILE), parts.table((HOSTILE,), [(HOSTILE, 1)])):
        assert "<script" not in shown and shown.count("&lt;script&gt;") == 2
        assert "&amp;" in shown and "&quot;x&quot;" in shown


def test_tints_have_the_colours_of_the_plots():
    for color, name in ((parts.UP, plots.BLUE), (parts.DOWN, plots.ORANGE), (parts.PLAIN, plots.GREY)):
        red, green, blue = (round(255 * part) for part in plt.matplotlib.colors.to_rgb(name))
        assert color == (red, green, blue)
        assert parts.tint(color, 0.5) == f"rgba({red}, {green}, {blue}, 0.50)"


def test_a_table_has_a_row_each():
    shown = parts.table(("a", "b"), [(1, 2), ("x", None)])
    assert shown.count("<tr>") == 3 and shown.count("<th ") == 2 and shown.count("<td ") == 4


def test_keys_act_once_each_and_what_was_rubbed_out_does_nothing():
    pressed = []
    box = parts.key_box({"a": lambda: pressed.append("a"), "b": lambda: pressed.append("b")}, "hint")
    for value in ("a", "aB", "aBx", "aB", "aBab", "", "b"):
        box.value = value
    assert pressed == ["a", "b", "a", "b", "b"] and box.placeholder == "hint"


def test_a_guarded_action_says_what_went_wrong_and_shows_all_the_same():
    note, shown = ipywidgets.HTML(), []

    def fail():
        raise ValueError("no <disk>")

    parts.guarded(fail, lambda: shown.append(1), note)("any", "arguments")
    assert "no &lt;disk&gt;" in note.value and shown == [1]
    parts.guarded(lambda: None, lambda: shown.append(2), note)()
    assert note.value == "" and shown == [1, 2]
    with pytest.raises(TypeError, match="a bug"):
        parts.guarded(lambda: (_ for _ in ()).throw(TypeError("a bug")).__next__(), lambda: None, note)()


def test_a_bundle_has_its_parts_as_attributes():
    one, two = ipywidgets.HTML(), ipywidgets.HTML()
    box = parts.bundle((one, two), first=one, number=3)
    assert box.children == (one, two) and box.first is one and box.number == 3


def test_a_figure_becomes_a_picture():
    fig, _ = plots.figure(1)
    assert parts.png(fig).startswith(b"\x89PNG")


def test_names_and_texts_are_checked():
    assert parts.checked_texts(["a", "b", "a"], "texts") == ["a", "b"] and parts.checked_name(" me ", "rater") == "me"
    for bad in ("a", [], ["a", " "], [1]):
        with pytest.raises(ValueError, match=r"^texts"):
            parts.checked_texts(bad, "texts")
    for bad in ("", " ", None, 3):
        with pytest.raises(ValueError, match="rater must be a name, got"):
            parts.checked_name(bad, "rater")


# ----------------------------------------------------------------------------------------- Enter


def enter(box):
    box._handle_custom_msg({"event": "submit"}, [])


def test_enter_acts_once_and_leaving_the_box_does_not():
    seen = []
    box = parts.enter_box(lambda: seen.append(box.value), "you", "hint")
    box.value = "ab"  # the box was left
    assert seen == []
    enter(box)
    assert seen == ["ab"]
    box.value = "abc"
    box._handle_custom_msg({"event": "other"}, [])
    assert seen == ["ab"] and (box.description, box.placeholder) == ("you", "hint")


@pytest.fixture
def later(monkeypatch):
    """What a kernel's loop was asked to call, a list of (seconds, call), which the test calls when their time is over."""
    calls = []

    class Loop:
        def call_later(self, seconds, action, *arguments):
            calls.append((seconds, lambda: action(*arguments)))

    monkeypatch.setattr(parts.asyncio, "get_running_loop", Loop)
    return calls


def test_a_press_waits_for_the_text_that_comes_behind_it(later):
    """A browser says that Enter was pressed, then what was typed since the box was last left."""
    seen = []
    box = parts.enter_box(lambda: seen.append(box.value), "you", "hint", patience=0.3)
    box.value = "old"
    enter(box)
    assert seen == []
    box.value = "old and new"
    assert seen == ["old and new"]
    later[0][1]()  # the press is used up
    assert seen == ["old and new"]
    enter(box)  # nothing new was typed
    assert seen == ["old and new"]
    later[1][1]()
    assert seen == ["old and new"] * 2
    box.value = "left again"
    assert seen == ["old and new"] * 2 and [seconds for seconds, _ in later] == [0.3, 0.3]


def test_each_press_acts_once_in_whatever_order_texts_and_times_come(later):
    seen = []
    box = parts.enter_box(lambda: seen.append(box.value), "you", "hint")
    enter(box)
    enter(box)
    box.value = "one"
    later[0][1]()
    later[1][1]()
    assert seen == ["one"]
    enter(box)
    later[0][1]()  # late: its press is over, and another waits
    assert seen == ["one"]
    box.value = "two"
    assert seen == ["one", "two"]


def test_a_press_waits_in_a_real_loop_too():
    seen = []
    box = parts.enter_box(lambda: seen.append(box.value), "you", "hint", patience=0.01)

    async def person():
        box.value = "one"
        enter(box)
        assert seen == []
        await asyncio.sleep(0.05)

    asyncio.run(person())
    assert seen == ["one"]
