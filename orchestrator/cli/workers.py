"""`orch worker`, put together from its files."""

from __future__ import annotations

from orchestrator.cli import machine, owner, worker, worker_actions

app = worker.app
machine.register(app)
owner.register(app)
worker_actions.register(app)
