import sys

import pytest

from rlhf_lib import exercises
from rlhf_lib.grading import worker
from rlhf_lib.grading.answers import Answer, worked_code
from rlhf_lib.grading.wire import pack, unpack
from tests.grading.made import SHARE

# What it runs in, and what it may do there, is tried in test_sandbox.py.


def question(code, **more):
    return {
        "name": "share_positive",
        "asked": "share_positive",
        "code": [["cell 1", "import torch"], ["cell 2", code]],
        "own": [],
        "course": [],
        "worked": "",
        **more,
    }


def worked(*names):
    return worked_code(Answer(course=list(names)), "share_positive")


@pytest.fixture
def yours(monkeypatch):
    monkeypatch.setattr(exercises, "yours", exercises.yours)  # `build` replaces it
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def test_the_code_is_run_in_one_namespace(yours):
    function, fault = worker.build(question(SHARE))
    assert fault == "" and function(worker.torch.tensor([1.0, 2.0]), 1.5) == 0.5


def test_what_does_not_run_is_said(yours):
    assert worker.build(question("1 / 0")) == (None, "cell 2 stops with ZeroDivisionError: division by zero")
    assert worker.build(question("x = 1")) == (None, "nothing is called share_positive when its cells have run")
    assert worker.build(question("raise SystemExit(3)"))[1] == "cell 2 stops with SystemExit: 3"
    silent = "class E(Exception):\n    def __str__(self): return 3\nraise E"
    assert worker.build(question(silent))[1] == "cell 2 stops with E"


def test_yours_is_the_learners_where_it_is_there_else_the_courses(yours):
    take = 'from rlhf_lib.exercises import yours\ng, v = yours("gae", "value_loss")\nshare_positive = (g, v)'
    (mine, ours), fault = worker.build(question("gae = 'mine'\n" + take, own=["gae"], worked=worked("value_loss")))
    assert fault == "" and mine == "mine" and ours.__module__ == "course_rlhf"
    (other, _), _ = worker.build(question("gae = 'mine'\n" + take, worked=worked("gae", "value_loss")))
    assert other.__module__ == "course_rlhf"
    assert worker.build(question("share_positive = gae", course=["gae"], worked=worked("gae")))[0].__module__ == "course_rlhf"


def test_yours_finds_nothing_that_was_not_sent(yours):
    found = worker.build(question('from rlhf_lib.exercises import yours\nyours("ga" + "e")\n' + SHARE))
    assert "yours() finds no 'gae' here: write its name in the call" in found[1]


def test_yours_does_not_answer_what_is_asked_for(yours):
    take = 'from rlhf_lib.exercises import yours\ngae, course_s = yours("gae", "share_positive")\n'
    function, fault = worker.build(question(take + "def share_positive(*given): return course_s(*given)", worked=worked("gae")))
    assert fault == ""
    with pytest.raises(NameError, match="share_positive is what is asked for here"):
        function(worker.torch.tensor([1.0]), 0.5)
    one = take.replace("course_s", "share_positive")  # in passing, by a statement that takes another too
    assert worker.build(question(one + SHARE, worked=worked("gae")))[0](worker.torch.tensor([1.0]), 0.5) == 1.0


def test_outputs_and_faults_as_bytes(yours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(worker.tempfile, "tempdir", None)
    inputs = exercises.draw("share_positive", 3)
    found = unpack(worker.outputs_of(pack(question(SHARE, inputs=inputs))))
    assert exercises.judge("share_positive", inputs, found["outputs"]).passed
    assert unpack(worker.outputs_of(pack(question("1 / 0", inputs=inputs)))) == {
        "fault": "cell 2 stops with ZeroDivisionError: division by zero"
    }
    bits = "def share_positive(scores, limit): return 10 ** 6000"
    found = unpack(worker.outputs_of(pack(question(bits, inputs=inputs))))
    assert all(exercises.is_record(one, "odd") for one in found["outputs"])
