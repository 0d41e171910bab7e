"""The real control plane on virtual parts: started from what its store holds, killed between any two of its steps."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.control.alerts import Alerts
from orchestrator.control.desires import Desires
from orchestrator.control.effects import Effects
from orchestrator.control.logs import Logs
from orchestrator.control.loop import Loop
from orchestrator.control.planner import Planner, tick_forever
from orchestrator.control.sessions import Sessions
from orchestrator.core import messages as m
from orchestrator.core.scheduling.placement import Budget
from orchestrator.sim.memory import MemoryWebhooks
from orchestrator.sim.network import Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from random import Random

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.control.loop import Clock, Committed
    from orchestrator.control.measuring.measuring import Measuring
    from orchestrator.core.policies import Policies
    from orchestrator.core.state import State
    from orchestrator.sim.memory import MemoryLedger, MemoryLogFiles, MemoryStore
    from orchestrator.sim.virtual import Processes, SimClock

NETWORK_ID = "net_sim"


class KilledError(BaseException):
    """The process ends here, as by SIGKILL: no handler of ordinary errors may catch it."""


@dataclass(slots=True)
class Outside:
    """What outlives the control plane's process."""

    processes: Processes
    random: Random
    store: MemoryStore
    files: MemoryLogFiles
    ledger: MemoryLedger
    clock: SimClock
    key: Ed25519PrivateKey
    policies: Policies
    inspect: Callable[[State], None]
    """Called with every committed state."""
    measure: Callable[[Clock], Measuring] | None = None
    """Makes what measures one life; without it nothing is measured."""
    failures: list[Exception] = field(default_factory=list)
    """What no process may die of: found by the checks, or a bug."""


@dataclass(slots=True)
class ControlProcess:
    """One life of the control plane."""

    outside: Outside
    name: str
    loop: Loop = field(init=False)
    state: State = field(init=False)
    parts: Parts = field(init=False)
    measuring: Measuring | None = None
    died: asyncio.Event = field(default_factory=asyncio.Event)
    death_at: str = ""
    """Name of the step at which this life ends; empty: it goes on."""

    async def start(self) -> None:
        """Load, raise the term, serve."""
        outside = self.outside
        state = self.state = outside.store.load(outside.policies)
        outside.store.interrupt = self._reach
        effects: list[Effects] = []
        measuring = None if outside.measure is None else outside.measure(outside.clock)
        self.loop = Loop(
            state,
            outside.store if measuring is None else measuring.watched(outside.store),
            outside.clock,
            lambda due: effects[0].perform(due),  # noqa: PLW0108 - made after the loop it works for
            measuring,
            checkpoint=lambda step: self._step(step, state),
        )
        logs = Logs(self.loop, outside.files)
        random = outside.random
        sessions = Sessions(
            self.loop,
            random.randbytes,
            Desires(lambda cluster: hashlib.sha256(cluster.encode()).hexdigest(), logs.sizes),
        )
        self.parts = Parts(sessions, logs, lambda task: outside.processes.spawn(self.name, task))
        alerts = Alerts(self.loop, MemoryWebhooks())
        effects.append(Effects(sessions, self.loop, outside.ledger, alerts, outside.key))
        planner = Planner(
            self.loop, lambda prefix: f"{prefix}_{random.getrandbits(64):016x}", Budget(), measuring
        )
        self._spawn(self.loop.run())
        await self.submit(m.StartControl(NETWORK_ID))
        if measuring is not None:
            await measuring.begin(self.loop)
            self.measuring = measuring
        for task in (planner.run(), tick_forever(self.loop), effects[0].run()):
            self._spawn(task)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.outside.processes.spawn(self.name, self._guard(coroutine))

    async def _guard(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """The death of any part is the death of the process."""
        try:
            await coroutine
        except KilledError:
            self.died.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the run's finding
            # Once one part has died, the others only find that out.
            if not self.died.is_set():
                self.outside.failures.append(error)
            self.died.set()

    def _step(self, step: str, state: State) -> None:
        if step == "committed":
            self.outside.inspect(state)
        self._reach(step)

    def _reach(self, step: str) -> None:
        if self.death_at == step:
            raise KilledError(step)

    async def submit(self, command: m.Command) -> Committed:
        """As a caller from outside: raises ConnectionError where the process dies first."""
        answer = self.outside.processes.spawn(self.name, self.loop.submit(command))
        death = asyncio.create_task(self.died.wait())
        try:
            await asyncio.wait((answer, death), return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and not answer.cancelled():
                return answer.result()
            raise ConnectionError("the control plane died before it answered")
        finally:
            death.cancel()

    async def kill(self) -> None:
        """End this life."""
        self.died.set()
        await self.outside.processes.kill(self.name)
