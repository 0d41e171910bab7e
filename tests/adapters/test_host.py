"""What machine this is, told from files as real ones have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.adapters.host import KERNEL_RELEASE, WINDOWS_MARKS, Wsl, read_host

WSL2_KERNEL = "5.15.153.1-microsoft-standard-WSL2"
WSL1_KERNEL = "4.4.0-19041-Microsoft"


def machine(root: Path, kernel: str, *, interop: bool = False) -> Path:
    for name in (KERNEL_RELEASE, *((WINDOWS_MARKS[0],) if interop else ())):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{kernel}\n")
    return root


@pytest.mark.parametrize(
    ("kernel", "interop", "environ", "expected"),
    [
        (WSL2_KERNEL, True, {}, Wsl.WSL2),
        (WSL2_KERNEL, False, {"WSL_INTEROP": "/run/WSL/8_interop"}, Wsl.WSL2),
        (WSL1_KERNEL, True, {}, Wsl.WSL1),
        (WSL2_KERNEL, False, {}, None),
        ("6.1.0-18-amd64", False, {"WSL_INTEROP": "left over"}, None),
    ],
    ids=["service-in-wsl2", "shell-in-wsl2", "wsl1", "container-on-wsl2", "linux"],
)
def test_read_host_windows_guest_is_named(
    tmp_path: Path, kernel: str, interop: bool, environ: dict[str, str], expected: Wsl | None
) -> None:
    host = read_host(environ, machine(tmp_path, kernel, interop=interop))
    assert (host.wsl, host.kernel) == (expected, kernel)


def test_read_host_machine_without_any_file_says_nothing(tmp_path: Path) -> None:
    host = read_host({}, tmp_path)
    assert (host.wsl, host.kernel, host.timezone) == (None, "", "")
    assert host.uid == os.getuid()


@pytest.mark.parametrize(
    ("environ", "localtime", "timezone", "expected"),
    [
        ({}, "/usr/share/zoneinfo/Europe/Berlin", "", "Europe/Berlin"),
        ({}, "../usr/share/zoneinfo/America/Argentina/Salta", "", "America/Argentina/Salta"),
        ({"TZ": ":Asia/Tokyo"}, "/usr/share/zoneinfo/Europe/Berlin", "", "Asia/Tokyo"),
        ({"TZ": "/etc/localtime"}, "/usr/share/zoneinfo/UTC", "", "UTC"),
        ({}, "", "Europe/Paris\n", "Europe/Paris"),
    ],
    ids=["link", "relative-link", "variable", "variable-that-is-a-path", "file"],
)
def test_read_host_time_zone_is_found(
    tmp_path: Path, environ: dict[str, str], localtime: str, timezone: str, expected: str
) -> None:
    (tmp_path / "etc").mkdir()
    if localtime:
        (tmp_path / "etc/localtime").symlink_to(localtime)
    if timezone:
        (tmp_path / "etc/timezone").write_text(timezone)
    assert read_host(environ, tmp_path).timezone == expected
