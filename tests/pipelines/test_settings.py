import json
from dataclasses import dataclass, field

import pytest

from rlhf_lib.pipelines.settings import changed, explain, flat
from rlhf_lib.pipelines.shakespeare import PRESETS, Settings


@dataclass
class Inner:
    """A part.

    Args:
        size: how large, in rows; more
            than one.
        width, height: of a row.
    """

    size: int = 2
    width: int = 3
    height: int = 3

    def __post_init__(self):
        if self.width * 2 < self.height:
            raise ValueError(f"height {self.height} is over twice the width {self.width}")


@dataclass
class Outer:
    """The whole.

    Args:
        name: what it is called,
        part: see there.
    """

    name: str = "x"
    silent: bool = False
    part: Inner = field(default_factory=Inner)


def test_flat_names_every_setting_by_its_path():
    assert flat(Outer()) == {"name": "x", "silent": False, "part.size": 2, "part.width": 3, "part.height": 3}


def test_changed_and_flat_speak_of_the_same_names():
    settings = changed(PRESETS["smoke"], {"seed": 5, "pretrain.steps": 7, "model.recipe": "gpt2"})
    assert (settings.seed, settings.pretrain.steps, settings.model.recipe) == (5, 7, "gpt2")
    assert flat(settings) == {**flat(PRESETS["smoke"]), "seed": 5, "pretrain.steps": 7, "model.recipe": "gpt2"}
    assert PRESETS["smoke"].seed == 0 and PRESETS["smoke"].pretrain.steps != 7  # the preset itself stays


def test_the_settings_survive_the_way_through_a_file():
    for settings in PRESETS.values():
        assert changed(settings, {}) == settings
        assert changed(Settings(), json.loads(json.dumps(flat(settings)))) == settings


def test_changes_that_fit_together_are_taken_in_any_order():
    for names in (("part.width", "part.height"), ("part.height", "part.width")):
        wanted = {"part.width": 10, "part.height": 20}
        settings = changed(Outer(), {name: wanted[name] for name in names})
        assert (settings.part.width, settings.part.height) == (10, 20)
    with pytest.raises(ValueError, match="height 20 is over twice the width 3"):
        changed(Outer(), {"part.height": 20})


@pytest.mark.parametrize(("name", "named"), [("part.depth", "depth"), ("colour", "colour"), ("colour.depth", "colour")])
def test_a_name_that_no_setting_has_is_refused(name, named):
    with pytest.raises((TypeError, AttributeError), match=f"'{named}'"):
        changed(Outer(), {name: 1})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("name", "what it is called"),
        ("part.size", "how large, in rows; more than one"),
        ("part.width", "of a row"),
        ("part.height", "of a row"),
        ("silent", ""),
    ],
)
def test_what_the_docstring_says_of_a_setting_is_found(name, text):
    assert explain(Outer(), name) == text


@pytest.mark.parametrize("name", flat(PRESETS["laptop"]))
def test_every_setting_of_a_run_is_explained(name):
    assert len(explain(PRESETS["laptop"], name)) > 5, f"the docstring has no line for {name}"
