"""Counting held time: leases in, signed statements out, each kept until it is acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.agent.journal import CountedLease, PendingStatement
from orchestrator.receipts import dsse
from orchestrator.receipts.statement import PAYLOAD_TYPE, Statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.agent.journal import Record
    from orchestrator.agent.ports import AgentClock, Journal
    from orchestrator.api.v1 import worker_pb2


INTERIM_MS_MIN = 1_000
"""Less is not worth a statement of its own, and is not accepted as one."""


class Meter:
    """Time counts from when a lease is first seen on a running node until it or the node is gone."""

    def __init__(self, journal: Journal, record: Record, clock: AgentClock, key: Ed25519PrivateKey) -> None:
        self._journal = journal
        self._record = record
        self._clock = clock
        self._key = key
        self._identity = ("", "")
        self._heartbeats = 0

    def identify(self, network_id: str, worker_id: str) -> None:
        """Whose statements these are."""
        self._identity = (network_id, worker_id)

    def heartbeat_acknowledged(self) -> None:
        """Counted into the next statement."""
        self._heartbeats += 1

    def follow(
        self,
        desired: Mapping[str, worker_pb2.DesiredMember],
        running: Iterable[str],
        ended_boottime_ms: Mapping[str, int | None],
    ) -> bool:
        """Begin leases that are new, end those that are gone or whose node does not run; whether any ended.

        ``ended_boottime_ms`` tells of nodes that ended by themselves, perhaps while no agent was looking.
        """
        up = set(running)
        wanted: dict[str, tuple[str, worker_pb2.DesiredLease]] = {}
        for member in desired.values():
            for lease in member.leases:
                wanted[lease.lease_id] = (member.member_id, lease)
        changed = ended = False
        for lease_id, (member_id, lease) in wanted.items():
            if lease_id not in self._record.leases and member_id in up:
                self._record.leases[lease_id] = CountedLease(
                    lease_id=lease_id,
                    attempt_id=lease.attempt_id,
                    job_id=lease.job_id,
                    member_id=member_id,
                    device_ids=tuple(lease.device_ids),
                    boot_id=self._clock.boot_id(),
                    started_boottime_ms=self._clock.boottime_ms(),
                )
                changed = True
        for counted in self._record.leases.values():
            if counted.ended_offset_ms is not None:
                continue
            if counted.lease_id not in wanted or counted.member_id not in up:
                counted.ended_offset_ms = self._end_offset_ms(counted, ended_boottime_ms)
                changed = ended = True
        if changed:
            self._journal.save(self._record)
        return ended

    def _end_offset_ms(self, lease: CountedLease, ended_boottime_ms: Mapping[str, int | None]) -> int:
        """A node that ended unseen held until then; where nobody saw when, only what was stated counts."""
        held_ms = self._offset_ms(lease)
        if lease.member_id not in ended_boottime_ms:
            return held_ms
        ended_ms = ended_boottime_ms[lease.member_id]
        if ended_ms is None:
            return lease.stated_offset_ms
        return max(lease.stated_offset_ms, min(held_ms, ended_ms - lease.started_boottime_ms))

    def close_unknown(self, ended: Iterable[worker_pb2.DesiredLease]) -> bool:
        """End leases that this worker never counted, or no longer knows: it claims nothing more of them."""
        closed = False
        for lease in ended:
            if lease.lease_id in self._record.leases:
                continue
            self._record.leases[lease.lease_id] = CountedLease(
                lease_id=lease.lease_id,
                attempt_id=lease.attempt_id,
                job_id=lease.job_id,
                member_id=lease.member_id,
                device_ids=tuple(lease.device_ids),
                boot_id=self._clock.boot_id(),
                started_boottime_ms=self._clock.boottime_ms(),
                ended_offset_ms=lease.stated_offset_ms,
                next_sequence=lease.next_sequence,
                stated_offset_ms=lease.stated_offset_ms,
            )
            closed = True
        if closed:
            self._journal.save(self._record)
        return closed

    def _offset_ms(self, lease: CountedLease) -> int:
        """Held so far; after a restart of the machine the node is gone and only what was stated counts."""
        if lease.boot_id != self._clock.boot_id():
            return lease.stated_offset_ms
        return max(lease.stated_offset_ms, self._clock.boottime_ms() - lease.started_boottime_ms)

    def state(self, *, interim: bool, until_boottime_ms: int = 0) -> None:
        """Sign what is due: final statements always, of running leases only where ``interim``.

        A running lease is stated up to ``until_boottime_ms`` at most, its nodes' deadline: a machine that slept past
        it may look at its leases before its nodes have ended. Before `identify` nothing can be signed; what is due
        stays so.
        """
        stated = False
        if not all(self._identity):
            return
        for lease in self._record.leases.values():
            final = lease.ended_offset_ms is not None
            if lease.final_stated or not (final or interim):
                continue
            end_ms = lease.ended_offset_ms
            if end_ms is None:
                end_ms = min(self._offset_ms(lease), until_boottime_ms - lease.started_boottime_ms)
            if not final and end_ms - lease.stated_offset_ms < INTERIM_MS_MIN:
                continue
            self._record.statements.append(self._sign(lease, end_ms, final=final))
            lease.next_sequence += 1
            lease.stated_offset_ms = end_ms
            lease.final_stated = final
            stated = True
        if stated:
            self._heartbeats = 0
            self._journal.save(self._record)

    def _sign(self, lease: CountedLease, end_ms: int, *, final: bool) -> PendingStatement:
        network_id, worker_id = self._identity
        statement = Statement(
            network_id=network_id,
            lease_id=lease.lease_id,
            member_id=lease.member_id,
            worker_id=worker_id,
            job_id=lease.job_id,
            attempt_id=lease.attempt_id,
            device_ids=lease.device_ids,
            sequence=lease.next_sequence,
            start_offset_ms=lease.stated_offset_ms,
            end_offset_ms=end_ms,
            final=final,
            heartbeats_acknowledged=self._heartbeats,
        )
        envelope = dsse.sign(PAYLOAD_TYPE, statement.payload(), self._key)
        return PendingStatement(lease.lease_id, lease.next_sequence, envelope, final)

    def acknowledged(self, lease_id: str, sequence: int) -> None:
        """Forget what the control plane holds durably."""
        kept = [one for one in self._record.statements if one.lease_id != lease_id or one.sequence > sequence]
        lease = self._record.leases.get(lease_id)
        if lease is not None and lease.final_stated and not any(one.lease_id == lease_id for one in kept):
            del self._record.leases[lease_id]
        self._record.statements = kept
        self._journal.save(self._record)

    def pending(self) -> list[bytes]:
        """Envelopes to send, oldest first."""
        return [statement.envelope for statement in self._record.statements]

    @property
    def idle(self) -> bool:
        """Nothing is counted and everything stated is acknowledged."""
        return not self._record.leases and not self._record.statements
