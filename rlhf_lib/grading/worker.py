"""The process in the sandbox: it imports torch and the course once, and answers each question in a fresh process (jail.py).

It reads requests from its standard input and writes answers to its standard output, one after another; see sandbox.py. What it
writes is not trusted by anybody.
"""

import functools
import gc
import importlib
import json
import linecache
import os
import socket
import struct
import sys
import tempfile
import types

import torch

from rlhf_lib import exercises
from rlhf_lib.exercises.build import load_optimizers
from rlhf_lib.exercises.keep import run
from rlhf_lib.exercises.plain import odd
from rlhf_lib.exercises.surroundings import TimeUp, limited
from rlhf_lib.grading import jail
from rlhf_lib.grading.wire import pack, unpack
from rlhf_lib.grading.worlds import far_tasks

MODULES = (  # what the chapters import besides, and what torch imports when it is first needed: nobody waits for it twice
    "collections", "contextlib", "copy", "dataclasses", "datasets", "functools", "gymnasium", "hashlib", "heapq", "itertools",
    "json", "math", "matplotlib.pyplot", "numpy", "pathlib", "random", "re", "scipy.stats", "statistics", "string",
    "tokenizers", "torch._dynamo", "torch.distributions", "torch.nn.functional", "tqdm.auto", "typing", "unittest.mock",
    "rlhf_lib.course", "rlhf_lib.widgets",
)  # fmt: skip
STARTING = 30.0  # seconds for what stands outside the function that is asked for


def warm():
    """Import what most submissions need, and let torch do once what it prepares on first use."""
    torch.set_num_threads(1)
    exercises.load()
    load_optimizers()
    for module in MODULES:
        importlib.import_module(module)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()
    torch.zeros(2, 2).log_softmax(-1).double()
    gc.collect()
    gc.freeze()  # else the first collection in each fresh process copies all of the memory that it shares


def build(question):
    """Run the code of a question (an Answer of answers.py); returns (what it made of the name that is asked for, a fault)."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    space = vars(module)
    course = run(question["worked"], "course_rlhf.py", "course_rlhf").namespace if question["worked"] else {}

    def nothing(*_, **__):
        raise NameError(f"{question['name']} is what is asked for here: yours() has no other in its place")

    def one(name):
        if name == question["name"]:
            return nothing
        if name not in question["own"] or name not in space:
            if name not in course:
                raise NameError(f'yours() finds no {name!r} here: write its name in the call, as in yours("gae")')
            return course[name]
        return space[name]

    def yours(*names, device="cpu", path=None):
        found = [one(name) for name in names]
        return found[0] if len(found) == 1 else found

    exercises.yours = yours
    for name in question["course"]:
        space[name] = course[name]
    for number, (place, source) in enumerate(question["code"]):
        file = f"<{place} {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        error = limited(lambda: exec(compile(source, file, "exec"), space), STARTING)[1]  # noqa: B023
        if error is not None:
            return None, f"{place} stops with {said(error)}"
    if question["asked"] not in space:
        return None, f"nothing is called {question['asked']} when its cells have run"
    return space[question["asked"]], ""


def said(error):
    if isinstance(error, TimeUp):
        return f"no end after {STARTING:g} seconds"
    try:
        text = " ".join(str(error).split())[:200]
    except Exception:
        text = ""
    return f"{type(error).__name__}" + (f": {text}" if text else "")


def outputs_of(request, wire=None):
    """The answer to a request, as bytes: {"outputs": a list of plain data} or {"fault": a sentence}.

    wire: the socket to the tasks of a probe, which stay with the grader (worlds.py).
    """
    folder = os.getcwd()
    os.environ.update(HOME=folder, TMPDIR=folder)
    tempfile.tempdir = folder
    try:
        question = unpack(request)
        function, fault = build(question)
        if fault:
            return pack({"fault": fault})
        tasks = far_tasks(wire, question["tasks"]) if wire else None
        outputs = exercises.answer(question["name"], function, question["inputs"], tasks)
    except BaseException as error:  # memory that ends outside a call, or something of ours that was patched
        return pack({"fault": f"it stops with {said(error)}"})
    try:
        return pack({"outputs": outputs})
    except ValueError as error:
        return pack({"outputs": [odd(f"something that cannot be handed on ({error})")] * len(outputs)})


def serve(requests, answers, wires, base, place, hidden):
    """Answer requests until there are no more: a header, then paths to hide and the request, of as many bytes as it says.

    wires: a socket from which the end of another comes before a request that needs one.
    """
    while header := requests.read(HEADER.size):
        length, more, has_wire, *limits = HEADER.unpack(header)
        paths = [*hidden, *filter(None, requests.read(more).decode().split("\0"))]
        request, wire = requests.read(length), None
        if has_wire:
            wire = socket.socket(fileno=socket.recv_fds(wires, 1, 1)[1][0])
        work, kept = functools.partial(outputs_of, request, wire), [wire.fileno()] if wire else []
        how, content = jail.run_apart(work, jail.Limits(*limits), base, place, paths, kept)
        if wire:
            wire.close()
        answers.write(REPLY.pack(len(content), how.encode()[:64]) + content)
        answers.flush()


HEADER = struct.Struct(">QQ?dQQQ")  # length of the request, of the paths; a socket?; seconds, memory, processes, size of a file
REPLY = struct.Struct(">Q64s")  # length of the answer, how it ended


if __name__ == "__main__":
    base, place, number, *hidden = sys.argv[1:]
    jail.hide()
    jail.die_with_parent()
    wires = socket.socket(fileno=int(number))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    warm()
    apart, alone = jail.can_be_apart()
    answers.write((json.dumps({"apart": apart, "alone": alone, "root": os.geteuid() == 0}) + "\n").encode())
    answers.flush()
    serve(requests, answers, wires, base, int(place), hidden)
