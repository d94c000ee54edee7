"""The checks, checked: what must hold for every exercise of every chapter, and how a check speaks to a learner."""

import copy
import functools
import io
import itertools
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises
from rlhf_lib.exercises import EXERCISES, NotYet, answer, check, draw, equal, find, frame, is_record, judge, verdicts
from rlhf_lib.exercises.plain import plain

exercises.load()
NAMES = sorted(EXERCISES)
MISTAKES = [(name, sentence) for name in NAMES for sentence in EXERCISES[name].mistakes]
SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
SEEDS = (0, 1, 7)
MANY = (*SEEDS, 2, 35)  # whatever is drawn, every mistake is told from every other: each seed has its turn


# ----------------------------------------------------------------------------------------- every exercise


@functools.cache
def asked(name):
    """The inputs of an exercise, and the right answers to them."""
    inputs = draw(name)
    return inputs, answer(name, EXERCISES[name].right, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_the_same_for_the_same_seed_and_others_for_another(name):
    assert equal(draw(name, 3), draw(name, 3), 0)
    assert not equal(draw(name, 3), draw(name, 4), 0)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_answers_are_plain_data_that_another_process_can_read(name):
    inputs, right = asked(name)
    file = io.BytesIO()
    torch.save([inputs, right], file)
    file.seek(0)
    again, _ = torch.load(file, weights_only=True)
    assert equal(again, inputs, 0)


@functools.lru_cache(maxsize=len(MANY))
def drawn(name, seed):
    """The inputs of an exercise, and what our own functions made of them: a mistake is compared with all that stand before it."""
    return draw(name, seed), {}


def remembered(make, made):
    """`make(exercise, what, ...)`, which works an answer out once for each function and input, as one of ours."""

    def once(exercise, *what, **options):
        key = make, *map(id, what[:2])
        if key not in made:
            made[key] = make(exercise, *what, **options)
        return made[key]

    return once


class Lazy:
    """The outputs of one of our own functions, each worked out when it is first looked at."""

    def __init__(self, exercise, function, inputs):
        self.at = lambda place: verdicts.one_answer(exercise, function, inputs[place], trusted=True)

    def __getitem__(self, place):
        return self.at(place)


@pytest.mark.parametrize("name, sentence", MISTAKES)
def test_every_named_mistake_fails_with_its_own_message(name, sentence, monkeypatch):
    exercise, (inputs, made) = EXERCISES[name], drawn(name, MANY[MISTAKES.index((name, sentence)) % len(MANY)])
    monkeypatch.setattr(verdicts, "right_answer", remembered(frame.right_answer, made))
    monkeypatch.setattr(verdicts, "one_answer", remembered(frame.one_answer, made))
    first, *ways = exercise.mistakes[sentence]
    outputs = answer(name, first, inputs)  # as a learner's, where no record is taken from the function itself
    known = {(frame.one_answer, id(first), id(one)): output for one, output in zip(inputs, outputs)}
    made.update((key, output) for key, output in known.items() if not is_record(output, "odd"))
    verdict = judge(name, inputs, outputs)
    assert not verdict.passed
    assert verdict.mistake == sentence and sentence in verdict.message
    earlier = copy.copy(exercise)  # another way to make a mistake has its name where none of those before it is the cause
    earlier.mistakes = dict(itertools.takewhile(lambda one: one[0] != sentence, exercise.mistakes.items()))
    for way in ways:
        outputs = Lazy(exercise, way, inputs)
        rights = (verdicts.right_answer(exercise, one, tuples=True) for one in inputs)
        wrong = next(place for place, right in enumerate(rights) if not equal(outputs[place], right, exercise.tolerance))
        assert verdicts.cause(earlier, inputs, outputs, [wrong]) == ""


@pytest.mark.parametrize("name", [name for name in NAMES if EXERCISES[name].formula])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_formula_without_options_is_right(name, seed):
    inputs = draw(name, seed)
    assert judge(name, inputs, answer(name, EXERCISES[name].formula, inputs)).passed


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_names_at_least_four_mistakes(name):
    assert len(EXERCISES[name].mistakes) >= 4


def passes(name, outputs):
    """Whether a check takes `outputs` for right: `judge` without its search for what is wrong."""
    tolerance = EXERCISES[name].tolerance
    return all(equal(plain(one, trusted=True), right, tolerance) for one, right in zip(outputs, asked(name)[1], strict=True))


def filled(value, number):
    """An output of the same form with one number everywhere."""
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, number)
    if isinstance(value, dict):
        return {key: filled(one, number) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, number) for one in value]
    return type(value)(number) if isinstance(value, (bool, int, float)) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_cannot_pass(name):
    inputs, right = asked(name)
    assert not any(is_record(output) for output in right)
    for number in (0, 1):
        if any(not equal(filled(output, number), filled(output, 1 - number), 0) for output in right):  # there are numbers in it
            assert not passes(name, [filled(output, number) for output in right])
    assert not passes(name, [None] * len(inputs))
    for constant in (None, 0, "", [], torch.zeros(3)):
        assert not passes(name, answer(name, lambda *a, constant=constant, **given: constant, inputs))
    if any(not equal(output, right[0], 0) for output in right):  # else what is judged is a list of properties, all of them True
        assert not passes(name, [right[0]] * len(inputs))
        assert not passes(name, [right[-1]] * len(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_returning_an_argument_cannot_pass(name):
    inputs, _ = asked(name)
    for argument in inputs[0]:
        outputs = answer(name, lambda *a, argument=argument, **given: given.get(argument, a[0] if a else None), inputs)
        assert not passes(name, outputs), argument


@pytest.mark.parametrize("name", NAMES)
def test_a_check_answers_quickly(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    check(name, EXERCISES[name].right)
    assert time.process_time() - started < 2 * max(1, torch.get_num_threads())  # seconds of work, whatever else is running


def test_numbers_are_in_order_without_gaps_in_every_chapter():
    fewest = {"00": (1, 1), "13": (19, 19)}  # chapter 13 has programs to mend, each a build of its own
    every = [*EXERCISES.values(), *exercises.BUILDS.values()]  # one row of numbers
    for chapter in exercises.CHAPTERS:
        numbers = sorted(int(one.number.split(".")[1]) for one in every if one.number.startswith(f"{int(chapter)}."))
        low, high = fewest.get(chapter, (6, 14))
        assert numbers == list(range(1, len(numbers) + 1)) and low <= len(numbers) <= high, chapter
    assert len(EXERCISES) >= 50


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_its_stub_and_its_check_in_its_chapter(name):
    chapter = int(EXERCISES[name].number.split(".")[0])
    path = next(path for path in SOLUTIONS.glob(f"{chapter:02}_*.ipynb") if "report" not in path.name)
    cells = {cell.get("id"): cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    answer_cell, check_cell = "".join(cells[name]["source"]), "".join(cells[f"check-{name}"]["source"])
    assert re.search(rf"^(def|class) {name}\b", answer_cell, re.MULTILINE) and "### BEGIN SOLUTION" in answer_cell
    assert f'check("{name}", {name})' in check_cell
    assert cells[name]["metadata"]["nbgrader"]["solution"] and cells[f"check-{name}"]["metadata"]["nbgrader"]["grade"]


# ----------------------------------------------------------------------------------------- how a check speaks


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stub_is_told_what_to_do(here):
    def stub(**arguments):
        raise NotImplementedError()

    with pytest.raises(NotYet, match=r"^7.1 discounted_returns: not written yet. Write it in the cell above, run that cell"):
        check("discounted_returns", stub)


def test_nothing_returned_is_said(here):
    with pytest.raises(NotYet, match="returned None; end every way through it with a return"):
        check("discounted_returns", lambda rewards, gamma: None)


def test_an_exception_is_shown_with_the_smallest_input(here):
    def broken(rewards, gamma):
        raise IndexError("index 3 is out of range")

    with pytest.raises(
        NotYet, match=r"raised IndexError: index 3 is out of range(.|\n)*rewards = \[0.0, 0.0, 1.0\]\n    gamma = 0.5$"
    ):
        check("discounted_returns", broken)


def test_an_unknown_mistake_shows_the_smallest_failing_input_and_both_outputs(here):
    def odd(rewards, gamma):
        right = EXERCISES["discounted_returns"].right(rewards, gamma)
        return right if len(rewards) < 4 else right + 1 / (2 + torch.arange(len(rewards)) ** 2 % 7)  # right on the small inputs

    inputs = draw("discounted_returns")
    verdict = judge("discounted_returns", inputs, answer("discounted_returns", odd, inputs))
    smallest = next(one for one in inputs if len(one["rewards"]) >= 4)
    assert not verdict.passed and verdict.mistake == ""
    assert verdict.arguments is smallest
    assert "4 of 4 values are off, by up to 0.5" in verdict.message
    assert "came out:" in verdict.message and "expected:" in verdict.message


def test_both_outputs_are_shown_alike(here):
    found = exercises.verdict("packed_mask", lambda lengths, size: (torch.zeros(size, size).bool(), torch.zeros(size).long()))
    came, expected = found.message.splitlines()[-2:]
    assert came.startswith("came out: ([[False") and expected.startswith("expected: ([[True")


def test_a_search_that_takes_long_says_so_once(here, monkeypatch, capsys):
    wrong, slow = (lambda rewards, gamma: rewards + 1), (lambda rewards, gamma: time.sleep(0.3) or rewards)
    check("discounted_returns", EXERCISES["discounted_returns"].right)
    monkeypatch.setattr(EXERCISES["discounted_returns"], "mistakes", {"slow": [slow]})
    monkeypatch.setattr(verdicts, "SILENT", 0.1)
    with pytest.raises(NotYet):
        check("discounted_returns", wrong)
    assert capsys.readouterr().out.count("not right yet; looking for the likely cause ...") == 1
    monkeypatch.setattr(verdicts, "SILENT", 30.0)
    with pytest.raises(NotYet):
        check("discounted_returns", wrong)
    check("discounted_returns", EXERCISES["discounted_returns"].right)
    assert "looking" not in capsys.readouterr().out


def test_a_wrong_shape_is_named(here):
    with pytest.raises(NotYet, match=r"the shape is \(3, 1\), it should be \(3,\)"):
        check("discounted_returns", lambda rewards, gamma: rewards[:, None] + gamma)


def test_writing_into_an_argument_is_refused(here):
    def in_place(rewards, gamma):
        right = EXERCISES["discounted_returns"].right(rewards, gamma)
        rewards[:] = right
        return right

    with pytest.raises(NotYet, match="changed its argument rewards in place; make a new tensor instead"):
        check("discounted_returns", in_place)


def test_tensors_of_a_list_that_are_written_into_are_refused_with_the_way_out(here):
    def in_place(gradients, max_norm):
        new, norm = EXERCISES["clip_gradient"].right(gradients, max_norm)
        for gradient, scaled in zip(gradients, new):
            gradient[:] = scaled
        return list(gradients), norm

    with pytest.raises(NotYet, match="argument gradients in place: what is in it is other after the call; make a new list of"):
        check("clip_gradient", in_place)


def test_arguments_of_other_names_are_told_to_keep_those_of_the_stub(here):
    def discounted_returns(r, discount):
        return EXERCISES["discounted_returns"].right(r, discount)

    with pytest.raises(NotYet, match=r"unexpected keyword argument 'rewards': the check calls it with the names that the stub"):
        check("discounted_returns", discounted_returns)


def test_an_infinity_is_named(here):
    def infinite(rewards, gamma):
        return EXERCISES["discounted_returns"].right(rewards, gamma) / 0.0

    with pytest.raises(NotYet, match="infinity or a NaN"):
        check("discounted_returns", infinite)


def test_an_unknown_exercise_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no exercise 'nothing'(.*)gae"):
        check("nothing", print)


def test_the_message_is_all_that_a_notebook_shows():
    assert NotYet("7.3 gae: wrong")._render_traceback_() == ["✗ 7.3 gae: wrong"]


def test_a_picture_is_drawn_for_a_wrong_output_and_odd_outputs_do_no_harm(here, monkeypatch):
    drawn = []
    monkeypatch.setattr("IPython.display.display", drawn.append)
    right = EXERCISES["gae"].right
    with pytest.raises(NotYet):
        check("gae", lambda **given: tuple(part * 2 for part in right(**given)))
    assert [type(one).__name__ for one in drawn] == ["Figure"]
    with pytest.raises(NotYet):
        check("gae", lambda **given: "nothing like it")
    assert len(drawn) == 1


# ----------------------------------------------------------------------------------------- edges that a draw has to have


def up_to_a_hundred(rewards, gamma):
    return torch.stack([sum(gamma**k * r for k, r in enumerate(rewards[t : t + 100])) for t in range(len(rewards))])


def first_row_for_all(rewards, values, gamma, lam, mask):
    steps = int(mask[0].sum())
    some = [part[:, :steps] for part in (rewards, values)]
    return tuple(F.pad(part, (0, mask.shape[1] - steps)) for part in find("gae").right(*some, gamma, lam, mask[:, :steps]))


def by_highest_so_far(words, counts):
    total, best, most = {}, None, 0
    for word, count in zip(words, counts):
        for pair in itertools.pairwise(word):
            total[pair] = total.get(pair, 0) + count
            if total[pair] > most:
                best, most = pair, total[pair]
    return best


EDGES = {  # what only one input shows: {exercise: a wrong answer}
    "share_positive": lambda scores, limit: (scores > limit + 1e-3).double().mean().item(),
    "most_frequent_pair": by_highest_so_far,
    "windows": lambda tokens, context: find("windows").right(tokens.to(torch.int16).long(), context),
    "causal_mask": lambda T, S: torch.ones(64, 64, dtype=torch.bool).tril()[S - T : S, :S],
    "with_temperature": lambda logits, temperature: (logits / max(temperature, 0.1)).log_softmax(-1),
    "top_k_filter": lambda logits, k: logits.masked_fill(find("top_k_filter").right(logits.softmax(-1), k).isinf(), -math.inf),
    "draw_token": lambda logprobs, uniforms: find("draw_token").right(logprobs, uniforms.clamp(min=1e-6)),
    "until_end": lambda tokens, end_token: (x := (tokens == end_token).byte()).cumsum(1, dtype=torch.uint8) - x == 0,
    "majority_vote": lambda votes: [
        label if one.count(label) >= len(one) / 2 else "neutral" for one, label in zip(votes, find("majority_vote").right(votes))
    ],
    "discounted_returns": up_to_a_hundred,
    "gae": first_row_for_all,
    "with_baseline": lambda worth, mask, baseline: find("with_baseline").right(
        worth, mask, baseline if baseline.any() else torch.where(mask, worth, 0).sum(0) / mask.sum(0).clamp(min=1)
    ),
    "sequence_ratio": lambda logprobs, old_logprobs, mask: (
        torch.where(mask, logprobs - old_logprobs.detach(), 0).exp().prod(1) ** (1 / mask.sum(1))
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_what_is_wrong_at_one_edge_alone_is_refused(name):
    inputs, exercise = draw(name), find(name)
    pairs = zip(answer(name, EDGES[name], inputs), (frame.right_answer(exercise, one) for one in inputs))
    assert 1 <= sum(not equal(got, right, exercise.tolerance) for got, right in pairs) <= 2
