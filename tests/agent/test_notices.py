"""Notices: the earliest end counts, jobs read it in a file, and Ray is told once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.clock import boottime_ms
from orchestrator.adapters.node_records import NodeOrder
from orchestrator.agent.heads import HeadDuty
from orchestrator.agent.nodes import RayNodes
from orchestrator.agent.notices import Notices, Warned
from orchestrator.agent.wishes import Reclaim
from orchestrator.api.v1 import worker_pb2
from tests.agent.fakes import FakeClock, FakeControl, FakeHead, FakeNodes, desired_member
from tests.polling import wait_until_async


def noticed(member_id: str, **remaining_ms: int) -> worker_pb2.DesiredMember:
    """A member whose cluster's notices are named by keyword."""
    notices = [
        worker_pb2.MemberNotice(member_id=one, remaining_ms=left_ms, reason=f"{one} goes")
        for one, left_ms in remaining_ms.items()
    ]
    return desired_member(member_id, "gpu-1", notices=notices)


def read(nodes: FakeNodes, member_id: str) -> list[dict[str, Any]]:
    return list(json.loads(nodes.notices[member_id])["notices"])


def test_file_of_every_local_member_names_all_that_go_of_its_cluster() -> None:
    nodes, clock = FakeNodes(), FakeClock()
    notices = Notices(nodes, clock)
    notices.take([noticed("m1", m2=30_000, m7=10_000), noticed("m2", m2=30_000, m7=10_000), noticed("m3")])
    notices.write({"m1": "up", "m2": "starting", "m3": "up"})
    assert [one["member_id"] for one in read(nodes, "m1")] == ["m2", "m7"]
    assert read(nodes, "m1") == read(nodes, "m2")
    assert "m3" not in nodes.notices
    told = read(nodes, "m1")[0]
    assert told["remaining_ms_at_write"] == 30_000
    assert told["deadline_unix_ms"] == clock.now().wall_ms + 30_000
    assert told["reason"] == "m2 goes"


def test_deadline_repeated_later_never_moves_to_later_but_to_sooner() -> None:
    clock = FakeClock()
    notices = Notices(FakeNodes(), clock)
    notices.take([noticed("m1", m1=30_000)])
    clock.now_ms += 10_000
    # The same words again, having waited somewhere for ten seconds.
    notices.take([noticed("m1", m1=30_000)])
    assert notices.warned("m1") == [Warned("m1", 20_000, "m1 goes")]
    notices.take([noticed("m1", m1=5_000)])
    assert notices.warned("m1") == [Warned("m1", 5_000, "m1 goes")]
    clock.now_ms += 60_000
    assert notices.warned("m1") == [Warned("m1", 0, "m1 goes")]


def test_file_is_written_only_on_change_and_goes_with_the_last_notice() -> None:
    nodes, clock = FakeNodes(), FakeClock()
    notices = Notices(nodes, clock)
    notices.take([noticed("m1", m1=30_000)])
    notices.write({"m1": "up"})
    first = nodes.notices["m1"]
    clock.now_ms += 1_000
    notices.write({"m1": "up"})
    assert nodes.notices["m1"] == first
    notices.take([noticed("m1")])
    notices.write({"m1": "up"})
    assert "m1" not in nodes.notices


def test_write_that_fails_is_tried_again() -> None:
    nodes = FakeNodes()
    notices = Notices(nodes, FakeClock())
    notices.take([noticed("m1", m1=30_000)])
    nodes.notify_error = OSError("no space left")
    notices.write({"m1": "up"})
    assert not nodes.notices
    nodes.notify_error = None
    notices.write({"m1": "up"})
    assert "m1" in nodes.notices


def test_member_without_a_directory_is_written_once_it_has_one() -> None:
    nodes = FakeNodes()
    notices = Notices(nodes, FakeClock())
    notices.take([noticed("m1", m1=30_000)])
    notices.write({"m1": "none"})
    assert not nodes.notices
    notices.write({"m1": "prepared"})
    assert "m1" in nodes.notices


def test_owners_reclaim_covers_every_local_member_and_can_be_taken_back() -> None:
    nodes, clock = FakeNodes(), FakeClock()
    notices = Notices(nodes, clock)
    notices.take([noticed("m1", m1=5_000), noticed("m2")])
    notices.obey(Reclaim(clock.now_ms + 20_000, ""))
    assert notices.warned("m1") == [Warned("m1", 5_000, "m1 goes")]
    assert notices.warned("m2") == [Warned("m2", 20_000, "taken back by its owner")]
    notices.obey(None)
    assert notices.warned("m1") == [Warned("m1", 5_000, "m1 goes")]
    assert notices.warned("m2") == []


async def test_real_node_has_the_file_beside_its_token_and_takes_it_away(tmp_path: Path) -> None:
    nodes = RayNodes(tmp_path, lock_dir=tmp_path)
    await nodes.prepare(NodeOrder("m1", "c-1", "solo", 0, 1))
    nodes.notify("m1", b"{}")
    path = tmp_path / "members" / "m1" / "shared" / "notice.json"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"{}", 0o644)
    nodes.notify("m1", b"")
    nodes.notify("m1", b"")
    assert not path.exists()
    with pytest.raises(KeyError, match="not prepared"):
        nodes.notify("m2", b"{}")
    await nodes.stop("m1")
    assert boottime_ms() > 0


@pytest.fixture
async def head() -> AsyncIterator[tuple[FakeHead, HeadDuty]]:
    client = FakeHead()
    duty = HeadDuty("m-head", client, FakeControl(), Path("unused"), lambda: None, 0.01)
    yield client, duty
    await duty.close()


async def warn_until(duty: HeadDuty, client: FakeHead, going: list[Warned], count: int) -> None:
    """Warn as the agent does at every look, until so many drains came through."""

    def warned() -> bool:
        duty.warn(going)
        return len(client.drained) >= count

    await wait_until_async(warned, what=f"{count} drains", deadline_s=60)


async def test_ray_is_told_once_of_each_node_but_not_of_the_head(head: tuple[FakeHead, HeadDuty]) -> None:
    client, duty = head
    client.working = {"m-head", "m1", "m2"}
    going = [Warned("m-head", 9_000, "a"), Warned("m1", 9_000, "b"), Warned("m2", 8_000, "c")]
    await warn_until(duty, client, going, 2)
    for _ in range(50):
        duty.warn(going)
        await asyncio.sleep(0)
    assert client.drained == [("m1", "b", 9_000), ("m2", "c", 8_000)]


async def test_ray_that_cannot_be_told_yet_is_told_later(head: tuple[FakeHead, HeadDuty]) -> None:
    client, duty = head
    client.unreachable = True
    duty.warn([Warned("m1", 9_000, "b")])
    await asyncio.sleep(0)
    client.unreachable = False
    duty.warn([Warned("m1", 9_000, "b")])
    await asyncio.sleep(0)
    assert client.drained == []
    client.working = {"m1"}
    await warn_until(duty, client, [Warned("m1", 7_000, "b")], 1)
    assert client.drained == [("m1", "b", 7_000)]
