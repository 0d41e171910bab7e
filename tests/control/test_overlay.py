"""What a worker is told of the overlay: addresses, certificates, who is shut out, and when it is told again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from orchestrator.adapters.overlay.certificates import (
    Authority,
    new_key,
    next_window_ms,
    windows_valid,
)
from orchestrator.api.v1 import common_pb2, worker_pb2
from orchestrator.control import overlay as module
from orchestrator.control.desires import Desires
from orchestrator.control.overlay import (
    CERTIFICATE_LIFE_MS,
    RESERVED_HOSTS,
    Beacon,
    Overlay,
    group_of,
    retell,
)
from orchestrator.core.clusters import Member
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, MemberId, Now, WorkerId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import NEBULA, Isolation
from tests.core.worlds import START_WALL_MS, World
from tests.nebula_certificates import read_certificate
from tests.polling import wait_until_async

NETWORK = IPv4Network("198.18.0.0/15")
BEACON = Beacon("198.18.0.1", "192.0.2.1:4242", "192.0.2.1:443")
DIGEST = "aa" * 32
RUNTIME = common_pb2.Runtime(name="default", digest=DIGEST, python="3.11", lock=b"ray==2.60.0")
AUTHORITY = Authority.create(bytes(32), "orchestrator-overlay", 1, 2**32)


def plan_of(network: IPv4Network = NETWORK, *beacons: Beacon) -> Overlay:
    return Overlay(AUTHORITY, network, beacons, lambda member_id: f"{member_id}.opens", bytes(32))


def gang(isolation: Isolation = Isolation.BOX) -> tuple[World, JobId]:
    """A cluster of two machines and a head that is being prepared."""
    world = World(Policies(jobs=JobPolicy(runtimes=(("default", DIGEST),))))
    overlay = NEBULA if isolation is Isolation.BOX else "none"
    for _ in range(2):
        world.worker(isolation=isolation, overlay=overlay)
    world.head_host(isolation=isolation, overlay=overlay)
    job_id = world.submit(Requirements(gpus=2, isolation=isolation))
    world.plan()
    assert len(world.members(job_id)) == 3
    return world, job_id


def key_of(member_id: MemberId) -> bytes:
    return new_key(member_id.encode().ljust(32, b"k")[-32:]).public_bytes


def show_keys(world: World) -> None:
    """Every member has made its key, as its agent says."""
    for worker_id in list(world.state.workers):
        shown = tuple(
            replace(one, address=replace(one.address, overlay_key=key_of(one.member_id).hex()), up=False)
            for one in world.honest(worker_id)
            if one.address is not None
        )
        world.report(worker_id, shown)


def told(world: World, member: Member, overlay: Overlay | None = None) -> worker_pb2.DesiredMember:
    """What its worker is told of one member."""
    desires = Desires(lambda _: "token", lambda _: {}, {DIGEST: RUNTIME}, overlay or plan_of(NETWORK, BEACON))
    desired = desires.of(world.state, member.worker_id, world.now())
    (found,) = (one for one in desired.members if one.member_id == member.member_id)
    return found


# ------------------------------------------------------------ what a member is told


def test_desired_member_before_its_key_is_known_has_an_address_and_no_certificate() -> None:
    world, job_id = gang()
    for member in world.members(job_id):
        entry = told(world, member).overlay
        assert entry.address == f"198.18.1.{member.overlay_host}/15"
        assert (entry.certificate, entry.group) == (b"", group_of(world.cluster(job_id)))


def test_desired_member_once_its_key_is_known_has_a_certificate_for_it() -> None:
    world, job_id = gang()
    show_keys(world)
    for member in world.members(job_id):
        entry = told(world, member).overlay
        certificate = read_certificate(entry.certificate.decode())
        assert certificate.name == member.member_id
        assert certificate.addresses == (entry.address,)
        assert certificate.groups == (entry.group,)
        assert certificate.public_key == key_of(member.member_id)
        assert certificate.issuer == AUTHORITY.fingerprint
        assert certificate.not_before_s * 1000 <= START_WALL_MS < certificate.not_after_s * 1000
        assert entry.authorities.decode() == AUTHORITY.certificate_pem
        assert [(one.address, one.endpoint, one.bridge) for one in entry.beacons] == [
            (BEACON.address, BEACON.endpoint, BEACON.bridge)
        ]


def test_desired_member_certificate_is_the_same_all_through_a_window_and_another_in_the_next() -> None:
    world, job_id = gang()
    show_keys(world)
    member = world.members(job_id)[0]
    first = told(world, member).overlay.certificate
    left_ms = next_window_ms(world.wall_ms, CERTIFICATE_LIFE_MS) - world.wall_ms
    world.forward(left_ms - 1)
    assert told(world, member).overlay.certificate == first
    world.forward(1)
    renewed = told(world, member).overlay.certificate
    assert renewed != first
    # The old one counts for half its life more, so that nobody is ever without.
    assert read_certificate(first.decode()).not_after_s * 1000 - world.wall_ms == CERTIFICATE_LIFE_MS // 2


def test_desired_member_has_its_runtime_without_the_lock() -> None:
    world, job_id = gang()
    found = told(world, world.members(job_id)[0])
    assert (found.runtime.digest, found.runtime.lock, found.isolation) == (DIGEST, b"", "box")
    assert RUNTIME.lock


def test_desired_member_that_is_bare_has_neither_runtime_nor_overlay() -> None:
    world, job_id = gang(Isolation.NONE)
    for member in world.members(job_id):
        found = told(world, member)
        assert not found.HasField("runtime")
        assert not found.HasField("overlay")
        assert (found.isolation, list(found.probe_peers)) == ("none", [])


def test_desired_member_in_an_image_is_told_of_it_in_place_of_a_runtime() -> None:
    world = World(Policies(jobs=JobPolicy(runtimes=(("default", DIGEST),))))
    world.worker(isolation=Isolation.CONTAINER)
    image = f"docker.io/team/image@sha256:{'ab' * 32}"
    job_id = world.submit(Requirements(isolation=Isolation.CONTAINER, image=image))
    world.plan()
    found = told(world, world.members(job_id)[0])
    assert (found.isolation, found.image, found.HasField("runtime")) == ("container", image, False)


def test_desired_member_of_a_network_without_overlay_has_none() -> None:
    world, job_id = gang()
    member = world.members(job_id)[0]
    desires = Desires(lambda _: "token", lambda _: {}, {DIGEST: RUNTIME})
    (found, *_) = desires.of(world.state, member.worker_id, world.now()).members
    assert not found.HasField("overlay")


def test_desired_member_opens_bridges_only_where_a_beacon_has_one() -> None:
    world, job_id = gang()
    member = world.members(job_id)[0]
    assert told(world, member).overlay.bridge_token == f"{member.member_id}.opens"
    plain = plan_of(NETWORK, replace(BEACON, bridge=""))
    assert told(world, member, plain).overlay.bridge_token == ""


# ------------------------------------------------------------ who is shut out


def test_blocked_is_every_certificate_that_an_expelled_member_may_still_hold() -> None:
    world, job_id = gang()
    show_keys(world)
    lost = next(member for member in world.members(job_id) if member.device_ids)
    held = told(world, lost).overlay.certificate
    world.worker(isolation=Isolation.BOX, overlay=NEBULA)
    world.fail(lost)
    world.plan()
    stays = next(member for member in world.members(job_id) if not member.device_ids)
    blocked = list(told(world, stays).overlay.blocked)
    assert read_certificate(held.decode()).fingerprint in blocked
    assert len(blocked) == len(windows_valid(world.wall_ms, CERTIFICATE_LIFE_MS))
    # Nobody who stays is among them.
    for member in world.members(job_id):
        certificate = told(world, member).overlay.certificate
        if certificate:
            assert read_certificate(certificate.decode()).fingerprint not in blocked


def test_blocked_is_empty_while_nobody_was_expelled() -> None:
    world, job_id = gang()
    show_keys(world)
    assert [list(told(world, member).overlay.blocked) for member in world.members(job_id)] == [[]] * 3


def test_group_of_another_cluster_is_another_one() -> None:
    world, job_id = gang()
    cluster = world.cluster(job_id)
    other = replace(cluster, cluster_id=type(cluster.cluster_id)(f"{cluster.cluster_id}0"))
    assert group_of(cluster) != group_of(other)


# ------------------------------------------------------------ the address plan


def test_bare_address_first_and_last_host_of_the_network() -> None:
    small = plan_of(IPv4Network("198.18.0.0/22"))
    assert small.bare_address(1) == "198.18.1.1"
    last = 1024 - 2 - RESERVED_HOSTS
    assert small.bare_address(last) == "198.18.3.254"
    with pytest.raises(RefusedError) as refused:
        small.bare_address(last + 1)
    assert refused.value.code is RefusalCode.EXHAUSTED


def test_bare_address_never_is_a_beacons() -> None:
    beacons = {str(NETWORK.network_address + number) for number in range(RESERVED_HOSTS)}
    assert not beacons & {plan_of().bare_address(host) for host in range(1, 2_000)}


# ------------------------------------------------------------ telling again


class Wall:
    """A wall clock that a test sets."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms
        self.looks = 0

    def now(self) -> Now:
        self.looks += 1
        return Now(self.wall_ms, 0, "boot")

    def elapsed_s(self) -> float:
        return 0.0


async def test_retell_tells_once_for_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    wall, times = Wall(START_WALL_MS), list[int]()
    task = asyncio.create_task(retell(wall, lambda: times.append(wall.wall_ms)))

    async def look_again() -> None:
        seen = wall.looks
        await wait_until_async(lambda: wall.looks > seen + 1, what="two looks", deadline_s=60)

    try:
        await look_again()
        assert times == []
        for _ in range(2):
            wall.wall_ms = next_window_ms(wall.wall_ms, CERTIFICATE_LIFE_MS)
            await look_again()
            await look_again()
        assert times == [
            next_window_ms(START_WALL_MS, CERTIFICATE_LIFE_MS),
            next_window_ms(START_WALL_MS, CERTIFICATE_LIFE_MS) + CERTIFICATE_LIFE_MS // 2,
        ]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_worker_is_told_of_its_own_members_only() -> None:
    world, job_id = gang()
    members = world.members(job_id)
    desires = Desires(lambda _: "token", lambda _: {}, {}, plan_of())
    lists = [
        {one.member_id for one in desires.of(world.state, WorkerId(member.worker_id), world.now()).members}
        for member in members
    ]
    assert lists == [{member.member_id} for member in members]
