"""Every `orch …` that documents, the chart, alerts and the program's own words name is one that the program takes."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.commands import COMMANDS, load
from orchestrator.cli.variables import known_variables

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "orchestrator"

DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    CHART / "README.md",
    CHART / "values.yaml",
    CHART / "templates" / "NOTES.txt",
    *sorted((CHART / "files" / "rules").glob("*.yaml")),
    *sorted((ROOT / "deploy" / "images").rglob("Dockerfile")),
)
SOURCES = tuple(
    path
    for folder in ("orchestrator", "examples", "deploy")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "api" not in path.relative_to(ROOT).parts
)

IN_CODE = re.compile(r"`orch ([^`]+)`")
ON_A_LINE = re.compile(r"(?:^|-- |&& |· |\$\()orch ([^`]+?)(?=$| &&| ·|\))")
IN_NOTES = re.compile(r"{{ (?:\$orch|ternary \$orch .*?) }}")
ENDS = re.compile(r"(?:^|\s)(?:#|>|\||&&|…|\.\.\.)(?:\s|$)|[,;:](?:\s|$)")
"""Where a command ends and prose, a comment or another program begins."""

LEFT_OUT = ("MissingParameter", "BadOptionUsage")
"""A mention may leave out what is not the point: an argument, or what its last option is set to."""

VALUE = "VALUE"
"""Stands where the program puts in what it knows only when it runs."""

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*(?:\.[a-z.]+)?")
VARIABLE = re.compile(r"\bORCH_[A-Z_]*[A-Z]\b")

OTHERS_OPTIONS = frozenset(
    ("--verify", "--storage.tsdb.retention.time", "--entrypoint-num-gpus", "--metadata-json")
)
"""Of Ray's and Prometheus's commands."""

OTHERS_VARIABLES = frozenset(("ORCH_SERVICE_HOST", "ORCH_PORT_7443_TCP_ADDR"))
"""Kubernetes' own, named to be told apart."""


def named_in(text: str) -> Iterator[str]:
    """What stands behind each `orch`, a line of it at a time."""
    plain = IN_NOTES.sub("orch", text).replace("$(kubectl", "kubectl")
    for found in IN_CODE.finditer(plain):
        yield " ".join(found[1].split())
    for line in IN_CODE.sub("", plain).splitlines():
        for found in ON_A_LINE.finditer(line.strip()):
            yield found[1].strip()


def said_in(path: Path) -> Iterator[str]:
    """Of a module: what its strings say, docstrings and errors alike; what is put in stands as VALUE."""
    if path.suffix != ".py":
        yield from named_in(path.read_text(encoding="utf-8"))
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (one.value if isinstance(one, ast.Constant) else VALUE for one in node.values)
            text = "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        for found in IN_CODE.finditer(text):
            yield " ".join(found[1].split())


def words_of(said: str) -> list[list[str]]:
    """The arguments; more than one list where it says `this|that`."""
    before = ENDS.split(said, maxsplit=1)[0].strip().rstrip("…").strip()
    choices = [word.split("|") for word in shlex.split(before)]
    return [list(words) for words in itertools.product(*choices)]


def complaint(words: list[str]) -> str:
    """What the program's own parser has against these arguments; empty: nothing."""
    if not words or words[0].startswith("-"):
        return "" if words in ([], ["--help"], ["--version"]) else f"no option of orch: {words[0]}"
    name, *rest = words
    if name not in COMMANDS:
        return f"no command {name}"
    command: Any = load(name)
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return "" if rest[0] == "--help" else f"{command.name} has no command {rest[0]}"
        command, *rest = command.commands[rest[0]], *rest[1:]
    try:
        command.make_context(name, [word for word in rest if word != "--help"])
    except typer.TyperException as error:
        return "" if type(error).__name__ in LEFT_OUT else error.format_message()
    except typer.Exit:
        return ""
    return ""


EVERY = sorted(
    {(path, said) for path in (*DOCUMENTS, *SOURCES) for said in said_in(path) if not said.startswith(VALUE)}
)


def test_commands_that_are_named_are_found_at_all() -> None:
    found = {path.relative_to(ROOT).as_posix() for path, _ in EVERY}
    assert {
        "README.md",
        "docs/runbook.md",
        "docs/configuration.md",
        "orchestrator/core/queries/health.py",
    } <= found
    assert CHART.relative_to(ROOT).joinpath("templates/NOTES.txt").as_posix() in found
    assert len(EVERY) > 100


@pytest.mark.parametrize(
    ("path", "said"),
    [pytest.param(*one, id=f"{one[0].relative_to(ROOT).as_posix()}: {one[1][:60]}") for one in EVERY],
)
def test_command_that_is_named_is_taken_by_the_program(path: Path, said: str) -> None:
    for words in words_of(said):
        assert not complaint(words), f"{path}: orch {said}"


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("worker lst", "no command lst"),
        ("wrker list", "no command wrker"),
        ("worker list --colour", "No such option"),
        ("job explain a b", "unexpected extra argument"),
        ("token create --role king", "king"),
        ("top --interval soon", "--interval"),
    ],
)
def test_command_that_is_none_is_noticed(said: str, wrong: str) -> None:
    (words,) = words_of(said)
    assert wrong in complaint(words)


def options_of(command: Any) -> Iterator[str]:
    """Of a command and all below it."""
    for one in command.params:
        yield from (*one.opts, *one.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options_of(below)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_options_and_variables_that_a_document_names_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    options = {option for name in COMMANDS for option in options_of(load(name))}
    assert set(OPTION.findall(text)) - options - OTHERS_OPTIONS == set()
    assert set(VARIABLE.findall(text)) - known_variables() - OTHERS_VARIABLES == set()
