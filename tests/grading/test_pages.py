import re

from rlhf_lib.grading.gradebook import Entry, Mark, Prose
from rlhf_lib.grading.pages import work_of, write_feedback, write_report, write_texts
from rlhf_lib.grading.verdicts import Result

RESULTS = [
    Result("gae", "7.3", "right", passed=1),
    Result(
        "value_loss",
        "7.6",
        "wrong",
        "the <mean> is missing",
        "7.6 value_loss: the <mean> is missing\n    values = 1",
        0,
        1,
        "takes rlhf_lib.ppo from the library",
    ),
    Result("train_ppo", "7.10", "wrong", "no", "no", 6, 8),
]
MARKS = {"gae": Mark(2.0), "value_loss": Mark(3.0), "train_ppo": Mark(8.0, True)}


def class_of():
    return [
        Entry("anna <b>", "17", "", "graded", [], RESULTS),
        Entry("ben", "", "", "graded", [], [RESULTS[0]]),
        Entry("Zoë", "", "", "not gradable", ["x.ipynb: it is empty"], []),
    ]


def text_of(path):
    html = path.read_text(encoding="utf-8")
    assert (
        not re.search(r"(src|href)=\"(?!data:|feedback/[\w-]+\.html|to_read\.html)", html) and "<script" not in html
    )  # one file, without a network
    return html, re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_a_page_for_each_student(tmp_path):
    prose = {"ben": [Prose("7.A", 2.0, 3.0, "clear")]}
    written = write_feedback(tmp_path, class_of(), MARKS, {"ben": 0.5}, prose)
    assert list(written) == ["anna <b> (17)", "ben", "Zoë"]
    html, text = text_of(written["anna <b> (17)"])
    assert "8 of 13 points" in text and "1 of 3 exercises are right" in text and "6 of 8 probes" in text and "6 of 8" in text
    assert "anna <b>" not in html and "the &lt;mean&gt; is missing" in html and "library" not in text
    _, text = text_of(written["ben"])
    assert "2 of 5 points, of which lateness leaves 50 %" in text and "7.A 2 of 3 clear" in text
    assert "x.ipynb: it is empty" in text_of(written["Zoë"])[1]


def test_the_report_on_the_class(tmp_path):
    write_report(tmp_path, class_of(), MARKS, {}, {}, [("anna <b> (17)", "ben", ["gae"], 120)])
    html, text = text_of(tmp_path / "class_report.html")
    assert html.count("data:image/png;base64,") == 2
    assert "3 submissions, 1 of them to look at" in text and "1 7.6 value_loss the &lt;mean&gt; is missing" in text
    assert text.index("7.3 gae 2") < text.index("7.6 value_loss 1") < text.index("7.10 train_ppo 1")
    assert "Zoë not gradable x.ipynb: it is empty" in text and "takes rlhf_lib.ppo from the library" in text
    assert "anna &lt;b&gt; (17) ben gae 120" in text
    assert "anna &lt;b&gt; (17) 8 1 graded" in text and "Zoë 0 0 not gradable" in text
    pages = write_feedback(tmp_path, class_of(), MARKS, {}, {}).values()
    assert all(f'href="feedback/{path.name}"' in html for path in pages)


def test_a_class_of_which_nothing_is_gradable_has_a_report(tmp_path):
    write_report(tmp_path, class_of()[2:], MARKS, {}, {}, [])
    assert "1 of them to look at" in text_of(tmp_path / "class_report.html")[1]


def test_tries_and_times_are_medians_of_what_students_files_say(tmp_path):
    work = [{"gae": [3, 10.0], "value_loss": [7, None]}, {"gae": [1, None]}, {"gae": [2, 30.0], "attention": [1, 1.0]}]
    people = [Entry(f"s{n}", "", "", "graded", [], RESULTS[:2], work=one) for n, one in enumerate(work)]
    assert work_of(people, ["gae", "value_loss", "train_ppo"]) == {"gae": (3, 2, 3, 20.0), "value_loss": (1, 7, 7, None)}
    write_report(tmp_path, people, MARKS, {}, {}, [])
    html, text = text_of(tmp_path / "class_report.html")
    assert html.count("data:image/png;base64,") == 3
    assert "7.3 gae 3 2 3 20" in text and "7.6 value_loss 1 7 7" in text
    write_report(tmp_path, class_of(), MARKS, {}, {}, [])
    assert "Tries and times" not in text_of(tmp_path / "class_report.html")[1]


def test_what_students_wrote_stands_side_by_side(tmp_path):
    people = [
        Entry("anna <b>", "17", "", "graded", [], [], texts={"7.A": "The <clip> does little.", "2.B": "More heads help."}),
        Entry("ben", "", "", "graded", [], [], texts={"7.A": "Nothing changes at all here."}),
    ]
    write_texts(tmp_path, people, {"ben": [Prose("7.A", 2.0, 3.0, "clear")]})
    html, text = text_of(tmp_path / "to_read.html")
    assert (
        text.index("More heads help.")
        < text.index("The &lt;clip&gt; does little.")
        < text.index("ben Nothing changes at all here. 2 of 3")
    )
    assert "anna <b>" not in html and "anna &lt;b&gt; (17)" in html
    write_texts(tmp_path, people[:0], {})
    assert "Nobody has noted" in text_of(tmp_path / "to_read.html")[1]
