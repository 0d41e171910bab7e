"""RUNTIME: seconds until the default runtime stands on a machine, and the bytes it takes there.

`runtime-cold`: nothing is here, every package comes from the index. `runtime-warm`: uv's cache holds the packages, as
after another runtime or an earlier store. `runtime-ready`: the runtime is here already, which is what a cluster meets
on a worker that has had one. Inside the clock: all of `provision`, copying the interpreter, bytecode and the flush to
disk included. Outside: downloading an interpreter, since one of this machine is copied.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from benchmarks.report import Case, FigureError, note
from benchmarks.stats import median
from orchestrator.adapters.runtimes import (
    Provisioned,
    RuntimeStore,
    RuntimeUnavailableError,
    Uv,
    bundled,
    find_uv,
    uv_environment,
)
from orchestrator.adapters.runtimes.tree import remove

REPETITIONS = 3
READY_REPETITIONS = 50
"""A ready one takes well under a millisecond."""
OWN_UV = Path(__file__).resolve().parents[1] / ".venv" / "tools" / "bin" / "uv"
"""What `make setup` installs beside the environment."""


def measure(repetitions: int = REPETITIONS) -> list[Case]:
    """Cold and warm in turn, each in folders of its own. Raises FigureError where the runtime cannot be had."""
    cold_s: list[float] = []
    warm_s: list[float] = []
    ready_s: list[float] = []
    size_bytes = cache_bytes = 0
    for number in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
            cache = Path(name) / "cache"
            for seconds in (cold_s, warm_s):
                store = _store(Path(name) / "runtimes", cache)
                took_s, provisioned = _timed(store)
                seconds.append(took_s)
                size_bytes, cache_bytes = provisioned.size_bytes, _bytes(cache)
                if seconds is warm_s:
                    ready_s += [_timed(store)[0] for _ in range(READY_REPETITIONS)]
                remove(Path(name) / "runtimes")
        note(f"RUNTIME {number + 1}/{repetitions}: cold {cold_s[-1]:.1f} s, warm {warm_s[-1]:.1f} s")
    sizes = f"the runtime takes {size_bytes / 1e6:.0f} MB"
    return [
        _case("runtime-cold", cold_s, f"{sizes}, uv's cache then {cache_bytes / 1e6:.0f} MB"),
        _case("runtime-warm", warm_s, sizes),
        _case("runtime-ready", ready_s, ""),
    ]


def _store(folder: Path, cache: Path) -> RuntimeStore:
    command = (str(OWN_UV),) if OWN_UV.exists() else find_uv()
    uv = Uv(command, {**uv_environment(os.environ), "UV_CACHE_DIR": str(cache)})
    return RuntimeStore(folder, uv, python_downloads=False)


def _timed(store: RuntimeStore) -> tuple[float, Provisioned]:
    began_s = time.perf_counter()
    try:
        provisioned = asyncio.run(store.provision(bundled()[0], lambda _: None))
    except RuntimeUnavailableError as error:
        raise FigureError(str(error)) from None
    return time.perf_counter() - began_s, provisioned


def _bytes(folder: Path) -> int:
    return sum(one.lstat().st_blocks * 512 for one in folder.rglob("*"))


def _case(name: str, seconds: list[float], remark: str) -> Case:
    value = median(seconds)
    return Case("RUNTIME", name, value, "s", len(seconds), min(seconds), max(seconds), remark=remark)
