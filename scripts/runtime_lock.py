"""Resolves the lock of each bundled runtime anew, from the `packages` of its description.

A package that is also in requirements.lock gets the version it has there, so that what runs jobs is what was tested
here; the others keep the version they had. UPGRADE=1 raises those. Locks hold for every index and name none.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from orchestrator.adapters.runtimes import CatalogueError, bundled, uv_environment
from orchestrator.adapters.runtimes.catalogue import DATA
from orchestrator.adapters.runtimes.lock_text import package_name

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".venv" / "tools" / "bin" / "uv"
MACHINES = ("x86_64", "aarch64")


def pins(lock: Path) -> dict[str, list[str]]:
    """Each package's locked versions, with their markers."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.exists() else ():
        if re.match(r"[A-Za-z0-9]", line):
            name = package_name(line)
            if name is not None:
                found.setdefault(name, []).append(line.removesuffix("\\").strip())
    return found


def project(description: Path, lock: Path) -> str:
    """A project that asks for exactly the runtime; JSON's strings and lists are TOML's too."""
    fields = tomllib.loads(description.read_text(encoding="utf-8"))
    kept = {} if os.environ.get("UPGRADE") else pins(lock)
    asked = {package_name(one) for one in fields["packages"] if "==" in one}
    held = {
        name: lines for name, lines in (kept | pins(ROOT / "requirements.lock")).items() if name not in asked
    }
    return "\n".join(
        (
            "[project]",
            'name = "runtime"',
            'version = "0"',
            f"requires-python = {json.dumps('==' + fields['python'] + '.*')}",
            f"dependencies = {json.dumps(fields['packages'])}",
            "[tool.uv]",
            "package = false",
            "no-build = true",
            "environments = "
            + json.dumps([f"sys_platform == 'linux' and platform_machine == '{one}'" for one in MACHINES]),
            f"constraint-dependencies = {json.dumps([line for lines in held.values() for line in lines])}",
            "",
        )
    )


def resolve(description: Path) -> bool:
    """Write the lock beside a description; true if that succeeded."""
    lock = description.with_suffix(".lock")
    with tempfile.TemporaryDirectory() as name:
        folder, written = Path(name), b""
        (folder / "pyproject.toml").write_text(project(description, lock), encoding="utf-8")
        export = ("export", "--frozen", "--no-emit-project", "--no-header", "--no-annotate")
        for command in (("lock",), (*export, "--format", "requirements-txt")):
            answer = subprocess.run(
                [str(UV), *command, "--quiet"],
                cwd=folder,
                env=uv_environment(os.environ) | {"UV_PYTHON_DOWNLOADS": "never"},
                stdout=subprocess.PIPE,
                check=False,
            )
            if answer.returncode != 0:
                return False
            written = answer.stdout
    lock.write_bytes(written)
    return True


def main() -> int:
    """All bundled runtimes; then read them as the product does, which refuses what may not be in a lock."""
    for description in sorted(DATA.glob("*.toml")):
        if not resolve(description):
            print(f"runtime-lock: {description.stem} could not be resolved", file=sys.stderr)
            return 1
    try:
        for runtime in bundled():
            print(f"{runtime.name}: {len(runtime.locked)} packages, digest {runtime.digest}")
    except CatalogueError as error:
        print(f"runtime-lock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
