import json
import random
import re

import ipywidgets
import pytest

from rlhf_lib import comparisons, pairwise, widgets
from rlhf_lib.comparisons import ComparisonError
from rlhf_lib.files import RunError

from .helpers import lines, seen

KNOWN = comparisons.read_prompts()
HELD_OUT = [prompt for prompt in KNOWN if prompt.split == "held_out"]
TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}, {"role": "user", "content": "<b>who?"}]
PROMPTS = [*(prompt.prompt for prompt in HELD_OUT[:6]), "a prompt of its own", TALK]


def rows_of(prompts=PROMPTS, **sides):
    """Rows of answers.jsonl; an answer is "policy 3", or what `sides` says of the first prompts."""
    rows = []
    for side in ("start", "sft", "policy"):
        for number, prompt in enumerate(prompts):
            answer = (sides.get(side, []) + [f"{side[:2]} says {number}"] * (number + 1))[number]
            rows.append({"side": side, "prompt": prompt, "answer": answer, "ended": side != "start", "tokens": 3, "reward": 0.5})
    return rows


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    return tmp_path


def put(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def judged(session, verdict):
    """Say `verdict(question)` of all that is asked; returns the questions."""
    asked = []
    while session.current is not None:
        asked.append(session.current)
        session.say(verdict(session.current))
    return asked


def better(side):
    return lambda question: ("first", "second")[question.names.index(side)]


# ----------------------------------------------------------------------------------------- what is asked


def test_every_pair_is_asked_in_both_orders_and_never_twice_running():
    asked = judged(widgets.Judging(rows_of()), better("policy"))
    assert len(asked) == 2 * len(PROMPTS)
    first, second = asked[: len(PROMPTS)], asked[len(PROMPTS) :]
    for one, other in zip(first, second):
        assert other == (one.prompt, one.names[::-1], one.answers[::-1])
    assert {str(question.prompt) for question in first} == {str(prompt) for prompt in PROMPTS}
    for question in asked:
        for name, found in zip(question.names, question.answers):
            number = [str(prompt) for prompt in PROMPTS].index(str(question.prompt))
            assert (found.text, found.cut) == (f"{name[:2]} says {number}", name == "start")


def test_order_and_places_are_drawn_for_the_reader():
    prompts = [f"why {number}?" for number in range(60)]

    def asked(reader, count=None):
        return widgets.Judging(rows_of(prompts), reader=reader, count=count).questions[: count or len(prompts)]

    one = asked("r1")
    assert one == asked("r1") and [question.prompt for question in one] != [question.prompt for question in asked("r2")]
    assert 15 <= sum(question.names[0] == "policy" for question in one) <= 45  # 30 in the mean, deviation 3.9
    assert [question.prompt for question in one] != prompts
    assert set(asked("r1", 20)) == {question for question in one if question.prompt in prompts[:20]}  # more of them go on


def test_equal_and_empty_answers_are_settled_unread():
    rows = rows_of(policy=["so", "", " ", "well"], start=["so ", "well", "", ""])
    session = widgets.Judging(rows)
    assert len(judged(session, lambda _: "tie")) == 2 * (len(PROMPTS) - 4)
    found = session.results()
    assert (found["pairs"], found["wins"], found["losses"]) == (8, 1 / 8, 1 / 8)
    whole = widgets.Judging(rows, count=1)
    assert whole.current is None and whole.results()["ties"] == 1


# ----------------------------------------------------------------------------------------- the file


def test_a_verdict_is_a_comparison_that_nothing_learns_from(folder):
    session = widgets.Judging(rows_of(), reader="r1")
    assert not (folder / "judged.jsonl").exists()
    asked = judged(session, better("start"))
    found = comparisons.read_comparisons(folder / "judged.jsonl", KNOWN)
    assert [(vote.prompt, vote.first, vote.second) for vote in found] == [
        (question.prompt, *(answer.text for answer in question.answers)) for question in asked
    ]
    assert all(vote.chosen.startswith("st") and vote.first_cut == (vote.first_from == "start") for vote in found)
    assert [vote.reader for vote in found] == ["r1"] * 8 + ["r1, again"] * 8
    ids = {line.get("id") for line in lines(folder / "judged.jsonl")}
    assert ids == {None, *(prompt.id for prompt in HELD_OUT[:6])}
    assert comparisons.split([vote for vote in found if "id" in vote.source])[0] == []


def test_every_verdict_is_kept_at_once_and_the_next_session_goes_on(folder):
    session = widgets.Judging(rows_of())
    asked = []
    for number in range(11):
        asked.append(session.current)
        session.say("first")
        assert len(lines(folder / "judged.jsonl")) == session.done == number + 1
        session = widgets.Judging(rows_of())
    asked += judged(session, lambda _: "first")
    assert len(asked) == 16 and len({str(question) for question in asked}) == 16


def test_two_windows_two_readers_and_two_runs_share_a_file(folder):
    one, two = widgets.Judging(rows_of()), widgets.Judging(rows_of())
    first = one.current
    one.say("first")
    two.say("second")  # of the same question: the first verdict stays, and the next is asked
    assert [line["verdict"] for line in lines(folder / "judged.jsonl")] == ["first"] and two.current == one.current != first
    judged(widgets.Judging(rows_of(), reader="r2"), better("policy"))
    judged(widgets.Judging(rows_of(), ours="sft"), better("start"))
    judged(two, better("policy"))
    assert len(lines(folder / "judged.jsonl")) == 16 * 3
    assert widgets.Judging(rows_of(), reader="r2").results()["wins"] == 1
    assert widgets.Judging(rows_of(), ours="sft").results()["losses"] == 1
    assert widgets.Judging(rows_of(), count=3).results()["pairs"] == 3


def test_a_verdict_that_cannot_be_written_is_asked_again(folder, monkeypatch):
    box = widgets.judge_run(rows_of())

    def full(path, comparison):
        raise RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(comparisons, "append_comparison", full)
        before = box.session.current
        box.buttons["first"].click()
        assert "the disk is full" in box.note.value and box.session.current == before
    box.buttons["second"].click()
    assert box.note.value == "" and [line["verdict"] for line in lines(folder / "judged.jsonl")] == ["second"]


def test_a_damaged_file_is_said_and_never_overwritten(folder):
    session = widgets.Judging(rows_of())
    (folder / "judged.jsonl").write_text("{oops\n")
    for call in (lambda: session.say("first"), lambda: widgets.judge_run(rows_of())):
        with pytest.raises(ComparisonError, match=r"judged\.jsonl, line 1: not JSON"):
            call()
    assert (folder / "judged.jsonl").read_text() == "{oops\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theirs": "gold"}, "answers: policy and gold must be two sides .* the sides are start, sft, policy"),
        ({"theirs": "policy"}, "must be two sides"),
        ({"answers": []}, "the sides are none"),
        ({"answers": rows_of()[:-1]}, "answered the same prompts"),
        ({"answers": [*rows_of(), {"side": "sft", "prompt": "why"}]}, "answers, line 25: needs `side`, `prompt` and a text as"),
        ({"count": 0}, "count must be at least 1"),
        ({"reader": " "}, "reader must be a name"),
        ({"file": ""}, "file must be a name"),
        ({"answers": "gone"}, r"no file at gone.answers\.jsonl"),
    ],
)
def test_bad_input_is_said_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        widgets.judge_run(**{"answers": rows_of(), **changes})


def test_no_result_before_all_is_read_and_no_verdict_but_three(folder):
    session = widgets.Judging(rows_of())
    with pytest.raises(ComparisonError, match="unknown verdict 'better'"):
        session.say("better")
    session.say("tie")
    with pytest.raises(ValueError, match="15 of 16 readings are left"):
        session.results()


# ----------------------------------------------------------------------------------------- what the verdicts say


def test_a_reader_of_the_first_place_has_no_winner_and_all_the_bias():
    session = widgets.Judging(rows_of())
    judged(session, lambda _: "first")
    found = session.results()
    assert (found["ties"], found["consistency"], found["contradicted"]) == (1, 0, 8)
    assert found["win_rate"].rate == 0.5 and found["position_bias"][0] == pytest.approx(50)


def test_the_results_are_those_of_the_pipelines_judge():
    """The same reader as a function, asked by `pairwise.compare` about the same pairs."""
    rows, coin = rows_of(), random.Random(4)
    verdicts = {}

    def judge(prompts, first, second):
        return [verdicts.setdefault((one, other), coin.choice(["first", "second", "tie"])) for one, other in zip(first, second)]

    answers = {side: [row["answer"] for row in rows if row["side"] == side] for side in ("policy", "sft")}
    records = pairwise.compare(judge, list(map(str, PROMPTS)), answers["policy"], answers["sft"])
    session = widgets.Judging(rows, "policy", "sft")
    judged(session, lambda question: judge([0], *([found.text] for found in question.answers))[0])
    assert session.results() == pairwise.summary(records)
    assert 0 < session.results()["consistency"] < 1


# ----------------------------------------------------------------------------------------- the widget


def test_clicked_through_a_finished_run_blind(folder, assistant_run):
    box = widgets.judge_run(assistant_run, "sft", "start", count=4, reader="r1")
    names = re.compile("start|sft|policy|against")
    while box.session.current is not None:
        question = box.session.current
        assert not names.search(seen(box).replace("starts", ""))
        assert f"{box.session.done} of {len(box.session.questions)} read by r1" == box.count.value
        box.buttons[better("sft")(question)].click()
        assert box.note.value == ""
    prompts = [row["prompt"] for row in lines(assistant_run / "answers.jsonl") if row["side"] == "sft"]
    assert set(vote.prompt for vote in comparisons.read_comparisons(folder / "judged.jsonl", KNOWN)) <= set(prompts[:4])
    found = box.session.results()
    assert found["pairs"] == 4 and found["losses"] == 0
    assert "sft against start" in box.output.value and "{:.0%} ({:.0%} to {:.0%})".format(*found["win_rate"]) in box.output.value
    assert f"Both orders say the same of {found['consistency']:.0%} of the pairs" in box.output.value
    assert all(one.disabled for one in box.buttons.values())


def test_keys_do_what_the_buttons_do_and_text_is_escaped(folder):
    box = widgets.judge_run(put(folder / "run", rows_of([TALK], policy=["<i>so"])))
    assert "User: why\n\nAssistant: so\n\nUser: &lt;b&gt;who?" in box.output.value and "&lt;i&gt;so" in box.output.value
    assert box.output.value.count("[cut off") == 1 and not any(one.disabled for one in box.buttons.values())
    box.keyboard.value = "x1"
    box.keyboard.value = "x10"
    box.keyboard.value = "x102"  # all is read
    assert [line["verdict"] for line in lines(folder / "judged.jsonl")] == ["first", "tie"]
    assert "policy against start" in box.output.value
    assert isinstance(box, ipywidgets.VBox) and all(one.description for one in (box.keyboard, *box.buttons.values()))
