"""Mutants of the worked answers: each is an answer with one small thing changed, and a check that is worth its name refuses it.

for mutant in mutants(source(name)):
    survives(name, mutant)  # whether the check takes it for right; `passes` of a build
"""

import ast
import functools
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rlhf_lib.exercises import BUILDS, EXERCISES, equal, find
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.frame import draw, one_answer, right_answer
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.exercises.surroundings import LIMIT

SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
SECONDS = 0.3  # that a mutant has for one input; a right answer needs a hundredth of it
PAIRS = "mean sum, min max, amin amax, minimum maximum, any all, argmax argmin, floor ceil, tril triu, cos sin, train eval"
SWAPPED = dict(pair for two in PAIRS.split(", ") for pair in (two.split(), two.split()[::-1]))
DROPPED = {"detach", "clone", "float", "abs", "sqrt", "square", "exp", "clamp", "flip", "lower", "softmax", "log_softmax"}
COMPARISONS = (ast.Lt, ast.LtE, ast.Eq, ast.NotEq, ast.GtE, ast.Gt)
OPERATORS = {  # what takes the place of what
    ast.Add: (ast.Sub, ast.Mult), ast.Sub: (ast.Add, ast.Mult), ast.Mult: (ast.Div, ast.Add, ast.Sub),
    ast.Div: (ast.Mult, ast.FloorDiv, ast.Sub), ast.FloorDiv: (ast.Div, ast.Mult, ast.Sub), ast.Pow: (ast.Mult, ast.Div),
    ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    **{one: tuple(other for other in COMPARISONS if other is not one) for one in COMPARISONS},
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow, ast.MatMult)  # operators whose two sides are not alike


class Mutant(NamedTuple):
    """`name` is the line that was changed, as it is now, or "without: " and the line that is missing."""

    name: str
    source: str


# ----------------------------------------------------------------------------------------- what is changed


def mutants(text):
    """All mutants of a cell's text: a list. What reads the same as another, or as the answer, is there once."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [one for one in node.body if not is_docstring(one)]
    lines = {}
    mark(tree, None, lines)
    found, seen, times = [], {ast.unparse(tree)}, Counter()
    for owner, field, new, name in list(edits(tree)):
        old = getattr(owner, field)
        setattr(owner, field, new)
        changed = ast.unparse(tree)
        name = name or header(lines[owner])
        setattr(owner, field, old)
        if changed not in seen:
            seen.add(changed)
            times[name] += 1
            found.append(Mutant(name if times[name] == 1 else f"{name}  # {times[name]}", changed))
    return found


def is_docstring(statement):
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def mark(node, statement, lines):
    """Note for each node of the tree the statement that it is in."""
    lines[node] = statement = node if isinstance(node, ast.stmt) else statement
    for child in ast.iter_child_nodes(node):
        mark(child, statement, lines)


def header(statement):
    """The first line of a statement, without decorators."""
    return next(line for line in ast.unparse(statement).split("\n") if not line.startswith("@"))


def edits(tree):
    """(node, field, new value, name): one for each change. The name is "" where it is the line that the node is in."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if not isinstance(value, list):
                for new in instead(value):
                    yield node, field, new, ""
                continue
            for place, one in enumerate(value):
                before, after = value[:place], value[place + 1 :]
                for new in instead(one):
                    yield node, field, [*before, new, *after], header(new) if isinstance(new, ast.stmt) else ""
                if isinstance(one, ast.stmt) and not isinstance(one, (ast.Return, ast.FunctionDef)):
                    left = one.body if isinstance(one, ast.With) else [ast.Pass()]
                    yield node, field, [*before, *left, *after], f"without: {header(one)}"
                elif field == "decorator_list":
                    yield node, field, [*before, *after], f"without: @{ast.unparse(one)}"
                elif field in ("ifs", "keywords"):
                    yield node, field, [*before, *after], ""
        for field, new in of_one(node):
            yield node, field, new, ""


def instead(value):
    """What may stand in the place of a node."""
    if isinstance(value, ast.UnaryOp) and not isinstance(value.op, ast.UAdd):
        yield value.operand
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in DROPPED:
        yield value.func.value
    elif isinstance(value, ast.IfExp):
        yield value.body
        yield value.orelse
    elif isinstance(value, ast.BinOp):
        yield value.left
        yield value.right
        if isinstance(value.op, ORDERED):
            yield ast.BinOp(value.right, value.op, value.left)
    elif isinstance(value, (ast.Break, ast.Continue)):
        yield ast.Continue() if isinstance(value, ast.Break) else ast.Break()
    elif isinstance(value, tuple(OPERATORS)):
        for operator in OPERATORS[type(value)]:
            yield operator()


def of_one(node):
    """(field, new value) for the changes of a node's own fields."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for new in (node.value + 1, node.value - 1, node.value * 2, type(node.value)(0)):
            yield "value", new
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "value", not node.value
    elif isinstance(node, ast.Constant) and node.value in SWAPPED:  # reduction="sum"
        yield "value", SWAPPED[node.value]
    elif isinstance(node, ast.Name) and node.id in SWAPPED and isinstance(node.ctx, ast.Load):
        yield "id", SWAPPED[node.id]
    elif isinstance(node, ast.Attribute) and node.attr in SWAPPED:
        yield "attr", SWAPPED[node.attr]
    elif isinstance(node, ast.Call):
        yield from (("args", new) for new in swaps(node.args))
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            for place, step in itertools.product(range(len(node.args)), (1, -1)):
                yield "args", [*node.args[:place], moved(node.args[place], step), *node.args[place + 1 :]]
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from (("value", ast.Tuple(new, ast.Load())) for new in swaps(node.value.elts))
    elif isinstance(node, ast.Slice):
        for field in ("lower", "upper"):
            bound = getattr(node, field)
            one = ast.Constant(1)
            if bound is None:
                yield field, one if field == "lower" else ast.UnaryOp(ast.USub(), one)
            else:
                yield field, None
                yield field, moved(bound, 1)
                yield field, moved(bound, -1)


def swaps(nodes):
    """A list with two of its nodes changed about, for each two."""
    for a, b in itertools.combinations(range(len(nodes)), 2):
        new = list(nodes)
        new[a], new[b] = nodes[b], nodes[a]
        yield new


def moved(bound, step):
    """A bound of a slice, one further or one less."""
    try:
        value = ast.literal_eval(bound)
    except ValueError:
        return ast.BinOp(bound, ast.Add() if step > 0 else ast.Sub(), ast.Constant(1))
    return ast.parse(repr(value + step), mode="eval").body


# ----------------------------------------------------------------------------------------- whether the check sees it


@functools.cache
def cells(number):
    """The code cells of a chapter's notebook: a list of (id, source)."""
    path = next(path for path in SOLUTIONS.glob(f"{number}_*.ipynb") if "report" not in path.name)
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell.get("id"), "".join(cell["source"])) for cell in found if cell["cell_type"] == "code"]


def chapter(name):
    return f"{int(find(name).number.split('.')[0]):02}"


def source(name):
    """The cell with the worked answer of an exercise."""
    return dict(cells(chapter(name)))[name]


@functools.cache
def names_of(number):
    """What the cells of a chapter import: a dict."""
    space = {}
    for name, text in cells(number):
        tree = ast.parse(re.sub(r"^( *)[%!].*", r"\1pass", text, flags=re.MULTILINE))  # without magics
        tree.body = [one for one in tree.body if isinstance(one, (ast.Import, ast.ImportFrom))]
        exec(compile(tree, f"{number} {name}", "exec"), space)
    return space


@functools.cache
def asked(name):
    """[inputs, what the oracle says] of an exercise; the inputs that have refused most mutants come first."""
    return [[arguments, right_answer(find(name), arguments, tuples=True)] for arguments in draw(name)]


def made(name, mutant):
    """The function or class that a mutant defines; None where it defines none."""
    used = {node.id for node in ast.walk(ast.parse(mutant.source)) if isinstance(node, ast.Name)} & {*EXERCISES, *BUILDS}
    space = {**names_of(chapter(name)), **{other: the_course(other) for other in used - {name}}}
    try:
        exec(mutant.source, space)
    except Exception:
        return None
    return space.get(name)


def passes(name, mutant):
    """Whether the cheap probes of a build take a mutant for right."""
    built = made(name, mutant)
    return built is not None and try_out(find(name), built, most=LIMIT) == ("", "")


def survives(name, mutant, seconds=SECONDS):
    """Whether the check of an exercise takes a mutant for right. One that raises or needs more time than `seconds` is refused."""
    function = made(name, mutant)
    if function is None:
        return False
    exercise, inputs = find(name), asked(name)
    for place, (arguments, expected) in enumerate(inputs):
        if not equal(one_answer(exercise, function, arguments, seconds), expected, exercise.tolerance):
            inputs.insert(0, inputs.pop(place))
            return False
    return True
