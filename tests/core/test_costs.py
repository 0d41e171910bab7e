"""What tips the choice between machines that cost about the same, and that prices decide where they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.ids import JobId, TenantId, WorkerId
from orchestrator.core.jobs import JobPolicy, Package, Pattern, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import need_of
from orchestrator.core.scheduling.costs import COLD_PRICE, LINK_PRICE
from orchestrator.core.scheduling.demand import LEARNT_ARRIVALS_MIN
from orchestrator.core.scheduling.placement import Budget, Filling, JobNeed, Placement
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.scheduling.runner_up import EQUAL
from orchestrator.core.state import State
from orchestrator.core.supply.caches import Cached, CachedKind
from orchestrator.core.supply.evidence import DeviceEvidence, DeviceVendor
from orchestrator.core.supply.fleet import NEBULA, Device, Isolation, Worker
from orchestrator.core.supply.interconnect import (
    INTERCONNECT_WORDS,
    NVLINK,
    PCIE,
    UNKNOWN_OR_NARROW,
    WIDE_PCIE,
    interconnect_rank,
)
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.fleets import AT_MS, device, machine, state_of
from tests.core.worlds import Listed, World, request, sha

CREDIT = 1_000_000
CENT = CREDIT // 100
"""Owners' prices differ by this or more, or not at all."""
PRICE = 36 * CENT

RUNTIME, OTHER = sha("runtime"), sha("other")
IMAGE = f"quay.io/team/image@sha256:{sha('image')}"
PACKAGE = sha("package")

TENANT = TenantId("ten")


def rig(
    name: str,
    gpus: int = 1,
    *,
    price: int = PRICE,
    isolation: Isolation = Isolation.BOX,
    devices: tuple[Device, ...] = (),
    slots: int | None = None,
) -> Worker:
    own = devices or tuple(device(f"{name}-{number}") for number in range(gpus))
    terms = Terms(asks=(Ask("RTX4090", price),))
    return machine(name, *own, isolation=isolation, overlay=NEBULA, terms=terms, slots=slots)


def need(wanted: Requirements, *packages: str, name: str = "job") -> JobNeed:
    return JobNeed(JobId(name), TENANT, wanted, packages=packages)


def placed(state: State, *needs: JobNeed) -> list[Placement]:
    made = plan(state, Listed(list(needs)), AT_MS, Budget())
    assert len(made.placements) == len(needs)
    return list(made.placements)


def chosen(state: State, wanted: Requirements, *packages: str) -> tuple[str, str]:
    """The machine of a job of one, and by what the next best lost."""
    (one,) = placed(state, need(wanted, *packages))
    (share,) = one.shares
    return share.worker_id, one.chosen.runner_up.lost_by if one.chosen.runner_up else ""


def tell(state: State, name: str, cached: Cached) -> None:
    state.caches.put(WorkerId(name), cached)


# ------------------------------------------------------------ what lies ready

READY = (
    (
        Requirements(runtime=RUNTIME),
        (),
        Cached(runtimes=(RUNTIME,)),
        Cached(runtimes=(OTHER,)),
        "the runtime",
    ),
    (
        Requirements(image=IMAGE, isolation=Isolation.CONTAINER),
        (),
        Cached(images=(IMAGE,)),
        Cached(packages=(PACKAGE,)),
        "the image",
    ),
    (Requirements(), (PACKAGE,), Cached(packages=(PACKAGE, OTHER)), Cached(packages=(OTHER,)), "the package"),
)


@pytest.mark.parametrize(("wanted", "packages", "has", "lacks", "what"), READY)
def test_cost_of_equal_machines_is_least_where_it_lies_ready(
    wanted: Requirements, packages: tuple[str, ...], has: Cached, lacks: Cached, what: str
) -> None:
    state = state_of([rig(name, isolation=Isolation.CONTAINER) for name in ("a", "b", "c")])
    assert chosen(state, wanted, *packages)[0] == "a"
    tell(state, "a", lacks)
    tell(state, "b", has)
    assert chosen(state, wanted, *packages) == ("b", f"has to get {what} first")
    tell(state, "c", has)
    assert chosen(state, wanted, *packages) == ("b", EQUAL)


@pytest.mark.parametrize(("wanted", "packages", "has", "lacks", "what"), READY)
def test_cost_of_a_cheaper_machine_is_less_though_nothing_lies_ready(
    wanted: Requirements, packages: tuple[str, ...], has: Cached, lacks: Cached, what: str
) -> None:
    state = state_of(
        [
            rig("dear", isolation=Isolation.CONTAINER),
            rig("cheap", price=PRICE - CENT, isolation=Isolation.CONTAINER),
        ]
    )
    tell(state, "dear", has)
    tell(state, "cheap", lacks)
    assert chosen(state, wanted, *packages) == (
        "cheap",
        "dearer by 0.01 credits an hour",
    ), what


def test_cost_of_all_that_is_no_price_together_is_less_than_a_hundredth_of_a_credit() -> None:
    ready = COLD_PRICE[CachedKind.IMAGE] + COLD_PRICE[CachedKind.PACKAGE]
    assert ready + NVLINK * LINK_PRICE[Pattern.ALL_REDUCE] < CENT


def test_cost_counts_the_networks_runtime_for_a_job_that_names_none() -> None:
    state = State(Policies(jobs=JobPolicy(runtimes=(("default", RUNTIME), ("other", OTHER)))))
    for name in ("a", "b"):
        state.put(rig(name))
    tell(state, "a", Cached(runtimes=(OTHER,)))
    tell(state, "b", Cached(runtimes=(RUNTIME,)))
    assert chosen(state, Requirements())[0] == "b"
    assert chosen(state, Requirements(runtime=OTHER))[0] == "a"


def test_cost_of_a_bare_machine_has_no_runtime_to_be_built() -> None:
    bare = replace(rig("bare", isolation=Isolation.NONE))
    state = State(Policies(jobs=JobPolicy(runtimes=(("default", RUNTIME),))))
    for worker in (rig("boxed"), bare):
        state.put(worker)
    tell(state, "boxed", Cached(runtimes=(OTHER,)))
    assert chosen(state, Requirements())[0] == "bare"


def test_cost_of_a_gang_is_least_where_its_runtime_lies_ready() -> None:
    heads = [machine("head", head_slots=1, isolation=Isolation.BOX, overlay=NEBULA)]
    state = state_of([*(rig(name) for name in "abcd"), *heads])
    for name in ("b", "d"):
        tell(state, name, Cached(runtimes=(RUNTIME,)))
    (one,) = placed(state, need(Requirements(gpus=2, runtime=RUNTIME)))
    assert {share.worker_id for share in one.shares} == {"b", "d"}
    assert one.explanation[-1] == "2 of 2 machines have the runtime already"


def test_head_host_that_has_the_package_is_preferred_to_a_roomier_one() -> None:
    def heads() -> list[Worker]:
        rooms = (("few", 1), ("many", 4), ("most", 9))
        return [
            machine(name, head_slots=slots, isolation=Isolation.BOX, overlay=NEBULA) for name, slots in rooms
        ]

    state = state_of([*(rig(name) for name in "abcd"), *heads()])
    gang = Requirements(gpus=2)
    assert placed(state, need(gang, PACKAGE))[0].head_host == "most"
    tell(state, "few", Cached(packages=(PACKAGE,)))
    tell(state, "many", Cached(packages=(PACKAGE,)))
    (one,) = placed(state, need(gang, PACKAGE))
    assert one.head_host == "many", "of those that have it the roomiest"
    assert one.explanation[-1] == "the head host has the package already"
    assert placed(state, need(gang))[0].head_host == "most"
    tell(state, "many", Cached())
    first, second = placed(state, need(gang, PACKAGE, name="j1"), need(gang, PACKAGE, name="j2"))
    assert (first.head_host, second.head_host) == ("few", "most"), "its one slot is taken"


def test_need_of_a_job_names_its_packages() -> None:
    world = World()
    job = world.state.jobs[world.submit()]
    packages = (Package("gcs://_ray_pkg_1.zip", PACKAGE, 10), Package("gcs://_ray_pkg_2.zip", OTHER, 10))
    job = replace(job, request=replace(request(), packages=packages))
    assert need_of(world.state, job, world.at_ms).packages == (PACKAGE, OTHER)


def test_filling_takes_the_machine_that_has_the_runtime() -> None:
    world = World(Policies(jobs=JobPolicy(runtimes=(("default", RUNTIME),))))
    world.head_host(isolation=Isolation.BOX, overlay=NEBULA)
    for _ in range(4):
        world.worker(isolation=Isolation.BOX, overlay=NEBULA)
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    taken = {member.worker_id for member in world.members(job_id)}
    ready = [one for one in world.state.workers if one not in taken][-1]
    world.state.caches.put(ready, Cached(runtimes=(RUNTIME,)))
    world.fail(next(member for member in world.members(job_id) if member.device_ids))
    made = world.plan()
    assert [one.share.worker_id for one in made.fillings] == [ready]
    assert isinstance(made.fillings[0], Filling)


# ------------------------------------------------------------ interconnect


def linked(name: str, **facts: Any) -> Device:
    evidence = DeviceEvidence(vendor=DeviceVendor.NVIDIA, model="RTX4090", memory_bytes=1, **facts)
    return replace(device(name), evidence=evidence)


@pytest.mark.parametrize(
    ("facts", "rank"),
    [
        ({}, UNKNOWN_OR_NARROW),
        ({"pcie_width": 1, "pcie_width_max": 16, "pcie_generation_max": 3}, UNKNOWN_OR_NARROW),
        ({"pcie_width": 4, "pcie_generation_max": 3}, UNKNOWN_OR_NARROW),
        ({"pcie_width": 4, "pcie_generation_max": 4}, PCIE),
        ({"pcie_width": 8}, PCIE),
        ({"pcie_width": 16, "pcie_generation": 1, "pcie_generation_max": 3}, PCIE),
        ({"pcie_width": 16, "pcie_width_max": 16, "pcie_generation_max": 4}, WIDE_PCIE),
        ({"pcie_width": 8, "pcie_generation_max": 5}, WIDE_PCIE),
        ({"pcie_width": 16, "pcie_generation_max": 9}, WIDE_PCIE),
        ({"pcie_width": 16, "pcie_generation_max": 0}, PCIE),
        ({"nvlink_links": 0, "pcie_width": 16, "pcie_generation_max": 4}, WIDE_PCIE),
        ({"nvlink_links": 18, "pcie_width": 8}, NVLINK),
    ],
)
def test_interconnect_is_ranked_by_what_the_links_carry(facts: dict[str, int], rank: int) -> None:
    assert interconnect_rank([linked("a", **facts)]) == rank
    assert INTERCONNECT_WORDS[rank]


def test_interconnect_of_a_machine_is_that_of_its_worst_device() -> None:
    good, bad = linked("a", nvlink_links=4), linked("b", pcie_width=1)
    assert interconnect_rank([good, good]) == NVLINK
    assert interconnect_rank([good, bad]) == UNKNOWN_OR_NARROW
    assert interconnect_rank([replace(good, evidence=None), good]) == UNKNOWN_OR_NARROW
    assert interconnect_rank([]) == UNKNOWN_OR_NARROW


def pair(name: str, price: int = PRICE, **facts: int) -> Worker:
    return rig(name, price=price, devices=tuple(linked(f"{name}-{one}", **facts) for one in range(2)))


@pytest.mark.parametrize(
    ("wanted", "taken", "why"),
    [
        (Requirements(gpus=2), "b", "its devices are linked less well, by wide PCIe"),
        (
            Requirements(gpus=2, pattern=Pattern.PIPELINE),
            "b",
            "its devices are linked less well, by wide PCIe",
        ),
        (Requirements(gpus=2, pattern=Pattern.INDEPENDENT), "a", EQUAL),
        (Requirements(gpus=1), "a", EQUAL),
    ],
)
def test_cost_of_equal_machines_is_least_with_the_better_links_where_they_are_felt(
    wanted: Requirements, taken: str, why: str
) -> None:
    state = state_of([pair("a", pcie_width=16, pcie_generation_max=4), pair("b", nvlink_links=4)])
    assert chosen(state, wanted) == (taken, why)


def test_cost_of_a_cheaper_machine_is_less_whatever_its_links() -> None:
    state = state_of([pair("cheap", PRICE - CENT, pcie_width=1), pair("dear", nvlink_links=4)])
    assert chosen(state, Requirements(gpus=2))[0] == "cheap"


def test_cost_of_a_gang_counts_links_where_a_member_brings_several() -> None:
    def fleet() -> State:
        rigs = [
            pair("a", pcie_width=16),
            pair("b", nvlink_links=4),
            pair("c", pcie_width=1),
            pair("d", nvlink_links=2),
        ]
        return state_of([*rigs, machine("head", head_slots=1, isolation=Isolation.BOX, overlay=NEBULA)])

    def members(wanted: Requirements) -> set[str]:
        return {share.worker_id for share in placed(fleet(), need(wanted))[0].shares}

    assert members(Requirements(gpus=4)) == {"b", "d"}
    assert members(Requirements(gpus=4, gpus_per_worker=2)) == {"b", "d"}
    assert members(Requirements(gpus=4, pattern=Pattern.INDEPENDENT)) == {"a", "b"}
    assert members(Requirements(gpus=2, gpus_per_worker=1)) == {"a", "b"}, "each brings one"


# ------------------------------------------------------------ what is left


def wanting(state: State, *sizes: int, count: int = 40 * LEARNT_ARRIVALS_MIN) -> State:
    for _ in range(count):
        for size in sizes:
            state.demand.arrived(Requirements(gpus=size), AT_MS)
    return state


def test_cost_of_what_is_left_keeps_a_whole_machine_for_those_who_want_one() -> None:
    fleet = [rig("eight", 8), rig("nine", 9)]
    assert chosen(state_of(fleet), Requirements())[0] == "eight", "nothing is known: what leaves least"
    worker_id, why = chosen(wanting(state_of(fleet), 8), Requirements())
    assert (worker_id, why) == ("nine", "breaks up a machine whose rest is of more use")


def test_cost_of_what_is_left_gives_way_to_a_price() -> None:
    fleet = [rig("eight", 8, price=PRICE - CENT), rig("nine", 9)]
    assert chosen(wanting(state_of(fleet), 8), Requirements())[0] == "eight"


def test_cost_of_the_last_slot_is_all_that_is_left_behind_it() -> None:
    fleet = [rig("shut", 4, slots=1), rig("open", 4, slots=4)]
    assert chosen(state_of(fleet), Requirements())[0] == "open"
    assert chosen(state_of(fleet), Requirements(gpus=4))[1] == EQUAL, "it takes all: the same"


def test_cost_of_the_last_slot_counts_once_a_plan_has_come_to_it() -> None:
    state = state_of([rig("a", 4, slots=2), rig("b", 5, slots=5)])
    made = placed(state, *(need(Requirements(), name=f"j{number}") for number in range(3)))
    assert [one.shares[0].worker_id for one in made] == ["a", "b", "b"], (
        "a's last slot would take two more with it"
    )


def test_cost_follows_what_the_same_plan_has_given_away() -> None:
    """Jobs fill a machine before they begin another, though each choice is made of remembered costs."""
    state = state_of([rig("a", 4), rig("b", 4), rig("c", 2)])
    made = placed(state, *(need(Requirements(), name=f"j{number}") for number in range(10)))
    assert [one.shares[0].worker_id for one in made] == ["c"] * 2 + ["a"] * 4 + ["b"] * 4
