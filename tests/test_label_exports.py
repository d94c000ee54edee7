import csv
import io
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


TEXTS = [
    "O love",
    "He said \"go\",\nand 'stay'",
    "  two blanks before, \ufeff a mark; ♥ 😀 愛",
]  # what exports have to bring through


def doccano(row, text, labels, comments=()):
    """A row as doccano 1.8.4 writes it in JSON."""
    return {"id": row, "text": text, "work": None, "label": labels, "Comments": list(comments)}


def studio(task, text, *annotations, drafts=(), predictions=()):
    """A task as Label Studio 1.23.2 writes it in JSON; an annotation is (reader, the results, cancelled)."""
    given = [
        {
            "id": 10 * task + n, "completed_by": reader, "result": results, "was_cancelled": cancelled, "ground_truth": False,
            "lead_time": 2.5, "prediction": {}, "result_count": len(results), "task": task, "project": 2,
        }
        for n, (reader, results, cancelled) in enumerate(annotations)
    ]  # fmt: skip
    return {
        "id": task, "annotations": given, "drafts": list(drafts), "predictions": list(predictions), "data": {"text": text},
        "meta": {}, "allow_skip": True, "inner_id": task, "total_annotations": len(given), "project": 2, "comment_authors": [],
    }  # fmt: skip


def choice(*names):
    return {"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": list(names)}}


RATING = {"from_name": "stars", "to_name": "text", "type": "rating", "value": {"rating": 2}}
WHY = {"from_name": "why", "to_name": "text", "type": "textarea", "value": {"text": ["it is so"]}}
STUDIO = [
    studio(1, TEXTS[0], (1, [WHY, choice("Positive")], False), (2, [RATING], False), predictions=[7]),
    studio(2, TEXTS[1], (1, [choice("negative")], False), (2, [choice("positive")], True)),
    studio(3, TEXTS[2], ({"id": 3, "email": "anne@x"}, [choice("neutral")], False)),  # an export with its users spelt out
    studio(4, "A door", (1, [], True)),
    studio(5, "A street", (1, [choice("positive", "neutral")], False), (2, [choice("heiter")], False)),
    studio(6, "A boat", (1, [], False)),
    studio(7, "A ship", drafts=[{"user": "anne@x", "result": [choice("negative")]}], predictions=[8]),
]


def studio_short(task, text, value, reader, name="sentiment"):
    """A row as Label Studio 1.23.2 writes it in JSON_MIN, CSV and TSV; a cancelled annotation is not there."""
    found = {} if value is None else {name: value}
    return {"text": text, "id": task, **found, "annotator": reader, "annotation_id": task, "lead_time": None}


STUDIO_SHORT = [
    studio_short(1, TEXTS[0], "positive", 1),
    studio_short(1, TEXTS[0], "Negative", 2),
    studio_short(2, TEXTS[1], [{"rating": 2}], 1, "rating"),
    studio_short(3, TEXTS[2], "neutral", 1),
    studio_short(4, "A street", [{"choices": ["positive", "neutral"]}], 1),
    studio_short(5, "A door", None, {}),
]
SHORT = [(TEXTS[0], "positive", "1"), (TEXTS[0], "negative", "2"), (TEXTS[1], "negative", "1"), (TEXTS[2], "neutral", "1")]


def argilla(text, question="mood", answers=(), **more):
    """A record as Argilla 2.8.0 writes it with records.to_datasets().to_json(FILE); an answer is (value, reader, status)."""
    names = question + ".responses", question + ".responses.users", question + ".responses.status"
    columns = dict(zip(names, map(list, zip(*answers)))) if answers else dict.fromkeys(names)
    suggested = {f"{question}.suggestion": 1, f"{question}.suggestion.score": 0.9, f"{question}.suggestion.agent": "m"}
    return {"id": "1", "status": "pending", "_server_id": None, "text": text, **more, **columns, **suggested}


WHYS = {"why.responses": ["it is so"], "why.responses.users": ["u1"], "why.responses.status": ["submitted"]}
ARGILLA = [
    argilla(TEXTS[0], answers=[("positive", "u1", "submitted"), ("neutral", "u2", "draft"), ("negative", "u3", "discarded")]),
    argilla(TEXTS[1], answers=[(["negative"], "u1", "submitted"), (["neutral", "positive"], "u2", "submitted")]),
    argilla(TEXTS[2], "rating", [(5, "u2", "submitted")], **WHYS),
    argilla("A door", rating=5),  # metadata; nobody answered
]


def feedback(text, *answers):
    """A record as a FeedbackDataset of Argilla 1.29.1 writes it with format_as("datasets").to_json(FILE)."""
    found = [dict(zip(("user_id", "value", "status"), answer)) for answer in answers]
    return {"text": text, "mood": found, "mood-suggestion": "negative", "mood-suggestion-metadata": {"agent": "m"}}


def classified(text, annotation, status):
    """A record as a DatasetForTextClassification of Argilla 1.29.1 writes it with to_datasets().to_json(FILE)."""
    guess = {"prediction": [{"label": "negative", "score": 0.9}], "prediction_agent": "m"}
    agent = None if annotation is None else "anne"
    return {
        "text": text,
        "inputs": {"text": text},
        **guess,
        "annotation": annotation,
        "annotation_agent": agent,
        "status": status,
    }


ARGILLA_1 = [
    feedback(TEXTS[0], ("u1", "positive", "submitted"), ("u2", "negative", "draft")),
    feedback("A door"),
    {**classified(TEXTS[1], "negative", "Validated"), "text": None},
    classified(TEXTS[2], ["neutral"], "Validated"),
    classified("A boat", "neutral", "Discarded"),
    classified("A ship", None, "Default"),
]


@pytest.mark.parametrize("lines", [True, False], ids=["lines", "list"])
@pytest.mark.parametrize(
    ("rows", "wanted", "left"),
    [
        (
            [
                doccano(1, TEXTS[0], ["positive"], ["I doubt it"]), doccano(2, TEXTS[1], ["Neg"]),
                doccano(3, TEXTS[2], ["neutral"]), doccano(4, "A door", []),
                doccano(5, "A street", ["NEGATIVE", "Positive"]), doccano(6, "A boat", ["positiv"]),
            ],
            [(TEXTS[0], "positive", "berta"), (TEXTS[1], "negative", "berta"), (TEXTS[2], "neutral", "berta")],
            {"no label": (1, 4), "several labels": (1, 5), "unknown label 'positiv'": (1, 6)},
        ),
        (
            STUDIO,
            [
                (TEXTS[0], "positive", "1"), (TEXTS[0], "negative", "2"), (TEXTS[1], "negative", "1"),
                (TEXTS[2], "neutral", "anne@x"),
            ],
            {
                "skipped, discarded or a draft": (2, 2), "several labels": (1, 5), "unknown label 'heiter'": (1, 5),
                "no label": (2, 6),
            },
        ),
        (STUDIO_SHORT, SHORT, {"several labels": (1, 5), "no label": (1, 6)}),
        (
            ARGILLA,
            [(TEXTS[0], "positive", "u1"), (TEXTS[1], "negative", "u1"), (TEXTS[2], "positive", "u2")],
            {"skipped, discarded or a draft": (2, 1), "several labels": (1, 2), "no label": (1, 4)},
        ),
        (
            ARGILLA_1,
            [(TEXTS[0], "positive", "u1"), (TEXTS[1], "negative", "anne"), (TEXTS[2], "neutral", "anne")],
            {"skipped, discarded or a draft": (2, 1), "no label": (2, 2)},
        ),
    ],
    ids=["doccano", "label studio", "label studio, short", "argilla 2", "argilla 1"],
)  # fmt: skip
def test_exports_are_read_and_what_was_left_is_counted(tmp_path, rows, wanted, left, lines):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows, indent=2)
    taken = load(put(tmp_path / "berta.json", text))
    assert given_in(taken) == wanted and taken.left == left and taken.rows == len(rows)
    labels.write(tmp_path / "ours.jsonl", taken.labels)
    assert labels.read(tmp_path / "ours.jsonl") == taken.labels


def table(rows, **form):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), **form)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("between", [",", "\t"], ids=["CSV", "TSV"])
def test_the_tables_of_label_studio_have_json_in_their_cells(tmp_path, between):  # Label Studio 1.23.2
    rows = [*STUDIO_SHORT[:-1], studio_short(5, "A door", None, "3")]
    rows = [{key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()} for row in rows]
    taken = load(put(tmp_path / "a.csv", table(rows, quoting=csv.QUOTE_NONNUMERIC, delimiter=between)))
    assert given_in(taken) == SHORT and taken.left == {"several labels": (1, 5), "no label": (1, 6)}


@pytest.mark.parametrize(("name", "reader"), [("berta", "berta"), ("all", "me")])
def test_a_table_of_doccano_is_of_the_reader_whose_name_it_has(tmp_path, name, reader):  # doccano 1.8.4
    rows = [doccano(1, TEXTS[0], "positive"), doccano(2, TEXTS[1], "neg"), doccano(3, "A door", ""), doccano(4, "A", "neg#pos")]
    taken = load(put(tmp_path / f"{name}.csv", table(rows)))
    assert given_in(taken) == [(TEXTS[0], "positive", reader), (TEXTS[1], "negative", reader)]
    assert taken.left == {"no label": (1, 3), "unknown label 'neg#pos'": (1, 4)}


NESTED = {
    "id": "1", "fields": {"text": "O love"}, "metadata": {}, "suggestions": {}, "vectors": {}, "status": "pending",
    "responses": {"mood": [{"value": "positive", "user_id": "u1"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # Argilla 2.8.0: records.to_json(FILE) drops the status of the answers
        (json.dumps([NESTED]), r"left out 1 \(drafts and .* not marked in this form: write records.to_datasets\(\).to_json"),
        ("text,mood.responses,mood.responses.users\nO love,['positive' 'neg'],['u1' 'u2']\n", "left out 1 .a list in a cell"),
        ("text,label\nO love,\"[{'user_id': 'u1', 'value': 'pos'}]\"\n", "a list in a cell of a table: export JSON lines"),
        (b"PAR1\x15\x04\xff", "a.csv: Parquet: export JSON lines"),
        (b"PK\x03\x04\x14\x00", "a.csv: a zip archive or a workbook: unpack it"),  # doccano 1.8.4 sends one
        ('"__label__positive O love\nmy love "\n', "fastText does not say where a text ends: export JSONL"),  # doccano 1.8.4
        ("text,mood\nO love,positive\n", r"a label \(named label, labels, sentiment, rating; one of negative, neutral, positive"),
    ],
    ids=["argilla nested", "argilla 2 CSV", "argilla 1 CSV", "parquet", "zip", "fastText", "another name"],
)  # fmt: skip
def test_forms_that_do_not_hold_what_is_needed_are_named_with_the_one_to_choose(tmp_path, content, said):
    with pytest.raises(LabelError, match=said):
        load(put(tmp_path / "a.csv", content))


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


NAMES = st.sampled_from(
    ["text", "label", "data", "annotations", "result", "value", "choices", "responses", "reader", "fields", "status", "Comments"]
    + ["m.responses", "m.responses.users", "m.responses.status", "was_cancelled"]
)
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
