import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import label_exports, labels
from rlhf_lib.label_exports import load
from rlhf_lib.labels import LabelError


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def given_in(taken):
    return [(label.text, label.label, label.reader) for label in taken.labels]


WANTED = [("O sweet, my love", "positive", "anne"), ("Death;\nfoul", "negative", "bob"), ("Née à Rouen", "neutral", "anne")]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_is_read_whatever_stands_between_its_columns(tmp_path, between, end, start):
    lines = [("id", "Text", "Sentiment", "Annotator")]
    lines += [(str(n), f'"{text}"'.replace("\n", end), label.upper(), who) for n, (text, label, who) in enumerate(WANTED)]
    taken = load(put(tmp_path / "mine.csv", start + "".join(between.join(line) + end for line in lines)))
    assert given_in(taken) == WANTED
    assert [label.source for label in taken.labels] == [(text, "mine") for text, _, _ in WANTED]
    assert str(taken) == f"{tmp_path / 'mine.csv'}: 3 labels by 2 readers taken of 3 rows, nothing left out"


def test_ratings_from_1_to_5_are_negative_neutral_or_positive(tmp_path):
    rows = "".join(f"text {n},{rating}\n" for n, rating in enumerate(["1", "2", "3", "4", "5", "5.0", "0", "6", "4.5"]))
    taken = load(put(tmp_path / "a.csv", "passage,rating\n" + rows))
    assert [label.label for label in taken.labels] == ["negative", "negative", "neutral", "positive", "positive", "positive"]
    assert taken.left == {"unknown label '0'": (1, 7), "unknown label '6'": (1, 8), "unknown label '4.5'": (1, 9)}
    assert {label.reader for label in taken.labels} == {"me"}


DOCCANO = [
    {"id": 1, "text": "O love", "label": ["positive"], "Comments": []},
    {"id": 2, "text": "O death", "label": ["Neg"]},
    {"id": 3, "text": "A door", "label": []},
    {"id": 4, "text": "A street", "label": ["positive", "neutral"]},
]
STUDIO = [
    {
        "id": 7, "data": {"text": "O love"}, "annotations": [
            {"completed_by": {"id": 3, "email": "anne@x"}, "result": [{"type": "choices", "value": {"choices": ["Positive"]}}]},
            {"completed_by": 4, "result": [{"type": "rating", "value": {"rating": 2}}]},
            {"completed_by": 5, "was_cancelled": True, "result": [{"value": {"choices": ["negative"]}}]},
        ],
    },
    {"id": 8, "data": {"text": "A door"}, "annotations": []},
    {"id": 9, "text": "O death", "sentiment": "negative", "annotator": 3},  # the short form
]  # fmt: skip
ARGILLA = [
    {
        "id": "a", "fields": {"text": "O love"}, "responses": {"mood": [
            {"value": "positive", "user_id": "u1", "status": "submitted"},
            {"value": "neutral", "user_id": "u2", "status": "draft"},
        ]},
    },
    {"text": "O death", "sentiment": [{"user_id": "u2", "value": "negative", "status": "submitted"}]},
    {"text": "A door", "label.responses": ["neutral", "neu"], "label.responses.users": ["u1", "u2"], "label.suggestion": "neg"},
    {"inputs": {"text": "A street"}, "annotation": "neutral", "annotation_agent": "u3"},
]  # fmt: skip


@pytest.mark.parametrize("lines", [True, False], ids=["lines", "list"])
@pytest.mark.parametrize(
    ("rows", "wanted", "left"),
    [
        (DOCCANO, [("O love", "positive", "me"), ("O death", "negative", "me")], {"no label": (1, 3), "several labels": (1, 4)}),
        (
            STUDIO,
            [("O love", "positive", "anne@x"), ("O love", "negative", "4"), ("O death", "negative", "3")],
            {"no label": (1, 2)},
        ),
        (
            ARGILLA,
            [
                ("O love", "positive", "u1"), ("O death", "negative", "u2"), ("A door", "neutral", "u1"),
                ("A door", "neutral", "u2"),
                ("A street", "neutral", "u3"),
            ],
            {},
        ),
    ],
    ids=["doccano", "label studio", "argilla"],
)  # fmt: skip
def test_exports_are_read_and_what_was_left_is_counted(tmp_path, rows, wanted, left, lines):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows, indent=2)
    taken = load(put(tmp_path / "export.json", text))
    assert given_in(taken) == wanted and taken.left == left and taken.rows == len(rows)
    labels.write(tmp_path / "ours.jsonl", taken.labels)
    assert labels.read(tmp_path / "ours.jsonl") == taken.labels


def test_a_passage_is_taken_once_of_each_reader_and_rows_without_text_are_counted(tmp_path):
    taken = load(put(tmp_path / "a.csv", "text,label,reader\nlove,positive,a\nlove,neutral,a\nlove,neutral,b\n,neutral,b\n"))
    assert given_in(taken) == [("love", "positive", "a"), ("love", "neutral", "b")]
    assert taken.left == {"the same passage and reader again": (1, 2), "no text": (1, 4)}
    assert str(taken).endswith(
        "left out 1 (the same passage and reader again; the first is row 2), 1 (no text; the first is row 4)"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no row can be used: .*: 0 labels by 0 readers taken of 0 rows, nothing left out; a row needs a text"),
        ("just words\nand more\n", r"no row can be used: .* left out 1 \(no text; the first is row 1\); a row needs a text"),
        ("[1, 2]", r"left out 2 \(no text; the first is row 1\)"),
        ("[{", "not JSON .*; export it again"),
        ('{"text": "love"\n', "line 1: not JSON"),
        ('{"text": "\\ud800", "label": "positive"}', "line 1: half a character"),
        ('[{"text": "\\ud800", "label": "positive"}]', "not JSON .*surrogates not allowed"),
        ('text,label\n"love,positive\n', "line 2: not a table"),
        (b"text,label\nn\xe9e,positive\n", "line 2: not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, content, said):
    with pytest.raises(LabelError, match=said):
        load(put(tmp_path / "a.csv", content))


NAMES = st.sampled_from(["text", "label", "data", "annotations", "result", "value", "choices", "responses", "reader", "fields"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["love", "positive", "5"]) | st.text(max_size=5)
)
NAMES = st.sampled_from(["text", "label", "data", "annotations", "result", "value", "choices", "responses", "reader", "fields"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["love", "positive", "5"]) | st.text(max_size=5)
)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12)


@given(st.one_of(st.lists(JSON, max_size=4).map(json.dumps), st.text(max_size=60), st.binary(max_size=60)))
@settings(deadline=None, max_examples=300)
def test_whatever_the_file_holds_there_are_labels_or_a_sentence(tmp_path_factory, content):
    path = put(tmp_path_factory.getbasetemp() / "drawn.json", content)
    try:
        taken = label_exports.load(path)
    except LabelError:
        return
    labels.write(path.with_suffix(".jsonl"), taken.labels)
    assert labels.read(path.with_suffix(".jsonl")) == taken.labels
