import ast
import inspect

import pytest
from cells import Scene

from rlhf_lib.exercises.source import import_of, names_needed, source_of

EXERCISES = {"gae", "masked_whiten"}


def taken(scene, name):
    found = source_of(name, scene[name], EXERCISES)
    assert found.problems == [], found.problems
    return found


def test_a_function_is_cut_out_of_its_cell_with_its_decorators():
    scene = Scene()("import functools\n\nx = 1\n\n@functools.cache\ndef gae(n):\n    return n + 1  # one more\n\nprint\n")
    found = source_of("gae", inspect.unwrap(scene["gae"]), EXERCISES)
    assert found.code == "@functools.cache\ndef gae(n):\n    return n + 1  # one more"
    assert found.imports == {"functools": "import functools"} and found.problems == []


def test_a_class_is_found_which_inspect_cannot():
    scene = Scene()("from torch import nn\n")
    net = "class Net(nn.Module):\n    size = 3\n    double = 2 * size\n\n    def forward(self, x):\n        return x"
    scene(f"class Other:\n    pass\n\n{net}")
    with pytest.raises((OSError, TypeError)):
        inspect.getsource(scene["Net"])
    found = taken(scene, "Net")
    assert found.code == net
    assert found.imports == {"nn": "from torch import nn"}


@pytest.mark.parametrize(
    ("imported", "used", "statement"),
    [
        ("import torch", "torch.ones(2)", "import torch"),
        ("import torch.nn.functional as F", "F.relu(x)", "import torch.nn.functional as F"),
        ("from torch.nn import functional as F", "F.relu(x)", "import torch.nn.functional as F"),
        ("from collections import Counter as Tally", "Tally(x)", "from collections import Counter as Tally"),
        ("from math import sqrt", "sqrt(x)", "from math import sqrt"),
        ("from tqdm.auto import tqdm", "tqdm(x)", "tqdm"),
        ("from typing import NamedTuple", "NamedTuple", "from typing import NamedTuple"),
        ("import numpy as np", "np.pi", "import numpy as np"),
    ],
)
def test_imports_are_found_from_what_the_names_stand_for(imported, used, statement):
    scene = Scene()(imported)(f"def gae(x):\n    return {used}\n")
    found = taken(scene, "gae")
    (line,) = found.imports.values()
    assert line.endswith(statement)
    space = {}
    exec(line, space)
    (name,) = found.imports
    assert space[name] is scene[name]


def test_helpers_of_the_same_cell_come_along_in_their_order_and_what_they_need():
    scene = Scene()("import math\n")
    constant, inner, gae = "EPS = 1e-5", "def inner(x):\n    return math.sqrt(x + EPS)", "def gae(x):\n    return inner(x)"
    scene("\n\n".join([constant, inner, "def unused():\n    pass", gae]))
    found = taken(scene, "gae")
    assert found.code == "\n\n".join([constant, inner, gae])
    assert found.imports == {"math": "import math"}


def test_what_stands_in_another_cell_is_told():
    scene = Scene()("vocabulary = ['a']\ndef helper():\n    pass\n")("def gae(x):\n    helper()\n    return vocabulary\n")
    found = source_of("gae", scene["gae"], EXERCISES)
    assert len(found.problems) == 2
    assert "`helper`, which stands in another cell: put that into the same cell" in found.problems[0]
    assert "`vocabulary`, which stands in another cell: make it an argument" in found.problems[1]


def test_other_exercises_are_left_to_their_own_sections():
    scene = Scene()("def masked_whiten(x):\n    return x\n\ndef gae(x):\n    return masked_whiten(x)\n")
    found = taken(scene, "gae")
    assert found.others == {"masked_whiten"} and found.code.startswith("def gae")


def test_a_function_of_the_library_with_an_exercises_name_is_told():
    scene = Scene()("from rlhf_lib.ppo import masked_whiten\n")("def gae(x):\n    return masked_whiten(x)\n")
    (problem,) = source_of("gae", scene["gae"], EXERCISES).problems
    assert "its `masked_whiten` is the library's" in problem and "call yours" in problem


def test_another_name_and_a_lambda_are_kept_under_the_exercises_name():
    scene = Scene()("def my_gae(x):\n    return x\n\nfast = lambda x: x + 1\n")
    assert source_of("gae", scene["my_gae"], EXERCISES).code.endswith("    return x\n\ngae = my_gae")
    assert source_of("gae", scene["fast"], EXERCISES).code == "fast = lambda x: x + 1\n\ngae = fast"


def test_the_definition_that_was_run_last_is_taken_from_its_own_cell():
    scene = Scene()("def gae(x):\n    return 1\n")("def gae(x):\n    return 2\n")
    assert taken(scene, "gae").code.endswith("return 2")


@pytest.mark.parametrize("built", [len, "no function", None, type("Empty", (), {})], ids=["builtin", "str", "None", "class"])
def test_what_has_no_source_is_said(built):
    assert "cannot be found" in source_of("gae", built, EXERCISES).problems[0]


def test_a_function_inside_another_is_said():
    scene = Scene()("def make():\n    def gae(x):\n        return x\n    return gae\n\nmade = make()\n")
    assert "inside something else" in source_of("gae", scene["made"], EXERCISES).problems[0]


def test_nbgraders_marks_are_left_out():
    scene = Scene()("def gae(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n")
    assert taken(scene, "gae").code == "def gae(x):\n    return x"


def test_names_of_a_class_body_defaults_and_annotations_are_needed_too():
    source = "class A(Base):\n    x = START\n    y = x\n\n    def f(self, n: Kind = FIRST):\n        return [OTHER for _ in n]\n"
    assert names_needed(ast.parse(source).body[0]) == ["Base", "FIRST", "Kind", "OTHER", "START"]


def test_a_constant_is_imported_as_its_own_cell_does_it():
    scene = Scene()("from math import e, pi\n\ndef gae(x):\n    return pi * x\n")
    assert taken(scene, "gae").imports == {"pi": "from math import pi"}


def test_a_value_that_no_module_has_has_no_import():
    assert import_of("x", 3) == "" and import_of("x", [1]) == "" and import_of("f", lambda: 1) == ""
