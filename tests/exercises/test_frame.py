"""Calling a learner's function: whatever a notebook left on, whatever comes back, however long it takes."""

import importlib
import json
import random
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from rlhf_lib import exercises
from rlhf_lib.exercises import (
    EXERCISES,
    NotYet,
    answer,
    check,
    draw,
    frame,
    is_record,
    judge,
    raised,
    relations,
    surroundings,
    verdict,
)
from rlhf_lib.exercises.compare import alike, same, shown
from rlhf_lib.exercises.plain import RECORD, plain
from rlhf_lib.exercises.surroundings import settled

exercises.load()
NAME = "discounted_returns"
RIGHT = EXERCISES[NAME].right


@pytest.fixture
def exercise():
    """`exercise(right=..., ...)`: an exercise "made_up" of x, a tensor, for this test alone."""

    def declare(**parts):
        def draws(generator):
            yield {"x": torch.tensor([1.0, 2.0, 4.0])}
            for size in (3, 5, 7):
                yield {"x": torch.randn(size, generator=generator)}

        EXERCISES.pop("made_up", None)
        return exercises.Exercise("99.1", "made_up", **{"draw": draws, "mistakes": {}, **parts})

    yield declare
    EXERCISES.pop("made_up", None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ----------------------------------------------------------------------------------------- what a notebook left on


def left_on():
    """What a learner's cell or function may leave on: (name, how it is set, how it is read)."""
    return {
        "gradients off": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
        "double": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
        "meta device": (lambda: torch.set_default_device("meta"), lambda: str(torch.get_default_device())),
        "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
        "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
        "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
        "precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
        "recursion": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
        "warnings": (lambda: warnings.simplefilter("error"), lambda: warnings.filters[0][0]),
        "numpy errors": (lambda: np.seterr(all="raise"), lambda: np.geterr()["divide"]),
        "seed": (lambda: torch.manual_seed(5), lambda: torch.get_rng_state().sum().item()),
        "python's seed": (lambda: random.seed(5), lambda: hash(random.getstate())),
        "numpy's seed": (lambda: np.random.seed(5), lambda: int(np.random.get_state()[1].sum())),
    }


@pytest.fixture
def fresh():
    """Puts everything back after a test, whatever it does."""
    threads = torch.get_num_threads()
    with settled():
        yield
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("what", left_on())
def test_what_a_cell_left_on_changes_no_verdict_and_stays_on(fresh, what):
    switch, read = left_on()[what]
    switch()
    before = read()
    assert verdict(NAME, RIGHT).passed
    assert not verdict("reinforce_loss", lambda logits, actions, advantages: logits.sum()).passed
    assert verdict("reinforce_loss", EXERCISES["reinforce_loss"].right).passed
    assert read() == before


@pytest.mark.parametrize("what", left_on())
def test_what_a_function_leaves_on_is_put_back(fresh, what):
    switch, read = left_on()[what]
    before = read()

    def learner(rewards, gamma):
        out = RIGHT(rewards, gamma)
        switch()
        return out

    found = verdict(NAME, learner)
    assert read() == before
    said = {
        "gradients off": "torch.is_grad_enabled() is False",
        "double": "torch.get_default_dtype() is torch.float64",
        "meta device": "torch.get_default_device() is meta",
        "seed": "the seed of torch's global generator is 5",
    }.get(what)
    assert found.passed == (said is None)
    assert said is None or f"the values are right, but {said} after the call, for every later cell" in found.message


def test_a_function_that_is_given_a_seed_may_set_it(exercise):
    exercise(
        right=lambda x, seed: x, draw=lambda generator: iter([{"x": torch.ones(2), "seed": 3}, {"x": torch.ones(1), "seed": 0}])
    )
    assert verdict("made_up", lambda x, seed: (torch.manual_seed(seed), x)[1]).passed
    exercise(right=lambda x: x)
    assert "seed of torch's global generator is 0" in verdict("made_up", lambda x: (torch.manual_seed(0), x)[1]).message
    assert verdict("made_up", lambda x: (torch.rand(3), x)[1]).passed  # to draw from it is allowed


def test_a_wrong_answer_is_told_first_that_it_is_wrong(fresh):
    def learner(rewards, gamma):
        torch.set_grad_enabled(False)
        return RIGHT(rewards, gamma) + 1

    assert "is_grad_enabled" not in verdict(NAME, learner).message


def test_inference_mode_and_autocast_change_nothing():
    with torch.inference_mode():
        assert verdict("reinforce_loss", EXERCISES["reinforce_loss"].right).passed
        assert torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert verdict("attention", EXERCISES["attention"].right).passed
        assert torch.is_autocast_enabled("cpu")
    with torch.device("meta"):
        assert verdict(NAME, RIGHT).passed


def test_a_check_draws_nothing_from_the_learners_random_numbers(here):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    check(NAME, RIGHT)
    with pytest.raises(NotYet):
        check(NAME, lambda rewards, gamma: torch.rand(len(rewards)) + random.random())
    assert (torch.rand(1), random.random(), np.random.rand()) == wanted


def test_gradients_off_in_the_notebook_do_not_let_a_wrong_answer_pass(fresh):
    """The oracle and the answer then both raised, which counted as equal."""
    torch.set_grad_enabled(False)
    assert not verdict("reinforce_loss", lambda **given: torch.zeros(())).passed


# ----------------------------------------------------------------------------------------- errors of the check itself


def test_an_oracle_that_raises_is_an_error_of_the_check_and_never_equal(exercise):
    def broken(x):
        raise ValueError("no")

    exercise(right=broken)
    with pytest.raises(RuntimeError, match=r"the check of 99\.1 made_up is broken: its own answer raised ValueError\('no'\)"):
        verdict("made_up", broken)


def test_a_draw_that_raises_is_an_error_of_the_check(exercise):
    def draws(generator):
        yield {"x": torch.zeros(1)}
        raise ZeroDivisionError

    exercise(draw=draws, right=lambda x: x)
    with pytest.raises(RuntimeError, match=r"the check of 99\.1 made_up is broken: its draw raised ZeroDivisionError"):
        draw("made_up")


def test_an_oracle_may_say_that_to_raise_is_right(exercise):
    exercise(right=lambda x: raised("ValueError") if (x < 0).any() else x + 1)

    def learner(x):
        if (x < 0).any():
            raise ValueError("negative")
        return x + 1

    assert verdict("made_up", learner).passed
    assert "it should raise ValueError; it returned" in verdict("made_up", lambda x: x + 1).message

    def other(x):
        if (x < 0).any():
            raise TypeError
        return x + 1

    assert "it raised TypeError" in verdict("made_up", other).message


# ----------------------------------------------------------------------------------------- not written yet


def stub(rewards, gamma):
    raise NotImplementedError()


def test_only_the_exercises_own_stub_counts_as_not_written():
    assert "not written yet. Write it in the cell above" in verdict(NAME, stub).message
    assert "not written yet. Write" in verdict(NAME, torch.no_grad()(stub)).message

    def with_a_message(rewards, gamma):
        raise NotImplementedError("gamma 0 comes later")

    def calls_another(rewards, gamma):
        return stub(rewards, gamma)

    def of_torch(rewards, gamma):
        return torch.nn.Module()(rewards)

    assert "it raised NotImplementedError: gamma 0 comes later" in verdict(NAME, with_a_message).message
    assert "it raised NotImplementedError: stub is not written yet" in verdict(NAME, calls_another).message
    assert "it raised NotImplementedError" in verdict(NAME, of_torch).message


def test_a_stub_of_a_class_is_not_written_either(exercise):
    class Stub:
        def __init__(self, x):
            raise NotImplementedError()

    class Right:
        def __init__(self, x):
            self.total = x.sum()

    exercise(right=Right, call=lambda function, x: function(x).total)
    assert verdict("made_up", Right).passed
    assert "not written yet. Write" in verdict("made_up", Stub).message


# ----------------------------------------------------------------------------------------- whatever comes back


class AlwaysEqual:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


class Strange:
    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __repr__(self):
        raise RuntimeError

    def __len__(self):
        raise RuntimeError

    def __iter__(self):
        raise RuntimeError

    def __bool__(self):
        raise RuntimeError


class Subclass(torch.Tensor):
    pass


def endless():
    one = []
    one.append(one)
    return one


def deep():
    one = []
    for _ in range(500):
        one = [one]
    return one


ODD = {
    "meta": lambda: torch.zeros(3, device="meta"),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "complex number": lambda: 1j,
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "huge integer": lambda: 2**80,
    "list of huge integers": lambda: [10**400, -(10**400)],
    "array": lambda: np.zeros(3),
    "array of objects": lambda: np.array([object()], dtype=object),
    "scalar": lambda: np.float32(3),
    "long double": lambda: np.longdouble(3),
    "date": lambda: np.datetime64("2020-01-01"),
    "always equal": AlwaysEqual,
    "list of always equal": lambda: [AlwaysEqual()],
    "strange": Strange,
    "list of strange": lambda: [Strange()],
    "dict of strange": lambda: {"a": Strange()},
    "generator": lambda: (one for one in range(3)),
    "map": lambda: map(int, "12"),
    "iterator": lambda: iter([1]),
    "set": lambda: {1, 2},
    "bytes": lambda: b"ab",
    "NaN key": lambda: {float("nan"): 1},
    "tensor key": lambda: {torch.zeros(1): 1},
    "contains itself": endless,
    "deep": deep,
    "range": lambda: range(3),
    "function": lambda: torch.zeros,
    "class": lambda: dict,
    "module": lambda: torch.nn.Linear(1, 1),
    "huge tensor": lambda: torch.zeros(1).expand(10**12),
    "an exception": lambda: ValueError("not raised"),
    "ellipsis": lambda: ...,
    "a record": lambda: raised("ValueError"),
    "true": lambda: True,
    "text": lambda: "0.25",
    "empty": lambda: [],
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("name", [NAME, "reinforce_loss", "merge_pair", "gae", "rating_table", "distinct_n"])
def test_whatever_comes_back_gets_a_sentence(name, what):
    found = verdict(name, lambda *given, **named: ODD[what]())
    assert not found.passed
    first = found.message.splitlines()[0]
    assert len(first) > 20 and len(found.message.splitlines()) <= 20
    json.dumps(first)


def test_sentences_about_odd_things_say_what_came():
    said = {
        "array": r"a NumPy array",
        "generator": "a generator (put list(...) around it)",
        "function": "are the brackets of a call missing?",
        "meta": "on the device meta, which has no values",
        "contains itself": "one that contains itself",
        "complex": "the values are torch.complex64",
        "set": "a set",
    }
    for what, words in said.items():
        assert words in verdict(NAME, lambda rewards, gamma, what=what: ODD[what]()).message, what


class Quits:
    """What a function may raise."""

    def __init__(self, error):
        self.error = error

    def __call__(self, rewards, gamma):
        raise self.error


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError(), UnspeakableError(), BaseException("x")]
)
def test_whatever_is_raised_gets_a_sentence(error):
    assert f"it raised {type(error).__name__}" in verdict(NAME, Quits(error)).message


def test_endless_recursion_and_too_much_memory_get_a_sentence():
    def again(rewards, gamma):
        return again(rewards, gamma)

    assert "it raised RecursionError" in verdict(NAME, again).message
    assert "it raised RuntimeError" in verdict(NAME, lambda rewards, gamma: torch.empty(10**15)).message


@pytest.mark.parametrize("value, wanted", [(np.float64(2.0), 2.0), (np.int64(2), 2), (np.bool_(True), True), (np.str_("a"), "a")])
def test_numpy_scalars_count_as_numbers(value, wanted):
    assert plain(value) == wanted and type(plain(value)) is type(wanted)
    assert plain([value]) == [wanted] and plain({value: value}) == {wanted: wanted}


def test_right_values_in_other_tensors_are_right():
    assert verdict(NAME, lambda rewards, gamma: torch.nn.Parameter(RIGHT(rewards, gamma))).passed
    assert verdict(NAME, lambda rewards, gamma: RIGHT(rewards, gamma).as_subclass(Subclass)).passed
    assert verdict(NAME, lambda rewards, gamma: RIGHT(rewards, gamma).double()).passed
    assert verdict(NAME, lambda rewards, gamma: RIGHT(rewards, gamma).to_sparse()).passed


def test_whole_numbers_are_compared_exactly(exercise):
    exercise(right=lambda x: 10**7 + len(x))
    assert verdict("made_up", lambda x: 10**7 + len(x)).passed
    assert not verdict("made_up", lambda x: 10**7 + len(x) + 1).passed
    assert not verdict("made_up", lambda x: torch.tensor(10**7 + len(x) + 1)).passed


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_the_three_steps_agree_in_three_processes(name, tmp_path, monkeypatch):
    """What is handed on is read by a safe loader; records are, without tensors, JSON. (What is wrong is not looked for.)"""
    monkeypatch.setattr(EXERCISES[name], "mistakes", {})
    monkeypatch.setattr(relations, "find", lambda *what: "")
    inputs = draw(name)
    torch.save(inputs, tmp_path / "inputs")
    there = torch.load(tmp_path / "inputs", weights_only=True)
    for function in (EXERCISES[name].right, lambda *given, **named: 1 / 0, lambda *given, **named: {1, 2}):
        torch.save(answer(name, function, there), tmp_path / "outputs")
        found = judge(name, inputs, torch.load(tmp_path / "outputs", weights_only=True))
        assert found.passed is (function is EXERCISES[name].right), found.message
    assert all(json.loads(json.dumps(one)) == one for one in answer(name, lambda *given, **named: 1 / 0, inputs))


def test_a_learner_cannot_return_a_record():
    forged = verdict(NAME, lambda rewards, gamma: {RECORD: "raised", "kind": "ValueError", "message": "", "returned": ""})
    assert is_record(forged.got, "odd") and "a dict with a key of the checks" in forged.message


def test_outputs_of_another_number_are_no_pass():
    inputs = draw(NAME)
    right = answer(NAME, RIGHT, inputs)
    assert judge(NAME, inputs, right).passed
    assert not judge(NAME, inputs, right[:-1]).passed and not judge(NAME, inputs, []).passed


# ----------------------------------------------------------------------------------------- what a call leaves behind


def test_what_is_kept_from_one_call_to_the_next_is_said(exercise):
    exercise(right=lambda x: x.sum())
    seen = []

    def in_a_default(x, total=[0.0]):  # noqa: B006
        total[0] += x.sum()
        return total[0]

    def outside(x):
        seen.append(x)
        return seen[0].sum()  # right for the first input, and for it alone

    def once(x):
        if seen and len(seen[-1]) == 8:
            raise ValueError
        seen.append(torch.zeros(len(x) + 1))
        return x.sum()

    def counted(x):
        seen.append(len(seen))
        return x.sum()

    assert "from one call to the next" in verdict("made_up", in_a_default).message
    found = verdict("made_up", outside)
    assert not found.passed and "from one call to the next" not in found.message  # it is the same for the same arguments
    seen.clear()
    found = verdict("made_up", once)
    assert "from one call to the next" in found.message and found.arguments["x"].tolist() == [1.0, 2.0, 4.0]
    unseeded = verdict("made_up", lambda x: x.sum() + random.Random().random())
    assert "random numbers that no seed decides" in unseeded.message
    assert verdict("made_up", counted).passed and is_record(answer("made_up", in_a_default, draw("made_up"))[0], "kept")


def test_functions_that_draw_from_the_global_generator_or_are_slow_the_second_time_keep_nothing(exercise, monkeypatch):
    exercise(right=lambda x: x)
    calls = []

    def slow(x):
        calls.append(x)
        if len(calls) > 4:
            time.sleep(2)
        return x

    assert verdict("made_up", lambda x: torch.randn(100).sum() * 0 + x).passed
    assert "from one call" not in verdict("made_up", lambda x: torch.rand(3)).message
    monkeypatch.setattr(frame, "LIMIT", 0.3)
    assert verdict("made_up", slow).passed and len(calls) == 5


def test_lists_and_dicts_of_the_caller_are_left_alone(exercise):
    def draws(generator):
        yield {"x": [3, 1, 2], "table": {"a": [1]}}
        yield {"x": [5, 4, int(torch.randint(9, (1,), generator=generator))], "table": {}}

    exercise(draw=draws, right=lambda x, table: sorted(x))
    assert verdict("made_up", lambda x, table: sorted(x)).passed
    assert "it changed its argument x in place" in verdict("made_up", lambda x, table: x.sort() or x).message

    def remembers(x, table):
        table["b"] = 1
        return sorted(x)

    def in_depth(x, table):
        for one in table.values():
            one.append(2)
        return sorted(x)

    assert "it changed its argument table in place" in verdict("made_up", remembers).message
    assert "it changed its argument table in place" in verdict("made_up", in_depth).message


def scores(model, x):
    with torch.no_grad():
        return model(x[:, None])[:, 0]


@pytest.mark.parametrize(
    "what, change",
    [
        ("its weights are others after the call", lambda model: model[0].weight.data.mul_(2)),
        ("it is in training mode after the call", lambda model: model.train()),
        ("other parameters have requires_grad", lambda model: model.requires_grad_(False)),
    ],
)
def test_a_model_is_left_as_it_was_unless_the_oracle_changes_it(exercise, what, change):
    def call(function, x):
        torch.manual_seed(0)
        return function(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5)).eval(), x)

    def learner(model, x):
        out = scores(model, x)
        change(model)
        return out

    exercise(right=scores, call=call)
    assert verdict("made_up", scores).passed
    assert what in verdict("made_up", learner).message
    exercise(right=learner, call=call)
    assert verdict("made_up", learner).passed and verdict("made_up", scores).passed


def test_no_argument_is_taken_out_of_its_graph(exercise):
    def call(function, x):
        return function(x.clone().requires_grad_())

    def in_place(x):
        return x.detach_() + 1

    exercise(right=lambda x: x.detach() + 1, call=call)
    assert verdict("made_up", lambda x: x.detach() + 1).passed
    assert "argument x in place: no gradient reaches it after the call; write .detach(), without _" in (
        verdict("made_up", in_place).message)  # fmt: skip
    exercise(right=lambda x: x + 1)
    assert verdict("made_up", lambda x: x.requires_grad_().detach() + 1).passed  # to ask for one takes none away


def test_what_is_returned_without_a_gradient_is_said():
    right = EXERCISES["reinforce_loss"].right
    assert "without a gradient" in verdict("reinforce_loss", lambda *given: right(*given).detach()).message
    said = verdict("reinforce_loss", lambda *given: right(*given).item()).message
    assert "a plain number has no gradient: .item() or float() cuts it off" in said


# ----------------------------------------------------------------------------------------- where nothing can be written


def test_a_right_answer_is_right_where_it_cannot_be_noted(here, capsys):
    (here / exercises.PROGRESS).mkdir()
    check(NAME, RIGHT)
    assert "✓" in capsys.readouterr().out


def test_a_right_answer_is_right_on_a_full_disk(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("rlhf_lib.exercises.progress"), "add_json", full)
    check(NAME, RIGHT)
    said = capsys.readouterr().out
    assert "right on" in said and "could not be noted" in said and len(said.splitlines()) == 1


# ----------------------------------------------------------------------------------------- comparing and showing


def test_the_very_same_means_types_shapes_and_dtypes():
    nan = torch.tensor([float("nan"), 1.0])
    assert same({"a": [nan, 1, "x"]}, {"a": [nan.clone(), 1, "x"]})
    for a, b in ((nan, nan.double()), (nan, nan[None]), (1, 1.0), (1, True), ([1], (1,)), ({"a": 1}, {"b": 1}), ("a", None)):
        assert not same(a, b) and not same(b, a)


def test_two_exceptions_are_one_mistakes_when_they_say_the_same():
    assert alike(raised("IndexError", "index 3 is out of range"), raised("IndexError", "index 5 is out of range"), 0)
    assert not alike(raised("RuntimeError", "a"), raised("RuntimeError", "b"), 0)


@pytest.mark.parametrize(
    "value", [torch.randn(30, 30), list(range(1000)), "x" * 5000, {"a": ["y" * 300] * 50}, [[torch.zeros(9, 9)] * 9] * 9, 10**300]
)
def test_a_value_is_shown_in_a_line(value):
    assert len(shown(value)) <= 180 and "\n" not in shown(value)


def test_a_message_has_at_most_twenty_lines_of_which_none_is_long(exercise):
    def draws(generator):
        yield {f"argument {i}": torch.randn(8, 8, generator=generator) for i in range(40)}

    exercise(draw=draws, right=lambda **named: torch.ones(3))
    message = verdict("made_up", lambda **named: torch.tensor([1.0, 5.0, 2.5])).message
    assert len(message.splitlines()) == 20 and max(map(len, message.splitlines())) <= 200
    assert "came out: [1.0, 5.0, 2.5]" in message and "expected: [1.0, 1.0, 1.0]" in message


def test_a_message_names_the_first_key_and_says_a_pair(exercise):
    exercise(right=lambda x: {"mean": x.mean(), "ends": (x[0], x[-1])})
    said = verdict("made_up", lambda x: {"mean": x.mean(), "ends": (x[0] + x[1] ** 3, x[-1])}).message
    assert "'mean' is right; only 'ends' is wrong: the first of the pair is wrong: 9.0 came out" in said
    exercise(right=lambda x: (x.mean(), x.sum()))
    assert "should return a pair" in verdict("made_up", lambda x: x.tolist() * 2).message


def test_texts_and_lists_are_told_by_their_first_difference(exercise):
    exercise(right=lambda x: "to be or not to be" + str(len(x)))
    said = verdict("made_up", lambda x: "to be or but to be" + str(len(x))).message
    assert "the texts differ from place 9 on" in said
    exercise(right=lambda x: ["a", "b", str(x[0].item())])
    assert "the third value is wrong" in verdict("made_up", lambda x: ["a", "b", "no" + str(x[1].item())]).message


def test_everything_around_a_call_is_put_back_after_an_exception():
    with pytest.raises(ZeroDivisionError), settled():
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert surroundings.LIMIT == frame.LIMIT
