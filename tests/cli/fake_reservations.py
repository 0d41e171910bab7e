"""Canned answers about reservations."""

# ruff: noqa: N802 -- gRPC calls methods by the names of the protos

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.api.v1 import reservations_pb2
from orchestrator.api.v1.jobs_pb2_grpc import JobsServiceServicer


def reservation() -> reservations_pb2.Reservation:
    return reservations_pb2.Reservation(
        reservation_id="rsv_1",
        tenant_id="ten_1",
        name="nightly",
        wanted="8 × RTX4090 together",
        begins_at=Timestamp(seconds=1_796_112_000),
        ends_at=Timestamp(seconds=1_796_126_400),
        created_at=Timestamp(seconds=1_796_000_000),
        phase="booked",
        devices=8,
        devices_held=2,
        jobs_waiting=3,
    )


class FakeReservations(JobsServiceServicer):
    """One reservation."""

    def __init__(self) -> None:
        self.reserved: list[reservations_pb2.CreateReservationRequest] = []
        self.booked = [reservation()]

    def CreateReservation(
        self, request: reservations_pb2.CreateReservationRequest, context: Any
    ) -> reservations_pb2.CreateReservationResponse:
        self.reserved.append(request)
        if request.name == "full":
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "4 fitting devices serve then, and 8 are asked for"
            )
        return reservations_pb2.CreateReservationResponse(reservation=reservation())

    def ListReservations(self, request: Any, context: Any) -> reservations_pb2.ListReservationsResponse:
        return reservations_pb2.ListReservationsResponse(reservations=self.booked)

    def GetReservation(self, request: Any, context: Any) -> reservations_pb2.GetReservationResponse:
        return reservations_pb2.GetReservationResponse(reservation=reservation())

    def CancelReservation(self, request: Any, context: Any) -> reservations_pb2.CancelReservationResponse:
        ended = reservation()
        ended.phase = "cancelled"
        return reservations_pb2.CancelReservationResponse(reservation=ended)
