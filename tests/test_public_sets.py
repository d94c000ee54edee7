import csv
import gzip
import json

import datasets
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import chat, comparisons, public_sets
from rlhf_lib.chat import ChatError
from rlhf_lib.comparisons import ComparisonError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The real `datasets`, which may not ask the hub."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def talk(*turns):
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def transcript(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {turn}" for place, turn in enumerate(turns))


def row(chosen, rejected, **prompt):
    return {**prompt, "chosen": chosen, "rejected": rejected}


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def triples(loaded):
    return comparisons.pairs(loaded.comparisons)


# ----------------------------------------------------------------------------------------- one row

GOOD = {
    "hh": (row(transcript("Hi", "Hello!"), transcript("Hi", "Go.")), talk("Hi"), "Hello!", "Go."),
    "hh of several turns": (
        row(transcript("Hi", "Hello!", "Why?\n\nI ask", "So."), transcript("Hi", "Hello!", "Why?\n\nI ask", "No.")),
        talk("Hi", "Hello!", "Why?\n\nI ask"),
        "So.",
        "No.",
    ),
    "hh cut behind the last Assistant:": (
        row(" Hello!", " Go.", prompt=transcript("Hi", "Yes?", "Bye", "").rstrip()),
        talk("Hi", "Yes?", "Bye"),
        "Hello!",
        "Go.",
    ),
    "hh whole, with its prompt beside it": (
        row(transcript("Hi", "Hello!"), transcript("Hi", "Go."), prompt=transcript("Hi", "")),
        talk("Hi"),
        "Hello!",
        "Go.",
    ),
    "texts": (row("\n  be.", "\n  go.", prompt=" To be\n"), " To be\n", "\n  be.", "\n  go."),
    "messages": (row(talk("a", "b")[1:], talk("a", "c")[1:], prompt=talk("a")), talk("a"), "b", "c"),
    "messages of several turns": (
        row(talk("a", "b", "c", "d")[3:], talk("a", "b", "c", "e")[3:], prompt=talk("a", "b", "c")),
        talk("a", "b", "c"),
        "d",
        "e",
    ),
    "messages that hold the prompt": (row(talk("a", "b"), talk("a", "c")), talk("a"), "b", "c"),
    "messages that repeat the prompt": (row(talk("a", "b"), talk("a", "c"), prompt="a"), talk("a"), "b", "c"),
    "messages behind a text": (row(talk("a", "b")[1:], talk("a", "c")[1:], prompt="a"), talk("a"), "b", "c"),
    "texts behind messages": (row(" b", "c ", prompt=talk("a")), talk("a"), " b", "c "),
    "a system": (
        row("b", "c", prompt=[{"role": "system", "content": "s"}, *talk("a")]),
        [{"role": "system", "content": "s"}, *talk("a")],
        "b",
        "c",
    ),
    "a ranking of texts": ({"prompt": "a", "ranked": [" b", "c ", "d"]}, "a", " b", "c ", "d"),
    "a ranking of two": ({"prompt": "a", "ranked": ["b", "c"]}, "a", "b", "c"),
    "a ranking of sixteen": ({"prompt": "a", "ranked": [*"bcdefghijklmnopq"]}, "a", *"bcdefghijklmnopq"),
    "a ranking behind messages": ({"prompt": talk("a", "b", "c"), "ranked": ["d", "e", "f"]}, talk("a", "b", "c"), *"def"),
    "a ranking behind a transcript": ({"prompt": transcript("a", ""), "ranked": ["d", "e", "f"]}, talk("a"), *"def"),
    "a ranking beside gaps": ({"prompt": "a", "chosen": None, "rejected": None, "ranked": ["b", "c", "d"]}, "a", *"bcd"),
    "a pair is a pair": (row("b", "c", prompt="a", ranked=["x", "y", "z"]), "a", "b", "c"),
    "fields that nobody asked for": (
        row(*([{**message, "name": None} for message in talk("a", answer)] for answer in "bc"), score=3),
        talk("a"),
        "b",
        "c",
    ),
}


@pytest.mark.parametrize(("row", "taken"), [(row, taken) for row, *taken in GOOD.values()], ids=GOOD)
def test_a_row_is_taken_apart(row, taken):
    assert public_sets.take_apart(row) == tuple(taken)


LAST = "the last turn is not the assistant's"
DIFFER, SAME = "the two prompts differ", "both answers are the same"
NO_RANKING, TWO_SAME = "ranked is not a list of 2 to 16 texts", "two answers of the ranking are the same"
EMPTY, NO_PROMPT = "an answer is empty", "there is no prompt, neither a text nor a list of messages"
BAD = {
    "no chosen": ({"prompt": "a", "rejected": "b"}, public_sets.NO_ANSWERS),
    "no rejected": (row("b", None, prompt="a"), public_sets.NO_ANSWERS),
    "a number": (row("b", 4, prompt="a"), public_sets.NO_ANSWERS),
    "a dict": (row("b", {"role": "assistant", "content": "a"}, prompt="a"), public_sets.NO_ANSWERS),
    "no prompt": (row("b", "c"), NO_PROMPT),
    "an empty prompt": (row("b", "c", prompt=""), NO_PROMPT),
    "a prompt of white space": (row("b", "c", prompt=" \n"), NO_PROMPT),
    "a number for a prompt": (row("b", "c", prompt=4), NO_PROMPT),
    "no message for a prompt": (row("b", "c", prompt=[]), NO_PROMPT),
    "an answer alone in messages": (row(talk("a", "b")[1:], talk("a", "c")[1:]), NO_PROMPT),
    "an answer alone in hh": (row("\n\nAssistant: b", "\n\nAssistant: c"), NO_PROMPT),
    "hh, the last is human": (row(transcript("a", "b", "c"), transcript("a", "b", "d")), LAST),
    "hh, one of the last is human": (row(transcript("a", "b"), transcript("a", "b", "d")), LAST),
    "messages, the last is the user": (row(talk("a"), talk("a", "b")), LAST),
    "hh cut elsewhere": (row(" Hello!", " Go.", prompt="\n\nHuman: Hi"), LAST),
    "hh, prompts": (row(transcript("a", "b"), transcript("A", "c")), DIFFER),
    "hh, lengths": (row(transcript("a", "b"), transcript("a", "b", "c", "d")), DIFFER),
    "hh, an earlier answer": (row(transcript("a", "b", "c", "d"), transcript("a", "x", "c", "e")), DIFFER),
    "messages, prompts": (row(talk("a", "b"), talk("x", "c")), DIFFER),
    "hh and text": (row(transcript("a", "b"), "c", prompt="x"), DIFFER),
    "hh, same": (row(transcript("a", "b"), transcript("a", "b ")), SAME),
    "texts, same": (row("b", "b\n", prompt="a"), SAME),
    "texts, same but for a space in front": (row(" b", "b", prompt="a"), SAME),
    "messages, same": (row(talk("a", "b"), talk("a", "b")), SAME),
    "hh, empty": (row(transcript("a", "b"), transcript("a", "")), EMPTY),
    "texts, empty": (row(" ", "b", prompt="a"), EMPTY),
    "messages, empty": (row(talk("a", "b"), talk("a", "\n")), EMPTY),
    "both empty": (row("", "", prompt="a"), EMPTY),
    "hh, nobody asks": (row("\n\nAssistant: a" + transcript("b", "c"), transcript("b", "c")), chat.NOT_ALTERNATING),
    "hh, asked twice": (row("\n\nHuman: x" + transcript("b", "c"), "\n\nHuman: x" + transcript("b", "d")), chat.NOT_ALTERNATING),
    "messages, answered twice": (row(talk("a", "b")[1:], talk("a", "c")[1:], prompt=talk("a", "b")), chat.NOT_ALTERNATING),
    "messages, the system and nobody": (row("b", "c", prompt=[{"role": "system", "content": "s"}]), chat.NOT_ALTERNATING),
    "hh, an empty turn": (row(transcript("", "b"), transcript("", "c")), chat.EMPTY_MESSAGE),
    "messages, a tool": (row("b", "c", prompt=[*talk("a", "b"), {"role": "tool", "content": "c"}]), chat.UNKNOWN_ROLE),
    **{
        f"ranked: {ranked}": ({"prompt": "a", "ranked": ranked}, NO_RANKING)
        for ranked in ("b", 3, {}, [], ["b"], ["b", 3], ["b", None], ["b", ["c", "d"]], [*"bcdefghijklmnopqr"])
    },
    "ranked, no prompt": ({"ranked": ["b", "c", "d"]}, NO_PROMPT),
    "ranked, the id of a prompt": ({"id": "advice-001", "ranked": ["b", "c", "d"]}, NO_PROMPT),
    "ranked, an empty prompt": ({"prompt": " ", "ranked": ["b", "c", "d"]}, NO_PROMPT),
    "ranked, empty": ({"prompt": "a", "ranked": ["b", " ", "c"]}, EMPTY),
    "ranked, two empty": ({"prompt": "a", "ranked": ["b", "", ""]}, EMPTY),
    "ranked, same": ({"prompt": "a", "ranked": ["b", "c", "b"]}, TWO_SAME),
    "ranked, same but for a space": ({"prompt": "a", "ranked": ["b", "c", " c\n"]}, TWO_SAME),
    "ranked, the prompt waits for the user": ({"prompt": talk("a", "b"), "ranked": ["c", "d", "e"]}, chat.NOT_ALTERNATING),
    "ranked beside half a pair": ({"prompt": "a", "chosen": "b", "ranked": ["b", "c", "d"]}, public_sets.NO_ANSWERS),
    "no messages": (row([], [], prompt=[]), chat.NOT_A_MESSAGE),
    "texts for messages": (row(["a"], ["b"], prompt="a"), chat.NOT_A_MESSAGE),
    "no content": (row([{"role": "assistant"}], [{"role": "assistant"}], prompt="a"), chat.NOT_A_MESSAGE),
    "no content before": (row("b", "c", prompt=[{"role": "user", "content": None}]), chat.NOT_A_MESSAGE),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD)
def test_a_malformed_row_says_why(row, reason):
    with pytest.raises(ChatError) as error:
        public_sets.take_apart(row)
    assert error.value.reason == reason


WORDS = st.text("ab :\n", min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(WORDS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2),
    st.lists(WORDS, min_size=2, max_size=2, unique=True),
)
def test_all_forms_of_one_comparison_are_one_comparison(turns, answers):
    chosen, rejected = answers
    prompt = talk(*turns)
    whole = [talk(*turns, answer) for answer in answers]
    forms = [
        row(transcript(*turns, chosen), transcript(*turns, rejected)),
        row(chosen, rejected, prompt=transcript(*turns, "")),
        row(*whole),
        row(*whole, prompt=prompt),
        row(*(messages[-1:] for messages in whole), prompt=prompt),
        row(chosen, rejected, prompt=prompt),
    ]
    for form in forms:
        assert public_sets.take_apart(form) == (prompt, chosen, rejected)


# ----------------------------------------------------------------------------------------- a set

ROWS = [
    row(transcript("Hi", "Hello!"), transcript("Hi", "Go.")),
    row(transcript("a", "b"), transcript("a", "b")),
    row(transcript("a", "b", "c"), transcript("a", "d")),
    row(transcript("a", "b"), transcript("a", "b")),
    row(transcript("So", "Yes.", "Why?", "Air."), transcript("So", "Yes.", "Why?", "No.")),
    row(transcript("a", "b"), transcript("x", "c")),
    row(transcript("a", "b"), None),
]
KEPT = [(talk("Hi"), "Hello!", "Go."), (talk("So", "Yes.", "Why?"), "Air.", "No.")]


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path):
    path = put(tmp_path / "hh.jsonl", ROWS)
    loaded = public_sets.load(path)
    assert triples(loaded) == KEPT
    assert (loaded.rows, loaded.skipped) == (7, {SAME: (2, 2), LAST: (1, 3), DIFFER: (1, 6), public_sets.NO_ANSWERS: (1, 7)})
    assert str(loaded) == (
        f"{path}: 2 comparisons of 7 rows, skipped 2 (both answers are the same; the first is row 2), "
        "1 (the last turn is not the assistant's; the first is row 3), 1 (the two prompts differ; the first is row 6), "
        "1 (chosen and rejected are not both texts or lists of messages; the first is row 7)"
    )
    assert {(c.verdict, c.reader, c.split) for c in loaded.comparisons} == {("first", str(path), None)}


def test_a_loaded_comparison_can_be_kept_in_a_file_of_ones_own(tmp_path):
    found = public_sets.load(put(tmp_path / "hh.jsonl", ROWS)).comparisons
    for comparison in found:
        comparisons.append_comparison(tmp_path / "mine.jsonl", comparison)
    assert comparisons.read_comparisons(tmp_path / "mine.jsonl") == found


def test_rankings_are_read_and_counted_beside_pairs(tmp_path):
    lines = [
        {"prompt": "p", "ranked": ["b", "c", "d"]},
        {"prompt": "p", "ranked": ["b", 3]},
        row("e", "f", prompt="q"),
        {"prompt": "p", "ranked": "b > c"},
        {"prompt": "p", "ranked": ["b", "c", "b "]},
        {"prompt": talk("r"), "ranked": ["g", "h"]},
        {"prompt": "q", "first": "a", "second": "b", "verdict": "first", "reader": "r1"},
    ]
    loaded = public_sets.load(path := put(tmp_path / "mine.jsonl", lines))
    assert triples(loaded) == [("p", "b", "c"), ("p", "b", "d"), ("p", "c", "d"), ("q", "e", "f"), (talk("r"), "g", "h")]
    assert (loaded.rows, loaded.skipped) == (7, {NO_RANKING: (2, 2), TWO_SAME: (1, 5), public_sets.NO_ANSWERS: (1, 7)})
    assert str(loaded).startswith(
        f"{path}: 3 comparisons of 7 rows, skipped 2 (ranked is not a list of 2 to 16 texts; the first is row 2), "
        "1 (two answers of the ranking are the same; the first is row 5), "
    )
    ranking, pair, of_two = loaded.comparisons
    assert ranking == public_sets.Ranked("p", ("b", "c", "d"), {"prompt": "p"})
    assert (ranking.tie, ranking.ranked) == (False, (("b", False), ("c", False), ("d", False)))
    assert [public_sets.row_of(one) for one in (ranking, pair)] == [lines[0], comparisons.row_of(pair)]
    same = public_sets.load(put(path, [row("g", "h", prompt=talk("r"))])).comparisons
    assert same == [of_two]  # a ranking of two is the pair
    damaged = path.read_text(encoding="utf-8") + '{"prompt": "a", "ranked": ["b", "c", "d"}\n'
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ComparisonError, match=rf"^{path}, line 2: not JSON"):
        public_sets.load(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".parquet"])
def test_rankings_are_read_from_every_kind_of_file_that_can_hold_them(tmp_path, suffix):
    WRITE[suffix](tmp_path / f"mine{suffix}", [{"prompt": "p", "ranked": ["b", "c", "d"]}] * 2)
    assert triples(public_sets.load(tmp_path / f"mine{suffix}")) == [("p", "b", "c"), ("p", "b", "d"), ("p", "c", "d")] * 2


def test_a_limit_counts_comparisons_and_reads_no_further(tmp_path):
    path = put(tmp_path / "hh.jsonl", ROWS)
    one = public_sets.load(path, limit=1)
    assert (triples(one), one.rows, one.skipped) == (KEPT[:1], 1, {})
    assert str(one) == f"{path}: 1 comparisons of 1 rows, none skipped"
    two = public_sets.load(path, limit=2)
    assert (triples(two), two.rows, two.skipped) == (KEPT, 5, {SAME: (2, 2), LAST: (1, 3)})
    assert public_sets.load(path, limit=3) == public_sets.load(path)
    for limit in (0, -1):
        with pytest.raises(ComparisonError, match=f"^limit must be at least 1, or None for all, got {limit}$"):
            public_sets.load(path, limit=limit)


def test_a_file_is_streamed_so_that_what_nobody_asks_for_is_not_read(tmp_path):
    path = tmp_path / "long.jsonl"
    line = json.dumps(row("b" * 4000, "c", prompt="a")) + "\n"
    path.write_text(line * 6000 + "{oops\n")  # 24 MB; `datasets` reads 10 at a time
    assert len(public_sets.load(path, limit=20).comparisons) == 20
    with pytest.raises(ComparisonError, match=rf"^{path}, line 6001: not JSON"):
        public_sets.load(path)


CONVERSATIONAL = [
    row(talk("a", "b")[1:], talk("a", "c")[1:], prompt=talk("a")),
    row(talk("a", "b", "c", "d")[3:], talk("a", "b", "c", "e")[3:], prompt=talk("a", "b", "c")),
]
PLAIN = [
    row("é, b", "c\n\nd\u2028", prompt="a"),
    row("NA", "007", prompt="1"),
    row("null", "", prompt="x"),
    row("y", "3", prompt="2"),
]


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("prompt", "chosen", "rejected"))
        writer.writeheader()
        writer.writerows(rows)


WRITE = {
    ".jsonl": put,
    ".json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    ".jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())),
    ".parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
    ".csv": write_csv,
}


@pytest.mark.parametrize("suffix", WRITE)
def test_texts_are_read_as_they_are_from_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"texts{suffix}"
    WRITE[suffix](path, PLAIN)
    loaded = public_sets.load(path)
    assert triples(loaded) == [("a", "é, b", "c\n\nd\u2028"), ("1", "NA", "007"), ("2", "y", "3")]
    assert (loaded.rows, loaded.skipped) == (4, {EMPTY: (1, 3)})


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITE if suffix != ".csv"])
def test_conversations_are_read_from_every_kind_of_file_that_can_hold_them(tmp_path, suffix):
    path = tmp_path / f"talks{suffix}"
    WRITE[suffix](path, CONVERSATIONAL)
    assert triples(public_sets.load(path)) == [(talk("a"), "b", "c"), (talk("a", "b", "c"), "d", "e")]


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = put(tmp_path / "hh.jsonl", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert triples(public_sets.load(path)) == KEPT


# ----------------------------------------------------------------------------------------- what is refused


def test_a_set_of_which_nothing_is_left_is_an_error_that_says_why(tmp_path):
    path = put(tmp_path / "votes.jsonl", [{"prompt": "a", "first": "b", "second": "c", "verdict": "first"}] * 3)
    with pytest.raises(ComparisonError) as error:
        public_sets.load(path)
    assert str(error.value) == (
        f"no row can be used: {path}: 0 comparisons of 3 rows, skipped 3 (chosen and rejected are not both texts or lists of "
        "messages; the first is row 1); give a set whose rows have prompt, chosen, rejected, or prompt, ranked"
    )


def test_a_table_of_no_rows_is_an_error(tmp_path):
    write_csv(tmp_path / "set.csv", [])
    with pytest.raises(
        ComparisonError, match=r"no row can be used: .*set\.csv: 0 comparisons of 0 rows, none skipped; give a set"
    ):
        public_sets.load(tmp_path / "set.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_a_file_that_is_not_there_or_is_empty_is_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    for _ in range(2):
        with pytest.raises(ComparisonError, match=rf"^no rows at {path}: give the path of a file that exists and is not empty$"):
            public_sets.load(path)
        path.touch()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n\n{"prompt": \n', "line 3: not JSON"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "\xff"}\n', r"line 2: not UTF-8 \(byte 60\)"),
    ],
)
def test_a_damaged_line_of_a_file_is_named(tmp_path, content, message):
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(ComparisonError, match=rf"^{path}, {message}"):
        public_sets.load(path)


@pytest.mark.parametrize("suffix", [".json", ".parquet", ".jsonl.gz"])
def test_a_file_of_another_kind_is_one_sentence(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    path.write_bytes(b"PK\x03\x04 not what it says")
    with pytest.raises(ComparisonError) as error:
        public_sets.load(path)
    assert str(error.value).startswith(f"{path} cannot be read (") and "\n" not in str(error.value)
    assert str(error.value).endswith("): check the name, the split and its content")


def test_a_split_that_a_file_does_not_have_is_named(tmp_path):
    path = put(tmp_path / "hh.jsonl", ROWS)
    with pytest.raises(ComparisonError, match=rf"^{path} cannot be read \(ValueError: .*test.*\): check the name, the split and"):
        public_sets.load(path, "test")


# ----------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize(
    ("name", "split", "repository", "part"),
    [
        ("hh-rlhf", None, "Anthropic/hh-rlhf", "train"),
        ("hh-rlhf", "test", "Anthropic/hh-rlhf", "test"),
        ("someone/pairs", "validation", "someone/pairs", "validation"),
        ("Anthropic/hh-rlhf", None, "Anthropic/hh-rlhf", "train"),
    ],
)
def test_a_name_becomes_a_set_on_the_hub_that_is_streamed(monkeypatch, name, split, repository, part):
    asked, read = [], []

    def rows():
        for row in ROWS:
            read.append(row)
            yield row

    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: (asked.append((names, options)), rows())[1])
    loaded = public_sets.load(name, split, limit=1)
    assert asked == [((repository,), {"split": part, "streaming": True})]
    assert (loaded.name, triples(loaded), len(read)) == (repository, KEPT[:1], 1)
    assert {c.reader for c in loaded.comparisons} == {repository}


def test_without_the_hub_the_message_says_what_to_do():
    with pytest.raises(ComparisonError) as error:
        public_sets.load("hh-rlhf")
    assert str(error.value).startswith("Anthropic/hh-rlhf cannot be read (ConnectionError: ")
    assert str(error.value).endswith("the network, or give the path of a .jsonl, .json, .csv, .parquet file")


def test_a_stream_that_breaks_off_is_an_error_and_no_shorter_set(monkeypatch):
    def rows():
        yield ROWS[0]
        raise ConnectionResetError("reset\nby peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: rows())
    with pytest.raises(ComparisonError, match=r"^a/b cannot be read \(ConnectionResetError: reset by peer\): check the name"):
        public_sets.load("a/b")
    assert len(public_sets.load("a/b", limit=1).comparisons) == 1
