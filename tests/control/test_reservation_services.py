"""Reservations as the jobs service answers over loopback, with the real loop and store behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.api.v1 import jobs_pb2, reservations_pb2
from orchestrator.core.errors import RefusedError
from orchestrator.core.jobs import JobStatus
from orchestrator.core.policies import Policies
from orchestrator.gateway.ports import Submission
from tests.control.agents import Served, bearer, refused, serving
from tests.control.house import Puppet

HOUR_S = 3_600


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, Policies()) as running:
        yield running


def asked(
    name: str = "nightly",
    *,
    gpus: int = 2,
    in_s: int = 0,
    tenant: str = "",
    request_id: str = "",
    **more: str,
) -> reservations_pb2.CreateReservationRequest:
    begins_s = int(time.time()) + in_s
    return reservations_pb2.CreateReservationRequest(
        request_id=request_id,
        tenant=tenant,
        name=name,
        metadata={"orch.gpus": str(gpus)} | {f"orch.{key}": value for key, value in more.items()},
        begins_at=Timestamp(seconds=begins_s),
        ends_at=Timestamp(seconds=begins_s + HOUR_S),
    )


async def test_reservation_is_made_listed_used_and_cancelled(served: Served) -> None:
    tenant_id, secret = await served.house.tenant("acme")
    _, other = await served.house.tenant("other")
    puppet = await Puppet.join(served.house, devices=2)
    request = asked()
    made = (await served.jobs.CreateReservation(request, metadata=bearer(secret))).reservation
    assert (made.tenant_id, made.phase, made.devices, made.devices_held) == (tenant_id, "booked", 2, 0)
    assert made.wanted == "2 × GPU with isolation box together"
    same = (await served.jobs.CreateReservation(request, metadata=bearer(secret))).reservation
    assert same == made
    theirs = await served.house.plane.jobs.submit(
        (await served.house.plane.jobs.authenticate(other)), Submission("true", "theirs")
    )
    job = await served.house.plane.jobs.submit(
        tenant_id, Submission("true", "mine", metadata={"orch.gpus": "2", "orch.reservation": "nightly"})
    )
    await puppet.until(lambda state: state.jobs[job.job_id].status is JobStatus.RUNNING)
    found = await served.jobs.GetReservation(
        reservations_pb2.GetReservationRequest(reservation="nightly"), metadata=bearer(secret)
    )
    assert (found.reservation.devices_held, found.reservation.used) == (2, True)
    explained = await served.jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job="mine"), metadata=bearer(secret))
    assert any("of its reservation 'nightly'" in line for line in explained.placement.explanation)
    waiting = await served.house.plane.jobs.job(theirs.tenant_id, "theirs")
    assert waiting.status is JobStatus.PENDING
    request_it = reservations_pb2.CancelReservationRequest(reservation="nightly")
    for _ in range(2):
        ended = await served.jobs.CancelReservation(request_it, metadata=bearer(secret))
        assert (ended.reservation.phase, ended.reservation.HasField("ended_at")) == ("cancelled", True)
    listed = await served.jobs.ListReservations(
        reservations_pb2.ListReservationsRequest(), metadata=bearer(secret)
    )
    assert list(listed.reservations) == []
    stored = served.house.store.load(Policies())
    assert [one.phase for one in stored.reservations.values()] == ["cancelled"]


async def test_reservation_is_its_tenants_and_the_operators(served: Served) -> None:
    tenant_id, secret = await served.house.tenant("acme")
    _, other = await served.house.tenant("other")
    await Puppet.join(served.house, devices=4)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "--tenant"):
        await served.jobs.CreateReservation(asked(), metadata=served.admin)
    made = (await served.jobs.CreateReservation(asked(tenant="acme"), metadata=served.admin)).reservation
    assert made.tenant_id == tenant_id
    await served.jobs.CreateReservation(asked(), metadata=bearer(other))
    everybody = reservations_pb2.ListReservationsRequest()
    assert len((await served.jobs.ListReservations(everybody, metadata=served.admin)).reservations) == 2
    own = await served.jobs.ListReservations(everybody, metadata=bearer(secret))
    assert list(own.reservations) == [made]
    of_acme = reservations_pb2.ListReservationsRequest(tenant="acme")
    assert len((await served.jobs.ListReservations(of_acme, metadata=served.admin)).reservations) == 1
    with refused(grpc.StatusCode.PERMISSION_DENIED, "own tenant's"):
        await served.jobs.ListReservations(of_acme, metadata=bearer(other))
    with refused(grpc.StatusCode.PERMISSION_DENIED, "own tenant's"):
        await served.jobs.CreateReservation(asked("x", tenant="acme"), metadata=bearer(other))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "2 tenants have a reservation"):
        named = reservations_pb2.GetReservationRequest(reservation="nightly")
        await served.jobs.GetReservation(named, metadata=served.admin)
    by_id = reservations_pb2.CancelReservationRequest(reservation=made.reservation_id)
    with refused(grpc.StatusCode.NOT_FOUND, "did you mean 'nightly'"):
        await served.jobs.CancelReservation(by_id, metadata=bearer(other))
    assert (
        await served.jobs.CancelReservation(by_id, metadata=served.admin)
    ).reservation.phase == "cancelled"
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await served.jobs.ListReservations(everybody)


async def test_reservation_bad_input_is_refused_by_name(served: Served) -> None:
    _, secret = await served.house.tenant("acme")
    await Puppet.join(served.house, devices=2)
    cases = [
        (asked(gpus=3), grpc.StatusCode.FAILED_PRECONDITION, "2 fitting devices serve then"),
        (asked(in_s=-HOUR_S), grpc.StatusCode.INVALID_ARGUMENT, "past"),
        (asked(gpu_model="RTX409O"), grpc.StatusCode.INVALID_ARGUMENT, "did you mean 'RTX4090'"),
        (asked(priority="5"), grpc.StatusCode.INVALID_ARGUMENT, "is said of a job"),
        (asked(""), grpc.StatusCode.INVALID_ARGUMENT, "name"),
        (reservations_pb2.CreateReservationRequest(name="x"), grpc.StatusCode.INVALID_ARGUMENT, "begins_at"),
    ]
    for request, code, said in cases:
        with refused(code, said):
            await served.jobs.CreateReservation(request, metadata=bearer(secret))
    far = asked()
    far.ends_at.seconds = 1 << 50
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "ends_at"):
        await served.jobs.CreateReservation(far, metadata=bearer(secret))
    far.ends_at.seconds = 1 << 39
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no length"):
        await served.jobs.CreateReservation(far, metadata=bearer(secret))


async def test_submit_unknown_reservation_is_refused_and_nothing_is_queued(served: Served) -> None:
    tenant_id, _ = await served.house.tenant("acme")
    with pytest.raises(RefusedError, match="you have none"):
        await served.house.plane.jobs.submit(
            tenant_id, Submission("true", "mine", metadata={"orch.reservation": "nightly"})
        )
    assert await served.house.plane.jobs.jobs(tenant_id) == []
