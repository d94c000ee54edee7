"""Who handed in what: a folder or a zip, by student, or as Canvas, Moodle and Gradescope export it.

Nothing is ever unpacked to the disk. A file is read when its turn comes, with limits; a link is not followed; whose a file is, is
said by the folder or the name under which it was exported, never by what is in it.
"""

import io
import os
import re
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rlhf_lib.exercises.progress import PROGRESS
from rlhf_lib.files import RunError

LARGE = 256 * 2**20  # bytes of one file
MANY = 200  # files of one student
ALL = 1024 * 2**20  # bytes of one student's files
ENTRIES = 50_000  # of a folder or a zip
STUFFED = 5_000  # entries of a student's zip
RATIO = 300  # times as large as packed: a bomb, where it is also larger than BOMB
BOMB = 16 * 2**20
CANVAS = re.compile(r"(?P<name>[^_]+)(?P<late>_LATE)?_(?P<id>\d+)_\d+_(?P<file>.+)", re.IGNORECASE)
MOODLE = re.compile(r"(?P<name>.+?)_(?P<id>\d+)_assignsubmission_(?:file|onlinetext)(?:_(?P<file>.*))?")
GRADESCOPE = re.compile(r"submission_(?P<id>\d+)")
CHAPTER = re.compile(r"(?:\d\d[_ -](?:" + "|".join([
    "start here", "text and tokens", "the transformer", "pretraining", "sampling", "labels", "the reward model",
    "policy gradients and ppo", "rlhf", "over optimisation", "report", "prompts and comparisons", "a small assistant",
    "beyond ppo", "the bug hunt",
]).replace(" ", "[_ -]") + r")|my_rlhf)", re.IGNORECASE)  # fmt: skip
COURSE = {"rlhf_lib", "site-packages", ".venv"}  # folders that are the course's, or Python's: nothing in them is the student's
BESIDE = (
    ".json",
    ".jsonl",
    ".png",
    ".svg",
    ".csv",
    ".safetensors",
    ".arrow",
    ".parquet",
    ".lock",
)  # what work leaves in a folder
COPY = re.compile(r"(?:[ _-]*(?:\((?P<a>\d+)\)|copy ?(?P<b>\d*)|-copy(?P<c>\d*)))+$", re.IGNORECASE)
AGAIN = re.compile(r"-(\d+)$")  # Canvas's mark of a second file of one name


class UnreadableError(Exception):
    """A file that cannot be read; the message says why."""


class File(NamedTuple):
    """name: as it was handed in. place: the path on the disk, and, in a zip, those inside it. rank: which of two is newer."""

    name: str
    place: tuple
    size: int
    rank: tuple

    def read(self):
        """Its bytes. Raises UnreadableError."""
        path, *members = self.place
        try:
            if not members:
                flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                with os.fdopen(os.open(path, flags), "rb") as file:
                    return within(file.read(LARGE + 1))
            content = None
            for member in members:
                with zipfile.ZipFile(path if content is None else io.BytesIO(content)) as archive:
                    content = unzipped(archive, archive.infolist()[member])
            return content
        except UnreadableError:
            raise
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise UnreadableError(f"it cannot be read ({error})") from None
        except Exception as error:  # zlib.error and lzma.LZMAError
            raise UnreadableError(f"it is damaged ({type(error).__name__})") from None


class Submission(NamedTuple):
    """What one student handed in. `skipped`: sentences on what was not taken. `late`: marked so by Canvas."""

    student: str
    id: str
    email: str
    files: list
    skipped: list
    late: bool


def within(content):
    if len(content) > LARGE:
        raise UnreadableError(f"it is larger than {LARGE >> 20} MB")
    return content


def unzipped(archive, info):
    if info.file_size > BOMB and info.file_size > RATIO * max(1, info.compress_size):
        raise UnreadableError("it is a zip bomb: far larger than it is packed")
    if info.flag_bits & 1:
        raise UnreadableError("it is encrypted")
    with archive.open(info) as file:
        return within(file.read(LARGE + 1))


def find(path):
    """The submissions in a folder or a zip, by student.

    Returns:
        (a list of Submission in the order of their names, sentences on what belongs to nobody).

    Raises:
        RunError: there is nothing at `path`, or it is no zip.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"no submissions at {path}: give a folder or a zip")
    try:
        found = list(in_folder(path) if path.is_dir() else in_zip(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}): give a folder or a zip of submissions") from None
    if len(found) > ENTRIES:
        raise RunError(f"{path} has more than {ENTRIES} files: give one assignment at a time")
    nameless, found = [one for one in found if not one[0]], [one for one in found if one[0]]
    people = gradescope(found)
    found = [one for one in found if one[0][-1] != "submission_metadata.yml"]
    found = stripped(found, path.stem)
    students, lost, sizes = {}, [f"{path.name}: one of its files has no name in the zip"] * len(nameless), {}
    for parts, place, size, when, why in found:
        person = whose(parts, people)
        if person is None:
            lost.append(f"{'/'.join(parts)}: whose it is cannot be seen; put it into a folder with the student's name")
            continue
        name, identity, email, file, late = person
        one = students.setdefault(identity or name, Submission(name, identity, email, [], [], late))
        if late and not one.late:
            students[identity or name] = one = one._replace(late=True)
        sizes[identity or name] = sizes.get(identity or name, 0) + size
        if why:
            one.skipped.append(f"{file}: {why}")
        elif len(one.files) < MANY and sizes[identity or name] <= ALL:
            one.files.append(File(file, place, size, rank(file, when)))
        elif (few := f"only the first {MANY} files, and {ALL >> 20} MB, are looked at") not in one.skipped:
            one.skipped.append(few)
    found = [one._replace(files=without_beside(one.files)) for one in students.values()]
    return sorted(found, key=lambda one: (one.student.casefold(), one.id)), lost


def without_beside(files):
    """A student's files without those that lie beside the work, where there is any: nobody has to look at them."""
    work = [file for file in files if not file.name.lower().endswith(BESIDE)]
    return work + [file for file in files if file.name == PROGRESS] if work else files


def in_folder(root):
    """(parts of the name, place, size, time, why it is left out) of each file below a folder; links are not followed."""
    for folder, folders, files in os.walk(root, followlinks=False):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(files) + links:
            if hidden(name):
                continue
            path = Path(folder) / name
            parts = tuple(clean(part) for part in path.relative_to(root).parts)
            found = path.lstat()
            if path.is_symlink() or not path.is_file():
                yield parts, (str(path),), 0, 0.0, "it is a link or no ordinary file, and is not followed"
            elif name.lower().endswith(".zip"):
                yield from in_zip(path, parts)
            else:
                yield parts, (str(path),), found.st_size, found.st_mtime, ""


def in_zip(path, above=(), content=None, place=()):
    """The same of each file in a zip. A zip in a zip, as one student's, is looked into once."""
    place = place or (str(path),)
    try:
        archive = zipfile.ZipFile(path if content is None else io.BytesIO(content))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        if not above:
            raise zipfile.BadZipFile(str(error)) from None
        yield above, place, 0, 0.0, f"it is no zip that can be read ({error})"
        return
    with archive:
        if above and len(archive.infolist()) > STUFFED:
            yield above, place, 0, 0.0, f"it has more than {STUFFED} files in it"
            return
        for number, info in enumerate(archive.infolist()[: ENTRIES + 1]):
            if not info.filename:
                yield above, place, 0, 0.0, "it has no name in the zip"
                continue
            parts = tuple(clean(part) for part in PurePosixPath(info.filename.replace("\\", "/")).parts)
            if info.is_dir() or not parts or any(hidden(part) for part in parts):
                continue
            whole = (*above[:-1], *(part[:-4] for part in above[-1:]), *parts)  # a zip is a folder of its name
            if info.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
                safe = tuple(part for part in whole if part not in ("..", "/", "\\")) or ("?",)
                yield safe, place, 0, 0.0, "its name leads out of the zip"
            elif (info.external_attr >> 16) & 0o170000 == 0o120000:
                yield whole, place, 0, 0.0, "it is a link, and is not followed"
            elif info.filename.lower().endswith(".zip") and content is None and len(place) == 1:
                try:
                    inside = unzipped(archive, info)
                except Exception as error:
                    yield whole, place, 0, 0.0, str(error) or type(error).__name__
                else:
                    yield from in_zip(path, whole, inside, (*place, number))
            else:
                yield whole, (*place, number), info.file_size, seconds_of(info.date_time), ""


def seconds_of(date):
    """A number that grows with the time that a zip notes."""
    year, month, day, hour, minute, second = date
    return ((((year * 12 + month) * 31 + day) * 24 + hour) * 60 + minute) * 60.0 + second


def hidden(name):
    junk = name in COURSE or name in ("__MACOSX", "__pycache__", ".ipynb_checkpoints")
    return junk or name.startswith(("._", ".DS_Store", ".git"))


def clean(name):
    """A name for tables and pages: one form of accents, nothing that cannot be printed."""
    name = unicodedata.normalize("NFC", name)
    return "".join(one if one.isprintable() else "�" for one in name)[:200] or "?"


def stripped(found, stem):
    """Without the folders that stand round everything: an export's own, or the zip's."""
    while found and len({parts[0] for parts, *_ in found}) == 1 and all(len(parts) > 1 for parts, *_ in found):
        top = found[0][0][0]
        marked = MOODLE.fullmatch(top) or GRADESCOPE.fullmatch(top)
        deeper = all(len(parts) > 2 for parts, *_ in found) or all(CANVAS.fullmatch(parts[1]) for parts, *_ in found)
        if marked or not (deeper or top == stem or re.fullmatch(r"assignment_\d+_export", top)):
            break
        found = [(parts[1:], *rest) for parts, *rest in found]
    return found


def gradescope(found):
    """{submission's number: (name, id, email)} of Gradescope's own list, where there is one."""
    import yaml

    for parts, place, size, *_ in found:
        if parts[-1] == "submission_metadata.yml" and size < 16 * 2**20:
            try:
                table = yaml.safe_load(File(parts[-1], place, size, ()).read())
                return {
                    str(key): (
                        clean(" & ".join(str(one[":name"]) for one in entry[":submitters"])),
                        str(entry[":submitters"][0].get(":sid") or ""),
                        str(entry[":submitters"][0].get(":email") or ""),
                    )
                    for key, entry in table.items()
                    if entry.get(":submitters")
                }
            except (UnreadableError, yaml.YAMLError, AttributeError, TypeError, KeyError, IndexError, RecursionError) as error:
                raise RunError(
                    f"{place[0]}: submission_metadata.yml is not Gradescope's ({type(error).__name__}): export again"
                ) from None
    return {}


def whose(parts, people):
    """(student, id, email, the file's own name, whether it is marked late), or None."""
    file, top = parts[-1], parts[0]
    if len(parts) > 1:
        export = GRADESCOPE.fullmatch(top)
        if export:
            name, identity, email = people.get(top) or people.get(export["id"]) or (top, "", "")
            return name, identity or export["id"], email, file, False
        export = MOODLE.fullmatch(top)
        if export:
            return export["name"], export["id"], "", file, False
        export = CANVAS.fullmatch(top)
        if export:
            return export["name"], export["id"], "", file, bool(export["late"])
        return top, "", "", file, False
    export = MOODLE.fullmatch(file)
    if export and export["file"]:
        return export["name"], export["id"], "", export["file"], False
    export = CANVAS.fullmatch(file)
    if export and not CHAPTER.match(file):
        return export["name"], export["id"], "", export["file"], bool(export["late"])
    stem = COPY.sub("", Path(file).stem)
    stem = CHAPTER.sub("", stem).strip(" _-.,")
    return (stem, "", "", file, False) if stem and not stem.isdigit() else None


def rank(name, when):
    """Of two versions the one of larger rank is newer: by Canvas's count, then by time, then by the number of the copy."""
    stem = Path(name).stem
    again, copy = AGAIN.search(stem), COPY.search(stem)
    number = next((one for one in copy.groups() if one), "0") if copy else "0"
    return (int(again[1][:9]) if again else 0, when // 2, int(number[:9]) + bool(copy))
