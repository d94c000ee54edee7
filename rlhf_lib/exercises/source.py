"""The source of a learner's function or class, cut out of the cell that it stands in, with what it needs to stand alone."""

import ast
import builtins
import dis
import inspect
import linecache
import sys
import types
from typing import NamedTuple

MARKS = ("### BEGIN SOLUTION", "### END SOLUTION", "# YOUR CODE HERE")


class Source(NamedTuple):
    """code: the statements, helpers of the same cell included. imports: {bound name: import statement}. others: the names of
    exercises that it calls. problems: sentences that say why it cannot stand alone."""

    code: str
    imports: dict
    others: set
    problems: list


def source_of(name, built, exercises):
    """The Source of `built`, a learner's function or class for the exercise `name`.

    Args:
        exercises: the names of all exercises: what is called by such a name is that exercise's function.
    """
    found = place_of(built)
    if found is None:
        return Source("", {}, set(), [f"the source of {name} cannot be found: write it with `def` or `class` in a cell"])
    text, line, namespace = found
    tree = ast.parse(text)
    statements = {}  # name -> the last top-level statement that binds it
    for node in tree.body:
        for bound in names_bound(node):
            statements[bound] = node
    wanted = next((node for node in tree.body if line is not None and covers(node, line)), None) or statements.get(built.__name__)
    if wanted is None or not names_bound(wanted):
        return Source("", {}, set(), [f"{name} is defined inside something else: write it at the left edge of a cell"])
    own = built.__name__ if built.__name__ in names_bound(wanted) else names_bound(wanted)[0]

    taken, imports, others, problems = [wanted], {}, set(), []
    queue = [wanted]
    while queue:
        node = queue.pop()
        for needed in names_needed(node):
            if needed in names_bound(node) or (needed in vars(builtins) and needed not in namespace):
                continue
            at_hand = statements.get(needed)
            if at_hand is not None and not isinstance(at_hand, (ast.Import, ast.ImportFrom)):
                if at_hand not in taken and not (needed in exercises and needed != name):
                    taken.append(at_hand)
                    queue.append(at_hand)
                if needed in exercises and needed != name:
                    others.add(needed)
            elif needed in exercises and (getattr(namespace.get(needed), "__module__", None) or "").startswith("rlhf_lib."):
                problems.append(f"its `{needed}` is the library's, and in the file that name is exercise {needed}'s: call yours")
            elif needed in exercises and callable(namespace.get(needed, print)):
                others.add(needed)
            elif needed not in namespace:
                problems.append(f"it uses `{needed}`, which is not defined")
            else:
                statement = import_of(needed, namespace[needed]) or imports_of(at_hand).get(needed)
                if statement:
                    imports[needed] = statement
                else:
                    problems.append(f"it uses `{needed}`, which stands in another cell: {advice(namespace[needed])}")
    taken.sort(key=lambda node: node.lineno)
    code = "\n\n".join(segment(text, node) for node in taken)
    return Source(code + (f"\n\n{name} = {own}" if own != name else ""), imports, others, sorted(set(problems)))


def place_of(built):
    """(the text of the cell or file, the line where `built` begins or None, its globals); None where there is none."""
    if inspect.isclass(built):
        own = [getattr(one, "__func__", one) for one in vars(built).values()]
        functions = [one for one in own if isinstance(one, types.FunctionType) and one.__module__ == built.__module__]
        if not functions:
            return None
        function, line = functions[0], None
    else:
        function = inspect.unwrap(built) if callable(built) else built
        if not isinstance(function, types.FunctionType):
            return None
        line = function.__code__.co_firstlineno
    text = "".join(linecache.getlines(function.__code__.co_filename, function.__globals__))
    return (text, line, function.__globals__) if text else None


def covers(node, line):
    """Whether a top-level statement that binds a name, decorators included, begins a function at `line`."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return line in (first, node.lineno)
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda) and node.lineno <= line <= node.end_lineno


def names_bound(node):
    """The names that a top-level statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return []


def names_needed(node):
    """The global names that a statement looks up, when it is run and when what it defines is called."""
    found = set()

    def walk(code):
        own = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_NAME"}
        for one in dis.get_instructions(code):
            if one.opname == "LOAD_GLOBAL" or (one.opname == "LOAD_NAME" and one.argval not in own):
                found.add(one.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                walk(constant)

    walk(compile(ast.Module([node], []), "<cell>", "exec"))
    return sorted(found - {"__name__", "__qualname__", "__module__", "__class__"})


def import_of(name, value):
    """The import statement that binds `name` to `value`; "" where no module has it."""
    if isinstance(value, types.ModuleType):
        parent, _, last = value.__name__.rpartition(".")
        if parent and last == name:
            return f"from {parent} import {name}"
        return f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}"
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in ("__main__", "my_rlhf", "course_rlhf") or not isinstance(own, str) or not (callable(value) or module):
        return ""
    places = [sys.modules.get(module or "")] + [one for key, one in list(sys.modules.items()) if key != "__main__"]
    for place in places:
        for attribute in dict.fromkeys([own, name]):
            if isinstance(place, types.ModuleType) and attribute.isidentifier() and vars(place).get(attribute) is value:
                return f"from {place.__name__} import {attribute}" + (f" as {name}" if attribute != name else "")
    return ""


def imports_of(node):
    """{bound name: the import statement for it alone} of a top-level statement; empty where it imports nothing."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return {}
    alone = (ast.unparse(type(node)(**{**vars(node), "names": [alias]})) for alias in node.names)
    return dict(zip(names_bound(node), alone))


def advice(value):
    if isinstance(value, types.FunctionType) and value.__module__ in ("my_rlhf", "course_rlhf"):
        return f"call it by its own name, `{value.__name__}`"
    if isinstance(value, types.FunctionType) or inspect.isclass(value):
        return "put that into the same cell"
    return "make it an argument, or a constant in the same cell"


def segment(text, node):
    """The lines of a top-level statement, decorators included, without nbgrader's marks."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return "\n".join(line for line in lines if line.strip() not in MARKS).rstrip()
