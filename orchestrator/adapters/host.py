"""What kind of machine this is, beyond its devices: a guest of Windows or not, whose it is, in which time zone."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

ROOT = Path("/")
KERNEL_RELEASE = "proc/sys/kernel/osrelease"
WINDOWS_MARKS = ("proc/sys/fs/binfmt_misc/WSLInterop", "proc/sys/fs/binfmt_misc/WSLInterop-late", "run/WSL")
"""Only in the guest itself: a container on it shows the same kernel and none of these."""
WSL_VARIABLES = ("WSL_INTEROP", "WSL_DISTRO_NAME")
LOCALTIME = "etc/localtime"
TIMEZONE_FILE = "etc/timezone"
ZONEINFO = "zoneinfo"


class Wsl(StrEnum):
    """Windows' two ways to run Linux. Only the second has Linux' own kernel, and with it GPUs and cgroups."""

    WSL1 = "WSL1"
    WSL2 = "WSL2"


@dataclass(frozen=True, slots=True)
class Host:
    """This machine and who asks. ``timezone`` is an IANA name; empty where the machine does not say."""

    wsl: Wsl | None
    kernel: str
    user: str
    uid: int
    timezone: str


def read_host(environ: Mapping[str, str], root: Path = ROOT) -> Host:
    """Look at this machine; a file that cannot be read says nothing."""
    kernel = _line(root / KERNEL_RELEASE)
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        # A container may run as a number that nobody named.
        user = str(uid)
    return Host(
        wsl=_wsl(kernel, environ, root),
        kernel=kernel,
        user=user,
        uid=uid,
        timezone=_timezone(environ, root),
    )


def _wsl(kernel: str, environ: Mapping[str, str], root: Path) -> Wsl | None:
    if "microsoft" not in kernel.lower():
        return None
    # A service is started without the variables, a shell may run in a guest whose marks are switched off.
    if not any(environ.get(name) for name in WSL_VARIABLES) and not any(
        (root / mark).exists() for mark in WINDOWS_MARKS
    ):
        return None
    # The emulated kernel of the first ends in "-Microsoft", the real one of the second says "microsoft-standard".
    return Wsl.WSL1 if kernel.endswith("-Microsoft") else Wsl.WSL2


def _timezone(environ: Mapping[str, str], root: Path) -> str:
    named = environ.get("TZ", "").removeprefix(":")
    if named and not named.startswith("/"):
        return named
    try:
        parts = PurePosixPath((root / LOCALTIME).readlink()).parts
    except OSError:
        parts = ()
    if ZONEINFO in parts:
        last = len(parts) - 1 - parts[::-1].index(ZONEINFO)
        return "/".join(parts[last + 1 :])
    return _line(root / TIMEZONE_FILE)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
