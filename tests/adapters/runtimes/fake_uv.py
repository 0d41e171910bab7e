"""Stands for uv: knows one interpreter, and installs a `ray` that says its version.

FAKE_UV_LOG: a file that gets one line per installation. FAKE_UV_ENDS: what becomes of an installation: `well`,
`badly` (with FAKE_UV_SAYS on standard error) or `never`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def install(python: str) -> int:
    log, ends = os.environ["FAKE_UV_LOG"], os.environ.get("FAKE_UV_ENDS", "well")
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    ask = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('scripts'))"
    said = subprocess.run([python, "-I", "-c", ask], check=True, capture_output=True, text=True).stdout
    packages, scripts = (Path(line) for line in said.splitlines())
    (packages / "ray").mkdir(parents=True)
    (packages / "ray" / "__init__.py").write_text("__version__ = '2.60.0'\n", encoding="utf-8")
    if ends == "never":
        signal.pause()
    if ends == "badly":
        sys.stderr.write(os.environ["FAKE_UV_SAYS"])
        return 2
    script = scripts / "ray"
    script.write_text(f"#!{python}\nimport ray\nprint(ray.__version__)\n", encoding="utf-8")
    script.chmod(0o755)
    return 0


def main(arguments: list[str]) -> int:
    match arguments[:2]:
        case ["python", "list"]:
            paths = os.environ["FAKE_UV_PYTHONS"].split(":")
            rows = [
                {"path": path, "implementation": "cpython", "variant": "default"} for path in paths if path
            ]
            sys.stdout.write(json.dumps(rows))
            return 0
        case ["pip", "sync"]:
            return install(arguments[arguments.index("--python") + 1])
        case _:
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
