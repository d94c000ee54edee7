import types

import pytest

from rlhf_lib import exercises
from rlhf_lib.exercises.keep import split
from rlhf_lib.files import RunError
from rlhf_lib.grading.answers import Answer, Code, worked_code
from rlhf_lib.grading.notebook import Cell, cells_of
from tests.grading.made import ROOT, SHARE, STUB, cell, chapter00, notebook


def code_of(*cells, name="n.ipynb"):
    return Code(cells_of(name, notebook(*cells).encode()))


def run(answer, space=None):
    """What the code of an Answer leaves, as the sandbox runs it."""
    made = vars(types.ModuleType("made")) | (space or {})
    for _, source in answer.code:
        exec(source, made)
    return made


def of(*cells, exercise="share_positive"):
    return code_of(*cells).answer(exercise)


def test_only_what_the_answer_leans_on_is_run():
    answer = of(
        "import torch", "import os\nos._exit(0)", "LIMIT = 3", "1 / 0", "def share_positive(scores, limit):\n    return LIMIT"
    )
    assert run(answer)["share_positive"](None, None) == 3
    assert [source for _, source in answer.code] == ["LIMIT = 3", "def share_positive(scores, limit):\n    return LIMIT"]
    assert answer.code[0][0] == "n.ipynb, cell 3"


@pytest.mark.parametrize(
    "cells",
    [
        ("def helper(): return 7", "def share_positive(s, l): return helper()"),
        ("def share_positive(s, l): return helper()", "def helper(): return 7"),
        ("class A:\n    def __call__(self, s, l): return B()", "share_positive = A()", "def B(): return 7"),
        ("share_positive = lambda s, l: N + 2", "N = 2", "N += 3"),
        ("N = 2", "N = N + 5", "def share_positive(s, l): return N"),
        ("if True:\n    N = 7\nelse:\n    N = 0", "def share_positive(s, l): return N"),
        ("try:\n    import nothing_of_that_name\nexcept ImportError:\n    N = 7", "def share_positive(s, l): return N"),
        ("T = {}\nT['a'] = 7", "def share_positive(s, l): return T['a']"),
        ("class C: pass\nC.f = lambda self: 7", "def share_positive(s, l): return C().f()"),
        ("L = []\nL.append(7)", "def share_positive(s, l): return L[0]"),
        (
            "import math as m",
            "def share_positive(s, l):\n    def inner(): return [int(m.sqrt(49)) for _ in 'a'][0]\n    return inner()",
        ),
        (
            "from functools import wraps",
            "def d(f):\n    @wraps(f)\n    def g(*a): return 7\n    return g",
            "@d\ndef share_positive(s, l): return 0",
        ),
        ("def f(n=[]): return 7", "def share_positive(s, l, k=f()): return k"),
        ("from __future__ import annotations\ndef share_positive(s: Nowhere, l) -> Nothing: return 7",),
        ("a, (b, c) = 1, (7, 2)", "def share_positive(s, l): return b"),
        ("def share_positive(s, l):\n    global K\n    K = 7\n    return K",),
        ("from math import *", "def share_positive(s, l): return int(sqrt(49))"),
    ],
)
def test_helpers_are_found_wherever_they_stand(cells):
    assert run(of(*cells))["share_positive"](None, None) == 7


def test_the_last_version_before_the_check_counts():
    one, two = "def share_positive(s, l): return 1", "def share_positive(s, l): return 2"
    check = 'check("share_positive", share_positive)'
    for cells, expected in (
        ((one, two, check), 2),
        ((one, check, two), 1),
        ((check, one, two), 2),
        ((one, STUB, check), 1),
        ((STUB, one), 1),
        ((one, two), 2),
        ((one, check, two, check), 2),
    ):
        assert run(of(*cells))["share_positive"](0, 0) == expected, cells


def test_an_answer_of_another_name_is_the_one_that_is_checked():
    answer = of(STUB, "def mine(s, l): return 4", 'check("share_positive", mine)')
    assert answer.asked == "mine" and run(answer)["mine"](0, 0) == 4
    assert of(SHARE, 'check("share_positive", nowhere)').asked == "share_positive"


def test_there_may_be_nothing_to_run():
    assert of(STUB).fault[0] == "not written"
    assert (
        of("class GPT:\n    def __init__(self):\n        raise NotImplementedError()", exercise="GPT").fault[0] == "not written"
    )
    head = "class GPT:\n    def __init__(self):\n        super().__init__()\n        "
    assert of(head + "raise NotImplementedError()", exercise="GPT").fault[0] == "not written"
    assert of(head + "self.n = 1", exercise="GPT").fault == () == of(head.rstrip(), exercise="GPT").fault
    assert of("x = 1").fault[0] == "missing"
    assert of("from rlhf_lib.ppo import gae", exercise="gae").fault[0] == "missing"
    assert of('gae = yours("gae")', exercise="gae").fault[0] == "missing"
    fault = of("y = 1", "x = 1\ndef share_positive(s, l:\n    pass", "z = 2").fault
    assert fault[0] == "syntax error" and fault[1].startswith("n.ipynb, cell 2, line 2 is no Python")
    assert of(STUB, cell("retrun 1", "share_positive")).fault[0] == "syntax error"


def test_a_broken_cell_costs_no_other_exercise():
    assert of("def gae(:", SHARE).fault == ()


def test_a_cell_whose_kind_was_changed_is_read_where_the_course_named_it():
    assert of(cell(SHARE, "share_positive", kind="markdown")).fault == ()
    assert of(cell(SHARE, kind="markdown")).fault[0] == "missing"
    assert of(SHARE, cell('check("share_positive", share_positive)', "check-share_positive", kind="markdown")).fault == ()


GAE = "def gae(rewards, values, gamma, lam, mask): return 'mine'"


def test_earlier_exercises_are_theirs_or_the_courses():
    uses = "def ppo_epochs(): return gae(0, 0, 0, 0, 0), value_loss"
    answer = code_of(GAE, uses).answer("ppo_epochs")
    assert answer.own == ["gae"] and answer.course == ["value_loss"]
    assert run(answer, {"value_loss": "ours"})["ppo_epochs"]() == ("mine", "ours")
    answer = code_of(GAE, uses).answer("ppo_epochs", ["gae"])
    assert answer.own == [] and answer.course == ["gae", "value_loss"]
    assert run(answer, {"gae": lambda *_: "ours", "value_loss": 1})["ppo_epochs"]() == ("ours", 1)
    answer = code_of(GAE, 'g = yours("gae")', "def ppo_epochs(): return g()", "from rlhf_lib.exercises import yours").answer(
        "ppo_epochs"
    )
    assert answer.own == ["gae"] and answer.course == []


def test_what_is_taken_from_the_library_is_noted():
    answer = of(
        "from rlhf_lib import ppo", "from rlhf_lib.sampling import generate as g", "def share_positive(s, l): return ppo, g"
    )
    assert answer.library == ["rlhf_lib.ppo", "rlhf_lib.sampling.generate"]
    assert of("import torch", SHARE).library == []


@pytest.mark.parametrize(
    "lines, taken",
    [
        ("from rlhf_lib.ppo import gae\n    return gae(scores)", ["rlhf_lib.ppo.gae"]),
        ("from rlhf_lib import ppo as p\n    return p.gae(scores)", ["rlhf_lib.ppo"]),
        ("import rlhf_lib.ppo\n    return rlhf_lib.ppo.gae(scores)", ["rlhf_lib.ppo"]),
        ("return load('rlhf_lib.ppo').gae(scores)", ["rlhf_lib.ppo"]),
        ("from rlhf_lib.exercises import yours\n    return yours('gae')(scores)", []),
        ("return 'see rlhf_lib, the library'", []),
    ],
)
def test_what_is_taken_from_the_library_inside_a_function_is_noted(lines, taken):
    assert of(f"def share_positive(scores, limit):\n    {lines}").library == taken


@pytest.mark.parametrize(
    "lines, odd",
    [
        ("import gc\n    return gc.get_objects()", ["gc"]),
        ("return __import__('ctypes').string_at(0)", ["__import__", "ctypes"]),
        ("import sys\n    return sys._getframe().f_back.f_locals", ["_getframe", "f_back", "f_locals"]),
        ("import sys\n    sys.modules['torch'] = sys", ["sys.modules"]),
        ("return getattr(__builtins__, 'sum')(scores)", ["__builtins__"]),
        ("return sum(model.modules())", []),
    ],
)
def test_names_that_no_exercise_needs_are_noted(lines, odd):
    assert of(f"def share_positive(scores, limit):\n    {lines}").odd == odd


def test_chapters_are_those_of_the_cells_that_the_course_named():
    windows = "def windows(tokens, length): return 1"
    assert code_of(cell(SHARE, "share_positive"), windows).chapters() == {0}
    assert code_of(SHARE, windows).chapters() == {0, 1}
    assert code_of("x = 1").chapters() == set()


def test_chapters_of_a_python_file_are_those_of_its_checks_where_it_has_any():
    helper = "def log_reward(x):\n    return x\n"
    assert Code(cells_of("x.py", (helper + SHARE).encode())).chapters() == {0, 8}
    assert Code(cells_of("x.py", (helper + SHARE + 'check("share_positive", share_positive)').encode())).chapters() == {0}


def test_of_two_notebooks_the_one_that_asks_for_an_exercise_answers_it():
    early = cells_of("03.ipynb", notebook("def share_positive(s, l): return 'a helper of that name'").encode())
    own = cells_of("00.ipynb", chapter00("def share_positive(s, l): return N").encode())
    constant = cells_of("00b.ipynb", notebook("N = 5").encode())
    for cells in (own + early + constant, early + own + constant):
        assert run(Code(cells).answer("share_positive"))["share_positive"](0, 0) == 5
    stub = cells_of("00.ipynb", chapter00(STUB).encode())
    assert run(Code(stub + early).answer("share_positive"))["share_positive"](0, 0) == "a helper of that name"


def test_of_two_files_the_helpers_are_those_of_the_same_file():
    one = cells_of("a.ipynb", notebook("def helper(): return 1", "def gae(): return helper()").encode())
    two = cells_of("b.ipynb", notebook("def value_loss(): return helper()", "def helper(): return 2").encode())
    assert run(Code(one + two).answer("gae"))["gae"]() == 1
    assert run(Code(one + two).answer("value_loss"))["value_loss"]() == 2


def test_functions_that_call_one_another_are_found_once():
    answer = of("def a(n): return b(n)", "def b(n): return n and a(n - 1)", "def share_positive(s, l): return a(3)")
    assert run(answer)["share_positive"](0, 0) == 0 and len(answer.code) == 3


def test_every_worked_answer_is_found():
    cells = cells_of("my_rlhf.py", (ROOT / "solutions" / "my_rlhf.py").read_bytes())
    code = Code(cells)
    kept = [name for name in code.known if getattr(exercises.find(name), "kept", True)]
    assert len(kept) > 100 and [name for name in kept if code.answer(name).fault] == []
    assert code.answer("cohen_kappa").own == ["confusion"]


@pytest.mark.parametrize("source", ["x = " + "1 + " * 3000 + "1", "\n".join(f"x{n} = x{n - 1}" for n in range(1, 3000))])
def test_code_of_any_shape_comes_to_an_end(source):
    Code([Cell("c", source + "\ndef share_positive(s, l): return x", True)]).answer("share_positive")


def test_worked_answers_go_with_an_answer_that_takes_them_and_never_the_one_that_is_asked_for():
    assert worked_code(Answer(), "gae") == ""
    text = worked_code(Answer(own=["gae"], course=["value_loss"]), "policy_loss")
    assert "def value_loss(" in text and "def gae(" in text and "def policy_loss(" not in text and "whole_loop" not in text
    assert "def gae(" not in worked_code(Answer(own=["gae", "value_loss"]), "gae")
    called = split(worked_code(Answer(course=["rlhf"]), "share_positive"))[1]
    assert {"rlhf", "with_baseline"} <= called.keys() and "train_bpe" not in called  # with what it calls
    assert "rlhf" not in split(worked_code(Answer(course=[*called]), "rlhf"))[1]
    both = 'generate, policy_loss = yours("generate", "policy_loss")'
    answer = of(both, "def share_positive(scores, limit):\n    return policy_loss(scores)")
    assert answer.taken == ["generate", "policy_loss"]
    assert {"generate", "policy_loss"} <= split(worked_code(answer, "share_positive"))[1].keys()
    with pytest.raises(RunError, match="the course's own nothing is missing"):
        worked_code(Answer(course=["nothing"]), "gae")


def test_what_was_found_is_read_and_never_run():
    code = code_of(
        'done("7.A", "an older sentence of mine")\ndone("7.A", "clipping changes little here", figure=fig)',
        'done("1.A", ...)\ndone("9.Z", "there is no such one")\ndone("2.A", f"{heads} heads")\nother.done("7.B", "x")\ndone()',
    )
    assert code.texts() == {"7.A": "clipping changes little here", "2.A": "f'{heads} heads'"}
