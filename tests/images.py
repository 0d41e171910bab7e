"""An image with the default runtime in it, made of files of this machine: there is no registry to ask."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.adapters.container.podman import BASE

PYTHON_DIR = "/opt/python"
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
LIBRARY_BYTES_MAX = 8 * 1024 * 1024
"""What Python and Ray load is smaller; compilers and browsers are not."""

LEFT_OUT = {"scipy", "scipy.libs", "sklearn", "pip", "virtualenv", "rllib", "tune"}
"""No test of images needs these, and an import takes its time by the megabyte."""

SHELL = ("bash", "dash", "env", "sleep", "true")
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/sh": "dash"}
FOLDERS = ("dev", "etc", "opt", "proc", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/lib64", "var")


@contextmanager
def imported_image(runtime_dir: Path, name: str) -> Iterator[str]:
    """Have podman hold an image with this runtime for a while; yields its reference, by digest."""
    tag = f"localhost/{name}:latest"
    command = [*BASE, "import", "--quiet", "--change", f"ENV PATH={PYTHON_DIR}/bin:/usr/bin", "-", tag]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as podman:
        assert podman.stdin is not None
        _write(podman.stdin, runtime_dir)
        podman.stdin.close()
        assert podman.wait() == 0
    try:
        told = subprocess.check_output([*BASE, "image", "inspect", "--format={{.Digest}}", tag], text=True)
        yield f"localhost/{name}@{told.strip()}"
    finally:
        subprocess.run([*BASE, "rmi", "--force", tag], check=False, capture_output=True)


def _write(stream: IO[bytes], runtime_dir: Path) -> None:
    """A root directory: the runtime, a shell, and the small libraries of this machine."""
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, target in LINKS.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for program in SHELL:
            tar.add(Path("/usr/bin", program).resolve(), f"usr/bin/{program}")
        tar.add(Path("/lib64/ld-linux-x86-64.so.2").resolve(), "usr/lib64/ld-linux-x86-64.so.2")
        for library in sorted(LIBRARIES.glob("lib*.so*")):
            if library.is_file() and library.stat().st_size < LIBRARY_BYTES_MAX:
                tar.add(library, f"usr/lib/x86_64-linux-gnu/{library.name}", recursive=False)
        tar.add(runtime_dir, PYTHON_DIR.lstrip("/"), filter=_needed)


def _needed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name in LEFT_OUT else entry
