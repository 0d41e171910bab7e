"""Members: converging on a list, devices never shared, and what an agent's restart finds."""

from __future__ import annotations

import pytest

from orchestrator.adapters.node_records import OverlayBeacon, OverlayEntry, RuntimeName
from orchestrator.adapters.runtimes import RuntimeUnavailableError
from orchestrator.agent.members import Members
from orchestrator.api.v1 import common_pb2, overlay_pb2, worker_pb2
from tests.agent.fakes import HOST, FakeNodes, desired_member, settled

SOON_MS = 2_000_000


@pytest.fixture
async def nodes() -> FakeNodes:
    return FakeNodes()


@pytest.fixture
async def members(nodes: FakeNodes) -> Members:
    made = Members(nodes, 2, frozenset({"d0", "d1"}))
    made.renew(SOON_MS)
    return made


async def converge(members: Members, rounds: int = 4) -> None:
    for _ in range(rounds):
        members.observe()
        members.converge()
        await settled()
    members.observe()


def phase_of(members: Members, member_id: str) -> int:
    return next(report.phase for report in members.report() if report.member_id == member_id)


async def test_members_prepare_stage_takes_ports_and_starts_nothing(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([desired_member("m-0", "d0", stage=worker_pb2.MEMBER_STAGE_PREPARE)])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0")]
    (report,) = members.report()
    assert report.phase == worker_pb2.MEMBER_PHASE_PREPARED
    assert (report.address.host_id, dict(report.address.ports)) == (HOST, {"gcs": 7})


async def test_members_run_stage_starts_once_and_reports_up_with_its_address(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    nodes.come_up("m-0")
    await converge(members)
    assert nodes.calls == [("prepare", "m-0"), ("start", "m-0")]
    assert nodes.deadlines_ms["m-0"] == SOON_MS
    (report,) = members.report()
    assert report.phase == worker_pb2.MEMBER_PHASE_UP
    assert report.address.gcs_address == "10.0.0.1:1"
    assert report.fence.term == 1


async def test_members_member_role_is_started_with_the_heads_address(
    members: Members, nodes: FakeNodes
) -> None:
    head = worker_pb2.NodeAddress(gcs_address="10.0.0.9:1", host_id="h", temp_dir="/t")
    members.want([desired_member("m-1", "d0", role=worker_pb2.MEMBER_ROLE_MEMBER, head=head)])
    await converge(members)
    given = nodes.heads["m-1"]
    assert given is not None
    assert (given.gcs_address, given.host_id, given.temp_dir) == ("10.0.0.9:1", "h", "/t")


async def test_members_before_any_acknowledged_heartbeat_nothing_starts(nodes: FakeNodes) -> None:
    members = Members(nodes, 2, frozenset())
    members.want([desired_member("m-0")])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0")]
    members.renew(SOON_MS)
    await converge(members)
    assert ("start", "m-0") in nodes.calls


async def test_members_after_await_renewal_nothing_starts_on_an_old_deadline(
    members: Members, nodes: FakeNodes
) -> None:
    members.await_renewal()
    members.want([desired_member("m-0")])
    await converge(members)
    assert ("start", "m-0") not in nodes.calls


async def test_members_device_of_one_still_stopping_waits_until_it_is_gone(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    nodes.come_up("m-0")
    nodes.may_stop.clear()
    members.want([desired_member("m-1", "d0"), desired_member("m-2", "d1")])
    await converge(members)
    assert ("prepare", "m-1") not in nodes.calls
    assert ("start", "m-2") in nodes.calls
    assert phase_of(members, "m-0") == worker_pb2.MEMBER_PHASE_STOPPING
    nodes.may_stop.set()
    await converge(members)
    assert nodes.calls.index(("stop", "m-0")) < nodes.calls.index(("prepare", "m-1"))
    assert ("start", "m-1") in nodes.calls


async def test_members_after_a_restart_unwanted_nodes_hold_every_device_until_gone(
    nodes: FakeNodes,
) -> None:
    nodes.come_up("old")
    nodes.may_stop.clear()
    members = Members(nodes, 2, frozenset({"d0"}))
    members.renew(SOON_MS)
    members.want([desired_member("new", "d0")])
    await converge(members)
    assert nodes.calls == [("stop", "old")]
    nodes.may_stop.set()
    await converge(members)
    assert nodes.calls[1:] == [("prepare", "new"), ("start", "new")]


async def test_members_after_a_restart_a_running_node_is_adopted_with_its_ports(nodes: FakeNodes) -> None:
    nodes.come_up("m-0")
    members = Members(nodes, 2, frozenset({"d0"}))
    members.want([desired_member("m-0", "d0")])
    members.observe()
    assert not members.report()[0].HasField("address")
    await converge(members)
    assert nodes.calls == [("prepare", "m-0")]
    assert members.report()[0].address.host_id == HOST


async def test_members_after_a_restart_with_other_settings_what_runs_is_kept(nodes: FakeNodes) -> None:
    nodes.come_up("m-0")
    nodes.prepare_error = ValueError("already prepared with other properties")
    members = Members(nodes, 4, frozenset({"d0"}))
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    assert phase_of(members, "m-0") == worker_pb2.MEMBER_PHASE_UP


async def test_members_failed_preparation_is_reported_and_not_tried_again(
    members: Members, nodes: FakeNodes
) -> None:
    nodes.prepare_error = RuntimeError("no free port block")
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0")]
    (report,) = members.report()
    assert (report.phase, report.reason) == (worker_pb2.MEMBER_PHASE_FAILED, "no free port block")
    members.want([])
    assert members.report() == []


async def test_members_device_of_one_whose_preparation_failed_is_free_once_it_is_not_wanted(
    members: Members, nodes: FakeNodes
) -> None:
    nodes.prepare_error = RuntimeError("no free port block")
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    nodes.prepare_error = None
    members.want([desired_member("m-1", "d0")])
    await converge(members)
    assert ("start", "m-1") in nodes.calls
    assert ("stop", "m-0") not in nodes.calls


async def test_members_renew_moves_wanted_nodes_only_and_survives_one_that_went(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([desired_member("m-0", "d0"), desired_member("m-1", "d1")])
    await converge(members)
    nodes.come_up("m-0")
    nodes.come_up("m-1")
    nodes.become("stray", "up")
    members.observe()
    del nodes.nodes["m-0"]
    members.renew(SOON_MS + 1)
    assert nodes.deadlines_ms["m-1"] == SOON_MS + 1
    assert "stray" not in nodes.deadlines_ms


async def test_members_nothing_wanted_ends_everything_and_is_empty(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([desired_member("m-0", "d0")])
    await converge(members)
    members.want([])
    before = members.empty
    await converge(members)
    assert (before, members.empty) == (False, True)
    assert members.report() == []


# ------------------------------------------------------------ boxes and the overlay

RUNTIME = common_pb2.Runtime(name="default", digest="aa" * 32)


def membership(
    certificate: bytes = b"certificate", blocked: tuple[str, ...] = ()
) -> overlay_pb2.OverlayMembership:
    """What a boxed member of several machines is told; without a certificate until its key is known."""
    return overlay_pb2.OverlayMembership(
        address="198.18.1.7/15",
        certificate=certificate,
        authorities=b"authorities",
        group="cluster-c-1",
        beacons=[overlay_pb2.OverlayBeacon(address="198.18.0.1", endpoint="192.0.2.1:4242", bridge="")],
        blocked=blocked,
    )


def entry(certificate: str = "certificate", blocked: tuple[str, ...] = ()) -> OverlayEntry:
    """The same as the driver is told it."""
    return OverlayEntry(
        address="198.18.1.7/15",
        certificate=certificate,
        authorities="authorities",
        group="cluster-c-1",
        beacons=(OverlayBeacon("198.18.0.1", "192.0.2.1:4242", ""),),
        blocked=blocked,
    )


def boxed(**fields: object) -> worker_pb2.DesiredMember:
    return desired_member("m-0", "d0", isolation="box", runtime=RUNTIME, **fields)


async def test_members_boxed_order_names_isolation_runtime_address_and_devices(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed(overlay=membership())])
    await converge(members)
    order = nodes.orders["m-0"]
    assert (order.isolation, order.runtime) == ("box", RuntimeName("default", "aa" * 32))
    assert (order.overlay_address, order.device_ids, order.gpus) == ("198.18.1.7/15", ("d0",), 1)


async def test_members_container_order_names_its_image(members: Members, nodes: FakeNodes) -> None:
    image = f"docker.io/team/image@sha256:{'ab' * 32}"
    members.want([desired_member("m-0", "d0", isolation="container", image=image)])
    await converge(members)
    order = nodes.orders["m-0"]
    assert (order.isolation, order.image, order.runtime) == ("container", image, None)


@pytest.mark.parametrize("told", ["", "none", "vault"])
async def test_members_order_of_an_unknown_or_no_isolation_is_bare(
    members: Members, nodes: FakeNodes, told: str
) -> None:
    members.want([desired_member("m-0", "d0", isolation=told)])
    await converge(members)
    order = nodes.orders["m-0"]
    assert (order.isolation, order.runtime, order.overlay_address) == ("none", None, "")
    assert nodes.entries["m-0"] == [None]


async def test_members_runtime_that_cannot_be_had_fails_the_member_with_the_reason(
    members: Members, nodes: FakeNodes
) -> None:
    nodes.prepare_error = RuntimeUnavailableError("no package index can be reached")
    members.want([boxed()])
    await converge(members)
    (report,) = members.report()
    assert (report.phase, report.reason) == (
        worker_pb2.MEMBER_PHASE_FAILED,
        "no package index can be reached",
    )
    assert nodes.calls == [("prepare", "m-0")]


async def test_members_that_build_their_runtime_are_reported_as_provisioning(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed(stage=worker_pb2.MEMBER_STAGE_PREPARE)])
    members.observe()
    members.converge()
    nodes.become("m-0", "provisioning")
    members.observe()
    assert phase_of(members, "m-0") == worker_pb2.MEMBER_PHASE_PROVISIONING


async def test_members_in_an_overlay_start_only_with_their_certificate(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed(overlay=membership(b""))])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0")]
    members.want([boxed(overlay=membership())])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0"), ("start", "m-0")]
    assert nodes.entries["m-0"] == [entry()]


async def test_members_boxed_without_an_overlay_wait_for_no_certificate(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed()])
    await converge(members)
    assert nodes.calls == [("prepare", "m-0"), ("start", "m-0")]


async def test_members_renewed_certificate_and_who_is_shut_out_reach_a_running_node(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed(overlay=membership())])
    await converge(members)
    nodes.come_up("m-0")
    await converge(members)
    members.want([boxed(overlay=membership(b"renewed"))])
    members.want([boxed(overlay=membership(b"renewed", ("ab",)))])
    assert nodes.entries["m-0"] == [entry(), entry("renewed"), entry("renewed", ("ab",))]


async def test_members_certificate_before_the_start_goes_with_the_start_alone(
    members: Members, nodes: FakeNodes
) -> None:
    members.want([boxed(overlay=membership(), stage=worker_pb2.MEMBER_STAGE_PREPARE)])
    await converge(members)
    members.want([boxed(overlay=membership(b"renewed"))])
    assert ("enter_overlay", "m-0") not in nodes.calls
    await converge(members)
    assert nodes.entries["m-0"] == [entry("renewed")]


@pytest.mark.parametrize("error", [KeyError("m-0"), OSError("disk full"), ValueError("no bridge")])
async def test_members_renewal_that_fails_leaves_the_node_running(
    members: Members, nodes: FakeNodes, error: Exception
) -> None:
    members.want([boxed(overlay=membership())])
    await converge(members)
    nodes.come_up("m-0")
    await converge(members)
    nodes.enter_error = error
    members.want([boxed(overlay=membership(b"renewed"))])
    await converge(members)
    assert members.running() == ["m-0"]
    assert phase_of(members, "m-0") == worker_pb2.MEMBER_PHASE_UP
