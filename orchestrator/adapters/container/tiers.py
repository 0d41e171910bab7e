"""Whether containers work here, found by making one and removing it again. Asked only where somebody wants them."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.box import tiers as boxes
from orchestrator.adapters.box.tiers import Found
from orchestrator.adapters.box.tools import ADMIN_PATH, BoxError
from orchestrator.adapters.container.container import ContainerBox
from orchestrator.adapters.container.records import RUNTIMES, ContainerSpec
from orchestrator.core.supply.fleet import Isolation

INSTALL = "run: apt-get install podman runc"


@dataclass(frozen=True, slots=True)
class Trial:
    """Which OCI runtime works under podman here; empty: none does, and why."""

    runtime: str
    reason: str


def detect() -> Found:
    """The strongest tier that works here, a container included; what keeps it away is said with what a box says.

    Takes about a second, changes nothing that lasts, and never raises for what is lacking.
    """
    box = boxes.detect()
    if box.tier == Isolation.NONE:
        # A container takes the box's scratch and network, and what they take.
        return box
    found = trial()
    if found.runtime:
        return Found(
            Isolation.CONTAINER,
            f"a trial container was made by podman and {found.runtime}, ran and was removed",
        )
    return Found(box.tier, f"no containers: {found.reason}")


@functools.cache
def trial() -> Trial:
    """Try each runtime that is installed; once in a process, since machines change by restarts of their agent."""
    path = f"{os.environ.get('PATH', '')}:{ADMIN_PATH}"
    if shutil.which("podman", path=path) is None:
        return Trial("", f"podman is not installed; {INSTALL}")
    installed = [runtime for runtime in RUNTIMES if shutil.which(runtime, path=path) is not None]
    if not installed:
        return Trial("", f"podman has no runtime it could use; {INSTALL}")
    complaints: list[str] = []
    for runtime in installed:
        try:
            complaint = _try_container(runtime)
        except (OSError, ValueError, BoxError) as error:
            complaint = str(error)
        if not complaint:
            return Trial(runtime, "")
        complaints.append(f"with {runtime}: {complaint[-boxes.REASON_CHARS :]}")
    return Trial("", f"a trial container failed {'; '.join(complaints)}")


def _try_container(runtime: str) -> str:
    """Run `true` in a container; return why that failed, empty when it did not."""
    folder = Path(tempfile.mkdtemp(prefix="orch"))
    (folder / "shared").mkdir()
    box = ContainerBox(boxes.trial_spec(f"q{os.getpid()}", folder), ContainerSpec(runtime))
    log_path = folder / "log"
    try:
        with log_path.open("wb") as log:
            box.open()
            box.launch(["/bin/true"], {}, "/", log.fileno(), log.fileno())
            box.connect()
            box.release()
            code = box.wait()
        return "" if code == 0 else f"exit {code}: {' '.join(log_path.read_text(errors='replace').split())}"
    finally:
        try:
            box.destroy()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
