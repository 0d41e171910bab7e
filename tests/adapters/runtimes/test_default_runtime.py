"""The default runtime as the real uv installs it, used by somebody who owns nothing and has no home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import Provisioned, bundled
from tests.runtimes import UNPRIVILEGED_ID, shared_store, unprivileged

TIMEOUT_S = 60


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder of the unprivileged user, on a path that he may walk."""
    folder = Path(tempfile.mkdtemp(prefix="orch-runtime-"))
    if os.geteuid() == 0:
        os.chown(folder, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    yield folder
    shutil.rmtree(folder)


def run(scratch: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run as somebody else, with nothing of this process's environment."""
    return subprocess.run(
        [*unprivileged(), *(str(one) for one in command)],
        cwd=scratch,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize(
    ("module", "says"), [("ray.scripts.scripts", "version 2.60.0"), ("pip", "pip "), ("uv", "uv ")]
)
def test_default_module_as_stranger_without_home_says_its_version(
    provisioned: Provisioned, scratch: Path, module: str, says: str
) -> None:
    # pip wants some place for its cache, home or not; a box has its scratch.
    answer = run(
        scratch,
        provisioned.python,
        "-m",
        module,
        "--version",
        XDG_CACHE_HOME=str(scratch),
        XDG_CONFIG_HOME=str(scratch),
    )
    assert answer.returncode == 0, answer.stderr
    assert says in answer.stdout


def test_default_command_ray_runs_from_where_it_is(provisioned: Provisioned, scratch: Path) -> None:
    answer = run(scratch, provisioned.python.parent / "ray", "--version")
    assert (answer.returncode, answer.stdout) == (0, "ray, version 2.60.0\n"), answer.stderr


def test_default_packages_come_from_the_runtime_compiled_and_unwritable(
    provisioned: Provisioned, scratch: Path
) -> None:
    code = (
        "import json, os, sys, sklearn, numpy, scipy, ray;"
        "print(json.dumps([sys.prefix, sys.base_prefix, sklearn.__file__, os.path.exists(sklearn.__cached__),"
        "os.path.exists(json.__cached__), os.access(sklearn.__file__, os.W_OK) and os.geteuid() != 0]))"
    )
    answer = run(scratch, provisioned.python, "-c", code)
    assert answer.returncode == 0, answer.stderr
    root = provisioned.readonly_dirs[0]
    prefix, base, module, *facts = json.loads(answer.stdout)
    assert prefix == base == root
    assert module.startswith(root)
    assert facts == [True, True, False]


def test_default_ray_environment_is_small_and_has_pip_and_uv(provisioned: Provisioned, scratch: Path) -> None:
    """The very command of Ray's pip and uv plugins; in a virtual environment they would copy all of it instead."""
    made = run(
        scratch,
        *(provisioned.python, "-m", "virtualenv", "--app-data", scratch / "data", "--reset-app-data"),
        *("--no-periodic-update", "--system-site-packages", "--no-download", scratch / "virtualenv"),
        HOME=str(scratch),
    )
    assert made.returncode == 0, made.stderr
    python = scratch / "virtualenv" / "bin" / "python"
    for tool in ("pip", "uv"):
        answer = run(scratch, python, "-m", tool, "--version", HOME=str(scratch))
        assert answer.returncode == 0, answer.stderr
    answer = run(scratch, python, "-c", "import ray, sklearn; print(ray.__file__)", HOME=str(scratch))
    assert answer.stdout.startswith(provisioned.readonly_dirs[0]), answer.stderr
    size_bytes = sum(one.lstat().st_size for one in (scratch / "virtualenv").rglob("*"))
    assert size_bytes < 50 << 20


def test_default_is_ready_for_whoever_asks_next(provisioned: Provisioned) -> None:
    store = shared_store()
    assert bundled()[0].digest in store.ready()
    assert store.find(bundled()[0].digest) == provisioned
    assert provisioned.size_bytes > 200 << 20
