from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.port_blocks import (
    BLOCK_COUNT,
    BLOCK_PORTS,
    FIRST_PORT,
    LOCK_DIR_MODE,
    PORT_CEILING,
    ports_of_block,
    retake_port_block,
    take_port_block,
)


def test_port_block_every_port_lies_below_the_ephemeral_range_and_in_its_own_block() -> None:
    seen: set[int] = set()
    for index in range(BLOCK_COUNT):
        ports = ports_of_block(index)
        named = {port for name, port in ports.items() if not name.startswith("worker_")}
        taken = named | set(range(ports["worker_min"], ports["worker_max"] + 1))
        assert len(taken) == len(ports) - 2 + ports["worker_max"] - ports["worker_min"] + 1
        assert min(taken) >= FIRST_PORT
        assert max(taken) < PORT_CEILING
        assert not seen & taken
        seen |= taken


@pytest.mark.parametrize("index", [-1, BLOCK_COUNT])
def test_port_block_index_outside_the_range_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        ports_of_block(index)


def test_take_port_block_twice_gives_different_blocks(tmp_path: Path) -> None:
    first, second = take_port_block(tmp_path / "locks"), take_port_block(tmp_path / "locks")
    try:
        assert first.index != second.index
    finally:
        first.release()
        second.release()


def test_take_port_block_after_release_gives_the_block_again(tmp_path: Path) -> None:
    first = take_port_block(tmp_path / "locks")
    first.release()
    again = retake_port_block(first.index, tmp_path / "locks")
    assert again is not None
    assert again.ports() == first.ports()
    again.release()


def test_take_port_block_with_a_port_in_use_skips_the_block(tmp_path: Path) -> None:
    first = take_port_block(tmp_path / "locks")
    first.release()
    with socket.socket() as listener:
        # The port may linger from a node that has ended, which keeps nobody from the block.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", first.first_port + BLOCK_PORTS - 1))
        listener.listen()
        other = take_port_block(tmp_path / "locks")
    assert other.index > first.index
    other.release()


def test_port_block_inherited_by_a_process_is_held_until_that_process_ends(tmp_path: Path) -> None:
    block = take_port_block(tmp_path / "locks")
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(block.lock_fd,)
    ) as heir:
        block.release()
        assert retake_port_block(block.index, tmp_path / "locks") is None
        heir.communicate(b"\n")
    again = retake_port_block(block.index, tmp_path / "locks")
    assert again is not None
    again.release()


def test_port_lock_directory_is_open_to_all_users_but_sticky(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        take_port_block(tmp_path / "locks").release()
    finally:
        os.umask(previous)
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == LOCK_DIR_MODE


def test_port_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    victim = tmp_path / "victim"
    victim.touch()
    (locks / "block-0.lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"block-0\.lock"):
        retake_port_block(0, locks)


def test_port_lock_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="locks"):
        take_port_block(tmp_path / "locks")
