"""A stand-in of NVIDIA's library, compiled where it is needed: the real binding, and Ray's, load it by its own name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LIBRARY = "libnvidia-ml.so.1"

# Agents hand to their Ray nodes what begins with NVIDIA_.
SCENARIO_ENV = "NVIDIA_STUB_SCENARIO"
FIRST_ENV = "NVIDIA_STUB_FIRST"


def built_library(folder: Path) -> Path:
    """``folder``, with the library in it. Skips the test, saying why, where nothing can compile it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of NVML; install gcc")
    source = Path(__file__).with_name("nvml_stub.c")
    flags = ["-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(folder / LIBRARY), str(source)], check=True)
    return folder


def stub_environment(folder: Path, scenario: str, first: int = 1) -> dict[str, str]:
    """What leads a process to the library, and to the GPUs of a scenario; ``first`` numbers the first of them, so that
    those of two machines differ.
    """
    return {"LD_LIBRARY_PATH": str(folder), SCENARIO_ENV: scenario, FIRST_ENV: str(first)}
