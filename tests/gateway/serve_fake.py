"""A gateway over the fake in a process of its own, for a test to kill: prints its port, then serves."""

from __future__ import annotations

import asyncio
import sys

from orchestrator.gateway.app import start_gateway
from orchestrator.gateway.config import GatewayConfig
from tests.gateway.fake_jobs import TENANT, FakeJobs
from tests.polling import wait_until_async

SUBMITTED_WITHIN_S = 60.0


async def serve() -> None:
    """Run the first job that comes, let it print a line, and never end it."""
    jobs = FakeJobs()
    gateway = await start_gateway(jobs, GatewayConfig(), host="127.0.0.1", port=0)
    sys.stdout.write(f"{gateway.port}\n")
    sys.stdout.flush()
    await wait_until_async(lambda: bool(jobs.records), what="a job", deadline_s=SUBMITTED_WITHIN_S)
    (_, submission_id) = next(iter(jobs.records))
    jobs.run(TENANT, submission_id)
    jobs.write_log(TENANT, submission_id, b"still running\n")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
