"""Relations of what came out to what was expected: claimed where they were made, and nowhere else."""

import functools
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_lib import exercises
from rlhf_lib.exercises import EXERCISES, Exercise, changes, draw, equal, judge, relations, whatif
from rlhf_lib.exercises.frame import one_answer, right_answer
from rlhf_lib.exercises.plain import odd, plain, raised

exercises.load()
QUICK = ["causal_mask", "top_k_filter", "discounted_returns", "split_words", "confusion", "majority_vote", "best_of_n_kl"]
quick = settings(max_examples=10, deadline=None)


@pytest.fixture(autouse=True)
def no_limit_of_time(monkeypatch):
    monkeypatch.setattr(relations, "SECONDS", 200.0)


def made(right, **others):
    """An Exercise that is not among the course's."""
    exercise = Exercise("0.1", "made for a test", **{"draw": None, "mistakes": {}, "right": right, **others})
    del EXERCISES["made for a test"]
    return exercise


def said(exercise, function, inputs):
    """What is said of a wrong function."""
    expected = [right_answer(exercise, arguments, tuples=True) for arguments in inputs]
    outputs = [one_answer(exercise, function, arguments, trusted=True) for arguments in inputs]
    return relations.find(exercise, inputs, outputs, expected)


def tables(seed, count=6, rows=3, steps=4):
    """Inputs: a tensor x, a mask with the first place of each row in it, and a number."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        x = torch.randn(rows, steps + number % 2, generator=generator)
        mask = torch.rand(x.shape, generator=generator) < 0.6
        mask[:, 0] = True
        yield {"x": x, "mask": mask, "scale": float(torch.rand((), generator=generator) + 1.5)}


def weighed(x, mask, scale):
    """The right answer of a made-up exercise; its gradient is not asked for."""
    return torch.where(mask, (x * scale).cumsum(-1) + 0.3 * x**2, 0)


# ----------------------------------------------------------------------------------------- the right answer after a change


BY_HAND = [  # (exercise, a wrong answer as a learner may write it, what has to be said)
    ("discounted_returns", lambda right, rewards, gamma: -right(rewards, gamma), "a sign is turned"),
    ("discounted_returns", lambda right, rewards, gamma: right(rewards, 1 - gamma), "1 - gamma is used in place of gamma"),
    ("discounted_returns", lambda right, rewards, gamma: right(rewards, 0.5), "gamma is 0.5 whatever is given"),
    ("discounted_returns", lambda right, rewards, gamma: right(rewards, gamma)[:-1], "lacks its last value"),
    ("discounted_returns", lambda right, rewards, gamma: right(rewards.abs(), gamma), "absolute value of rewards is taken first"),
    ("causal_mask", lambda right, T, S: right(T, S).roll(1, -1), "rolled by one place to the right"),
    ("top_k_filter", lambda right, logits, k: right(logits, k + 1), "k is one too large"),
    ("top_k_filter", lambda right, logits, k: right(logits, 2 * k), "2 * k is used in place of k"),
    ("split_words", lambda right, text: right(text.lower()), "small letters"),
    ("split_words", lambda right, text: right(text)[::-1], "in reverse"),
    ("confusion", lambda right, first, second: right(first, second[1:] + second[:1]), ""),  # nobody does that
    ("best_of_n_kl", lambda right, n: right(n) / 0.6931471805599453, "divided by ln 2"),
    ("masked_whiten", lambda right, x, mask: right(x, mask) + 0.25, "too large by 0.25, on all inputs"),
    ("masked_whiten", lambda right, x, mask: right(x, mask) * 1.7, "1.7 times what is expected, wherever it is wrong"),
]  # fmt: skip


@pytest.mark.parametrize("name, wrong, words", BY_HAND)
@pytest.mark.parametrize("seed", [0, 5])
def test_a_wrong_answer_to_an_exercise_of_the_course_is_told_in_words(name, wrong, words, seed):
    exercise = EXERCISES[name]
    sentence = said(exercise, functools.partial(wrong, exercise.right), draw(name, seed))
    assert words in sentence if words else sentence == ""


@functools.cache
def candidates_of_weighed(seed):
    """The candidates of the made-up exercise, its inputs, and others that are fresh."""
    exercise, inputs = made(weighed), list(tables(seed))
    return exercise, list(whatif.candidates(exercise, inputs, range(len(inputs)))), inputs, list(tables(seed + 50_000))


def makes_the_same(exercise, one, other, inputs, tolerance=1e-4):
    return all(
        equal(*(whatif.answer_of(exercise, function, arguments) for function in (one, other)), tolerance) for arguments in inputs
    )


@given(st.integers(0, 3), st.integers(0, 10_000))
@example(0, 1701)  # rounded to 4 digits: to the check wrong, and nearly right
@settings(max_examples=10, deadline=None)
def test_what_is_claimed_of_a_candidate_is_true_on_fresh_inputs_too(seed, number):
    exercise, candidates, inputs, fresh = candidates_of_weighed(seed)
    one = candidates[number % len(candidates)]
    sentence = said(exercise, one.function, inputs)
    told = [other for other in candidates if other.sentence in sentence.split("; or: ")]
    if makes_the_same(exercise, one.function, exercise.right, inputs, exercise.tolerance):
        assert sentence == ""
    elif told:
        assert any(makes_the_same(exercise, one.function, other.function, fresh) for other in told)
    else:
        assert "; or: " not in sentence and not sentence.startswith("two things")


def test_most_candidates_are_told_when_they_are_made():
    exercise, candidates, inputs, _ = candidates_of_weighed(0)
    named = []
    for one in candidates[::23]:
        outputs = [whatif.answer_of(exercise, one.function, arguments) for arguments in inputs]
        if not any(isinstance(output, dict) for output in outputs):  # records of exceptions, which are told as they are
            named.append(one.sentence in said(exercise, one.function, inputs))
    assert len(named) >= 14 and sum(named) >= 0.7 * len(named)


def test_a_change_that_changes_nothing_of_some_inputs_is_found_too():
    exercise = made(lambda x: x[::2] * 1.5)
    inputs = [{"x": x} for x in torch.tensor([[1.0, 2, 3, 0], [-1, 2, 3, 1], [4, 0, -2, 5], [2, 0, 1, 7]])]
    sentence = (
        "the absolute value of x is taken first; or: what comes back is the absolute value of what is expected: a sign is lost"
    )
    assert set(said(exercise, lambda x: x.abs()[::2] * 1.5, inputs).split("; or: ")) == set(sentence.split("; or: "))


OF_TUPLES = [  # (exercise, what is done to each value y, x being its first argument, what has to be said)
    ("gae", lambda y, x: -y, "each of the pair is minus what is expected"),
    ("gae", lambda y, x: len(x) * y, "each value is the number of rows of rewards times what is expected"),
    ("gae", lambda y, x: y.T, "each of the pair is transposed"),
    ("gae", lambda y, x: y.roll(1, -1), "each of the pair is rolled by one place to the right"),
    ("attention", lambda y, x: len(x) * y, "each value is the size of the first dimension of q times what is expected"),
    ("attention", lambda y, x: y.mT, "each of the pair is transposed"),
    ("attention", lambda y, x: y.roll(1, -1), "each of the pair is rolled by one place to the right"),
    ("kl_estimate", lambda y, x: -y, "each of the 3 values is minus what is expected"),
    ("with_baseline", lambda y, x: len(x) * y, "each value is the number of rows of worth times what is expected"),
    ("with_baseline", lambda y, x: y.roll(1, -1), "each of the pair is rolled by one place to the right"),
]


@pytest.mark.parametrize("name, change, words", OF_TUPLES)
def test_what_holds_of_all_values_of_a_tuple_is_told_though_an_input_of_one_row_or_column_shows_nothing(name, change, words):
    exercise = EXERCISES[name]

    def wrong(*given, **named):
        return tuple(change(y, [*given, *named.values()][0]) for y in exercise.right(*given, **named))

    assert said(exercise, wrong, draw(name)).startswith(words)


@pytest.mark.parametrize("which, word", [(0, "first"), (1, "second")])
def test_what_holds_of_one_value_of_a_pair_is_not_told_of_both(which, word):
    right = EXERCISES["gae"].right
    turned = lambda **given: tuple(-y if place == which else y for place, y in enumerate(right(**given)))  # noqa: E731
    sentence = said(EXERCISES["gae"], turned, draw("gae"))
    assert sentence == f"the {word} of the pair is minus what is expected: a sign is turned"
    zeros = made(lambda x: (x, 0 * x) if which == 0 else (0 * x, x))
    inputs = [{"x": one["x"]} for one in tables(0)]
    assert said(zeros, lambda x: tuple(-y for y in zeros.right(x)), inputs).startswith(f"the {word} of the pair is minus")


# ----------------------------------------------------------------------------------------- right answers, and noise


@pytest.mark.parametrize("name", QUICK)
def test_right_answers_have_no_relation_and_rounding_makes_none(name):
    exercise, inputs = EXERCISES[name], draw(name, 2)
    assert said(exercise, exercise.right, inputs) == ""

    def rounded(*given, **named):
        output = exercise.right(*given, **named)
        return output * (1 + 1e-7) if isinstance(output, torch.Tensor) and output.is_floating_point() else output

    assert said(exercise, rounded, inputs) == ""


def noise(value, generator):
    """An output of the form of `value`, with other values."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            return torch.rand(value.shape, generator=generator) < 0.5
        if not value.is_floating_point():
            return torch.randint(-50, 50, value.shape, generator=generator)
        return torch.randn(value.shape, generator=generator)
    if isinstance(value, (list, tuple)):
        return [noise(one, generator) for one in value]
    if isinstance(value, dict):
        return {key: noise(one, generator) for key, one in value.items()}
    if isinstance(value, str):
        return "".join(chr(97 + int(torch.randint(26, (), generator=generator))) for _ in range(len(value) + 3))
    return noise(torch.tensor(value), generator).item()


@given(st.sampled_from([*QUICK, "masked_whiten", "log_reward", "cohen_kappa", "encode_words"]), st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_noise_claims_nothing(name, seed):
    exercise, inputs, generator = EXERCISES[name], draw(name), torch.Generator().manual_seed(seed)
    expected = [right_answer(exercise, arguments, tuples=True) for arguments in inputs]
    outputs = [noise(one, generator) for one in expected]
    sentence = relations.find(exercise, inputs, outputs, expected)
    assert sentence == "" or sentence.startswith("right on ")  # a single True or word may be met by chance


# ----------------------------------------------------------------------------------------- equally good explanations


def candidate(rank, family, sentence):
    return whatif.Candidate(rank, family, sentence, None)


def test_of_several_explanations_the_simplest_is_told_or_two_or_none():
    a, b, c = candidate(1, "a", "A"), candidate(1, "b", "B"), candidate(1, "c", "C")
    assert relations.claimed([a]) == "A"
    assert relations.claimed([a, b]) == "A; or: B"
    assert relations.claimed([a, b, c]) == ""
    assert relations.claimed([a, b, c, candidate(0, "d", "D")]) == "D"
    assert relations.claimed([a, candidate(1, "a", "A in other words")]) == "A"  # one family says one thing
    assert relations.claimed([a, candidate(1, "b", "A")]) == "A"


def weighed_by(x, weight, *, sign=1, power=1, offset=0):
    return sign * weight**power * x + offset


def test_two_mistakes_of_which_one_hides_the_other_are_not_claimed_of_one_pair():
    table = {"no weight": {"power": 0}, "turned": {"sign": -1}, "gone": {"sign": 0}, "one more": {"offset": 1.0}}
    exercise = made(lambda x, weight: weight * x, formula=weighed_by, mistakes=table)
    inputs = [{"x": one["x"], "weight": one["scale"]} for one in tables(0)]
    assert said(exercise, lambda x, weight: 1.0 - weight * x, inputs) in (  # which a change of the result makes too
        "what comes back is 1 minus what is expected",
        "two things at once. Turned; and: one more",
    )
    assert said(exercise, lambda x, weight: 1.0 - x, inputs) == ""  # three at once are not looked for
    three = [candidate(3, text, text) for text in ("two things at once. Gone; and: a", "two things at once. Gone; and: b")]
    assert relations.claimed(three) == f"{three[0].sentence}; or: {three[1].sentence}"


def shares(x, mask, *, turn=False, hidden=-torch.inf):
    """A softmax over the places where `mask` is True; with `hidden` in the others."""
    return x.masked_fill(mask if turn else ~mask, hidden).softmax(-1)


TURNED, WEAK = "the mask is turned round", "hidden scores are not low enough"


def test_a_second_mistake_that_is_none_by_itself_is_not_told_beside_the_first():
    """-1e9 is as good as -inf, but in a row where all is hidden."""
    table = {TURNED: {"turn": True}, WEAK: {"hidden": -2.0}, "scores are left as they are": lambda x, mask: x}
    exercise = made(shares, formula=shares, mistakes=table)
    inputs = [{"x": one["x"], "mask": one["mask"]} for one in tables(0)]
    inputs[0]["mask"] = torch.ones_like(inputs[0]["mask"])
    assert said(exercise, functools.partial(shares, turn=True, hidden=-1e9), inputs) == TURNED
    both = functools.partial(shares, turn=True, hidden=-2.0)
    assert said(exercise, both, inputs) == f"two things at once. The mask is turned round; and: {WEAK}"
    other = lambda x, mask: torch.where(mask.all(-1, keepdim=True), x, shares(x, ~mask) + 0.1)  # noqa: E731
    assert TURNED not in said(exercise, other, inputs)
    noise = lambda x, mask: torch.where(mask.all(-1, keepdim=True), 0.3, shares(x, mask))  # noqa: E731
    assert TURNED not in said(exercise, noise, inputs)  # wrong just where TURNED makes NaN


def test_what_a_mistake_makes_nan_is_filled_with_what_a_learner_has_there():
    nan = float("nan")
    made = [torch.tensor([1.0, nan]), {"a": nan, "b": 2.0}, "x", torch.tensor([1, 2])]
    got = [torch.tensor([5.0, 6.0]), {"a": 7.0, "b": 8.0}, "y", torch.tensor([3, 4])]
    filled = relations.filled(made, got)
    assert filled[0].tolist() == [1.0, 6.0] and filled[1] == {"a": 7.0, "b": 2.0}
    assert filled[2] == "x" and filled[3].tolist() == [1, 2]
    assert relations.filled(torch.tensor([nan]), torch.tensor([1.0, 2.0])).isnan().all()  # of another shape
    assert relations.filled([1.0], [1.0, 2.0]) == [1.0] and relations.filled(torch.tensor(nan), None).isnan()


def test_wrong_values_that_chance_could_meet_do_not_count_as_a_change():
    assert relations.information(1.5, 1.0, 1e-5) == 3
    assert relations.information(2, 1, 1e-5) == 1
    assert relations.information(True, False, 1e-5) == 0.5
    assert relations.information("ab", "cd", 0) == 2 and relations.information("a", "c", 0) == 1
    assert relations.information(torch.tensor([1.5, 2.0, 7.0]), torch.tensor([1.0, 2.0, 3.0]), 1e-5) == 3 + 1
    assert relations.information({"a": [1.5, 2]}, {"a": [1.0, 2]}, 1e-5) == 3
    assert relations.information(1.0, 1.0, 1e-5) == 0
    doubled = made(lambda n: n + 1)
    assert said(doubled, lambda n: -(n + 1), [{"n": 1}, {"n": -1}]) == ""  # one whole number; the other one is 0
    assert "a sign is turned" in said(doubled, lambda n: -(n + 1), [{"n": 1}, {"n": 2}, {"n": 3}])


# ----------------------------------------------------------------------------------------- right values in another form


@pytest.mark.parametrize(
    "got, expected, words",
    [
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), "they come as a list: return a tensor"),
        ([[1.0], [2.0]], torch.tensor([1.0, 2.0]), "they come as a list: return a tensor"),
        ([2.5], 2.5, "they come as a list: return a number"),
        ("2.5", 2.5, "they come as text: return a number"),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), "they come as a NumPy array: return a tensor"),
        (range(3), [0, 1, 2], "they come as a range: return a list"),
        (torch.tensor([1, 2]), [1, 2], "they come as a tensor: return a list"),
        (torch.tensor([1, 2]), (1, 2), "they come as a tensor: return a pair"),
        (np.array([1.0, 2.0]), (1.0, 2.0), "they come as a NumPy array: return a pair"),
        (range(3), (0, 1, 2), "they come as a range: return a tuple of 3"),
        (torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]), "but with a dimension of size 1 too many"),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]]), "but with a dimension of size 1 too few"),
        (torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 2.0]]), "but with a dimension of size 1 elsewhere"),
        (torch.tensor([2.5]), 2.5, "but with a dimension of size 1 too many"),
        (torch.arange(4.0), torch.arange(4.0).reshape(2, 2), "but in another shape"),
        (torch.tensor([1.0, 0.0]), torch.tensor([True, False]), "they are numbers: return True and False"),
        (torch.tensor([True, False]), torch.tensor([1, 0]), "they are True and False: return numbers"),
        (1, True, "they are numbers: return True and False"),
        ({"a": [1.0], "b": 2}, {"a": torch.tensor([1.0]), "b": 2}, "'a': the values are right, but they come as a list"),
        ([1, [2.0]], (1, torch.tensor([2.0])), "they come as a list: return a tensor"),
    ],
)  # fmt: skip
def test_right_values_in_another_form_are_told(got, expected, words):
    got = plain(got)
    assert words in relations.form_of(got, expected, 1e-5)
    assert words in relations.find(made(print), [{}], [got], [expected])


@pytest.mark.parametrize(
    "got, expected",
    [
        ([1.0, 2.1], torch.tensor([1.0, 2.0])),
        ([1.0], torch.tensor([1.0, 2.0])),
        (["a"], torch.tensor([1.0])),
        ("a", 1.0),
        (None, 1.0),
        ([], torch.tensor([])),
        (torch.tensor([1j]), torch.tensor([1.0])),
        (torch.arange(4.0).reshape(2, 2).T, torch.arange(4.0).reshape(2, 2)),
        (torch.tensor([1.0, 0.5]), torch.tensor([True, False])),
        ({"a": [1.0], "b": 3}, {"a": torch.tensor([1.0]), "b": 2}),
        ([2, [2.0]], (1, torch.tensor([2.0]))),
        (odd("a generator"), [1]),
        ("a", "b"),
    ],
)
def test_wrong_values_are_of_no_form(got, expected):
    assert relations.form_of(got, expected, 1e-5) == ""


def test_a_form_is_claimed_only_if_it_is_the_same_on_all_wrong_inputs():
    x = torch.tensor([1.0, 2.0])
    find = functools.partial(relations.find, made(lambda n: x), [{"n": 1}, {"n": 2}])
    assert "come as a list" in find([[1.0, 2.0], x], [x, x])
    assert "come as a list" in find([[1.0, 2.0], [1.0, 2.0]], [x, x])
    assert find([[1.0, 2.0], x[None]], [x, x]) == ""


def test_missing_keys_are_told():
    assert "'b'" in relations.form_of({"a": 1}, {"a": 1, "b": 2}, 1e-5)


# ----------------------------------------------------------------------------------------- always the same


def test_a_constant_is_told_unless_it_is_what_is_expected():
    exercise, inputs = made(lambda n: n * n), [{"n": n} for n in (2, 3, 4)]
    assert said(exercise, lambda n: 4, inputs) == "this is always the same, 4, whatever is given"
    assert "always" not in said(exercise, lambda n: 4 if n < 4 else 5, inputs)
    assert "always" not in said(exercise, lambda n: 4, inputs[:2])
    assert "always" not in said(made(lambda n: 7), lambda n: 4, inputs)
    assert said(exercise, lambda n: raised("ValueError"), inputs) == ""  # an exception is told as it is


# ----------------------------------------------------------------------------------------- parts, values, places


def test_an_answer_that_was_kept_from_an_earlier_call_is_told():
    exercise, inputs, kept = made(weighed), [*tables(0, 4, 2, 3)], {}

    def by_shape(x, mask, scale):
        return kept.setdefault(x.shape, weighed(x, mask, scale))

    sentence = said(exercise, by_shape, inputs)
    assert "right for an earlier call" in sentence
    kept.clear()
    expected = [weighed(**arguments) for arguments in inputs]
    later = [expected[2], *expected[1:]]  # what a later call should give was not kept
    assert "earlier call" not in relations.find(exercise, inputs, later, expected)
    few = made(lambda x: x % 3)  # by chance
    assert "earlier call" not in said(few, lambda x: (x + 1) % 3 if x > 1 else x % 3, [{"x": x} for x in range(6)])


def test_of_several_parts_the_right_ones_are_told_and_what_holds_of_the_others():
    generator = torch.Generator().manual_seed(0)
    right = [(torch.randn(4, generator=generator), torch.randn(5, generator=generator)) for _ in range(3)]
    other = [torch.randn(5, generator=generator) for _ in right]
    find = functools.partial(relations.by_parts, made(print), [{}] * 3, expected=right, wrong=[0, 1, 2])
    assert find(outputs=[[a, b * 3] for a, b in right]) == (
        "the first value is right; the second value is 3.0 times what is expected, on all inputs"
    )
    assert find(outputs=[[a + 2, b * 3] for a, b in right]) == (
        "the first value is too large by 2.0, on all inputs; the second value is 3.0 times what is expected, on all inputs"
    )
    assert find(outputs=[[a, c] for (a, _), c in zip(right, other)]) == "the first value is right; only the second value is wrong"
    assert find(outputs=[[c[:4], c] for c in other]) == ""
    named = [{"loss": a, "share": b} for a, b in right]
    assert relations.by_parts(made(print), [{}] * 3, [{**one, "share": one["share"] - 1} for one in named], named, [0, 1, 2]) == (
        "'loss' is right; 'share' is too small by 1.0, on all inputs"
    )


def test_the_place_of_wrong_values_is_told():
    exercise, inputs = made(weighed), list(tables(3))

    def padding_too(x, mask, scale):
        return torch.where(mask, weighed(x, mask, scale), torch.tanh(7 * x) + 5 + x.sum())

    assert said(exercise, padding_too, inputs) == "what comes back is wrong only where mask is False"


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda words: [one.upper() for one in words], ""),
        (lambda words: words[::-1], "what comes back has the right values in another order"),
        (lambda words: [], "what comes back is empty wherever it is wrong"),
        (lambda words: words[:-2], "what comes back stops too early: its end is missing"),
        (lambda words: words[2:], "what comes back begins too late: its beginning is missing"),
        (lambda words: [*words, "a"], "what comes back goes on too long: its end is too much"),
        (lambda words: ["a", *words], "what comes back begins too early: its beginning is too much"),
        (lambda words: [words[0], *words[2:]], "what comes back lacks some values, the others are right"),
        (
            lambda words: [words[0], "a", *words[1:]],
            "what comes back has values that should not be there, besides the right ones",
        ),
        (lambda words: ["a", *words[:-1]], ""),
    ],
)
def test_lists_have_relations_of_their_own(wrong, words):
    lists = [["x", "y", "z", "x"], ["u", "v", "w"], ["b", "c", "d", "e", "f"]]
    assert relations.of_texts("what comes back", [(wrong(one), one, {}) for one in lists]) == words
    assert relations.of_texts("what comes back", [(wrong(lists[0]), lists[0], {})]) == ""  # one is chance


@pytest.mark.parametrize(
    "wrong, words",
    [
        (str.lower, "differs in capital letters only"),
        (lambda text: text.replace(" ", "\n"), "differs in white space only"),
        (lambda text: text[:-1], "stops too early"),
        (lambda text: text[1:], "begins too late"),
        (lambda text: text + "!", "goes on too long"),
        (lambda text: "!" + text, "begins too early"),
        (lambda text: text.replace("o", "0"), ""),
    ],
)
def test_texts_have_relations_of_their_own(wrong, words):
    texts = ["Come not between", "the Dragon or his", "Wrath, O Lord"]
    sentence = relations.of_texts("it", [(wrong(one), one, {}) for one in texts])
    assert words in sentence if words else sentence == ""


@given(st.lists(st.integers(0, 3), max_size=6), st.data())
@quick
def test_a_part_of_a_list_is_one_with_values_left_out(whole, data):
    kept = [one for one in whole if data.draw(st.booleans())]
    assert relations.is_part(kept, whole)
    assert not relations.is_part([*whole, 4], whole) and not relations.is_part([5, *kept], whole)
    assert relations.is_part([2, 1], [1, 2, 1]) and not relations.is_part([2, 1], [1, 2])


# ----------------------------------------------------------------------------------------- inputs


def test_the_inputs_on_which_it_goes_wrong_are_told():
    exercise = made(lambda numbers: sum(numbers) / len(numbers) + 0.123 * numbers[0])
    inputs = [{"numbers": numbers} for numbers in ([1, 2], [2, 5, 4], [3, 0, 1], [7, 6, 2, 9], [0, 8], [5, 6])]

    def wrong(numbers):
        return exercise.right(numbers) if 0 not in numbers else 3.3 * len(numbers) ** 0.5 + sum(numbers) ** 2

    assert said(exercise, wrong, inputs) == "right on 4 of 6 inputs, and wrong on just those where there is a 0 in numbers"
    assert said(exercise, wrong, inputs[:4]) == ""  # too few inputs to say that it is the 0

    def elsewhere(numbers):
        return exercise.right(numbers) if numbers not in ([2, 5, 4], [0, 8]) else 3.3 * sum(numbers) ** 2

    assert said(exercise, elsewhere, inputs) == ""


def test_a_limit_that_is_written_into_an_answer_shows_by_what_is_longer():
    exercise = made(lambda numbers: float(sum(one**2 for one in numbers)))
    inputs = [{"numbers": [*range(count)]} for count in (2, 4, 5, 8, 200)]
    sentence = said(exercise, lambda numbers: float(sum(one**2 for one in numbers[:64])), inputs)
    assert sentence == (
        "right on 4 of 5 inputs, and wrong on just those where numbers is by far longer than in the others (200 values and more, "
        "8 at most)"
    )


# ----------------------------------------------------------------------------------------- how long the search may be


def test_no_exercise_needs_more_tries_than_there_are():
    for name in sorted(EXERCISES):
        inputs = draw(name)
        assert 2 * sum(1 for _ in whatif.candidates(EXERCISES[name], inputs, [0])) < relations.TRIES, name


def endless(function):
    def candidates(exercise, inputs, wrong):
        while True:
            yield whatif.Candidate(0, "endless", "endless", function)

    return candidates


def test_a_search_ends_after_its_tries_and_other_relations_are_told_then(monkeypatch):
    tried = []

    def counted(**given):
        tried.append(given)
        return None

    monkeypatch.setattr(relations, "TRIES", 40)
    monkeypatch.setattr(whatif, "candidates", endless(counted))
    exercise, inputs = made(weighed), list(tables(0))
    shifted = lambda **given: torch.where(given["mask"], weighed(**given), 0) * 1.7 + 0.4  # noqa: E731
    assert said(exercise, shifted, inputs) == "what comes back is 1.7 times what is expected, plus 0.4, on all inputs"
    assert len(tried) == 41


def test_what_a_search_has_not_finished_is_not_claimed(monkeypatch):
    exercise, inputs = made(weighed), list(tables(0))
    turned = lambda **given: -weighed(**given)  # noqa: E731
    assert said(exercise, turned, inputs) == "what comes back is minus what is expected: a sign is turned"
    monkeypatch.setattr(relations, "TRIES", 20)  # after this candidate, and before the last
    assert "a sign is turned" in said(exercise, turned, inputs)  # by the relation of all values, which is complete
    assert said(exercise, lambda **given: weighed(**given).exp(), inputs) == ""


def test_a_slow_machine_says_the_same(monkeypatch):
    exercise, inputs = EXERCISES["discounted_returns"], draw("discounted_returns")
    delays, answer_of = iter([0.3]), whatif.answer_of

    def slowly(*given):
        time.sleep(next(delays, 0))
        return answer_of(*given)

    wrong = lambda rewards, gamma: exercise.right(rewards.abs(), gamma)  # noqa: E731
    before = said(exercise, wrong, inputs)
    monkeypatch.setattr(whatif, "answer_of", slowly)
    assert said(exercise, wrong, inputs) == before != ""


def test_a_search_that_hangs_is_stopped_and_other_relations_are_told(monkeypatch):
    monkeypatch.setattr(relations, "SECONDS", 0.1)
    monkeypatch.setattr(whatif, "candidates", endless(lambda **given: None))
    monkeypatch.setattr(relations, "TRIES", 10**9)
    sentence = said(made(weighed), lambda **given: -weighed(**given), list(tables(0)))
    assert sentence == "what comes back is -1.0 times what is expected, on all inputs: a sign is turned"


# ----------------------------------------------------------------------------------------- in a verdict


def test_a_relation_is_told_in_the_verdict_after_the_table_found_nothing():
    inputs = draw("discounted_returns")
    right = EXERCISES["discounted_returns"].right
    outputs = [right(**arguments) * 1.7 for arguments in inputs]
    verdict = judge("discounted_returns", inputs, outputs)
    assert not verdict.passed and verdict.mistake == "what comes back is 1.7 times what is expected, on all inputs"
    assert verdict.message.startswith(f"7.1 discounted_returns: {verdict.mistake}. The smallest input that fails:")


def test_an_answer_that_raised_somewhere_has_no_relation():
    exercise, inputs = made(weighed), list(tables(0))
    outputs = [-weighed(**arguments) for arguments in inputs]
    expected = [-one for one in outputs]
    assert relations.find(exercise, inputs, outputs, expected) != ""
    assert relations.find(exercise, inputs, [*outputs[:-1], raised("ValueError")], expected) == ""


def test_the_tables_of_changes_are_what_a_sentence_comes_from():
    """A row that is added to a table is found without more."""
    exercise, inputs = made(weighed), list(tables(0))
    row = ("{x} is put through a cube first", lambda x: x**3)
    wrong = lambda x, mask, scale: weighed(x**3, mask, scale)  # noqa: E731
    assert "cube" not in said(exercise, wrong, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "FLOAT", [*changes.FLOAT, row])
        assert said(exercise, wrong, inputs) == "x is put through a cube first"
