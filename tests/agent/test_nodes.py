"""What a Ray node leaves on disk before there is one; nodes themselves are met in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.adapters.node_records import NodeOrder
from orchestrator.agent.nodes import RayNodes


async def test_prepare_without_ports_leaves_no_directory_and_works_later(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.write_text("in the way")
    nodes = RayNodes(tmp_path / "data", lock_dir=locks)
    with pytest.raises(OSError, match="locks"):
        await nodes.prepare(NodeOrder("m-0", "c-0", "solo", 1, 1))
    assert list((tmp_path / "data" / "members").iterdir()) == []
    locks.unlink()
    assert (await nodes.prepare(NodeOrder("m-0", "c-0", "solo", 1, 1))).ports
    await nodes.stop("m-0")


async def test_prepare_otherwise_than_before_is_refused_and_keeps_what_is_there(tmp_path: Path) -> None:
    nodes = RayNodes(tmp_path / "data", lock_dir=tmp_path / "locks")
    await nodes.prepare(NodeOrder("m-0", "c-0", "solo", 1, 1))
    with pytest.raises(ValueError, match="other properties"):
        await nodes.prepare(NodeOrder("m-0", "c-0", "solo", 2, 1))
    assert nodes.discover() == ("m-0",)
    await nodes.stop("m-0")
