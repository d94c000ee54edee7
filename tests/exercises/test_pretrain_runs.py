"""The runs of Build it 3.10: what is killed and called again, what is judged of it, and the bits of unseen text."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from rlhf_lib import corpus
from rlhf_lib.exercises import pretrain_runs as runs
from rlhf_lib.exercises.observed import Stopped, weights_of
from rlhf_lib.models.gpt import GPT, GPTConfig

TEXT = {"tokens": torch.arange(30).repeat(10), "held_out": torch.arange(30), "start": 5}


# ----------------------------------------------------------------------------------------- killed and called again


def steps_on(model, steps):
    for _ in range(steps):
        model(torch.tensor([[1, 2, 3]])).sum().backward()


@pytest.fixture(scope="module")
def calls():
    """What each of the four calls of a resumed run is given, by a loop that moves no weight, and what is found of them."""
    taken = []

    def pretrain(model, tokens, held_out, *, folder, **settings):
        taken.append({"folder": Path(folder), "files": list(Path(folder).parent.glob("*")), "random": torch.rand(1).item(),
                      "weights": weights_of(model), "dropout": model.inner.dropout, "settings": settings})  # fmt: skip
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(2), Path(folder, "state.pt"))
        steps_on(model, settings["steps"])
        return ["records", len(taken)]

    return taken, runs.run_resume(pretrain, **TEXT, dropout=0.25)


def test_the_second_run_is_killed_at_step_seven_and_called_twice_more_in_its_folder(calls):
    taken, found = calls
    one, two, three, four = (call["folder"] for call in taken)
    assert one.name == "one" and two.parts[-2:] == ("two", "deep") and one.parent == two.parent.parent and two == three == four
    assert [found[name]["steps"] for name in ("whole", "killed", "resumed", "again")] == [12, 6, 12, 12]
    assert [found[name]["records"] for name in ("whole", "killed", "resumed", "again")] == [
        ["records", 1], None, ["records", 3], ["records", 4],
    ]  # fmt: skip
    assert found["files"] == {"state.pt": True}
    assert all(call["settings"]["steps"] == 12 and call["settings"]["every"] == 4 for call in taken)
    assert len({str(call["settings"]) for call in taken}) == 1 and all(call["dropout"] == 0.25 for call in taken)


def test_no_folder_is_there_before_and_none_is_left(calls):
    taken, _ = calls
    assert taken[0]["files"] == [] and not any(call["folder"].parent.exists() for call in taken)


def test_a_resumed_run_starts_from_other_weights_and_another_random_state(calls):
    taken, found = calls
    assert torch.equal(taken[0]["weights"], taken[1]["weights"]) and taken[0]["random"] == taken[1]["random"]
    for one, other in ((1, 2), (1, 3), (2, 3)):
        assert not torch.equal(taken[one]["weights"], taken[other]["weights"])
        assert taken[one]["random"] != taken[other]["random"]
    assert torch.equal(found["again"]["end"], taken[3]["weights"])


def test_a_loop_that_swallows_the_stop_leaves_no_list_of_files():
    def stubborn(model, *_, steps, **__):
        try:
            steps_on(model, steps)
        except Stopped:
            return []

    assert "files" not in runs.run_resume(stubborn, **TEXT, dropout=0.0)


def test_files_are_those_that_hold_a_state_and_are_tried_as_they_are_to_be_read(tmp_path):
    torch.save({"model": torch.ones(2), "records": [{"step": 1, "loss": 0.5}]}, tmp_path / "plain.pt")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    torch.save({"fraction": Fraction(1, 2)}, tmp_path / "deep" / "er" / "odd.pt")
    (tmp_path / "deep" / "cut.pt").write_bytes((tmp_path / "plain.pt").read_bytes()[:100])
    for name in ("records.json", "log.jsonl", "notes.txt", "losses.csv", "model.safetensors"):
        (tmp_path / name).write_text("x")
    assert runs.files_in(tmp_path) == {"plain.pt": True, "odd.pt": False, "cut.pt": False}
    assert runs.files_in(tmp_path / "nowhere") == {}


def test_a_file_that_cannot_be_read_is_not_hidden_by_another_of_its_name(tmp_path):
    for folder, state in (("a", Fraction(1, 2)), ("b", torch.ones(2))):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / "state.pt")
    assert not all(runs.files_in(tmp_path).values())


# ----------------------------------------------------------------------------------------- judged by hand


def listed(*changed):
    """Twelve records; those of the steps in `changed` have another loss."""
    return [{"step": step, "loss": 3 / step + (step in changed)} for step in range(1, 13)]


def output(**changes):
    """What comes of a right loop, with changes such as resumed_steps=9."""
    end = torch.tensor([1.0, 2.0])
    found = {
        "files": {"state.pt": True},
        "whole": {"records": listed(), "end": end, "steps": 12},
        "resumed": {"records": listed(), "end": end, "steps": 8},
        "again": {"records": listed(), "end": end, "steps": 0, "mode": True},
    }
    for name, value in changes.items():
        run, _, key = name.partition("_")
        if key:
            found[run][key] = value
        else:
            found[run] = value
    return found


OTHER = torch.tensor([1.0, 2.0001])


@pytest.mark.parametrize("changes, word", [
    ({}, ""),
    ({"resumed_steps": 6}, ""),  # saved at every step
    ({"files": {}}, "has left no file"),
    ({"files": None}, "has left no file"),
    ({"files": {"a.pt": True, "b.pt": False}}, "b.pt cannot be read"),
    ({"resumed_steps": 9}, "it takes step 4 once more"),
    ({"resumed_steps": 10}, "it takes 10 steps"),
    ({"resumed_records": listed()[4:]}, "returns the steps [5, 6, 7, 8, 9, 10, 11, 12]"),
    ({"resumed_records": listed() + listed()[-1:]}, "each once"),
    ({"resumed_records": listed(4)}, "the record of step 4, before the stop"),
    ({"resumed_records": listed(3, 5)}, "the record of step 3, before the stop"),
    ({"resumed_records": listed(5)}, "the loss of step 5, the first after the stop, differs"),
    ({"resumed_records": listed(6)}, "the loss of step 5, the first after the stop, is the same, and then"),
    ({"resumed_records": listed(6), "resumed_steps": 7}, "the loss of step 6, the first after the stop, differs"),
    ({"resumed_end": OTHER}, "moments"),
    ({"again_steps": 1}, "nothing left to do but return the list"),
    ({"again_records": listed()[:-1]}, "nothing left to do but return the list"),
    ({"again_end": OTHER}, "leaves the model's weights as they came"),
    ({"again_mode": False}, "in another mode than it came in"),
])  # fmt: skip
def test_a_resumed_run_is_judged_step_by_step(changes, word):
    found = runs.judge_resume(output(**changes), **TEXT, dropout=0.0)
    assert word in found and bool(found) == bool(word)


@pytest.mark.parametrize("changes, word", [
    ({}, ""),
    ({"resumed_records": listed(5)}, "from step 5 on"),
    ({"resumed_records": listed(9, 10)}, "from step 9 on"),
    ({"resumed_end": OTHER}, "from step 12 on"),
    ({"resumed_records": listed(2)}, "before the stop"),
])  # fmt: skip
def test_with_dropout_other_features_are_the_reason(changes, word):
    found = runs.judge_resume(output(**changes), **TEXT, dropout=0.5)
    assert word in found and bool(found) == bool(word)


def test_both_kinds_of_run_are_drawn_alike_but_for_the_dropout():
    one, two = (draw(torch.Generator().manual_seed(3)) for draw in (runs.draw_resume, runs.draw_resume_dropout))
    assert (one.pop("dropout"), two.pop("dropout")) == (0.0, 0.5)
    assert torch.equal(one["tokens"], two["tokens"]) and one["start"] == two["start"]


# ----------------------------------------------------------------------------------------- saving, and another device


def saved(**changes):
    """What comes of a right loop that is stopped while it saves, with changes such as again_steps=2."""
    end = torch.tensor([1.0, 2.0])
    runs_of_it = ("whole", "again", "cut", "resumed", "between", "after between")
    found = {name: {"records": listed(), "end": end, "steps": 12, "error": ""} for name in runs_of_it}
    found["again"]["steps"], found["resumed"]["steps"], found["after between"]["steps"] = 0, 7, 7
    found["cut"]["error"] = found["between"]["error"] = "Stopped"
    for name, value in changes.items():
        run, _, key = name.replace("after_between", "after between").partition("_")
        found[run][key] = value
    return found


@pytest.mark.parametrize("changes, word", [
    ({}, ""),
    ({"resumed_steps": 6}, ""),
    ({"cut_error": "", "resumed_steps": 0}, ""),  # it does not save by torch.save
    ({"whole_error": "TypeError"}, "raise TypeError"),
    ({"again_error": "KeyError"}, "raise KeyError"),
    ({"whole_steps": 0}, "from 0 batches"),
    ({"again_steps": 2}, "takes 2 steps again: the state after the last step"),
    ({"resumed_error": "EOFError", "resumed_steps": 0}, "it raises EOFError when"),
    ({"resumed_steps": 12}, "it begins anew when"),
    ({"resumed_records": listed(7)}, "goes on differently"),
    ({"resumed_end": OTHER}, "goes on differently"),
    ({"after_between_steps": 12}, "the old file was removed first"),
    ({"after_between_error": "FileNotFoundError", "after_between_steps": 0}, "the old file was removed first"),
    ({"between_error": "", "after_between_steps": 0}, ""),  # it moves no file by os.replace or os.rename
])  # fmt: skip
def test_what_a_stop_while_saving_leaves_is_judged(changes, word):
    found = runs.judge_saving(saved(**changes), **TEXT)
    assert word in found and bool(found) == bool(word)


def test_a_save_is_stopped_half_way_whether_it_goes_to_a_path_or_to_a_file():
    sizes = []

    def pretrain(model, tokens, held_out, *, steps, folder, **settings):
        Path(folder).mkdir(exist_ok=True)
        for place in range(0, steps, 3):
            steps_on(model, 3)
            target = Path(folder, f"{place}.pt")
            try:
                if place % 2:
                    with open(target, "wb") as file:
                        torch.save({"weights": torch.ones(100)}, file)
                else:
                    torch.save({"weights": torch.ones(100)}, target)
            finally:
                sizes.append((place, target.stat().st_size))
        return []

    found = runs.run_saving(pretrain, **TEXT)
    assert [found[name]["error"] for name in ("whole", "again", "cut", "resumed")] == ["", "", "Stopped", ""]
    whole = dict(sizes[:4])
    assert sizes[8:12] == [(0, whole[0]), (3, whole[3]), (6, whole[6]), (9, whole[9] // 2)]


def test_where_the_first_batch_lies_is_seen():
    def moved(model, tokens, *_, **__):
        model(tokens[None, :3].to(next(model.parameters()).device))

    assert runs.run_elsewhere(moved, **TEXT) == ["meta"] and runs.judge_elsewhere(["meta"], **TEXT) == ""
    left = runs.run_elsewhere(lambda model, tokens, *_, **__: model(tokens[None, :3]), **TEXT)
    assert left == ["cpu"] and "stay on the CPU" in runs.judge_elsewhere(left, **TEXT)
    assert "never called" in runs.judge_elsewhere(runs.run_elsewhere(lambda *_, **__: [], **TEXT), **TEXT)


# ----------------------------------------------------------------------------------------- Shakespeare


@pytest.fixture
def small(monkeypatch):
    """Sixteen characters: 0 is all that is trained on and held out, 1 all that is judged, 2 all that lies behind."""
    text = torch.tensor([0] * 450 + [1] * 150 + [2] * 100)
    for name, value in {"READ": 300, "HELD": 50, "STEPS": 4, "characters": lambda: (text, 16)}.items():
        monkeypatch.setattr(runs, name, value)
    return text


def says(chances):
    """The weights of a model that gives the first characters these chances at every place, and the others equal ones."""
    model = GPT(GPTConfig(vocab_size=16, **runs.SHAPE))  # as it is made, the blocks add nothing
    rest = (1 - sum(chances)) / (16 - len(chances))
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head.weight[:, 0] = torch.tensor([*chances] + [rest] * (16 - len(chances))).log()
    return dict(model.state_dict())


def test_the_bits_are_those_of_text_that_is_neither_trained_on_nor_held_out(small):
    assert runs.judge_reading(says([0.1, 0.5]), start=100) == ""  # 1 bit
    found = runs.judge_reading(says([0.5, 1 / 32, 0.2]), start=100)
    assert "pays 5.00 bits" in found and "after 4 steps" in found and "all characters alike: 4.0" in found


@pytest.mark.parametrize("bits, passes", [(3.399, True), (3.401, False)])
def test_the_verdict_turns_at_the_bits_that_are_told(small, bits, passes):
    found = runs.judge_reading(says([0.1, 2**-bits]), start=100)
    assert (found == "") == passes and (passes or "gets below 3.4" in found)


def test_weights_that_are_no_numbers_do_not_pass(small):
    broken = {name: torch.full_like(weight, math.nan) for name, weight in says([0.1, 0.5]).items()}
    assert runs.judge_reading(broken, start=100)


def test_a_reading_run_is_given_its_part_of_the_text_and_moves_its_bar_in_training_alone(small, monkeypatch):
    told, taken = [], []
    monkeypatch.setattr(runs, "tick", lambda share, note: told.append((share, note)))

    def pretrain(model, tokens, held_out, **settings):
        taken.append((tokens, held_out, settings, model.head.weight.shape))
        for training in (True, False, True):
            model.train(training)(torch.zeros(1, 4, dtype=torch.long))
        torch.nn.init.ones_(model.head.weight)

    state = runs.run_reading(pretrain, start=120)
    ((tokens, held_out, settings, shape),) = taken
    assert torch.equal(tokens, small[120:420]) and torch.equal(held_out, small[420:470]) and shape == (16, 96)
    assert settings == {"steps": 4, "batch": 32, "context": 32, "lr": 0.006, "warmup": 20, "seed": 120, "every": 100}
    assert told == [(0.25, "step 1 of 4"), (0.25, "step 1 of 4"), (0.5, "step 2 of 4")]
    assert state["head.weight"].min() == 1
    again = runs.run_reading(lambda *_, **__: None, start=120)
    torch.manual_seed(5)
    assert torch.equal(again["embedding.weight"], runs.run_reading(lambda *_, **__: None, start=120)["embedding.weight"])


def test_the_characters_are_those_of_the_plays_and_pairs_alone_do_not_reach_what_is_asked():
    tokens, vocabulary = runs.characters()
    text = "\n\n".join(corpus.load("plays")["text"])
    names = sorted(set(text))
    assert len(tokens) == len(text) and vocabulary == len(names)
    for place in (0, 1_234_567, len(text) - 2000):
        assert "".join(names[one] for one in tokens[place : place + 2000].tolist()) == text[place : place + 2000]

    def entropy(numbers):
        share = torch.bincount(numbers).double() / len(numbers)
        return -(share[share > 0] * share[share > 0].log2()).sum().item()

    single = entropy(tokens)
    following = entropy(tokens[:-1] * vocabulary + tokens[1:]) - entropy(tokens[:-1])
    assert (f"{single:.1f}", f"{following:.1f}") == ("4.8", "3.6") and following > runs.BITS + 0.1  # as the sentence says


def test_wherever_a_reading_run_starts_its_text_and_the_unseen_text_are_whole():
    starts = [runs.draw_reading(torch.Generator().manual_seed(seed))["start"] for seed in range(50)]
    assert len(set(starts)) == 50 and min(starts) >= 0 and 3_000_000 < max(starts) < 4_000_000
    assert len(runs.characters()[0]) >= 4_000_000 + runs.READ + 4 * runs.HELD
