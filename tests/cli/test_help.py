"""`orch --help` waits for nothing that it does not show."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.cli.commands import COMMANDS, load

HEAVY = frozenset(
    (
        *("numpy", "grpc", "google.protobuf", "cryptography", "asyncio", "ssl", "sqlalchemy", "aiohttp"),
        *("pydantic", "structlog", "prometheus_client", "rich.live", "ray", "kubernetes"),
        *("orchestrator.api", "orchestrator.control", "orchestrator.adapters", "orchestrator.core.state"),
    )
)
"""Tenths of a second together, for nothing that help shows."""

LOADED = """
import json, sys
from orchestrator.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write(json.dumps([code, sorted(sys.modules)]))
"""


def loaded(*arguments: str) -> frozenset[str]:
    """Modules that a command has imported when it ends well, in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    code, modules = json.loads(answer.stderr)
    assert code == 0
    return frozenset(modules)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    assert not HEAVY & loaded(option)


def test_help_of_a_command_imports_no_other_command() -> None:
    found = loaded("serve", "--help")
    assert "orchestrator.cli.serve" in found
    assert (
        not {f"orchestrator.cli.{entry.module}" for entry in COMMANDS.values()} - {"orchestrator.cli.serve"}
        & found
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_command_says_of_itself_what_help_says_of_it(name: str) -> None:
    own = " ".join((load(name).help or "").partition("\n\n")[0].split())
    assert COMMANDS[name].help == own.removesuffix(".") + "."
