"""What the tenants of a simulated world ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.ids import TenantId
from orchestrator.core.jobs import JobRequest, Requirements

if TYPE_CHECKING:
    from random import Random

PICKY_RATIO = 0.3
"""One-GPU jobs that want a particular model."""

LIMITED_EACH = 4
"""One job of so many states a time limit, which most drivers are longer than."""

LIMIT_MS = 5_000

TENANTS = (TenantId("tn_1"), TenantId("tn_2"))
"""The second has one job in three; every other job is interruptible."""


def a_request(random: Random, number: int) -> tuple[TenantId, JobRequest]:
    """The job of this number, and whose it is."""
    gpus = random.choice((0, 1, 1, 1, 2, 3, 4))
    wanted = Requirements(gpus=gpus)
    if gpus == 1 and random.random() < PICKY_RATIO:
        wanted = replace(wanted, gpu_model="H100")
    request = JobRequest(
        "python train.py",
        "{}",
        (),
        (),
        wanted,
        random.choice((0, 0, 5)),
        time_limit_ms=LIMIT_MS if number % LIMITED_EACH == 0 else 0,
        interruptible=number % 2 == 0,
    )
    return TENANTS[0 if number % 3 else 1], request
