"""Beside a head: submit once, follow to the end; ship every byte of the log, say whose fault it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.agent import heads
from orchestrator.agent.heads import HeadDuty
from orchestrator.agent.ports import HeadRefusedError, HeadUnreachableError, NodeListed
from orchestrator.api.v1 import worker_pb2
from tests.agent.fakes import DEADLINE_S, FakeControl, FakeHead
from tests.polling import wait_until_async


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "RETRY_S", 0.001)


class Beside:
    """A duty, its head and its control plane."""

    def __init__(self, cache_dir: Path) -> None:
        self.head = FakeHead()
        self.control = FakeControl()
        self.changed = asyncio.Event()
        self.duty = HeadDuty("m-0", self.head, self.control, cache_dir, self.changed.set, 0.001)

    def want(self, *attempts: worker_pb2.DesiredAttempt) -> None:
        self.duty.want(list(attempts))

    def report(self) -> worker_pb2.MemberObserved:
        report = worker_pb2.MemberObserved(member_id="m-0")
        self.duty.complete(report)
        return report

    def observed(self) -> worker_pb2.AttemptObserved:
        (attempt,) = self.report().attempts
        return attempt

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        await wait_until_async(condition, what=what, deadline_s=DEADLINE_S)

    async def until_status(self, status: int) -> worker_pb2.AttemptObserved:
        await self.until(lambda: [one.status for one in self.report().attempts] == [status], f"{status}")
        return self.observed()

    async def until_complete(self) -> None:
        await self.until(lambda: any(one.final for one in self.control.chunks), "the last chunk")


@pytest.fixture
async def beside(tmp_path: Path) -> AsyncIterator[Beside]:
    made = Beside(tmp_path)
    yield made
    await made.duty.close()


def attempt(**fields: object) -> worker_pb2.DesiredAttempt:
    settings: dict[str, object] = {"attempt_id": "a-1", "job_id": "j-1", "entrypoint": "python a.py"}
    return worker_pb2.DesiredAttempt(**(settings | fields))  # type: ignore[arg-type]  # as the proto names them


GANG = [worker_pb2.NodeSeen(member_id=f"m-{index}", gpus=1.0) for index in range(2)]
RUNNING = worker_pb2.ATTEMPT_STATUS_RUNNING
SUCCEEDED = worker_pb2.ATTEMPT_STATUS_SUCCEEDED
FAILED = worker_pb2.ATTEMPT_STATUS_FAILED
STOPPED = worker_pb2.ATTEMPT_STATUS_STOPPED


async def test_duty_wanted_attempt_is_submitted_once_however_often_it_is_listed(beside: Beside) -> None:
    for _ in range(3):
        beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.want(attempt())
    beside.head.become("a-1", "SUCCEEDED", 0)
    ended = await beside.until_status(SUCCEEDED)
    assert [one for one, _ in beside.head.submitted] == ["a-1"]
    assert (ended.driver_exit_code, ended.ground_failure) == (0, False)


async def test_duty_attempt_that_ray_knows_already_is_followed_not_submitted(beside: Beside) -> None:
    beside.head.become("a-1", "RUNNING")
    beside.want(attempt())
    await beside.until_status(RUNNING)
    assert beside.head.submitted == []


async def test_duty_log_is_shipped_whole_and_its_end_only_after_the_drivers(beside: Beside) -> None:
    beside.want(attempt())
    beside.head.logs["a-1"] = b"begun\n"
    await beside.until(lambda: beside.control.stored.get("a-1") == b"begun\n", "the first bytes")
    beside.head.logs["a-1"] += b"x" * (heads.LOG_CHUNK_BYTES + 5)
    beside.head.become("a-1", "SUCCEEDED", 0)
    await beside.until_complete()
    assert beside.control.stored["a-1"] == beside.head.logs["a-1"]
    assert [one.final for one in beside.control.chunks].count(True) == 1


async def test_duty_log_begins_where_the_control_plane_already_is(beside: Beside) -> None:
    beside.control.stored["a-1"] = b"0123"
    beside.head.logs["a-1"] = b"0123456"
    beside.head.become("a-1", "SUCCEEDED", 0)
    beside.want(attempt(log_offset=4))
    await beside.until_complete()
    assert beside.control.chunks[0].offset == 4
    assert beside.control.stored["a-1"] == b"0123456"


async def test_duty_log_survives_an_absent_control_plane(beside: Beside) -> None:
    beside.control.away = True
    beside.head.logs["a-1"] = b"words"
    beside.head.become("a-1", "SUCCEEDED", 0)
    beside.want(attempt())
    await beside.until_status(SUCCEEDED)
    beside.control.away = False
    await beside.until_complete()
    assert beside.control.stored["a-1"] == b"words"


async def test_duty_failure_of_the_users_code_is_not_the_grounds(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.head.become("a-1", "FAILED", 3)
    ended = await beside.until_status(FAILED)
    assert (ended.driver_exit_code, ended.ground_failure) == (3, False)


async def test_duty_failure_without_an_exit_code_is_the_grounds(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.head.become("a-1", "FAILED", None, "the supervisor died")
    assert (await beside.until_status(FAILED)).ground_failure


async def test_duty_runtime_env_that_cannot_be_made_is_the_tenants(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.head.become("a-1", "FAILED", None, "runtime_env setup failed")
    assert not (await beside.until_status(FAILED)).ground_failure


async def test_duty_failure_after_a_promised_node_was_lost_is_the_grounds(beside: Beside) -> None:
    beside.head.listed = [NodeListed(node.member_id, node.gpus, node.cpus) for node in GANG]
    beside.want(attempt(gang=GANG))
    await beside.until_status(RUNNING)
    beside.head.listed.pop()
    beside.head.become("a-1", "FAILED", 1)
    assert (await beside.until_status(FAILED)).ground_failure


async def test_duty_attempt_is_not_submitted_before_its_gang_is_whole(beside: Beside) -> None:
    beside.head.listed = [NodeListed("m-0", 1.0, 1.0), NodeListed("m-1", 0.0, 1.0)]
    beside.want(attempt(gang=GANG))
    await beside.until(lambda: len(beside.report().nodes) == 2, "the first look")
    assert beside.head.submitted == []
    beside.head.listed[1] = NodeListed("m-1", 1.0, 1.0)
    await beside.until_status(RUNNING)


async def test_duty_head_that_is_away_for_a_while_changes_nothing(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.head.unreachable = True
    beside.head.become("a-1", "SUCCEEDED", 0)
    beside.head.unreachable = False
    await beside.until_status(SUCCEEDED)


async def test_duty_refused_attempt_fails_with_the_reason_and_an_empty_log(beside: Beside) -> None:
    beside.head.submit_error = HeadRefusedError("runtime_env: no such key")
    beside.want(attempt())
    ended = await beside.until_status(FAILED)
    assert (ended.message, ended.ground_failure) == ("runtime_env: no such key", False)
    await beside.until_complete()


@pytest.mark.parametrize("error", [HeadUnreachableError("busy"), OSError("disk full"), ValueError("hash")])
async def test_duty_head_that_never_takes_the_attempt_is_ground_that_gave_way(
    beside: Beside, error: Exception
) -> None:
    beside.head.submit_error = error
    beside.want(attempt())
    ended = await beside.until_status(FAILED)
    assert ended.ground_failure
    assert str(error) in ended.message


async def test_duty_package_is_fetched_once_and_put_before_the_submission(
    beside: Beside, tmp_path: Path
) -> None:
    package = worker_pb2.PackageRef(uri="gcs://_ray_pkg_1.zip", sha256="ab" * 32)
    beside.want(attempt(packages=[package]), attempt(attempt_id="a-2", packages=[package]))
    await beside.until(lambda: len(beside.head.submitted) == 2, "both submissions")
    path = tmp_path / f"{'ab' * 32}.zip"
    assert sorted(one for one, _ in beside.head.submitted) == ["a-1", "a-2"]
    assert [files for _, files in beside.head.submitted] == [{"gcs://_ray_pkg_1.zip": path}] * 2
    beside.want(attempt(attempt_id="a-3", packages=[package]))
    fetched = len(beside.control.fetched)
    await beside.until(lambda: len(beside.head.submitted) == 3, "the third submission")
    assert len(beside.control.fetched) == fetched


async def test_duty_package_out_of_reach_waits_for_the_control_plane(beside: Beside) -> None:
    beside.control.fetch_error = ConnectionError("away")
    package = worker_pb2.PackageRef(uri="gcs://_ray_pkg_1.zip", sha256="ab" * 32)
    beside.want(attempt(packages=[package]))
    await beside.until(lambda: beside.report().nodes != [], "the first look")
    assert beside.report().attempts == []
    beside.control.fetch_error = None
    await beside.until_status(RUNNING)


async def test_duty_stop_is_passed_on_once_and_reported_as_stopped(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.want(attempt(stop=True))
    await beside.until_status(STOPPED)
    assert beside.head.stopped == ["a-1"]


async def test_duty_stop_before_the_submission_never_submits(beside: Beside) -> None:
    beside.want(attempt(stop=True))
    await beside.until_status(STOPPED)
    assert beside.head.submitted == []


async def test_duty_stop_that_ray_does_not_answer_is_over_in_the_end_and_the_cluster_not_clean(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "STOP_S", 0.01)
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.head.logs["a-1"] = b"last words"
    beside.head.unreachable = True
    beside.want(attempt(stop=True))
    ended = await beside.until_status(STOPPED)
    assert "Ray did not say so" in ended.message
    await beside.until_complete()
    assert beside.control.stored["a-1"] == b"last words"
    assert not beside.report().clean
    # Should Ray have a word again, the attempt stays what the control plane was told it is.
    beside.head.unreachable = False
    beside.head.clean = False
    beside.want(attempt(stop=True))
    assert (beside.observed().status, beside.head.stopped) == (STOPPED, [])


async def test_duty_running_attempt_no_longer_listed_is_stopped(beside: Beside) -> None:
    beside.want(attempt())
    await beside.until_status(RUNNING)
    beside.want()
    await beside.until(lambda: beside.head.stopped == ["a-1"], "the stop")


async def test_duty_cluster_is_clean_only_without_attempts(beside: Beside) -> None:
    await beside.until(lambda: beside.report().clean, "cleanliness")
    beside.want(attempt())
    assert not beside.report().clean
    await beside.until_status(RUNNING)
    beside.head.become("a-1", "SUCCEEDED", 0)
    beside.head.clean = False
    await beside.until_complete()
    assert not beside.report().clean
    beside.head.clean = True
    await beside.until(lambda: beside.report().clean, "cleanliness again")
    assert [node.member_id for node in beside.report().nodes] == ["m-0"]
