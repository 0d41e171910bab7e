"""Which isolation this machine can give, found by making a box and removing it again."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.records import BoxSpec
from orchestrator.adapters.box.seccomp import MACHINES
from orchestrator.adapters.box.tools import ADMIN_PATH, BoxError
from orchestrator.core.supply.fleet import Isolation

TOOL_PACKAGES = {
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "nft": "nftables",
}
"""The programs that a box takes, and Debian's and Ubuntu's packages that have them."""

PROBE_USER_ID = 65534
"""Nobody: the probe runs one program that does nothing."""

PROBE_BYTES = 64 * 1024 * 1024
PROBE_PIDS = 32

TRIES = 3
"""A machine under heavy load may fail one for no reason that lasts, and the answer stands as long as the agent runs."""

REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Found:
    """The strongest tier that works here, and in one sentence what keeps a stronger one away, or what was tried."""

    tier: str
    """A value of `orchestrator.core.supply.fleet.Isolation`."""
    reason: str


def detect() -> Found:
    """Try it: takes some tenths of a second, changes nothing that lasts, and never raises for what is lacking."""
    lacking = _lacking()
    if lacking:
        return Found(Isolation.NONE, lacking)
    complaint = ""
    for _ in range(TRIES):
        try:
            complaint = _try_box()
        except (OSError, ValueError, BoxError) as error:
            complaint = str(error)
        if not complaint:
            break
    if complaint:
        return Found(Isolation.NONE, f"a trial box failed: {complaint[-REASON_CHARS:]}")
    return Found(Isolation.BOX, "a trial box was made, ran and was removed")


def _lacking() -> str:
    """Return what is missing before anything can be tried, and how to get it."""
    if sys.platform != "linux":
        return f"boxes need Linux namespaces; this is {sys.platform}"
    if platform.machine() not in MACHINES:
        return f"boxes are made for {' and '.join(MACHINES)} only; this is {platform.machine()}"
    if os.geteuid() != 0:
        return "boxes need root; run the agent as root (its units for systemd do)"
    path = f"{os.environ.get('PATH', '')}:{ADMIN_PATH}"
    packages = {package for tool, package in TOOL_PACKAGES.items() if shutil.which(tool, path=path) is None}
    if packages:
        return f"programs for boxes are missing; run: apt-get install {' '.join(sorted(packages))}"
    return ""


def trial_spec(name: str, folder: Path) -> BoxSpec:
    """A small box below ``folder``, which has a directory named shared."""
    return BoxSpec(
        name=name,
        user_id=PROBE_USER_ID,
        scratch_dir=str(folder / "s"),
        scratch_bytes=PROBE_BYTES,
        shared_dir=str(folder / "shared"),
        readonly_dirs=(),
        memory_bytes=PROBE_BYTES,
        pids_max=PROBE_PIDS,
        shm_bytes=PROBE_BYTES,
        # nft is tried along: it is the other half of what the kernel may lack.
        egress="internet",
    )


def _try_box() -> str:
    """Run `true` in a box; return why that failed, empty when it did not."""
    folder = Path(tempfile.mkdtemp(prefix="orch"))
    (folder / "shared").mkdir()
    box = Box(trial_spec(f"p{os.getpid()}", folder))
    log_path = folder / "log"
    try:
        with log_path.open("wb") as log:
            box.open()
            launcher = box.launch(["/bin/true"], {}, "/", log.fileno(), log.fileno())
            try:
                box.connect()
                box.release()
            except BaseException:
                box.destroy()
                os.waitpid(launcher, 0)
                raise
            code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
        return "" if code == 0 else f"exit {code}: {' '.join(log_path.read_text(errors='replace').split())}"
    finally:
        try:
            box.destroy()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
