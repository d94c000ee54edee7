import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import comparisons, devices, pairwise, talk, widgets
from rlhf_lib.comparisons import ComparisonError
from rlhf_lib.files import RunError
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.pipelines import inputs
from rlhf_lib.trainers import preference

from .helpers import CHAT, Speaker, chat_model, lines, press_enter, seen, typed

PROMPTS = [f"why is the sky blue, {number}?" for number in range(40)]
KNOWN = comparisons.read_prompts()
LEARN, HELD_OUT = comparisons.split(KNOWN)


def sides_of(*names, texts=None):
    """{name: a model whose answers tell which of its answers it is, and no one else's}; `texts` where all say the same."""
    return {
        name: (Speaker(*(texts or [f"{word} {number}" for number in range(200)]), context=2000), CHAT)
        for name, word in zip(names, ("rose", "thorn", "leaf"))
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, speakers):
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    return tmp_path


def laid_out(text):
    return CHAT.tokenizer.decode(CHAT.prompt([{"role": "user", "content": text}]))


def read(folder, name="arena.jsonl"):
    return comparisons.read_comparisons(folder / name, KNOWN)


def play(session, count, verdict="first"):
    """`count` questions with the same verdict, or one that depends on the Question."""
    for _ in range(count):
        session.ask()
        session.vote(verdict(session.question) if callable(verdict) else verdict)


# ----------------------------------------------------------------------------------------- votes


def test_a_vote_is_a_line_of_comparisons(folder):
    session = widgets.Arena(sides_of("sft", "start"), reader="r1", seed=0)
    session.ask()
    assert not (folder / "arena.jsonl").exists()
    question = session.question
    assert session.vote("second", "kind") == ""
    known = next(prompt for prompt in LEARN if prompt.prompt == question.prompt)
    assert lines(folder / "arena.jsonl") == [{
        "id": known.id, "first": question.answers[0].text, "second": question.answers[1].text, "verdict": "second",
        "reader": "r1", "reason": "kind", "first_from": question.names[0], "second_from": question.names[1],
    }]  # fmt: skip
    (vote,) = read(folder)
    assert vote.split == "train" and vote.prompt == question.prompt and vote.chosen == question.answers[1].text
    fields = set(json.loads((folder / "arena.jsonl").read_text()))
    assert fields <= {field for line in lines(comparisons.COMPARISONS) for field in line}


VOTES = st.tuples(st.sampled_from(["first", "tie", "second"]), st.sampled_from(["", "answers", "ends"]))


@settings(max_examples=12, deadline=None)
@given(prompt=st.text(min_size=1).filter(str.strip), verdicts=st.lists(VOTES, min_size=1, max_size=3), cut=st.booleans())
def test_every_vote_is_read_back_as_it_was_given(tmp_path_factory, prompt, verdicts, cut):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("votes")
        patch.setenv("RLHF_HOME", str(folder))
        session = widgets.Arena({"a": (Speaker(*"vwxyz", cut=cut, context=10**5), CHAT),
                                 "b": (Speaker(*"12345", context=10**5), CHAT)}, PROMPTS, seed=1)  # fmt: skip
        given_ = []
        for verdict, reason in verdicts:
            session.ask(prompt)
            session.vote(verdict, reason)
            given_.append((session.question, verdict, reason))
        found = read(folder)
    assert len(found) == len(given_)
    for vote, (question, verdict, reason) in zip(found, given_):
        assert (vote.prompt, vote.first, vote.second) == (prompt.strip(), *(answer.text for answer in question.answers))
        assert (vote.verdict, vote.reason, vote.reader) == (verdict, reason, "me")
        assert (vote.first_from, vote.second_from) == question.names
        assert (vote.first_cut, vote.second_cut) == tuple(name == "a" and cut for name in question.names)


def test_a_prompt_of_the_project_keeps_its_id_however_it_is_given(folder):
    """Else a held-out prompt that a person types could be learned from."""
    session = widgets.Arena(sides_of("a", "b"), [f" {HELD_OUT[0].prompt}\n"], seed=0)
    session.ask()
    session.vote("first")
    session.ask(f"  {HELD_OUT[1].prompt} ")
    session.vote("first")
    session.ask("my own")
    session.vote("first")
    assert [line.get("id") for line in lines(folder / "arena.jsonl")] == [HELD_OUT[0].id, HELD_OUT[1].id, None]
    assert [vote.split for vote in read(folder)] == ["held_out", "held_out", None]
    assert comparisons.split(read(folder)[:2])[0] == []


def test_only_prompts_to_learn_from_are_drawn_and_each_once_before_any_comes_again():
    session = widgets.Arena(sides_of("a", "b"), seed=0)
    play(session, 12)
    drawn = [vote.prompt for vote in session.votes()]
    assert set(drawn) <= {prompt.prompt for prompt in LEARN} and len(set(drawn)) == 12
    small = widgets.Arena(sides_of("a", "b"), PROMPTS[:3], "small.jsonl", seed=0)
    play(small, 3)
    assert sorted(vote.prompt for vote in small.votes()) == PROMPTS[:3]
    play(small, 2)
    assert len(small.votes()) == 5


def test_sides_and_places_are_drawn_from_the_seed():
    def names(seed, reader="me"):
        session = widgets.Arena(sides_of("a", "b", "c"), PROMPTS, "drawn.jsonl", reader, seed=seed)
        found = []
        for _ in range(60):
            session.ask()
            found.append((session.question.prompt, *session.question.names))
        return found

    first = names(0)
    assert first == names(0) != names(1) and first != names(0, "you")
    counts = {pair: sum(row[1:] == pair for row in first) for pair in [(a, b) for a in "abc" for b in "abc" if a != b]}
    assert sum(counts.values()) == 60 and min(counts.values()) >= 3  # six ordered pairs, 10 each in the mean


def test_two_windows_without_a_seed_ask_other_questions():
    one, two = (widgets.Arena(sides_of("a", "b"), PROMPTS) for _ in range(2))
    assert one.seed != two.seed
    seen_by = []
    for session in (one, two):
        found = []
        for _ in range(8):
            session.ask()
            found.append((session.question.prompt, session.question.names))
        seen_by.append(found)
    assert seen_by[0] != seen_by[1]


def test_answers_are_drawn_as_set_and_depend_on_the_seed():
    models = {"a": (chat_model(0), CHAT), "b": (chat_model(1), CHAT)}

    def asked(seed, **options):
        session = widgets.Arena(models, PROMPTS, seed=seed, **options)
        session.ask("why")
        return session.question

    one = asked(0, max_new_tokens=6)
    assert one == asked(0, max_new_tokens=6) != asked(1, max_new_tokens=6)
    twins = widgets.Arena(dict.fromkeys("ab", models["a"]), PROMPTS, seed=0, max_new_tokens=6)
    found = set()
    for _ in range(3):
        twins.ask("why")
        found |= {answer.text for answer in twins.question.answers}
    assert len(found) == 6  # one model on both sides: its two answers are drawn apart, and anew each time
    messages = [CHAT.prompt([{"role": "user", "content": "why"}])]
    for name, answer in zip(one.names, one.answers):
        cold = talk.draw(models[name][0], CHAT, messages, 6, talk.generator(5, "x"), 1e-4).texts[0].strip()
        (found,) = (a for n, a in zip(*asked(3, max_new_tokens=6, temperature=1e-4)[1:]) if n == name)
        assert found.text == cold
        assert answer.cut in (True, False)


def test_two_answers_that_are_the_same_are_not_asked():
    sides = {"a": (Speaker("so", "so", "well"), CHAT), "b": (Speaker("so"), CHAT)}
    session = widgets.Arena(sides, PROMPTS, seed=0)
    session.ask()
    assert {answer.text for answer in session.question.answers} == {"well", "so"}
    same = widgets.Arena(sides_of("a", "b", texts=["so"]), PROMPTS, seed=0)
    with pytest.raises(ValueError, match="5 times the two answers were the same, empty or compared before"):
        same.ask()
    assert same.question is None and same.vote("first") == "" and same.votes() == []


def test_an_empty_answer_and_a_compared_pair_are_not_asked(folder):
    silent = widgets.Arena({"a": (Speaker("", " "), CHAT), "b": (Speaker("so"), CHAT)}, PROMPTS, seed=0)
    with pytest.raises(ValueError, match="empty"):
        silent.ask()
    session = widgets.Arena({"a": (Speaker("so"), CHAT), "b": (Speaker("well"), CHAT)}, PROMPTS[:1], seed=0)
    session.ask()
    session.vote("first")
    question = session.question
    with pytest.raises(ValueError, match="compared before"):
        session.ask()
    assert session.question == question  # it stays
    other = widgets.Arena({"a": (Speaker("so"), CHAT), "b": (Speaker("well"), CHAT)}, PROMPTS[:1], reader="r2", seed=0)
    other.ask()  # another reader compares it too
    other.vote("second")
    assert [vote.reader for vote in read(folder)] == ["me", "r2"]


def test_one_vote_a_question(folder):
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    session.ask()
    with pytest.raises(ComparisonError, match="unknown verdict 'better'"):
        session.vote("better")
    with pytest.raises(ValueError, match="reason must be one of answers, true, kind, brief, ends or empty, got 'nice'"):
        session.vote("first", "nice")
    assert session.verdict is None
    assert session.vote("first") == session.vote("second") == ""
    assert session.verdict == "first" and [vote.verdict for vote in read(folder)] == ["first"]


def test_a_reward_model_learns_from_the_votes(folder, assistant_settings, monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    session = widgets.Arena(sides_of("sft", "policy"), seed=0)
    play(session, 9, lambda question: "first" if question.names[0] == "policy" else "second")
    session.ask("my own")
    session.vote("tie")
    settings = assistant_settings({"comparisons": str(folder / "arena.jsonl")})
    found = inputs.read(settings, CHAT, 2000)
    learn, held_out = found.rankings
    better = {(vote.prompt, vote.chosen, vote.rejected) for vote in read(folder) if not vote.tie}
    said = {tuple(CHAT.tokenizer.decode(part) for part in (ranking.prompt, *ranking.answers)) for ranking in learn}
    assert said == {(laid_out(prompt), one, other) for prompt, one, other in better}
    assert len(learn) == 9
    ours = comparisons.split(comparisons.read_comparisons(comparisons.COMPARISONS, KNOWN))[1]
    assert len(held_out) == sum(not one.tie for one in ours)
    assert any(f"our {len(held_out)} comparisons of such prompts are the test" in note for note in found.notes())
    model, config = RewardModel(chat_model(0, 2000)), preference.PreferenceConfig(epochs=2, batch=4, lr=0.01)
    scores = preference.train(model, CHAT, learn, held_out[:4], config, folder / "reward")
    assert scores["pairs"] == 4 and preference.evaluate(model, learn)["accuracy"] > 0.8


# ----------------------------------------------------------------------------------------- the file


def test_a_later_session_goes_on_from_the_file(folder):
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    play(session, 4)
    later = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    assert later.votes() == session.votes() and later.tally() == session.tally()
    later.ask()
    session.ask()
    assert later.question.prompt == session.question.prompt and later.question.names == session.question.names
    assert later.question.prompt not in {vote.prompt for vote in read(folder)}


def test_two_windows_lose_nothing(folder):
    one, two = (widgets.Arena(sides_of("a", "b"), PROMPTS, seed=seed) for seed in (0, 1))
    for _ in range(5):
        one.ask()
        two.ask()
        assert two.vote("first") == one.vote("tie") == ""
    assert sorted(vote.verdict for vote in read(folder)) == ["first"] * 5 + ["tie"] * 5
    assert one.votes() == two.votes() == read(folder)


def test_the_same_pair_in_two_windows_keeps_the_first_verdict(folder):
    one, two = (widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0) for _ in range(2))
    one.ask()
    two.ask()
    assert one.question == two.question
    assert one.vote("first") == ""
    assert two.vote("second") == "me has compared these two answers in another window: that verdict stays"
    two.ask()
    assert two.vote("tie") == ""
    assert [vote.verdict for vote in read(folder)] == ["first", "tie"] and two.votes() == read(folder)


def test_a_vote_that_cannot_be_written_counts_and_is_written_with_the_next(folder, monkeypatch):
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)

    def full(path, comparison):
        raise RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(comparisons, "append_comparison", full)
        session.ask()
        warning = session.vote("second")
        assert "counts in this window" in warning and "the disk is full" in warning and "\n" not in warning
        assert session.verdict == "second" and len(session.votes()) == 1 and not (folder / "arena.jsonl").exists()
        session.ask()
    assert session.vote("first") == ""
    assert [vote.verdict for vote in read(folder)] == ["second", "first"] and session.unsaved == []
    assert session.votes() == read(folder)


def test_a_folder_that_is_a_file_costs_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "taken"))
    box = widgets.arena(sides_of("a", "b"), PROMPTS, seed=0)
    box.buttons["next"].click()
    box.buttons["first"].click()
    assert "counts in this window" in box.note.value and "cannot write" in box.note.value
    assert "by a" in box.output.value and "by b" in box.output.value and "a against b" in box.tally.value


def test_a_damaged_file_is_said_before_the_first_question_and_never_overwritten(folder):
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    session.ask()
    (folder / "arena.jsonl").write_text("{oops\n")
    assert re.search(r"arena\.jsonl, line 1: not JSON", session.vote("first"))
    assert (folder / "arena.jsonl").read_text() == "{oops\n"
    with pytest.raises(ComparisonError, match="line 1"):
        session.ask()
    with pytest.raises(ComparisonError, match="line 1"):
        widgets.arena(sides_of("a", "b"), PROMPTS)


def test_a_file_may_lie_elsewhere(folder):
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, folder / "votes" / "mine.jsonl", seed=0)
    play(session, 1)
    assert len(read(folder / "votes", "mine.jsonl")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sides": sides_of("a")}, "an arena needs two sides"),
        ({"sides": (Speaker("so"), CHAT)}, "an arena needs two sides"),
        ({"sides": {"a": 1, "b": 2}}, "a must be a pair of a chat model"),
        ({"prompts": []}, "prompts: there is no text"),
        ({"prompts": ["why", " "]}, "prompts: text 2 is empty"),
        ({"prompts": "why"}, "prompts must be a list of texts"),
        ({"reader": " "}, "reader must be a name"),
        ({"file": ""}, "file must be a name"),
    ],
)
def test_bad_input_is_said_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        widgets.arena(**{"sides": sides_of("a", "b"), "prompts": PROMPTS, **changes})


# ----------------------------------------------------------------------------------------- what the votes say


def test_the_tally_of_votes_by_hand():
    """a wins all four of its votes against b, in whichever place."""
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    play(session, 12, lambda question: "first" if question.names[0] == "a" else "second")
    places = [vote.first_from for vote in session.votes()]
    assert {"a", "b"} == set(places)
    summaries, bias = session.tally()
    found = summaries["a", "b"]
    assert list(summaries) == [("a", "b")] and found["pairs"] == 12 and found["wins"] == 1 and found["losses"] == 0
    assert found["win_rate"] == pytest.approx(pairwise.rate_interval([1.0] * 12))
    assert bias[0] == pytest.approx(0) and bias[1] < 0 < bias[2]
    html = widgets.arena(sides_of("a", "b"), PROMPTS).tally.value
    assert "a against b" in html and "<td" in html and ">12<" in html and ">12, 0, 0<" in html
    assert "{:.0%} ({:.0%} to {:.0%})".format(*found["win_rate"]) in html


def test_a_reader_of_the_first_place_shows_as_bias_and_not_as_a_better_side():
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    play(session, 12)
    summaries, bias = session.tally()
    firsts = sum(vote.first_from == "a" for vote in session.votes())
    assert summaries["a", "b"]["win_rate"].rate == pytest.approx(firsts / 12)
    shown = widgets.arena(sides_of("a", "b"), PROMPTS).tally.value
    assert "the first place wins: {:+.0f} ({:+.0f} to {:+.0f})".format(*bias) in shown
    assert bias[0] == pytest.approx(50) and summaries["a", "b"]["position_bias"] == pytest.approx(bias)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.permutations("abc"), st.sampled_from(["first", "tie", "second"])), min_size=1, max_size=25))
def test_the_tally_counts_every_vote_once_for_its_two_sides(votes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widgets.Arena, "saved", lambda self: [])
        session = widgets.Arena(sides_of("a", "b", "c"), PROMPTS, seed=0)
    session.saved = lambda: []
    points = {}
    for number, ((first, second, _), verdict) in enumerate(votes):
        session.unsaved.append(comparisons.Comparison(
            f"why {number}", "so", "well", verdict, "me", {"prompt": f"why {number}"}, first_from=first, second_from=second
        ))  # fmt: skip
        for_first = {"first": 1, "tie": 0.5, "second": 0}[verdict]
        points.setdefault(tuple(sorted((first, second))), []).append(for_first if first < second else 1 - for_first)
    summaries, _ = session.tally()
    assert summaries.keys() == points.keys()
    for pair, values in points.items():
        assert summaries[pair]["pairs"] == len(values)
        assert summaries[pair]["win_rate"] == pytest.approx(pairwise.rate_interval(values))
        assert summaries[pair]["ties"] == pytest.approx(values.count(0.5) / len(values))


def test_a_comparison_of_a_conversation_in_the_file_is_no_hindrance(folder):
    talk_ = [{"role": "user", "content": "why"}]
    comparisons.append_comparison(folder / "arena.jsonl", comparisons.Comparison(
        talk_, "so", "well", "first", "me", {"prompt": talk_}, first_from="a", second_from="b"
    ))  # fmt: skip
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    play(session, 1)
    assert session.tally()[0]["a", "b"]["pairs"] == 2


def test_comparisons_without_two_sides_are_not_in_the_tally():
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    for names in ({}, {"first_from": "a"}, {"second_from": "b"}, {"first_from": "a", "second_from": "a"}):
        prompt = f"why {names}"
        session.unsaved.append(comparisons.Comparison(prompt, "so", "well", "first", "me", {"prompt": prompt}, **names))
    assert session.tally() == ({}, None)


def test_the_votes_on_each_two_sides_are_counted_by_themselves():
    session = widgets.Arena(sides_of("sft", "policy", "start"), PROMPTS, seed=0)
    play(session, 24, lambda question: "first" if question.names < question.names[::-1] else "second")  # policy, sft, start
    votes = session.votes()
    summaries, _ = widgets.tally(votes)
    assert list(summaries) == [("policy", "sft"), ("policy", "start"), ("sft", "start")]
    assert sum(found["pairs"] for found in summaries.values()) == 24
    for pair, found in summaries.items():
        assert found["pairs"] == sum({vote.first_from, vote.second_from} == set(pair) for vote in votes) and found["wins"] == 1
    assert widgets.tally([]) == ({}, None)


def test_one_vote_says_nothing_of_the_places_yet():
    box = widgets.arena(sides_of("a", "b"), PROMPTS, seed=0)
    box.buttons["next"].click()
    box.buttons["first"].click()
    assert "the first place wins: not known yet" in box.tally.value


# ----------------------------------------------------------------------------------------- the widget


def test_names_are_hidden_until_the_vote_and_shown_after_it():
    box = widgets.arena(sides_of("sft", "policy"), PROMPTS, seed=0)
    names = re.compile("sft|policy")
    for number, (verdict, said) in enumerate((("first", "better"), ("tie", "a tie"), ("second", "better"))):
        assert number or not names.search(seen(box))
        box.buttons["next"].click()
        question = box.session.question
        assert not names.search(box.output.value + box.note.value)
        assert all(answer.text in box.output.value for answer in question.answers) and question.prompt in box.output.value
        assert not any(box.buttons[name].disabled for name in ("first", "tie", "second"))
        box.buttons[verdict].click()
        first, second = (f"{place} answer, by {name}" for place, name in zip(("first", "second"), question.names))
        assert first in box.output.value and second in box.output.value
        better = {"first": first, "second": second}.get(verdict)
        if better:
            assert f"{better}, the better one" in box.output.value and box.output.value.count("the better one") == 1
        else:
            assert box.output.value.count(", a tie") == 2
        assert all(box.buttons[name].disabled for name in ("first", "tie", "second"))
        assert said in box.output.value
    assert [vote.verdict for vote in box.session.votes()] == ["first", "tie", "second"]
    assert "policy against sft" in box.tally.value


def test_keys_do_what_the_buttons_do(folder):
    box = widgets.arena(sides_of("a", "b"), PROMPTS, seed=0)
    keys = "1nx1nk2NE0e"
    for count in range(1, len(keys) + 1):
        box.keyboard.value = keys[:count]
    assert [(vote.verdict, vote.reason) for vote in read(folder)] == [("first", ""), ("second", "kind"), ("tie", "ends")]
    box.buttons["next"].click()
    assert box.reason.value == ""
    box.reason.value = "true"
    box.buttons["second"].click()
    assert read(folder)[-1].reason == "true"


def test_a_question_without_a_vote_is_left_out(folder):
    box = widgets.arena(sides_of("a", "b"), PROMPTS, seed=0)
    box.buttons["next"].click()
    before = box.session.question
    box.buttons["next"].click()
    assert box.session.question != before
    box.buttons["first"].click()
    assert len(read(folder)) == 1


def test_a_prompt_of_ones_own(folder):
    box = widgets.arena(sides_of("a", "b"), PROMPTS, seed=0)
    typed(box.text, "my <b>own</b>")
    assert "my &lt;b&gt;own&lt;/b&gt;" in box.output.value and "<b>" not in box.output.value and box.text.value == ""
    box.buttons["first"].click()
    assert lines(folder / "arena.jsonl")[0]["prompt"] == "my <b>own</b>"
    press_enter(box.text)  # empty: a drawn one
    assert box.session.question.prompt in PROMPTS


def test_what_the_models_and_their_names_say_is_text():
    sides = {"<i>x": (Speaker("<script>1"), CHAT), "<i>y": (Speaker("<script>2", cut=True), CHAT)}
    box = widgets.arena(sides, PROMPTS, seed=0)
    box.buttons["next"].click()
    assert box.output.value.count("cut off at the limit") == 1
    box.buttons["first"].click()
    for shown in (box.output.value, box.tally.value):
        assert "<script" not in shown and "<i>" not in shown and "&lt;i&gt;x" in shown


def test_what_went_wrong_is_said_and_the_question_before_stays():
    sides = {"a": (Speaker("so", RuntimeError("no <memory>\nline 7")), CHAT), "b": (Speaker("well"), CHAT)}
    box = widgets.arena(sides, PROMPTS, seed=0)
    box.buttons["next"].click()
    before = box.output.value
    typed(box.text, "my own")
    assert "a gave no answer (RuntimeError: no &lt;memory&gt;)" in box.note.value and "line 7" not in box.note.value
    assert box.output.value == before and box.text.value == "my own"
    typed(box.text, "so " * 3000)
    assert "too long" in box.note.value and box.output.value == before
    box.buttons["second"].click()
    assert box.note.value == "" and len(box.session.votes()) == 1


def test_every_control_says_what_it_is():
    box = widgets.arena(sides_of("a", "b"), PROMPTS)
    assert all(one.description for one in (box.text, box.reason, box.keyboard, *box.buttons.values()))
    assert "No vote yet" in box.tally.value and "Press n" in box.output.value
    assert all(box.buttons[name].disabled for name in ("first", "tie", "second")) and not box.buttons["next"].disabled


def test_votes_that_are_drawn_at_random_are_in_the_interval():
    """A fair coin's verdicts: half is inside the interval of the win rate, and no bias inside that of the places."""
    coin = random.Random(5)
    session = widgets.Arena(sides_of("a", "b"), PROMPTS, seed=0)
    play(session, 20, lambda _: coin.choice(["first", "second"]))
    summaries, bias = session.tally()
    rate = summaries["a", "b"]["win_rate"]
    assert rate.low < 0.5 < rate.high and bias[1] < 0 < bias[2]
