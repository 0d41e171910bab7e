"""The laws of this repository's own text: sizes, the one door, and what no file may say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "orchestrator/api/"

# A file that does not fit one sitting, or a function that does not fit one screen, has two subjects.
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

REQUIRED_TARGETS = frozenset(
    (
        *("setup", "system", "demo", "test", "check", "fmt", "lint", "types", "arch", "proto", "proto-check"),
        *("sim", "bench", "lab"),
    )
)
MEASURED_SUFFIXES = frozenset((".py", ".sh", ".proto", ".js", ".css", ".html"))
PROSE_OR_CODE = frozenset(
    (*MEASURED_SUFFIXES, ".md", ".toml", ".yaml", ".yml", ".json", ".cfg", ".ini", ".lock", "")
)

# Put together here, so that this file does not say what it forbids.
FORBIDDEN_TEXT = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w.})])/" + r"work/(main|shared)\b",
        "/tmp/" + "boot",
        r"/root/" + r"\.",
        "py" + r"pi\.org",
        "python" + r"hosted\.org",
        "registry" + r"\.npmjs\.org",
        "deb" + r"\.debian\.org",
    )
)
# A yield to the event loop waits for nothing; waiting is done in one place, with a deadline and a name.
# Where time is virtual nobody waits: a sleep says when something happens.
MAY_SLEEP = frozenset(("tests/polling.py", "tests/simulation/test_measured_hour.py"))


@cache
def repository_files() -> tuple[str, ...]:
    """Files that are, or are about to be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(name for name in sorted(set(listing.stdout.splitlines())) if (ROOT / name).is_file())


def python_files(folder: str = "") -> tuple[str, ...]:
    return tuple(
        name
        for name in repository_files()
        if name.endswith(".py") and name.startswith(folder) and not name.startswith(GENERATED)
    )


def test_files_any_fit_five_hundred_lines() -> None:
    lengths = {
        name: len((ROOT / name).read_text().splitlines())
        for name in repository_files()
        if Path(name).suffix in MEASURED_SUFFIXES and not name.startswith(GENERATED)
    }
    assert lengths, "no source found: is this a git repository?"
    assert not {name: length for name, length in lengths.items() if length > FILE_LINES_MAX}


def test_functions_any_fit_seventy_lines() -> None:
    too_long = [
        f"{name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name in python_files()
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not too_long


def test_text_any_names_no_machine_and_no_registry() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in repository_files()
        if Path(name).suffix in PROSE_OR_CODE
        for number, line in enumerate((ROOT / name).read_text().splitlines(), start=1)
        if any(pattern.search(line) for pattern in FORBIDDEN_TEXT)
    ]
    assert not found


def waits_by_sleeping(node: ast.AST) -> bool:
    """Whether this is a call of `sleep`, other than `asyncio.sleep(0)`."""
    if not isinstance(node, ast.Call):
        return False
    match node.func:
        case ast.Attribute(attr="sleep") | ast.Name(id="sleep"):
            return not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
        case _:
            return False


def test_tests_any_wait_on_conditions_not_on_sleep() -> None:
    sleeping = [
        f"{name}:{node.lineno}"
        for name in python_files("tests/")
        if name not in MAY_SLEEP
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.expr) and waits_by_sleeping(node)
    ]
    assert not sleeping, "wait with tests/polling.py, or drive the clock"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("time.sleep(1)", True), ("sleep(0.1)", True), ("asyncio.sleep(0)", False), ("sleeper()", False)],
)
def test_waits_by_sleeping_each_form_is_told_apart(source: str, *, expected: bool) -> None:
    assert waits_by_sleeping(ast.parse(source, mode="eval").body) is expected


def test_make_help_lists_every_required_target() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    answer = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    listed = {words[1] for line in answer.stdout.splitlines() if len(words := line.split()) > 2}
    assert listed >= REQUIRED_TARGETS


def test_ci_run_calls_exactly_make_test() -> None:
    script = ROOT / ".ci" / "run"
    commands = [line for line in script.read_text().splitlines() if "make" in line]
    assert os.access(script, os.X_OK)
    assert commands == ["exec make test"]


def declared_requirements() -> list[Requirement]:
    """What pyproject.toml asks for: base, extras and groups."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    groups = (*project["optional-dependencies"].values(), *document["dependency-groups"].values())
    lines = [line for group in (project["dependencies"], *groups) for line in group if isinstance(line, str)]
    return [Requirement(line) for line in lines]


def test_lock_every_declared_requirement_is_satisfied() -> None:
    text = (ROOT / "requirements.lock").read_text()
    locked: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text, re.MULTILINE):
        locked.setdefault(canonicalize_name(name), []).append(Version(version))
    unmet = [
        str(wanted)
        for wanted in declared_requirements()
        if not any(
            wanted.specifier.contains(version) for version in locked.get(canonicalize_name(wanted.name), [])
        )
    ]
    assert not unmet, "run `make lock` and commit requirements.lock"


def test_lock_any_line_names_no_host() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
