"""Beside a head: the attempts that should run are made to run, watched, and their logs shipped.

Only this file's owner speaks to the head, on its own machine; the control plane says what should be and reads
reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from orchestrator.agent.ports import HeadRefusedError, HeadUnreachableError, LogChunk
from orchestrator.api.v1 import worker_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from orchestrator.agent.notices import Warned
    from orchestrator.agent.ports import ControlPlane, DriverStatus, HeadClient, NodeListed

log = structlog.get_logger(__name__)

LOG_CHUNK_BYTES = 256 * 1024
"""Far below gRPC's 4 MiB per message, and enough for any driver to be followed without delay."""

RETRY_S = 0.5
"""Between tries at a head or control plane that does not answer."""

CLEAN_LOOKS = 5
"""Whether a cluster is clean is four questions to Ray's dashboard, which has enough to do while a cluster forms: there
every fifth look has them, and every one only after an attempt, when the next may be waiting."""

TRIES_MAX = 60
"""Of giving one attempt to a head that is up: half a minute at least, ten times what a slow one needs."""

STOP_S = 60.0
"""For a driver that was told to end. Ray kills one after three seconds, unless it has no processor left to do so: a
tenant's code may take all that its box has."""

TERMINAL = {
    "SUCCEEDED": worker_pb2.ATTEMPT_STATUS_SUCCEEDED,
    "FAILED": worker_pb2.ATTEMPT_STATUS_FAILED,
    "STOPPED": worker_pb2.ATTEMPT_STATUS_STOPPED,
}


@dataclass(slots=True)
class _Attempt:
    """One attempt under this agent's care."""

    wanted: worker_pb2.DesiredAttempt
    status: int = worker_pb2.ATTEMPT_STATUS_UNSPECIFIED
    message: str = ""
    exit_code: int | None = None
    ground_failure: bool = False
    log_offset: int = 0
    log_complete: bool = False
    stop_sent: bool = False
    submitted: bool = False
    tries: int = 0
    """To submit it, in vain for reasons that lie on this machine."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    ending: asyncio.Task[None] | None = None
    """It was told to stop, and this waits for it to have."""

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL.values()

    def observed(self) -> worker_pb2.AttemptObserved:
        report = worker_pb2.AttemptObserved(
            attempt_id=self.wanted.attempt_id,
            status=worker_pb2.AttemptStatus.ValueType(self.status),
            message=self.message,
            ground_failure=self.ground_failure,
        )
        if self.exit_code is not None:
            report.driver_exit_code = self.exit_code
        return report


class HeadDuty:
    """Care for one running head."""

    def __init__(
        self,
        member_id: str,
        client: HeadClient,
        control: ControlPlane,
        cache_dir: Path,
        changed: Callable[[], None],
        poll_s: float,
    ) -> None:
        self._member_id = member_id
        self._client = client
        self._control = control
        self._cache_dir = cache_dir
        self._changed = changed
        self._poll_s = poll_s
        self._attempts: dict[str, _Attempt] = {}
        self._nodes: tuple[NodeListed, ...] = ()
        self._clean = False
        self._used = False
        """An attempt has been here."""
        self._task = asyncio.create_task(self._watch_cluster())
        self._stopping: set[asyncio.Task[None]] = set()
        self._drained: set[str] = set()
        self._draining: asyncio.Task[None] | None = None

    def warn(self, going: Sequence[Warned]) -> None:
        """Have Ray told of members that go, once each. Of the head itself it cannot usefully be told.

        Ray accepts to drain a head, but with nothing on it the head would end there and then, and its cluster with it.
        """
        self._drained &= {one.member_id for one in going}
        left = [one for one in going if one.member_id not in self._drained | {self._member_id}]
        if left and (self._draining is None or self._draining.done()):
            self._draining = asyncio.create_task(self._drain(left))

    async def _drain(self, going: Sequence[Warned]) -> None:
        """One try at each; who is left over is tried again by the next warning."""
        for one in going:
            try:
                if await self._client.drain(one.member_id, one.reason, one.remaining_ms):
                    self._drained.add(one.member_id)
                    log.info("node_drained", member_id=one.member_id, remaining_ms=one.remaining_ms)
            except (HeadUnreachableError, OSError) as error:
                log.info("node_not_drained", member_id=one.member_id, reason=str(error))
        await asyncio.sleep(RETRY_S)

    def want(self, attempts: list[worker_pb2.DesiredAttempt]) -> None:
        """Take over the desired attempts; what is no longer listed is forgotten once ended, else ended."""
        listed = {attempt.attempt_id: attempt for attempt in attempts}
        for attempt_id, wanted in listed.items():
            known = self._attempts.get(attempt_id)
            if known is None:
                known = self._attempts[attempt_id] = _Attempt(wanted, log_offset=wanted.log_offset)
                self._clean = False
                self._used = True
                known.tasks.append(asyncio.create_task(self._drive(known)))
                known.tasks.append(asyncio.create_task(self._ship(known)))
            known.wanted = wanted
            if wanted.stop and known.ending is None:
                known.ending = asyncio.create_task(self._await_end(known))
                known.tasks.append(known.ending)
        for attempt_id in [one for one in self._attempts if one not in listed]:
            gone = self._attempts.pop(attempt_id)
            for task in gone.tasks:
                task.cancel()
            self._clean = False
            if not gone.ended or gone.ground_failure:
                # What was given up as lost may have begun after all.
                self._task_stop(attempt_id)

    def _task_stop(self, attempt_id: str) -> None:
        async def stop() -> None:
            with contextlib.suppress(HeadUnreachableError):
                await self._client.stop(attempt_id)

        task = asyncio.create_task(stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def complete(self, report: worker_pb2.MemberObserved) -> None:
        """Add what this head shows to its member's report."""
        for node in self._nodes:
            report.nodes.append(worker_pb2.NodeSeen(member_id=node.member_id, gpus=node.gpus, cpus=node.cpus))
        report.clean = self._clean
        for attempt in self._attempts.values():
            if attempt.status != worker_pb2.ATTEMPT_STATUS_UNSPECIFIED:
                report.attempts.append(attempt.observed())

    async def _watch_cluster(self) -> None:
        """Follow the node list, and cleanliness while no attempt runs."""
        for look in itertools.count():
            busy = any(not attempt.ended or not attempt.log_complete for attempt in self._attempts.values())
            try:
                nodes = tuple(await self._client.nodes())
                clean = not busy and self._clean
                if not busy and ((self._used and not self._clean) or look % CLEAN_LOOKS == 0):
                    clean = await self._client.is_clean()
            except HeadUnreachableError:
                await asyncio.sleep(RETRY_S)
                continue
            still_free = not any(not attempt.ended for attempt in self._attempts.values())
            if nodes != self._nodes or (clean and still_free) != self._clean:
                self._nodes = nodes
                self._clean = clean and still_free
                self._changed()
            await asyncio.sleep(self._poll_s if not busy else self._poll_s * 5)

    async def _drive(self, attempt: _Attempt) -> None:
        """Submit once, then follow the driver to its end."""
        attempt_id = attempt.wanted.attempt_id
        while not attempt.ended:
            try:
                await self._advance(attempt)
            except ConnectionError as error:
                # The control plane is away, so the package is; that is nobody's fault here.
                log.info("package_not_fetched", attempt_id=attempt_id, reason=str(error))
                await asyncio.sleep(RETRY_S)
            except (HeadUnreachableError, OSError, TypeError, ValueError) as error:
                self._count_try(attempt, str(error))
                await asyncio.sleep(RETRY_S)
            except HeadRefusedError as error:
                self._become(attempt, worker_pb2.ATTEMPT_STATUS_FAILED, str(error), None)
            else:
                if not attempt.ended:
                    await asyncio.sleep(self._poll_s)

    def _count_try(self, attempt: _Attempt, reason: str) -> None:
        """A head that never takes the attempt is ground that gave way; once it has it, its keeper judges."""
        attempt_id = attempt.wanted.attempt_id
        log.info("attempt_not_advanced", attempt_id=attempt_id, reason=reason, tries=attempt.tries)
        if attempt.submitted:
            return
        attempt.tries += 1
        if attempt.tries >= TRIES_MAX:
            attempt.ground_failure = True
            message = f"the head did not take the job: {reason}"
            self._become(attempt, worker_pb2.ATTEMPT_STATUS_FAILED, message, None)

    async def _await_end(self, attempt: _Attempt) -> None:
        """Take a driver that Ray does not end for ended: its cluster never gets clean, so it goes, and all in it."""
        driving, *_ = attempt.tasks
        await asyncio.wait([driving], timeout=STOP_S)
        if not attempt.ended:
            driving.cancel()
            message = f"Job was intentionally stopped; Ray did not say so within {STOP_S:g} s."
            self._become(attempt, worker_pb2.ATTEMPT_STATUS_STOPPED, message, None)

    async def _advance(self, attempt: _Attempt) -> None:
        attempt_id = attempt.wanted.attempt_id
        status = await self._client.status(attempt_id)
        if status is None:
            if attempt.wanted.stop:
                message = "Job was intentionally stopped."
                self._become(attempt, worker_pb2.ATTEMPT_STATUS_STOPPED, message, None)
            elif attempt.submitted:
                attempt.ground_failure = True
                self._become(attempt, worker_pb2.ATTEMPT_STATUS_FAILED, "the head forgot the job", None)
            elif await self._gang_is_whole(attempt):
                await self._client.submit(attempt.wanted, await self._packages(attempt.wanted))
                attempt.submitted = True
                log.info("attempt_submitted", attempt_id=attempt_id)
            else:
                self._count_try(attempt, "the head does not list the whole gang")
            return
        attempt.submitted = True
        if attempt.wanted.stop and not attempt.stop_sent and status.status not in TERMINAL:
            await self._client.stop(attempt_id)
            attempt.stop_sent = True
        if status.status in TERMINAL:
            failed = status.status == "FAILED"
            attempt.ground_failure = failed and await self._ground_gave_way(attempt, status)
            self._become(attempt, TERMINAL[status.status], status.message, status.exit_code)
        elif status.status == "RUNNING":
            self._become(attempt, worker_pb2.ATTEMPT_STATUS_RUNNING, status.message, None)

    async def _ground_gave_way(self, attempt: _Attempt, status: DriverStatus) -> bool:
        """Whether a driver failed for want of a node, or was ended by something other than its own code."""
        # Without an exit code it was not the user's code that ended: its supervisor or its node did.
        if status.exit_code is None and "runtime_env" not in status.message:
            return True
        return not await self._gang_is_whole(attempt)

    async def _gang_is_whole(self, attempt: _Attempt) -> bool:
        """Whether the head still lists every node that the attempt was promised, with its GPUs."""
        gpus = {node.member_id: node.gpus for node in await self._client.nodes()}
        return all(gpus.get(node.member_id, -1.0) >= node.gpus for node in attempt.wanted.gang)

    async def _packages(self, wanted: worker_pb2.DesiredAttempt) -> dict[str, Path]:
        """The attempt's packages as files, fetched where they are not here yet."""
        files = {}
        for package in wanted.packages:
            path = self._cache_dir / f"{package.sha256}.zip"
            if not path.exists():
                await self._control.fetch_package(wanted.attempt_id, package.sha256, path)
            files[package.uri] = path
        return files

    def _become(self, attempt: _Attempt, status: int, message: str, exit_code: int | None) -> None:
        if attempt.status != status:
            attempt.status, attempt.message, attempt.exit_code = status, message, exit_code
            log.info(
                "attempt_status", attempt_id=attempt.wanted.attempt_id, status=status, message=message[:200]
            )
            self._changed()

    async def _ship(self, attempt: _Attempt) -> None:
        """Send the driver's log as it grows; the end once the driver has ended and everything is read."""
        attempt_id = attempt.wanted.attempt_id
        while not attempt.log_complete:
            ended = attempt.ended
            data = self._client.read_log(attempt_id, attempt.log_offset, LOG_CHUNK_BYTES)
            final = ended and len(data) < LOG_CHUNK_BYTES
            if not data and not final:
                await asyncio.sleep(self._poll_s)
                continue
            chunk = LogChunk(attempt_id, self._member_id, attempt.log_offset, data, final)
            try:
                attempt.log_offset, attempt.log_complete = await self._control.ship_log(chunk)
            except ConnectionError:
                await asyncio.sleep(RETRY_S)
            else:
                if final and not attempt.log_complete:
                    # Stored, and yet not the end: there is a gap to fill first, or no room left for it.
                    await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Stop caring; the head itself is not touched."""
        tasks = [
            self._task,
            *self._stopping,
            *([] if self._draining is None else [self._draining]),
            *(task for attempt in self._attempts.values() for task in attempt.tasks),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
