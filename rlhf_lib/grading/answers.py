"""Which code of a submission answers an exercise: its definition, and, statement by statement, what that leans on.

Cells may have been copied, moved, reordered or renamed, so nothing depends on where they stand or on what a run in order would
have done: of each exercise only the definition and the statements that bind the names it needs are run, wherever they are. Code
is read here and never run.
"""

import ast
import dis
import re
import types
from typing import NamedTuple

from rlhf_lib.exercises.declare import BUILDS, EXERCISES, INVESTIGATIONS, load
from rlhf_lib.exercises.keep import COURSE, join, read, split
from rlhf_lib.exercises.progress import number_of
from rlhf_lib.exercises.source import names_needed
from rlhf_lib.files import RunError
from rlhf_lib.grading.notebook import statements

ODD = {  # no exercise needs them: who names one may be looking for what the check knows
    "gc", "ctypes", "importlib", "__import__", "_getframe", "sys.modules", "builtins", "__builtins__", "subprocess", "inspect",
    "meta_path", "settrace", "f_back", "f_locals", "f_globals", "__subclasses__", "fork", "unittest.mock",
}  # fmt: skip


class Statement(NamedTuple):
    """binds: names. needs: names that it looks up when it is run. later: names that what it defines looks up when called."""

    place: str
    order: int
    node: ast.AST
    binds: tuple
    needs: tuple
    later: tuple


class Answer(NamedTuple):
    """asked: the name in the code. code: [[place, source]] in the order in which it is run. own: the learner's exercises that it
    leans on. course: those that are the course's here. library: what it takes from the course's library. fault: why there is
    nothing to run, in a word and a sentence, or (). odd: those of ODD that it names. taken:
    the exercises that it takes with `yours`."""

    asked: str = ""
    code: list = []
    own: list = []
    course: list = []
    library: list = []
    fault: tuple = ()
    odd: list = []
    taken: list = []


class Code:
    """The statements of some cells, and what can be asked of them.

    checked: {exercise: the name that the last `check("exercise", name)` takes}. broken: {exercise: a sentence} of cells that are
    no Python. cards: the exercises whose cells, by their metadata, are there at all.
    """

    def __init__(self, cells):
        load()
        self.known = {*EXERCISES, *BUILDS}
        self.future = ""  # `from __future__ import annotations` holds for every statement
        self.statements, self.checked, self.broken, self.places, self.homes = [], {}, {}, {}, {}
        self.cards = {cell.name for cell in cells if cell.name in self.known}
        for cell in cells:
            if cell.name in self.known:
                self.homes.setdefault(cell.name, set()).add(file_of(cell))
            if not (cell.code or cell.name in self.known) or not cell.source.strip():
                continue
            try:
                for node in statements(cell):
                    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                        self.future = "from __future__ import annotations\n"
                    else:
                        self.add(cell.place, node)
            except SyntaxError as error:
                line = f", line {error.lineno}" if error.lineno else ""
                for name in self.known:
                    if cell.name == name or any(f"{word} {name}" in cell.source for word in ("def", "class")):
                        self.broken[name] = f"{cell.place}{line} is no Python: {error.msg}"
        self.binding = {}
        for one in self.statements:
            for name in one.binds:
                self.binding.setdefault(name, []).append(one)

    def add(self, place, node):
        binds, needs, later = names_of(node)
        one = Statement(place, len(self.statements), node, binds, needs, later)
        self.statements.append(one)
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check" and len(call.args) >= 2:
            name, given = call.args[:2]
            if isinstance(name, ast.Constant) and name.value in self.known and isinstance(given, ast.Name):
                self.checked[name.value] = given.id
                self.places[name.value] = one.order
                self.homes.setdefault(name.value, set()).add(file_of(one))

    def texts(self):
        """{investigation: the sentence of its last `done("2.A", sentence)`}, or the expression that makes it."""
        found = {}
        for one in self.statements:
            for call in ast.walk(one.node):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "done" and len(call.args) >= 2:
                    number, text = (part.value if isinstance(part, ast.Constant) else ast.unparse(part) for part in call.args[:2])
                    if number in INVESTIGATIONS and text is not ...:
                        found[number] = str(text)[:4000]
        return found

    def definitions(self, name):
        """The statements that define `name` as something of the learner's own, not taken from the library or with `yours`."""
        return [one for one in self.binding.get(name, ()) if own(one.node)]

    def defines(self):
        """The exercises that have an answer, written or not."""
        return {name for name in self.known if self.definitions(self.asked(name)) or name in self.broken}

    def chapters(self):
        """The chapters that were handed in: those of the course's cells if there are any, else of the checks or the answers."""
        return {number_of(name)[0] for name in self.cards or self.homes or self.defines()}

    def asked(self, name):
        other = self.checked.get(name, name)
        return other if other != name and any(not is_stub(one.node) for one in self.definitions(other)) else name

    def definition(self, exercise):
        """The statement that answers an exercise; None if there is none.

        Of those that are written, and of these in the notebook that asks for it: the last before its check, else the last.
        """
        found = self.definitions(self.asked(exercise))
        written = [one for one in found if not is_stub(one.node)] or found
        written = [one for one in written if file_of(one) in self.homes.get(exercise, ())] or written
        before = [one for one in written if one.order < self.places.get(exercise, 0)]
        return (before or written or [None])[-1]

    def written(self, exercise):
        one = self.definition(exercise)
        return one is not None and not is_stub(one.node)

    def answer(self, exercise, ours=()):
        """The Answer to an exercise. `ours`: exercises of which the course's function is taken in the place of theirs."""
        one = self.definition(exercise)
        if one is None:
            fault = (
                ("syntax error", self.broken[exercise])
                if exercise in self.broken
                else ("missing", "it is not in what was handed in")
            )
            return Answer(fault=fault)
        if is_stub(one.node):
            fault = (
                ("syntax error", self.broken[exercise]) if exercise in self.broken else ("not written", "it is not written yet")
            )
            return Answer(fault=fault)
        order = [part for part in self.statements if isinstance(part.node, ast.ImportFrom) and part.node.names[0].name == "*"]
        others, library = set(), set()
        self.gather(one, exercise, set(ours), order, others, library, set())
        return Answer(
            self.asked(exercise),
            [[part.place, self.future + ast.unparse(part.node)] for part in order],
            *self.divided(others, order, ours),
            sorted(library.union(*(library_inside(part.node) for part in order))),
            odd=sorted({name for part in order for name in names_in(part.node)} & ODD),
            taken=sorted({name for part in order for name in taken_with_yours(part.node)} & self.known),
        )

    def divided(self, others, order, ours):
        """Those of `others` that are the learner's own, and those that the course has to give."""
        bound = {name for one in order for name in one.binds}
        mine = sorted(name for name in others if name not in ours and self.definitions(name))
        return mine, sorted(name for name in others if name in ours or name not in bound)

    def gather(self, first, exercise, ours, order, others, library, seen):
        """Put into `order` what `first` leans on, and then itself."""
        stack = [(first, False)]
        while stack:
            one, done = stack.pop()
            if done:
                order.append(one)
                order.extend(self.changes(one, order))
                continue
            if one.order in seen:
                continue
            seen.add(one.order)
            stack.append((one, True))
            for name in dict.fromkeys([*one.later, *one.needs, *taken_with_yours(one.node)]):
                if name in one.binds and name not in one.needs:
                    continue
                if name in self.known and name != exercise:
                    others.add(name)
                found = self.binder(name, one, exercise, first)
                if found is not None and not (name in ours and name != exercise):
                    stack.append((found, False))
                    library.update(taken_from_library(found.node, name))

    def binder(self, name, user, exercise, first):
        """The statement that binds `name` for `user`; None where nothing does."""
        if name in self.known and name != exercise and self.definitions(name):
            here = [one for one in self.definitions(name) if file_of(one) == file_of(user)]
            if not here or file_of(user) in self.homes.get(name, ()):
                return self.definition(name)
        found = [one for one in self.binding.get(name, ()) if one.order != user.order]
        if name in user.binds:  # x = x + 1
            return next((one for one in reversed(found) if one.order < user.order), None)
        if name in first.binds:
            return first
        end = max(first.order, self.places.get(exercise, 0))
        near = [one for one in found if file_of(one) == file_of(user)] or found
        before = [one for one in near if one.order <= end]
        return (before or near or [None])[-1]

    def changes(self, one, order):
        """Statements such as `TABLE["a"] = 1` and `GPT.forward = forward`, which change what `one` binds."""
        if isinstance(one.node, (ast.Import, ast.ImportFrom)):
            return []
        later = [other for other in self.statements if other.place == one.place and other.order > one.order]
        return [other for other in later if other not in order and changed_name(other.node) in one.binds]


def worked_code(answer, exercise):
    """The worked answers that an Answer may take, and those that they call, as text of the course's `my_rlhf.py`; "" for none.

    The one to the exercise itself is never among them: nothing in the sandbox knows it. Raises RunError where one is missing.
    """
    wanted, stack = set(), [*answer.own, *answer.course, *answer.taken]
    head, sections = split(read(COURSE)) if stack else ("", {})
    lacking = [name for name in answer.course if name not in sections]
    if lacking:
        raise RunError(f"the course's own {lacking[0]} is missing in {COURSE}: fetch the repository again")
    while stack:
        name = stack.pop()
        if name in sections and name not in wanted and name != exercise:
            wanted.add(name)
            stack += [needed for node in ast.parse(sections[name].code).body for needed in names_needed(node)]
    return join(head, {name: sections[name] for name in wanted}, "") if wanted else ""


def file_of(one):
    """The name of the file in which a cell or a statement stands."""
    return one.place.partition(", cell ")[0]


def changed_name(node):
    """The name of what a statement changes in place, by an index, an attribute or a method; None where it does not."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        target = node.value.func.value
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Subscript, ast.Attribute)):
        target = node.targets[0].value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, (ast.Subscript, ast.Attribute)):
        target = node.target.value
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def own(node):
    """Whether a statement that binds an exercise's name is the learner's answer."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return True
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return False
    return not taken_with_yours(node)


def is_stub(node):
    """Whether a definition is an exercise's stub: nothing but a docstring and `raise NotImplementedError()`."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    if not body or all(isinstance(one, ast.Pass) for one in body):
        return True
    if isinstance(node, ast.ClassDef):
        parts = [one for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]
        return bool(parts) and all(is_stub(one) for one in parts)
    if node.name == "__init__" and ast.unparse(body[0]) == "super().__init__()":
        body = body[1:] or body
    return "NotImplementedError" in ast.unparse(body[0]) if isinstance(body[0], ast.Raise) else False


def taken_with_yours(node):
    """The exercises that a statement takes with `yours("gae", ...)`."""
    return [
        word.value for call in ast.walk(node)
        if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == "yours"
        for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
    ]  # fmt: skip


FOR_ANSWERS = {("rlhf_lib.exercises", "yours"), ("rlhf_lib.exercises", "tick"), ("rlhf_lib", "devices")}


def taken_from_library(node, name):
    """What an import statement takes from the course's library as `name`; `yours`, `tick` and `devices` are there for answers."""
    if isinstance(node, ast.ImportFrom) and (node.module, name) in FOR_ANSWERS:
        return set()
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlhf_lib":
        return {f"{node.module}.{alias.name}" for alias in node.names if (alias.asname or alias.name) == name}
    if isinstance(node, ast.Import):
        return {
            alias.name for alias in node.names if alias.name.split(".")[0] == "rlhf_lib" and name in (alias.asname, "rlhf_lib")
        }
    return set()


def library_inside(node):
    """What a statement takes from the course's library without a name of its own: inside a function, or by a module's name."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return set()
    imports = [one for one in ast.walk(node) if isinstance(one, (ast.Import, ast.ImportFrom))]
    found = {name for one in imports for alias in one.names for name in taken_from_library(one, alias.asname or alias.name)}
    found |= {one.names[0].name for one in imports if isinstance(one, ast.Import) and one.names[0].name.startswith("rlhf_lib.")}
    words = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return found | {word for word in words if re.fullmatch(r"rlhf_lib(\.\w+)*", word)}


def names_in(node):
    """All names, attributes and modules that a statement names, and the arguments of getattr and __import__."""
    for one in ast.walk(node):
        for field in ("id", "attr", "module", "name", "value"):
            name = getattr(one, field, None)
            if isinstance(name, str) and len(name) < 40:
                yield from {name, name.split(".")[0]}
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            yield f"{one.value.id}.{one.attr}"


def names_of(node):
    """(the global names that a statement binds, those that it looks up, those that what it defines looks up when called)."""
    try:
        code = compile(ast.Module([node], []), "<cell>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"Python cannot compile it ({error})") from None
    binds, needs, later = [], [], []
    for one in dis.get_instructions(code):
        if one.opname in ("STORE_NAME", "STORE_GLOBAL"):
            binds.append(one.argval)
        elif one.opname in ("LOAD_NAME", "LOAD_GLOBAL") and one.argval not in binds:
            needs.append(one.argval)
    queue = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    for part in queue:
        for one in dis.get_instructions(part):
            if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                later.append(one.argval)
            elif one.opname == "STORE_GLOBAL":
                binds.append(one.argval)
        queue += [inner for inner in part.co_consts if isinstance(inner, types.CodeType)]
    return tuple(dict.fromkeys(binds)), tuple(dict.fromkeys(needs)), tuple(dict.fromkeys(later))
