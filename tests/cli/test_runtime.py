"""`orch runtime`: what people read of what their jobs will find."""

from __future__ import annotations

import base64
import json

import pytest

from tests.cli.conftest import Control, Orch
from tests.cli.control import TENANT, lines_with


def test_runtime_list_marks_the_first_as_default_and_shortens_digests(admin: Orch, control: Control) -> None:
    first, second = control.jobs.runtimes
    out = admin("runtime", "list").out
    assert lines_with(out, "default", "3.11", "2.60.0", first.digest[:12], "yes")
    (line,) = lines_with(out, "torch", second.digest[:12])
    assert "yes" not in line
    assert second.digest[:13] not in line


def test_runtime_list_of_a_tenant_is_the_same(
    admin: Orch, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = admin("runtime", "list").out
    monkeypatch.setenv("ORCH_TOKEN", TENANT)
    assert admin("runtime", "list").out == operators


def test_runtime_list_empty_says_what_that_means(admin: Orch, control: Control) -> None:
    control.jobs.runtimes = []
    answer = admin("runtime", "list")
    assert (answer.code, answer.out) == (0, "")
    assert "machines' own Python" in answer.err


def test_runtime_show_names_every_locked_package_with_its_version(admin: Orch, control: Control) -> None:
    out = admin("runtime", "show", "torch").out
    assert lines_with(out, "digest", control.jobs.runtimes[1].digest)
    assert lines_with(out, "asked for", "ray[default]==2.60.0, numpy")
    assert [line.strip() for line in out.splitlines() if line.startswith("  ")] == [
        "numpy==2.4.1",
        "ray==2.60.0",
        "torch==2.12.0",
    ]


def test_runtime_show_lock_is_what_an_installer_reads(admin: Orch, control: Control) -> None:
    runtime = control.jobs.runtimes[0]
    assert admin("runtime", "show", "default", "--lock").out == runtime.lock.decode()
    told = json.loads(admin("runtime", "show", "default", "-o", "json").out)["runtime"]
    assert base64.b64decode(told["lock"]) == runtime.lock


def test_runtime_show_lock_and_json_names_both(admin: Orch) -> None:
    answer = admin("runtime", "show", "default", "--lock", "-o", "json")
    assert answer.code == 2
    assert "--lock and --output json" in answer.err


def test_runtime_show_unknown_name_tells_the_nearest(admin: Orch) -> None:
    answer = admin("runtime", "show", "defalt")
    assert (answer.code, answer.out) == (1, "")
    assert "did you mean 'default'?" in answer.err


@pytest.mark.parametrize("lock", [b"ray==2.60.0\n", b""])
def test_runtime_show_another_lock_than_the_digest_names_is_not_shown(
    admin: Orch, control: Control, lock: bytes
) -> None:
    control.jobs.runtimes[0].lock = lock
    answer = admin("runtime", "show", "default", "--lock")
    assert (answer.code, answer.out) == (1, "")
    assert "not the one that its digest names" in answer.err
