"""The files that set the project up say the same thing: pyproject.toml, environment.yml, constraints.txt, Makefile, README."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from rlhf_lib import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + "".join((ROOT / name).read_text(encoding="utf-8") for name in ("INSTRUCTORS.md", "NEGATIVE_RESULTS.md"))
PINS = {}
for line in (ROOT / "constraints.txt").read_text().splitlines():
    if line.strip() and not line.startswith("#"):
        name, _, version = line.partition("==")
        PINS[canonicalize_name(name)] = version
DIRECT = [
    Requirement(text)
    for text in (*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra))
]
MINORS = [Version(f"3.{minor}") for minor in range(6, 20)]


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


# ----------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("file", ["constraints.txt", "tests/colab.txt"])
def test_every_constraint_is_one_exact_version(file):
    rows = [line for line in (ROOT / file).read_text().splitlines() if line.strip() and not line.startswith("#")]
    for row in rows:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", row), row
    assert len({canonicalize_name(row.partition("==")[0]) for row in rows}) == len(rows)  # none twice


def test_torch_is_pinned():
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement):
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} has no line in constraints.txt"
    assert requirement.specifier.contains(pin)


def test_conda_gives_the_same_python_and_installs_the_project_for_developers():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (python,) = [Requirement(entry) for entry in plain if entry.startswith("python")]
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert "pip" in plain
    assert "-e .[dev]" in pip
    assert "dev" in PROJECT["optional-dependencies"]


def test_make_and_readme_name_the_pythons_of_pyproject():
    allowed = SpecifierSet(PROJECT["requires-python"])
    good = [version for version in MINORS if version in allowed]
    assert good
    script = re.search(r"-c '(import sys; sys\.exit\(.+?\))' \|\|", (ROOT / "Makefile").read_text())[1]
    for version in MINORS:
        fake = f"import sys; sys.version_info = ({version.major}, {version.minor}, 1); exec({script!r})"
        done = subprocess.run([sys.executable, "-S", "-c", fake])
        assert (done.returncode == 0) == (version in allowed), version
    for version in good:
        assert str(version) in README
    assert all(str(version) not in README.split("Needed:")[1].splitlines()[0] for version in MINORS if version not in good)


def test_this_python_is_allowed():
    assert SpecifierSet(PROJECT["requires-python"]).contains(".".join(map(str, sys.version_info[:3])))


# ----------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("target", ["run", "test", "lab", "notebooks", "bench", "setup"])
def test_make_has_the_target(target):
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert target in phony  # notebooks/ is also a folder, which make would take for a finished file


def test_make_run_and_test_do_what_they_say():
    assert "-m rlhf_lib run --preset laptop --out runs/laptop" in make("--dry-run", "run").stdout
    assert "-m rlhf_lib run --preset gpu --out runs/x" in make("--dry-run", "run", "PRESET=gpu", "OUT=runs/x").stdout
    tests = make("--dry-run", "test").stdout
    assert "pytest" in tests and "ruff check" in tests and "--drawn" in tests
    tests, few = tests.split("--nbval-lax solutions/")
    whole, all_of_them = make("--dry-run", "test-all").stdout.split("--nbval-lax solutions/")
    assert whole == tests.replace(" --drawn", " ")
    few, all_of_them = (set(re.findall(r"\w+\.ipynb", one)) for one in (few, all_of_them))  # on Colab's versions
    with_widgets = {one.name for one in (ROOT / "solutions").glob("*.ipynb") if "widgets" in one.read_text(encoding="utf-8")}
    assert few == {"00_start_here.ipynb", "05_labels.ipynb"} and all_of_them == with_widgets > few


def test_the_first_command_sets_up_with_the_exact_versions():
    printed = make("--dry-run", "--always-make", "run").stdout
    installs = [line for line in printed.splitlines() if "pip install" in line]
    exact = [line for line in installs if "-c constraints.txt" in line]
    (colab,) = (line for line in installs if line not in exact)  # Colab's versions of a few packages, in a folder apart
    assert "--no-deps --target .venv/colab -r tests/colab.txt" in colab and printed.index(exact[0]) < printed.index(colab)
    assert any("-e '.[dev]'" in line for line in installs)
    assert printed.index("pip install") < printed.index("rlhf_lib run")


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line.strip() for line in script.read_text().splitlines()]
    assert lines[0].startswith("#!") and any(line.startswith("set -e") for line in lines)
    assert "make test" in lines
    assert re.search(r"^\s+make test\b", README, re.MULTILINE)


def test_every_make_command_of_the_pages_exists():
    targets = set(re.findall(r"(?:^\s+|`)make ([\w-]+)", PAGES, re.MULTILINE))
    assert {"run", "test"} <= targets
    for target in targets:
        assert make("--dry-run", target).returncode == 0, target


COMMANDS = re.findall(r"-m rlhf_lib ((?:[\w/-]+ )+--[^#`\n]+)", PAGES)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_is_understood(line):
    options = command_line.parser().parse_args(shlex.split(line))
    if options.command in command_line.STAGES:
        command_line.settings_of(options)


def test_the_readme_shows_every_command_that_needs_options():
    assert {line.split()[0] for line in COMMANDS} >= {"run", "sample", "score"}
    for name in command_line.STAGES:
        assert re.search(rf"\b{name}\b", README), name


def test_the_readmes_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    for link in links:
        assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"


def test_the_package_holds_every_module_and_the_page_of_the_report():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "rlhf_lib").rglob("*.py")}
    assert folders <= set(setuptools.find_namespace_packages(ROOT, include=tools["packages"]["find"]["include"]))
    assert "*.j2" in tools["package-data"]["*"] and list((ROOT / "rlhf_lib").rglob("*.j2"))


def test_make_lab_shows_a_learner_no_menus_of_nbgrader_and_asks_nothing(monkeypatch):
    """As JupyterLab reads the folder that the Makefile names."""
    settings = pytest.importorskip("jupyterlab_server.settings_utils")
    from jupyter_server.extension.config import ExtensionConfigManager

    assert "JUPYTER_CONFIG_PATH=$(CURDIR)/rlhf_lib/lab" in (ROOT / "Makefile").read_text(encoding="utf-8")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(ROOT / "rlhf_lib" / "lab"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(ROOT / "none"))
    overrides, _ = settings._get_overrides(str(ROOT / "none"))
    assert overrides["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false"}
    page = settings.ConfigManager(config_dir_name="labconfig").get("page_config")
    assert page["disabledExtensions"]["@jupyter/nbgrader"] is True
    found = ExtensionConfigManager(read_config_path=[str(ROOT / "rlhf_lib" / "lab")]).get_jpserver_extensions(
        "jupyter_server_config"
    )
    assert found and not any(found.values())
