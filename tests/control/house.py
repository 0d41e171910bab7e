"""A real control plane on real files, in this process, and a worker that a test moves by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.adapters import clock
from orchestrator.adapters.authority import Authority
from orchestrator.adapters.keys import Keys
from orchestrator.adapters.log_files import LogFiles
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.packages import PackageStore
from orchestrator.adapters.store import SqlStore
from orchestrator.api.v1 import common_pb2
from orchestrator.control.app import ControlPlane, Parts
from orchestrator.core import messages as m
from orchestrator.core.clusters import NodeAddress, NodeSeen
from orchestrator.core.ids import AttemptId, DeviceId, SupplierId, TenantId, TokenId, WorkerId
from orchestrator.core.jobs import Outcome
from orchestrator.core.policies import Policies
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import (
    Device,
    DeviceKind,
    HardwareClass,
    Inventory,
    Isolation,
    TokenRole,
)

DEADLINE_S = 60.0


class Owners:
    """Every owner's webhook."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.vouched: list[bool] = []

    async def post(self, url: str, body: bytes, *, vouched: bool) -> None:
        self.told.append((url, body))
        self.vouched.append(vouched)


class Desk:
    """A ledger that books everything at once."""

    def __init__(self) -> None:
        self.posted: list[bytes] = []

    async def post(self, envelope: bytes) -> str:
        self.posted.append(envelope)
        return f"tr_{len(self.posted)}"


@dataclass(frozen=True)
class House:
    plane: ControlPlane
    parts: Parts
    keys: Keys
    authority: Authority
    owners: Owners
    metrics: Metrics
    desk: Desk
    store: SqlStore

    async def tenant(self, name: str) -> tuple[TenantId, str]:
        """A new tenant and its token's secret."""
        made = await self.plane.loop.submit(m.CreateTenant(TenantId(clock.new_id("ten")), name))
        return TenantId(str(made.result)), await self.token(TokenRole.TENANT, name)

    async def token(self, role: TokenRole, subject: str, ttl_ms: int = 3_600_000) -> str:
        """The secret of a new token."""
        secret = clock.new_secret(f"orch_{role}")
        digest = hashlib.sha256(secret.encode()).hexdigest()
        token_id, supplier_id = TokenId(clock.new_id("tok")), SupplierId(clock.new_id("sup"))
        await self.plane.loop.submit(m.CreateToken(token_id, role, subject, digest, ttl_ms, supplier_id))
        return secret


@asynccontextmanager
async def house(
    folder: Path, policies: Policies | None = None, runtimes: Sequence[common_pb2.Runtime] = ()
) -> AsyncIterator[House]:
    """Start on what the folder holds; stop in the end. The first of the runtimes is the default."""
    metrics, desk, owners = Metrics(), Desk(), Owners()
    store = SqlStore(f"sqlite:///{folder / 'control.db'}")
    offered = tuple((runtime.name, runtime.digest) for runtime in runtimes)
    policies = policies or Policies()
    state = store.load(replace(policies, jobs=replace(policies.jobs, runtimes=offered)))
    keys = Keys(folder, founded=bool(state.control.network_id))
    authority = Authority(folder, now_ms=clock.SystemClock().now().wall_ms, founded=False)
    logs, packages = LogFiles(folder / "logs"), PackageStore(folder / "packages")
    parts = Parts(
        state=state,
        store=store,
        clock=clock.SystemClock(),
        log_files=logs,
        packages=packages,
        secrets=keys,
        authority=authority,
        webhooks=owners,
        ledger=desk,
        observer=metrics,
        new_id=clock.new_id,
        new_secret=clock.new_secret,
        random_bytes=clock.random_bytes,
        runtimes={runtime.digest: runtime for runtime in runtimes},
    )
    plane = ControlPlane(parts)
    try:
        await plane.start()
        yield House(plane, parts, keys, authority, owners, metrics, desk, store)
    finally:
        await plane.stop()
        logs.close()
        packages.close()
        store.close()


def inventory(devices: int = 1, of: str = "rig") -> Inventory:
    """Of a machine that makes boxes, which is what a job without any key asks for."""
    return Inventory(
        hardware_class=HardwareClass.CONSUMER,
        devices=tuple(
            Device(DeviceId(f"sim-{of}-{number}"), DeviceKind.GPU, "RTX4090", 24 * 1024**3, simulated=True)
            for number in range(devices)
        ),
        cpus=8,
        memory_bytes=32 * 1024**3,
        slots=devices,
        head_slots=0,
        operating_system="linux",
        architecture="x86_64",
        python_version="3.11.9",
        ray_version="2.60.0",
        isolation=Isolation.BOX,
        overlay="none",
        zone="",
    )


@dataclass
class Puppet:
    """One worker, without an agent: it does at once what it is told; drivers end when the test says so."""

    house: House
    worker_id: WorkerId
    ended: dict[AttemptId, tuple[Outcome, int]] = field(default_factory=dict)

    @classmethod
    async def join(cls, house: House, devices: int = 1) -> Puppet:
        secret = await house.token(TokenRole.SUPPLIER, "anna")
        worker_id = WorkerId(clock.new_id("wrk"))
        digest = hashlib.sha256(secret.encode()).hexdigest()
        loop = house.plane.loop
        key = clock.random_bytes(32).hex()
        await loop.submit(
            m.JoinWorker(worker_id, digest, f"rig {worker_id[-6:]}", key, inventory(devices, worker_id))
        )
        await loop.submit(m.ConnectWorker(worker_id, None))
        return cls(house, worker_id)

    async def report(self) -> None:
        """Say what an agent would that has already done all it was told."""
        await self.house.plane.loop.submit(await self.house.plane.loop.read(self._observed))

    def _observed(self, state: State) -> m.ObserveWorker:
        members = tuple(self._member(one) for one in desired_members(state, self.worker_id))
        return m.ObserveWorker(self.worker_id, state.version, members)

    def _member(self, wanted: m.DesiredMember) -> m.ObservedMember:
        member = wanted.member
        return m.ObservedMember(
            member_id=member.member_id,
            generation=member.generation,
            address=NodeAddress("127.0.0.1", "127.0.0.1:6379", "host", "here"),
            up=wanted.run,
            failed=False,
            stopping=False,
            reason="",
            nodes=(NodeSeen(member.member_id, member.gpus, 8),) if wanted.run else (),
            clean=not wanted.attempts,
            attempts=tuple(self._attempt(one) for one in wanted.attempts),
        )

    def _attempt(self, wanted: m.DesiredAttempt) -> m.ObservedAttempt:
        attempt_id = wanted.attempt.attempt_id
        outcome, code = self.ended.get(attempt_id, (Outcome.NONE, 0))
        exit_code = code if outcome is not Outcome.NONE else None
        return m.ObservedAttempt(attempt_id, outcome is Outcome.NONE, outcome, "", exit_code)

    async def until(self, true_of: object) -> None:
        """Report after each commit until ``true_of(state)`` holds."""
        assert callable(true_of)
        loop = self.house.plane.loop
        changed = loop.watch()
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await loop.read(true_of):
                    changed.clear()
                    await self.report()
                    await changed.wait()
        finally:
            loop.unwatch(changed)
