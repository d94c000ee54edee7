"""`my_rlhf.py`, the file that a learner has written when the course is over: every function and class that passed its check.

The file has a head (a docstring and the imports), a section for each exercise, and an end that runs the whole loop. A section
begins with a line such as `# ---- 7.3 gae [1f0c9d2b]`: number, name, and the fingerprint of the lines that passed. Where the
fingerprint differs, somebody has edited the section since, and it is checked again before it is used.

`yours("gae")` takes the learner's from the file. What is not there yet, or does not run, is the course's: of the same file
made from the worked notebooks, `solutions/my_rlhf.py`. A class's copy of the course has it packed, `solutions/my_rlhf.z`.
"""

import ast
import functools
import hashlib
import re
import sys
import types
import zlib
from pathlib import Path
from typing import NamedTuple

from rlhf_lib.exercises.build import Build, try_out
from rlhf_lib.exercises.declare import BUILDS, EXERCISES, find, load
from rlhf_lib.exercises.elsewhere import stays
from rlhf_lib.exercises.source import imports_of, names_bound, names_needed, place_of, source_of
from rlhf_lib.exercises.surroundings import LIMIT, TimeUp, limited
from rlhf_lib.exercises.verdicts import verdict
from rlhf_lib.files import RunError, home, one_at_a_time, write_atomic

FILE = "my_rlhf.py"
COURSE = Path(__file__).resolve().parents[2] / "solutions" / FILE
PACKED = "my_rlhf.z"  # beside it, or in its place
HEAD = '"""What I built in *RLHF from Shakespeare*. `python my_rlhf.py` trains the whole loop with it."""\n'
MARK = re.compile(r"^# ---- (\d+\.\d+) (\w+) \[([0-9a-f]{8})\][ \t]*$", re.MULTILINE)
LIKE_A_MARK = re.compile(r"^# ---- (?!the end).*$", re.MULTILINE)
LAST = "\n# ---- the end"
END = """\
# ---- the end

if __name__ == "__main__":
    from rlhf_lib.course import whole_loop
    from rlhf_lib.exercises import complete

    whole_loop(complete(globals()))
"""


class Section(NamedTuple):
    number: str
    mark: str  # the fingerprint of the code that passed
    code: str
    line: int = 0  # how many lines of the file stand before the code


class Loaded(NamedTuple):
    """namespace: what the file defines, the course's functions in the place of what is missing. own: the names that are the
    learner's. broken: {name: what is wrong with it}. faults: sentences on the file as a whole."""

    namespace: dict
    own: set
    broken: dict
    faults: list


UNKEPT = set()  # the exercises whose check passed in this session, but whose function could not be kept


def fingerprint(code):
    return hashlib.sha256(code.strip().encode()).hexdigest()[:8]


def split(text):
    """(head, {name: Section}) of the text of a file."""
    body = text.split(LAST, 1)[0]
    marks = list(MARK.finditer(body))
    head = body[: marks[0].start()] if marks else body
    sections = {}
    for mark, following in zip(marks, [*marks[1:], None]):
        code = body[mark.end() : following.start() if following else len(body)]
        sections[mark[2]] = Section(mark[1], mark[3], code.strip("\n"), body[: mark.end()].count("\n") + blank(code))
    return head.rstrip("\n") + "\n", sections


def blank(code):
    """How many lines stand before the first one with something in it."""
    return len(code) - len(code.lstrip("\n"))


def join(head, sections, end=END):
    """The text of the file; sections in the order of their numbers."""
    order = sorted(sections.items(), key=lambda item: [int(part) for part in item[1].number.split(".")])
    parts = [f"# ---- {one.number} {name} [{one.mark}]\n\n{one.code}\n\n\n" for name, one in order]
    return head + "\n\n" + "".join(parts) + end


def imports_in(text):
    """{bound name: statement} of the import statements in a text; none where it cannot be read."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    return {bound: statement for node in tree.body for bound, statement in imports_of(node).items()}


def read(path):
    """The text of the file, packed or not; "" where there is none, or nothing that can be read."""
    try:
        if Path(path).suffix == ".z":
            return zlib.decompress(Path(path).read_bytes()).decode()
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError, zlib.error):
        return ""


def unreadable(path, text):
    """What is wrong where the file holds something of which `read` could make no `text`; "" else."""
    if text or not path.exists() or not (path.is_dir() or path.stat().st_size):
        return ""
    return "cannot be read as text in UTF-8: save it as that, or give it another name"


def keep(name, built, path=None, again=True):
    """Keep a learner's function or class that has passed, with the imports that it needs; replaces an earlier version.

    Args:
        again: check the kept copy too, in a module of its own.

    Returns:
        "" when it is kept; else why not, in a sentence.
    """
    path = Path(path or home() / FILE)
    with one_at_a_time(path.parent):  # another notebook may be keeping something of another chapter
        return keep_alone(name, built, path, again)


def keep_alone(name, built, path, again):
    """`keep`, while no other process writes in the folder."""
    load()
    found = source_of(name, built, {*EXERCISES, *BUILDS})
    if found.problems:
        return "; ".join(found.problems)
    text = read(path)
    if fault := unreadable(path, text):  # it may be a person's only copy: never replaced
        return f"{path.name} {fault}"
    head, sections = split(text) if text.strip() else (HEAD, {})
    end = text[text.index(LAST) + 1 :] if LAST in text else END  # with whatever a person wrote behind it
    there = imports_in(head)
    for bound, statement in found.imports.items():
        if there.get(bound, statement) != statement:
            return f"`{bound}` is `{statement}` here, but `{there[bound]}` in {path.name}: import it inside the function"
    for bound in names_bound_in(found.code) - {name}:
        for other, section in sections.items():
            if other != name and bound in names_bound_in(section.code):
                return f"`{bound}` stands in {path.name} already, with {section.number} {other}: give one of them another name"
    if head == headed(there):
        head = headed({**there, **found.imports})
    else:  # somebody has written in it
        head += "".join(f"{line}\n" for bound, line in found.imports.items() if bound not in there)
    sections[name] = Section(find(name).number, fingerprint(found.code), found.code)
    fresh = join(head, sections, end)
    if fresh == text:
        return ""
    if again:
        loaded = run(fresh, path, "my_rlhf")
        if name in loaded.broken or name not in loaded.own:
            return f"its copy does not run by itself: {loaded.broken.get(name, 'it is not there')}"
        fault = quick_fault(name, loaded.namespace[name])
        if fault:
            for other in newer(found, built, sections):
                return (
                    f"your {other} here is newer than the one in {path.name}, and {name} needs it. "
                    f'Run check("{other}", {other}), then this check again'
                )
            return f"its copy, which sees nothing of the notebook, does something else ({fault})"
    try:
        write_atomic(path, fresh.encode())
    except (OSError, RunError):
        return f"{path.name} cannot be written here"
    return ""


def newer(found, built, sections):
    """The exercises that `built` calls of which the notebook has another version than the file."""
    space = place_of(built)[2]
    for other in sorted(found.others & sections.keys()):
        here = source_of(other, space.get(other), {*EXERCISES, *BUILDS})
        if here.code and here.code != sections[other].code:
            yield other


def headed(imports):
    """The head of a file with these imports: the standard library, what is installed, the course; plain imports first."""
    lines = sorted(set(imports.values()), key=lambda line: (floor_of(line), line.startswith("from"), line))
    groups = ["".join(f"{line}\n" for line in lines if floor_of(line) == floor) for floor in range(3)]
    return "\n".join([HEAD, *filter(None, groups)])


def floor_of(line):
    package = line.split()[1].split(".")[0]
    return 0 if package in sys.stdlib_module_names else 2 if package == "rlhf_lib" else 1


def names_bound_in(code):
    try:
        return {bound for node in ast.parse(code).body for bound in names_bound(node)}
    except (SyntaxError, ValueError):
        return set()


def quick_fault(name, built):
    """What a check that takes seconds finds wrong: a sentence, or ""."""
    exercise = find(name)
    if isinstance(exercise, Build):
        return ": ".join(filter(None, try_out(exercise, built, most=LIMIT)))
    found = verdict(name, built)
    return "" if found.passed else found.message.splitlines()[0].removesuffix(". The smallest input that fails:")


def run(text, path, module):
    """Run the text of a file, section by section, as a module of the given name; see Loaded.

    A section that does not run is left out. One that was edited since it passed is checked, and left out when it fails. In the
    place of an exercise's function that is called and not there stands the course's.
    """
    load()
    head, sections = split(text)
    made = types.ModuleType(module)
    made.__file__ = str(path)
    sys.modules[module] = made
    broken, own, faults = {}, set(), []
    for line in LIKE_A_MARK.findall(text):
        if not MARK.fullmatch(line):
            faults.append(f"the line {line!r} begins no section: number, name and mark, as in `# ---- 7.3 gae [1f0c9d2b]`")

    def execute(code, line=0):
        """What went wrong, in words; "" if nothing did."""
        error = limited(lambda: exec(compile("\n" * line + code, str(path), "exec"), vars(made)), LIMIT)[1]
        return "" if error is None else said(error)

    fault = execute(head)
    if fault:
        faults.append(f"its head does not run ({fault})")
        for statement in imports_in(head).values():
            execute(statement)
    for name, section in sections.items():
        fault = execute(section.code, section.line)
        if not fault and name not in vars(made):
            fault = f"there is no {name} in its section"
        if fault:
            broken[name] = fault
            vars(made).pop(name, None)
        else:
            own.add(name)
    for name, section in sections.items():
        if name in own and fingerprint(section.code) != section.mark:
            fill(vars(made), sections, own)
            fault = quick_fault(name, vars(made)[name]) if name in {*EXERCISES, *BUILDS} else ""
            if fault:
                broken[name] = f"it was changed and does not pass any more ({fault})"
                own.discard(name)
                vars(made).pop(name)
    if module != "course_rlhf":
        fill(vars(made), sections, own)
    return Loaded(vars(made), own, broken, faults)


def fill(namespace, sections, own):
    """Put the course's functions where the learner's call an exercise that the file does not have; returns their names."""
    found = []
    for name in own:
        for node in ast.parse(sections[name].code).body:
            for needed in names_needed(node):
                if needed not in namespace and (needed in EXERCISES or needed in BUILDS):
                    namespace[needed] = the_course(needed)
                    found.append(needed)
    return found


def complete(namespace):
    """`fill` for the file as a program, whose globals are `namespace`: returned when whole. Says what is the course's."""
    load()
    _, sections = split(read(namespace["__file__"]))
    if found := fill(namespace, sections, [name for name in sections if name in namespace]):
        print(", ".join(whose(name, False) for name in found))
    return namespace


def said(error):
    if isinstance(error, TimeUp):
        return f"it was stopped after {LIMIT:g} seconds"
    line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}{line}: {error.msg if isinstance(error, SyntaxError) else error}"


@functools.lru_cache(maxsize=4)
def loaded(path, stamp, module):
    text = read(path)
    if fault := unreadable(path, text):
        return Loaded({}, set(), {}, [f"it {fault}"])
    return run(text, path, module)


def stamp(path):
    try:
        found = Path(path).stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return None


def the_course(name):
    """The course's worked answer to an exercise."""
    find(name)
    path = COURSE if COURSE.exists() else COURSE.with_name(PACKED)
    course = loaded(path, stamp(path), "course_rlhf")
    if name not in course.own:
        raise RunError(f"the course's own {name} is missing in {path}: {course.broken.get(name, 'fetch the course again')}")
    return course.namespace[name]


def whose(name, own):
    """What a cell says of a function that it takes; `own`: the learner's."""
    side, note = ("your", "an older one: what passed last") if own else ("the course's", "yours passed, but")
    return f"{side} {name}" + (f" ({note} is not kept; its check says why)" if name in UNKEPT else "")


def yours(*names, device="cpu", path=None):
    """The learner's functions or classes of these exercises where they have passed, else the course's. Prints whose they are.

    Args:
        names: names of exercises.
        device: what they are given lies there; in the place of a learner's that works on the CPU alone stands the course's.
        path: of the learner's file; `my_rlhf.py` in the learner's folder unless given.

    Returns:
        One for one name; a list for several, in their order.

    Raises:
        KeyError: there is no such exercise.
    """
    path = Path(path or home() / FILE).resolve()
    mine = loaded(path, stamp(path), "my_rlhf")
    for name in names:
        find(name)
    left_out = [f"your {name} is left out ({mine.broken[name]})" for name in names if name in mine.broken]
    for fault in [*mine.faults, *left_out]:
        print(f"{path.name}: {fault}.")
    own = {name for name in names if name in mine.own and not stays(device, name, mine.namespace[name], the_course)}
    found = [mine.namespace[name] if name in own else the_course(name) for name in names]
    print(", ".join(whose(name, name in own) for name in names))
    return found[0] if len(found) == 1 else found
