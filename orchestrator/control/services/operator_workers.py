"""What an operator does with workers: looking closely, cordoning, reclaiming, throwing out, and the authority."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.authority import AuthorityError
from orchestrator.api.v1 import authority_pb2, common_pb2, operator_pb2, operator_pb2_grpc
from orchestrator.control.authority import behind_of
from orchestrator.control.inventory_wire import CLASSES
from orchestrator.control.services import views
from orchestrator.control.services.workers import UNMEASURED, Sample
from orchestrator.control.words import word
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import DeviceId, WorkerId
from orchestrator.core.supply.fleet import ClassOverride, LeasePolicy, Liveness, Reconcile, Worker
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc.aio

    from orchestrator.control.authority import Authority
    from orchestrator.control.loop import Loop
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.state import State

    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)

REASON_CHARACTERS_MAX = 200

READMISSION = (
    HoldKind.OPERATOR,
    HoldKind.RECLAIMED,
    HoldKind.PROBATION,
    HoldKind.REVOKED,
    HoldKind.CLONED,
    HoldKind.QUARANTINED,
)
"""Holds that an operator's word ends; last the one that it cannot end while its reason stands."""


class WorkerActions(operator_pb2_grpc.OperatorServiceServicer):
    """The part of the operator's service that is about workers."""

    def __init__(
        self,
        loop: Loop,
        sessions: Sessions,
        samples: Mapping[WorkerId, Sample],
        authority: Authority,
        authority_changed: Callable[[], None],
    ) -> None:
        """``authority_changed`` follows each change of the authority; it may block."""
        self._loop = loop
        self._sessions = sessions
        self._samples = samples
        self._authority = authority
        self._authority_changed = authority_changed
        self._changing = asyncio.Lock()
        """One change of the authority after the other: each is made of many files."""

    async def ListWorkers(  # noqa: N802 -- the proto's name
        self, _request: operator_pb2.ListWorkersRequest, _context: Context
    ) -> operator_pb2.ListWorkersResponse:
        """All of them, with their newest measurements."""
        workers = await self._loop.read(
            lambda state: [self._worker(state, worker) for worker in state.workers.values()]
        )
        return operator_pb2.ListWorkersResponse(workers=workers)

    async def GetWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.GetWorkerRequest, _context: Context
    ) -> operator_pb2.GetWorkerResponse:
        """Everything about one."""
        worker_id = await self._named(request.worker)
        sample = self._samples.get(worker_id, UNMEASURED)
        known = self._sessions.paths.of(worker_id) if self._sessions.paths is not None else []
        now_ms = self._loop.now().monotonic_ms
        paths = await self._loop.read(
            lambda state: [views.worker_path_message(state, path, now_ms) for path in known]
        )
        return operator_pb2.GetWorkerResponse(
            worker=await self._shown(worker_id), samples=sample.devices, paths=paths
        )

    async def LeaveWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.LeaveWorkerRequest, _context: Context
    ) -> operator_pb2.LeaveWorkerResponse:
        """Drain it; one that is not there and holds nothing leaves at once."""
        worker_id = await self._named(request.worker)
        await self._loop.submit(m.DrainWorker(worker_id, dismiss=True))
        if worker_id not in self._sessions.connected:
            try:
                await self._loop.submit(m.LeaveWorker(worker_id))
            except RefusedError as refusal:
                if refusal.code is not RefusalCode.CONFLICT:
                    raise
        return operator_pb2.LeaveWorkerResponse(worker=await self._shown(worker_id))

    async def CordonWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.CordonWorkerRequest, _context: Context
    ) -> operator_pb2.CordonWorkerResponse:
        """Nothing new for it, or for one device."""
        worker_id = await self._named(request.worker)
        reason = _reason(request.reason, "cordoned by an operator")
        if request.device_id:
            device_id = DeviceId(word("device_id", request.device_id))
            await self._loop.submit(m.HoldDevice(worker_id, device_id, reason))
        else:
            await self._loop.submit(m.PlaceHold(worker_id, HoldKind.OPERATOR, reason))
        return operator_pb2.CordonWorkerResponse(worker=await self._shown(worker_id))

    async def UncordonWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.UncordonWorkerRequest, _context: Context
    ) -> operator_pb2.UncordonWorkerResponse:
        """Also a readmission; what the owner or time decided stays."""
        worker_id = await self._named(request.worker)
        if request.device_id:
            device_id = DeviceId(word("device_id", request.device_id))
            await self._loop.submit(m.ReleaseDevice(worker_id, device_id))
        else:
            for kind in READMISSION:
                await self._loop.submit(m.LiftHold(worker_id, kind))
        return operator_pb2.UncordonWorkerResponse(worker=await self._shown(worker_id))

    async def ReclaimWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.ReclaimWorkerRequest, _context: Context
    ) -> operator_pb2.ReclaimWorkerResponse:
        """On behalf of its owner."""
        worker_id = await self._named(request.worker)
        reason = _reason(request.reason, "reclaimed by an operator for its owner")
        await self._loop.submit(
            m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, reason, request.notice_ms or None)
        )
        return operator_pb2.ReclaimWorkerResponse(worker=await self._shown(worker_id))

    async def RevokeWorker(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.RevokeWorkerRequest, _context: Context
    ) -> operator_pb2.RevokeWorkerResponse:
        """Out at once: its session ends with this commit, and it gets no other."""
        worker_id = await self._named(request.worker)
        reason = _reason(request.reason, "revoked by an operator")
        await self._loop.submit(m.PlaceHold(worker_id, HoldKind.REVOKED, reason))
        return operator_pb2.RevokeWorkerResponse(worker=await self._shown(worker_id))

    async def SetHardwareClass(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.SetHardwareClassRequest, _context: Context
    ) -> operator_pb2.SetHardwareClassResponse:
        """An operator's word against the rule; it needs a reason."""
        worker_id = await self._named(request.worker)
        override = None
        if request.hardware_class != common_pb2.HARDWARE_CLASS_UNSPECIFIED:
            if not request.reason.strip():
                raise invalid("reason", "say why the rule is wrong here: the reason is kept")
            override = ClassOverride(CLASSES[request.hardware_class], _reason(request.reason, ""))
        await self._loop.submit(m.OverrideClass(worker_id, override))
        return operator_pb2.SetHardwareClassResponse(worker=await self._shown(worker_id))

    async def SetLeasePolicy(  # noqa: N802 -- the proto's name
        self, request: operator_pb2.SetLeasePolicyRequest, _context: Context
    ) -> operator_pb2.SetLeasePolicyResponse:
        """How patient to be with one worker."""
        worker_id = await self._named(request.worker)
        wanted = request.lease_policy
        policy = None
        if wanted.lost_after_ms:
            try:
                reconcile = Reconcile(wanted.reconcile or Reconcile.ORIGINAL.value)
            except ValueError:
                known = ", ".join(Reconcile)
                raise invalid("lease_policy.reconcile", f"one of {known} is expected") from None
            policy = LeasePolicy(wanted.lost_after_ms, wanted.replace, reconcile)
        await self._loop.submit(m.SetLeasePolicy(worker_id, policy))
        # Its nodes' deadlines follow from what it is welcomed with.
        self._sessions.reopen(worker_id)
        return operator_pb2.SetLeasePolicyResponse(worker=await self._shown(worker_id))

    # ------------------------------------------------------------ the authority

    async def GetAuthority(  # noqa: N802 -- the proto's name
        self, _request: authority_pb2.GetAuthorityRequest, _context: Context
    ) -> authority_pb2.GetAuthorityResponse:
        """What is trusted, and who has yet to follow."""
        authority = self._authority
        return authority_pb2.GetAuthorityResponse(
            authorities=self._authorities(),
            trust_bundle=authority.trust_bundle(),
            workers_behind=len(await self._behind(authority.generation)),
        )

    async def RotateAuthority(  # noqa: N802 -- the proto's name
        self, _request: authority_pb2.RotateAuthorityRequest, _context: Context
    ) -> authority_pb2.RotateAuthorityResponse:
        """A new authority, and every connected worker asked to take a certificate of it."""
        async with self._changing:
            now_ms = self._loop.now().wall_ms
            await self._change_authority(lambda: self._authority.rotate(now_ms))
            log.info("authority_rotated", generation=self._authority.generation)
            self._sessions.tell_all()
        return authority_pb2.RotateAuthorityResponse(authorities=self._authorities())

    async def RetireAuthority(  # noqa: N802 -- the proto's name
        self, request: authority_pb2.RetireAuthorityRequest, _context: Context
    ) -> authority_pb2.RetireAuthorityResponse:
        """The end of trust in the older ones; refused while workers have no certificate of the newest."""
        async with self._changing:
            generation = self._authority.generation
            behind = await self._behind(generation)
            if behind and not request.force:
                raise RefusedError(RefusalCode.CONFLICT, self._why_not_retire(behind))
            await self._change_authority(self._authority.retire)
            log.info("authority_retired", generation=generation, workers_behind=len(behind))
            self._sessions.end_behind(generation)
        return authority_pb2.RetireAuthorityResponse(authorities=self._authorities())

    async def _change_authority(self, change: Callable[[], None]) -> None:
        """Keys are made and written through to the disk: everybody else goes on meanwhile."""

        def work() -> None:
            change()
            self._authority_changed()

        try:
            await asyncio.to_thread(work)
        except AuthorityError as error:
            raise RefusedError(RefusalCode.CONFLICT, str(error)) from None

    async def _behind(self, generation: int) -> frozenset[WorkerId]:
        """By what is kept of each worker, and by what the connected ones show."""
        kept = await self._loop.read(lambda state: behind_of(state, generation))
        return kept | self._sessions.behind(generation)

    def _why_not_retire(self, behind: frozenset[WorkerId]) -> str:
        here = len(behind & self._sessions.connected)
        return (
            f"{len(behind)} worker(s) have no certificate of generation {self._authority.generation} yet:"
            f" {here} connected, which renew within minutes, and {len(behind) - here} absent, which renew when they"
            " come. With --force the connected ones are cut off, and each of them has to recover, which is counted"
        )

    def _authorities(self) -> list[authority_pb2.Authority]:
        return [
            authority_pb2.Authority(
                generation=one.number, pin=one.pin, not_after=Timestamp(seconds=one.not_after_ms // 1000)
            )
            for one in self._authority.generations
        ]

    # ------------------------------------------------------------ finding and showing

    async def _named(self, name: str) -> WorkerId:
        name = word("worker", name)
        return await self._loop.read(lambda state: find_named(state, name))

    async def _shown(self, worker_id: WorkerId) -> operator_pb2.Worker:
        return await self._loop.read(lambda state: self._worker(state, state.workers[worker_id]))

    def _worker(self, state: State, worker: Worker) -> operator_pb2.Worker:
        sample = self._samples.get(worker.worker_id, UNMEASURED)
        return views.worker_message(
            state,
            worker,
            state.time_ms(self._loop.now()),
            connected=self._sessions.is_connected(worker.worker_id),
            cpu_utilization_ratio=sample.cpu_utilization_ratio,
            memory_used_bytes=sample.memory_used_bytes,
        )


def find_named(state: State, name: str) -> WorkerId:
    """A worker by id, or by a name that only one has."""
    if WorkerId(name) in state.workers:
        return WorkerId(name)
    named = [
        worker.worker_id
        for worker in state.workers.values()
        if worker.name == name and worker.liveness is not Liveness.LEFT
    ]
    if not named:
        raise not_found("worker", name)
    if len(named) > 1:
        raise invalid("worker", f"{len(named)} workers are called {name!r}; give the worker's id")
    return named[0]


def _reason(text: str, default: str) -> str:
    reason = text.strip() or default
    if len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        raise invalid("reason", f"a reason is one line of at most {REASON_CHARACTERS_MAX} characters")
    return reason
