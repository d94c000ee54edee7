"""The house of the library: floors, the size of a file, and a test file for every module."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, TESTS = ROOT / "rlhf_lib", ROOT / "tests"

# From the ground up. A module imports only from floors below its own, and on its own floor from what stands before it.
# "exercises." is every module of that package, which may import one another, but not in a circle.
FLOORS = [
    "files devices wheels",
    "ppo policy_gradient preference verse corpus chat tokenization labels label_exports comparisons public_sets",
    "models.layers models.gpt models.llama models.heads models.weights models.lora models.gguf models.published checkpoints runs",
    "sampling judge pairwise blind endpoint",
    "trainers.rates trainers.muon trainers.pretrain trainers.sft trainers.reward trainers.preference trainers.rollouts "
    "trainers.rewards trainers.ppo trainers.ppo_critic trainers.grpo trainers.dpo trainers.rejection",
    "plots plots_assistant plots_runs pipelines.settings pipelines.stages pipelines.material pipelines.inputs pipelines.estimate "
    "pipelines.report pipelines.shakespeare pipelines.judging pipelines.referee pipelines.assistant_settings "
    "pipelines.assistant talk",
    "course hunt. bands exercises. widgets. notebooks release grading. instructors __main__",
]
ORDER = [name for floor in FLOORS for name in floor.split()]
EMPTY = {
    "__init__",
    "models.__init__",
    "trainers.__init__",
    "pipelines.__init__",
    "grading.__init__",
}  # a docstring, and on no floor
WHOLE = {
    "benchmarks",
    "browser",
    "card",
    "drawn",
    "environment",
    "figures",
    "forged",
    "fuzz",
    "gpu",
    "house",
    "learner",
    "nbgrader",
    "pretend_card",
    "speed",
}  # of no single module


def module_of(path):
    """rlhf_lib/models/gpt.py is "models.gpt"."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


MODULES = {module_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}


def imports(source, modules=MODULES):
    """The modules of the library that `source` imports, inside functions too; a package is its "__init__"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: say where a module is, without dots"
            # `from a import b`: b is a module, or a name in the module a
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if inside(name, modules) else node.module for name in whole]
        else:
            continue
        found |= {inside(name, modules) or name for name in names if name.split(".")[0] == "rlhf_lib"}
    return found


def inside(name, modules):
    """The module of the library that is imported as `name` ("rlhf_lib.models.gpt"), or None."""
    name = name.removeprefix("rlhf_lib").removeprefix(".")
    package = f"{name}.__init__".removeprefix(".")
    return name if name in modules else package if package in modules else None


def place(name):
    """Where a module stands in ORDER; a package's modules all stand at one place."""
    package = f"{name.split('.')[0]}."
    return ORDER.index(package if package in ORDER else name)


def wrong(name, imported):
    """Those of `imported` that the module `name` is too low in the house to import."""
    same = {other for other in imported if place(other) == place(name) and ORDER[place(name)].endswith(".")}
    return sorted(other for other in set(imported) - same if place(other) >= place(name))


@pytest.mark.parametrize("name", sorted(MODULES.keys() - EMPTY))
def test_imports_point_only_to_lower_floors(name):
    source = MODULES[name].read_text(encoding="utf-8")
    assert wrong(name, imports(source)) == []


def test_every_module_has_a_place_and_every_place_a_module():
    for name in sorted(MODULES.keys() - EMPTY):
        place(name)  # a ValueError names the module
    taken = {place(name) for name in MODULES.keys() - EMPTY}
    assert [name for number, name in enumerate(ORDER) if number not in taken] == []
    for name in EMPTY:
        assert len(ast.parse(MODULES[name].read_text(encoding="utf-8")).body) == 1, name  # the docstring


def test_no_import_leads_back_to_its_module():
    """Python would find one of the two half made."""
    left = {name: imports(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


# ----------------------------------------------------------------------------------------- the test tests


def test_imports_are_found_in_whatever_form_they_come():
    modules = {"__init__", "files", "models.__init__", "models.gpt", "widgets.__init__", "ppo"}
    cases = {
        "import rlhf_lib.files": {"files"},
        "import json, rlhf_lib.models.gpt as gpt": {"models.gpt"},
        "from rlhf_lib import files, ppo as kernels": {"files", "ppo"},
        "from rlhf_lib import widgets": {"widgets.__init__"},
        "from rlhf_lib.models import gpt": {"models.gpt"},
        "from rlhf_lib.models.gpt import GPT, GPTConfig": {"models.gpt"},
        "def f():\n    if x:\n        from rlhf_lib.files import RunError": {"files"},
        "import rlhf_lib": {"__init__"},
        "from rlhf_lib.gone import x": {"rlhf_lib.gone"},
        "import json\nfrom rlhf_library import x\nfrom torch import nn": set(),
    }
    for source, expected in cases.items():
        assert imports(source, modules) == expected, source
    with pytest.raises(AssertionError, match="without dots"):
        imports("from .files import RunError")


def test_an_import_that_points_upwards_is_found():
    assert wrong("labels", ["files", "corpus", "judge"]) == ["judge"]
    assert wrong("corpus", ["labels", "files"]) == ["labels"]  # the same floor, but behind it
    assert wrong("trainers.ppo", ["pipelines.settings", "trainers.rollouts", "ppo"]) == ["pipelines.settings"]
    assert wrong("exercises.ch01_text", ["exercises.declare", "plots", "widgets.parts"]) == ["widgets.parts"]
    with pytest.raises(ValueError, match="somewhere"):
        wrong("somewhere", ["files"])


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("path", sorted(p.relative_to(ROOT).as_posix() for p in LIBRARY.rglob("*") if p.suffix in (".py", ".j2")))
def test_no_file_has_two_ideas_in_it(path):
    """At most 350 lines; 700 where a chapter declares its exercises."""
    most = 700 if Path(path).match("rlhf_lib/exercises/ch*.py") else 350
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= most


def mirror(name):
    """Where the tests of a module are: models.gpt has tests/models/test_gpt.py, and __main__ tests/test_main.py."""
    *folders, last = name.split(".")
    return TESTS.joinpath(*folders, f"test_{last.strip('_')}.py")


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.endswith("__init__")))
def test_every_module_has_its_test_file(name):
    assert mirror(name).exists()


def test_every_test_file_has_its_module():
    """But for those that test the house as a whole, and those of the exercises, which test declarations together."""
    mirrored = {mirror(name) for name in MODULES}
    files = {
        path
        for path in TESTS.rglob("test_*.py")
        if path.parent.name != "exercises" and path.stem.removeprefix("test_") not in WHOLE
    }
    assert sorted(path.relative_to(TESTS).as_posix() for path in files - mirrored) == []


def without_encoding(source):
    """The lines that open a text in the system's own encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        binary = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in node.args[1:2])
        opens = isinstance(node.func, ast.Name) and name == "open" and not binary
        if (opens or name in ("read_text", "write_text")) and "encoding" not in {one.arg for one in node.keywords}:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_text_is_read_and_written_in_an_encoding_that_is_named(name):
    source = MODULES[name].read_text(encoding="utf-8")
    lines = source.splitlines()
    # files.read_text is ours, and always UTF-8
    assert [line for line in without_encoding(source) if not re.search(r"(?<![.\w])read_text\(", lines[line - 1])] == []


def test_a_text_in_the_systems_own_encoding_is_seen():
    code = "a.read_text()\nopen(x)\nopen(x, 'rb')\nopen(x, 'a', encoding='utf-8')\np.write_text(t)\nos.open(x, 1)\nread_text(p)"
    assert without_encoding(code) == [1, 2, 5, 7]
