"""Reading what a tenant wrote, from outside: no link leads anywhere, and nothing holds the reader."""

from __future__ import annotations

import os
import socket
from pathlib import Path, PurePosixPath

import pytest

from orchestrator.adapters.beneath import open_beneath


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A box's scratch, beside something that is none of its business."""
    made = tmp_path / "scratch"
    (made / "logs").mkdir(parents=True)
    (made / "logs" / "driver.log").write_text("epoch 1\n")
    (tmp_path / "secret").write_text("the owner's own")
    return made


def read(root: Path, relative: str) -> bytes:
    with open_beneath(root, PurePosixPath(relative)) as file:
        return file.read()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- a count of names, not of paths


@pytest.mark.parametrize("relative", ["logs/driver.log", "./logs/driver.log", "logs//driver.log"])
def test_open_beneath_plain_file_is_read(root: Path, relative: str) -> None:
    assert read(root, relative) == b"epoch 1\n"


@pytest.mark.parametrize(
    "relative", ["../secret", "logs/../../secret", "logs/../logs/driver.log", "/etc/passwd", "//etc/passwd"]
)
def test_open_beneath_way_that_leads_out_is_refused(root: Path, relative: str) -> None:
    with pytest.raises(OSError, match="leads out of"):
        read(root, relative)


def test_open_beneath_link_in_the_files_place_is_not_followed(root: Path) -> None:
    (root / "logs" / "driver.log").unlink()
    (root / "logs" / "driver.log").symlink_to(root.parent / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        read(root, "logs/driver.log")


def test_open_beneath_link_on_the_way_is_not_followed(root: Path) -> None:
    (root / "other").symlink_to(root.parent)
    with pytest.raises(OSError, match="other"):
        read(root, "other/secret")


def test_open_beneath_link_in_the_roots_place_is_not_followed(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    with pytest.raises(OSError, match="link"):
        read(root.parent / "link", "logs/driver.log")


def test_open_beneath_what_is_not_there_is_an_error_of_the_system(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(root, "logs/missing.log")
    with pytest.raises(NotADirectoryError):
        read(root, "logs/driver.log/deeper")
    with pytest.raises(OSError, match="too long"):
        read(root, "a" * 300)


def test_open_beneath_pipe_does_not_hold_its_reader(root: Path) -> None:
    os.mkfifo(root / "logs" / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        read(root, "logs/pipe")


def test_open_beneath_folder_and_socket_are_no_files(root: Path) -> None:
    with pytest.raises(OSError, match="not a plain file"):
        read(root, "logs")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "s"))
        with pytest.raises(OSError, match="s"):
            read(root, "s")


def test_open_beneath_refusal_leaves_no_descriptor_open(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to("/etc")
    before = open_files()
    for relative in ("pipe", "link/passwd", "logs/missing", "logs", "../secret"):
        with pytest.raises(OSError, match=r"\w"):
            read(root, relative)
    assert open_files() == before
