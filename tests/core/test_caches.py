"""What lies ready on workers, as a measurement of its own: kept by worker, asked for all, and forgotten with them."""

from __future__ import annotations

import numpy as np

from orchestrator.core import messages as m
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.caches import CACHED_MAX, COLUMNS_MIN, Cached, CachedKind, Caches, of_numbers
from tests.core.worlds import World, sha

A, B = WorkerId("a"), WorkerId("b")
ONE, OTHER = sha("one"), sha("other")
IMAGE = f"quay.io/team/image@sha256:{sha('image')}"
FAR = COLUMNS_MIN * 3


def caches() -> Caches:
    return Caches({A: 0, B: FAR}.__getitem__)


def having(known: Caches, kind: CachedKind, name: str) -> list[int]:
    """Numbers of those that have it, of all and of nobody."""
    numbers = np.arange(-1, 2 * FAR, dtype=np.int64)
    found: list[int] = numbers[of_numbers(known.holders(kind, name), numbers)].tolist()
    return found


def test_caches_know_each_kind_of_each_worker() -> None:
    known = caches()
    known.put(A, Cached(runtimes=(ONE, OTHER), packages=(OTHER,)))
    known.put(B, Cached(runtimes=(OTHER,), images=(IMAGE,)))
    assert having(known, CachedKind.RUNTIME, ONE) == [0]
    assert having(known, CachedKind.RUNTIME, OTHER) == [0, FAR]
    assert having(known, CachedKind.IMAGE, IMAGE) == [FAR]
    assert having(known, CachedKind.PACKAGE, ONE) == []
    assert known.has(A, CachedKind.PACKAGE, (OTHER,))
    assert not known.has(A, CachedKind.PACKAGE, (OTHER, ONE)), "all of them are needed"
    assert not known.has(WorkerId("nobody"), CachedKind.PACKAGE, (OTHER,))
    assert known.has(WorkerId("nobody"), CachedKind.PACKAGE, ())


def test_caches_replace_what_a_worker_said_before_and_forget_it() -> None:
    known = caches()
    known.put(A, Cached(runtimes=(ONE, OTHER)))
    known.put(A, Cached(runtimes=(OTHER,)))
    assert having(known, CachedKind.RUNTIME, ONE) == []
    known.put(A, Cached(runtimes=(ONE, OTHER)))
    known.put(A, Cached(runtimes=(ONE,)))
    assert (having(known, CachedKind.RUNTIME, OTHER), len(known)) == ([], 1)
    known.forget(A)
    known.forget(A)
    assert (having(known, CachedKind.RUNTIME, ONE), len(known)) == ([], 0)


def test_caches_keep_so_many_of_a_kind_and_no_more() -> None:
    known = caches()
    names = tuple(sha(str(number)) for number in range(CACHED_MAX[CachedKind.PACKAGE] + 1))
    known.put(A, Cached(packages=names))
    assert known.has(A, CachedKind.PACKAGE, names[:-1])
    assert not known.has(A, CachedKind.PACKAGE, names[-1:])


def test_state_forgets_what_lay_on_a_worker_that_left() -> None:
    world = World()
    gone, stays = world.worker(), world.worker()
    for worker_id in (gone, stays):
        world.state.caches.put(worker_id, Cached(runtimes=(ONE,)))
    before = world.state.rows()
    world.do(m.DrainWorker(gone))
    assert world.state.caches.has(gone, CachedKind.RUNTIME, (ONE,)), "it may yet be asked to stay"
    world.do(m.LeaveWorker(gone, told=True))
    assert not world.state.caches.has(gone, CachedKind.RUNTIME, (ONE,))
    assert world.state.caches.has(stays, CachedKind.RUNTIME, (ONE,))
    assert before != world.state.rows()
    assert "caches" not in world.state.rows(), "measurements are not stored"
