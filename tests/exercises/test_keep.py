import os
import subprocess
import sys

import pytest
import torch
from cells import Scene
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib.exercises import EXERCISES, check, complete, declare, keep, yours
from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.keep import COURSE, FILE, HEAD, UNKEPT, Section, fingerprint, join, run, split, the_course

declare.load()
DECLARED = {*declare.EXERCISES, *(name for name, one in declare.BUILDS.items() if one.kept)}  # as the course has them
SPLIT = '''
def split_words(text):
    """Pieces, Ü."""
    return [piece for piece in re.split(r"\\b", text) if piece]
'''
BETTER = """
    place = 0
    while place < len(out) - 1:
        if (out[place], out[place + 1]) == tuple(pair):
            out[place : place + 2] = [out[place] + out[place + 1]]
        place += 1
    return out
"""
TOTALS = """
def totals(words, counts):
    total = {}
    for word, count in zip(words, counts):
        for pair in zip(word, word[1:]):
            total[pair] = total.get(pair, 0) + count
    return total


def most_frequent_pair(words, counts):
    total = totals(words, counts)
    return max(total, key=total.get, default=None)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("RLHF_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    declare.load()
    UNKEPT.clear()
    return tmp_path


@pytest.fixture
def scene():
    return Scene()("import re\nimport torch\n")


def kept(here):
    return (here / FILE).read_text(encoding="utf-8")


def test_what_passed_is_in_the_file_with_its_imports_and_is_taken_from_there(here, scene, capsys):
    scene(SPLIT)
    check("split_words", scene["split_words"])
    text = kept(here)
    assert "import re" in text and "import torch" not in text and SPLIT.strip() in text
    assert "kept" not in capsys.readouterr().out  # nothing to say where all is well
    taken = yours("split_words")
    assert capsys.readouterr().out == "your split_words\n"
    assert taken("O, speak!") == ["O", ", ", "speak", "!"] and taken is not scene["split_words"]
    assert taken.__code__.co_filename == str(here / FILE)


def test_a_wrong_one_is_not_kept(here, scene):
    scene("def split_words(text):\n    return text.split()\n")
    with pytest.raises(AssertionError):
        check("split_words", scene["split_words"])
    assert not (here / FILE).exists()


def test_the_courses_stands_in_and_the_cell_says_whose_it_took(here, scene, capsys):
    scene(SPLIT)
    check("split_words", scene["split_words"])
    capsys.readouterr()
    _, courses = yours("split_words", "merge_pair")
    assert capsys.readouterr().out == "your split_words, the course's merge_pair\n"
    assert courses(["n", "o", "n", "o", "w"], ("n", "o")) == ["no", "no", "w"]
    assert courses.__code__.co_filename == str(COURSE)
    with pytest.raises(KeyError, match="no exercise 'gay'"):
        yours("gay")


def test_a_later_version_replaces_the_earlier_one_and_another_chapter_goes_behind(here, scene):
    scene(TOTALS)
    check("most_frequent_pair", scene["most_frequent_pair"])
    scene(SPLIT)
    check("split_words", scene["split_words"])
    scene(SPLIT.replace("Pieces, Ü.", "Pieces, better."))
    check("split_words", scene["split_words"])
    text = kept(here)
    assert "better" in text and "Pieces, Ü" not in text and text.count("def split_words") == 1
    assert text.index("# ---- 1.1 split_words") < text.index("# ---- 1.4 most_frequent_pair")
    assert text.count("def totals") == 1  # the helper of the same cell came along
    assert yours("most_frequent_pair")([["l", "o"]], [2]) == ("l", "o")


def test_a_function_that_leans_on_the_notebook_is_told_so_at_once(here, scene, capsys):
    scene("pattern = re.compile(r'\\b')\n")("def split_words(text):\n    return [p for p in pattern.split(text) if p]\n")
    check("split_words", scene["split_words"])
    said = capsys.readouterr().out
    assert (
        said.startswith("✓ 1.1") and "right, but not kept in my_rlhf.py: it uses `pattern`, which stands in another cell" in said
    )
    assert not (here / FILE).exists()


def test_a_cell_says_of_a_function_that_passed_and_is_not_kept_why_it_takes_another(here, scene, capsys):
    scene("pattern = re.compile(r'\\b')\n")("def split_words(text):\n    return [p for p in pattern.split(text) if p]\n")
    check("split_words", scene["split_words"])
    yours("split_words", "merge_pair")
    said = "the course's split_words (yours passed, but is not kept; its check says why), the course's merge_pair\n"
    assert capsys.readouterr().out.endswith(said)
    leaning = scene["split_words"]
    scene(SPLIT)
    check("split_words", scene["split_words"])
    yours("split_words")
    assert capsys.readouterr().out.endswith("\nyour split_words\n")
    check("split_words", leaning)
    yours("split_words")
    assert capsys.readouterr().out.endswith(
        "\nyour split_words (an older one: what passed last is not kept; its check says why)\n"
    )


def test_a_copy_that_does_something_else_is_not_kept(here, scene):
    """What makes it right here is hidden from the source: the function's own default was changed."""
    scene("def split_words(text, keep=None):\n    return [p for p in re.split(r'\\b', text) if keep(p)]\n")
    scene["split_words"].__defaults__ = (bool,)
    assert "does something else (1.1 split_words: it raised TypeError" in keep("split_words", scene["split_words"])
    assert not (here / FILE).exists()


def test_two_helpers_of_one_name_and_two_meanings_of_one_import_are_told(here, scene):
    scene(TOTALS)
    check("most_frequent_pair", scene["most_frequent_pair"])
    scene("def totals(x):\n    return x\n\n\n" + SPLIT.replace("return", "return totals(").rstrip() + ")\n")
    assert "`totals` stands in my_rlhf.py already, with 1.4 most_frequent_pair" in keep("split_words", scene["split_words"])
    scene("import math as torch\n")
    scene(SPLIT)
    check("split_words", scene["split_words"])
    scene("import random as re\n\n\ndef build_vocabulary(pieces, size):\n    return re and __import__('collections')\n")
    assert "`re` is `import random as re` here, but `import re`" in keep("build_vocabulary", scene["build_vocabulary"])


def test_an_older_version_of_what_it_calls_is_named(here, scene, capsys):
    """The file has a merge_pair that somebody wrote to suit the check alone; the notebook has a better one since."""
    scene("def merge_pair(word, pair):\n    out = list(word)\n" + BETTER)
    check("merge_pair", scene["merge_pair"])
    edited(here / FILE, "out = list(word)", "out = list(word)[::-1]")
    text = kept(here)
    mark = split(text)[1]["merge_pair"].mark
    (here / FILE).write_text(text.replace(mark, fingerprint(split(text)[1]["merge_pair"].code)), encoding="utf-8")
    loop = "    for pair in merges:\n        word = merge_pair(word, pair)\n    return word"
    scene(f"def bpe_encode(word, merges):\n    word = list(word)\n{loop}\n")
    check("bpe_encode", scene["bpe_encode"])
    said = capsys.readouterr().out
    assert (
        'your merge_pair here is newer than the one in my_rlhf.py, and bpe_encode needs it. Run check("merge_pair", merge_pair)'
        in said
    )
    check("merge_pair", scene["merge_pair"])
    check("bpe_encode", scene["bpe_encode"])
    assert yours("bpe_encode")("the", [("h", "e"), ("t", "h")]) == ["t", "he"]


def test_the_same_again_does_not_write_the_file(here, scene):
    scene(SPLIT)
    check("split_words", scene["split_words"])
    os.utime(here / FILE, (1, 1))
    check("split_words", scene["split_words"])
    assert (here / FILE).stat().st_mtime == 1


# ----------------------------------------------------------------------------------------- a file that somebody has broken


@pytest.fixture
def two(here, scene, capsys):
    """A file with two functions."""
    scene(SPLIT)(TOTALS)
    check("split_words", scene["split_words"])
    check("most_frequent_pair", scene["most_frequent_pair"])
    capsys.readouterr()
    return here / FILE


def edited(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("if piece]", "if piece", "SyntaxError, line"),
        ("def split_words(text):", "1 / 0\ndef split_words(text):", "ZeroDivisionError"),
        ("def split_words(text):", "import no_such_module\ndef split_words(text):", "ModuleNotFoundError"),
        ("def split_words", "def split_word", "there is no split_words in its section"),
        ("if piece]", "]", "it was changed and does not pass any more (1.1 split_words"),
        ("def split_words(text):", "exit()\ndef split_words(text):", "SystemExit"),
    ],
)
def test_a_broken_function_is_left_out_in_one_sentence_and_the_others_stay(two, capsys, old, new, word):
    edited(two, old, new)
    found = yours("split_words", "most_frequent_pair")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and word in said[0] and "your split_words is left out" in said[0]
    assert said[1] == "the course's split_words, your most_frequent_pair"
    assert found[0]("a b") == ["a", " ", "b"]
    yours("most_frequent_pair")
    assert capsys.readouterr().out == "your most_frequent_pair\n"  # who does not ask for it is not told again


def test_an_edit_that_still_passes_is_used(two, capsys):
    edited(two, "if piece]", "if len(piece) > 0]")
    assert yours("split_words")("a b") == ["a", " ", "b"]
    assert capsys.readouterr().out == "your split_words\n"


def test_a_head_that_does_not_run_costs_a_sentence_and_keeps_the_other_imports(two, capsys):
    edited(two, "import re\n", "import re\nimport no_such_module\n")
    assert yours("split_words")("a b") == ["a", " ", "b"]
    assert "its head does not run (ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"def f(:\n", b"<<<<<<< HEAD\n=======\n", b"# ---- 1.1 split_words [00000000]\n"]
)
def test_a_file_that_is_no_python_blocks_nothing(here, content, capsys):
    (here / FILE).write_bytes(content)
    assert yours("split_words")("a b") == ["a", " ", "b"]
    assert "the course's split_words" in capsys.readouterr().out


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_half_a_file_never_blocks_and_never_gives_a_wrong_function(data):
    lines = COURSE.read_text(encoding="utf-8").splitlines()[:90]
    text = "\n".join(lines)
    text = text[: data.draw(st.integers(0, len(text)))]
    found = run(text, "half.py", "half")
    assert found.own <= EXERCISES.keys()
    if "split_words" in found.own:
        assert found.namespace["split_words"]("a b") == ["a", " ", "b"]


def test_a_passed_function_calls_the_courses_where_another_was_deleted(here, scene):
    scene("def merge_pair(word, pair):\n    return yours_is_gone\n")
    text = join(
        HEAD,
        {
            "bpe_encode": Section(
                "1.6",
                "0" * 8,
                "def bpe_encode(word, merges):\n    pieces = list(word)\n    for pair in merges:\n"
                "        pieces = merge_pair(pieces, pair)\n    return pieces",
            )
        },
    )
    (here / FILE).write_text(text, encoding="utf-8")
    assert yours("bpe_encode")("the", [("h", "e"), ("t", "h")]) == ["t", "he"]


def test_what_a_person_wrote_into_the_head_stays(two, scene, here):
    edited(two, '"""\n', '"""\n# my own remark\nMINE = 3\n')
    body = "    return ['<|unknown|>'] + [p for p, _ in collections.Counter(pieces).most_common(size - 1)]"
    scene(f"import collections\n\n\ndef build_vocabulary(pieces, size):\n{body}\n")
    check("build_vocabulary", scene["build_vocabulary"])
    text = kept(here)
    assert "# my own remark\nMINE = 3" in text and "import collections\n" in text
    assert yours("build_vocabulary")(["a"], 2) == ["<|unknown|>", "a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# ma\xf1ana\n".encode("latin-1"), "it cannot be read as text in UTF-8: save it as that, or give it another name"),
        ("x = 1\n".encode("utf-16"), "it cannot be read as text in UTF-8: save it as that, or give it another name"),
        (None, "it cannot be read as text in UTF-8: save it as that, or give it another name"),  # a folder
        (b"# ---- 7.3 gae\n\ndef gae():\n    return 1\n", "the line '# ---- 7.3 gae' begins no section: number, name and mark"),
        (b"import nothing_of_this_name\n", "its head does not run (ModuleNotFoundError: No module named"),
    ],
    ids=["latin-1", "utf-16", "folder", "mark", "head"],
)
def test_a_file_of_which_nothing_can_be_taken_says_so_once_and_blocks_nothing(here, capsys, content, said):
    (here / FILE).mkdir() if content is None else (here / FILE).write_bytes(content)
    assert yours("share_positive")(torch.ones(1), 0.5) == 1.0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"my_rlhf.py: {said}") and last == "the course's share_positive"


def test_a_file_that_is_empty_or_not_there_needs_no_word(here, capsys):
    for _ in range(2):
        yours("share_positive")
        (here / FILE).touch()
    assert capsys.readouterr().out == "the course's share_positive\n" * 2


def test_as_a_program_the_file_has_the_courses_pieces_where_it_lacks_one(here, scene, capsys):
    """`bpe_encode` calls `merge_pair`, which the learner has not written."""
    scene(
        "def bpe_encode(word, merges):\n    for pair in merges:\n        word = merge_pair(list(word), pair)\n    return word\n"
    )
    keep("bpe_encode", scene["bpe_encode"], again=False)
    space = {"__file__": str(here / FILE)}
    exec(compile((here / FILE).read_text(encoding="utf-8"), FILE, "exec"), space)
    with pytest.raises(NameError):
        space["bpe_encode"]("abc", [("a", "b")])
    assert complete(space) is space and capsys.readouterr().out == "the course's merge_pair\n"
    assert space["bpe_encode"]("abc", [("a", "b")]) == ["ab", "c"]


def test_a_folder_that_cannot_be_written_costs_a_sentence(here, scene, capsys):
    (here / FILE).mkdir()
    scene(SPLIT)
    check("split_words", scene["split_words"])
    assert "my_rlhf.py cannot be read" in capsys.readouterr().out and (here / FILE).is_dir()


def test_a_file_in_another_encoding_is_never_replaced(here, scene, capsys):
    mine = "# ma\xf1ana: what I wrote myself\n".encode("latin-1")
    (here / FILE).write_bytes(mine)
    scene(SPLIT)
    check("split_words", scene["split_words"])
    assert "cannot be read as text in UTF-8: save it as that" in capsys.readouterr().out
    assert (here / FILE).read_bytes() == mine


def test_what_a_person_wrote_behind_the_end_stays(two, scene, here):
    mine = "\n\n# my own experiments\nprint('mine')\n"
    two.write_text(two.read_text(encoding="utf-8") + mine, encoding="utf-8")
    scene(SPLIT.replace("Pieces, Ü.", "Pieces, better."))
    check("split_words", scene["split_words"])
    assert "better" in kept(here) and kept(here).endswith(mine) and kept(here).count("# ---- the end") == 1


def test_it_lives_in_the_learners_folder(here, scene, monkeypatch):
    monkeypatch.setenv("RLHF_HOME", str(here / "drive"))
    scene(SPLIT)
    check("split_words", scene["split_words"])
    assert (here / "drive" / FILE).exists() and not (here / FILE).exists()


def test_of_a_build_the_copy_is_tried_on_its_quick_probes_alone(here):
    tried = []

    def watch(name):
        return lambda built: tried.append(name) or built(2)

    probes = [Probe("quick", lambda g: {}, watch("quick"), lambda out: "" if out == 4 else "no", seconds=2)]
    probes.append(Probe("long", lambda g: {}, watch("long"), lambda out: "", seconds=60))
    try:
        Build("2.99", "doubler", probes)
        scene = Scene()("def doubler(x):\n    return 2 * x\n")
        check("doubler", scene["doubler"])
        assert tried == ["quick", "long", "quick"] and yours("doubler")(3) == 6
    finally:
        declare.BUILDS.pop("doubler")


# ----------------------------------------------------------------------------------------- the file itself


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["gae", "merge_pair", "win_rate"]), st.text("ab \n=()#é", min_size=1), max_size=3))
def test_split_takes_apart_what_join_put_together(codes):
    sections = {name: Section(EXERCISES[name].number, fingerprint(code), code.strip("\n")) for name, code in codes.items()}
    head, found = split(join(HEAD, sections))
    assert head == HEAD and {name: one._replace(line=0) for name, one in found.items()} == sections


def test_a_traceback_shows_the_line_of_the_file(two):
    split_words = yours("split_words")
    with pytest.raises(TypeError) as caught:
        split_words(3)
    line = caught.traceback[1].lineno
    assert "re.split" in two.read_text(encoding="utf-8").splitlines()[line]


def test_the_courses_file_has_every_exercise_and_stands_alone():
    found = run(COURSE.read_text(encoding="utf-8"), COURSE, "course_rlhf")
    assert found.broken == {} and found.own == DECLARED
    assert the_course("gae")(torch.ones(1, 1), torch.zeros(1, 1), 1.0, 1.0, torch.ones(1, 1, dtype=torch.bool))[0].item() == 1


def test_the_file_is_a_program_that_says_what_it_lacks(two):
    done = subprocess.run([sys.executable, FILE], cwd=two.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "Traceback" not in done.stderr and "is not in my_rlhf.py yet" in done.stderr
