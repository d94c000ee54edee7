"""Answers that are the same code up to names and order. They are listed for a person to look at; nothing is concluded from it."""

import ast
import hashlib
import itertools

SHORT = 25  # nodes of an answer that anybody may write alike
ENOUGH = 80  # nodes that two submissions must share to be listed


def shape(sources):
    """(fingerprint, nodes) of an answer's code: names, docstrings, annotations and the order of statements make no difference."""
    parts, size = [], 0
    for source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            text, count = without_names(node)
            parts.append(text)
            size += count
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16], size


def without_names(tree):
    """A statement as text, each name of its own replaced by its place among them; and how many nodes it has."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    names, count = {}, 0
    for node in ast.walk(tree):
        count += 1
        field = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name"}.get(
            type(node)
        )
        if field:
            setattr(node, field, names.setdefault(getattr(node, field), f"n{len(names)}"))
    return ast.dump(tree), count


def pairs(entries, worked=()):
    """Pairs of students whose answers are alike, the most alike first: [(student, student, [exercises], nodes)].

    Args:
        entries: of the class.
        worked: Entries of the worked answers: what equals them says nothing about who wrote from whom, and is left out.
    """
    known = {one.shape for entry in worked for one in entry.results}
    groups = {}
    for entry in entries:
        for one in entry.results:
            if one.shape and one.size >= SHORT and one.shape not in known:
                groups.setdefault((one.exercise, one.shape, one.size), []).append(entry)
    shared = {}
    for (exercise, _, size), group in groups.items():
        for one, other in itertools.combinations(group, 2):
            shared.setdefault((one.label, other.label), []).append((exercise, size))
    found = [(*pair, [name for name, _ in parts], sum(size for _, size in parts)) for pair, parts in shared.items()]
    return sorted((one for one in found if one[3] >= ENOUGH), key=lambda one: (-one[3], one[:2]))
