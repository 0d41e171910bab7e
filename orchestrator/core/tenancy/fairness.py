"""Whose turn it is: weighted dominant-resource fairness that remembers.

A tenant's *share* is the largest part of any one resource of the fleet that it holds, and holds lately, divided by its
weight. Whoever has the smallest share is next. What it is given raises its share, so a plan that hands out much at once
goes round among the tenants instead of serving one of them first.

**Memory** is the exponential mean of what a tenant held. It is kept as the *deviation* of that mean from what it holds
now, in units that grow with time as fast as memory fades: between two changes nothing has to be computed, a change is an
addition, and every tenant's memory at one moment is a shift and one division by the same number. Changes may come in
any order within a period. What counts of it is the *order*: who had least lately stands first, and each other one
behind it by its place, whatever the amounts beyond a small one. So memory tells after minutes as well as after days, and
it can be bounded: between the first and the last lie two fair shares at most (``memory_bp``). What a tenant used while
nobody else wanted it delays it but never shuts it out: as soon as all others hold their fair share in the mean, it is its
turn. And it halves in a half-life, so neither a debt nor an idle tenant's credit lasts.

**Priorities** order the jobs of one tenant (``Job.queue_place``: priority, then age, then id) and nothing between
tenants. A number that everybody writes for himself cannot say who of two strangers goes first; weights, which the
operator gives, can.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.errors import invalid
from orchestrator.core.ids import TenantId
from orchestrator.core.market.worth import worth_milli
from orchestrator.core.supply.catalogue import CPU_MODEL
from orchestrator.core.supply.reliability import BASIS_POINTS, ONE, decayed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Item = TypeVar("Item")

WEIGHT_DEFAULT = 100
"""Not 1, so that half as much can be said."""

WEIGHT_MAX = 1_000_000
"""Ten thousand times the default: beyond it the smallest are nobody, which is said by taking their token."""

SHARE_ONE = 10**18
"""The whole of a resource: one small device of a million, by the largest weight, is still more than nothing."""

GROWTH_BITS = 20
"""A memory is true to a millionth, and that of a whole large fleet still fits 64 bits."""

PERIODS_MAX = 62
"""After as many half-lives nothing is left of any memory."""

NEARLY_MS = 20 * 60_000
"""Whoever is ahead of another by less than a fair share held for so long is so only in part. Less, and who has had a
minute more than others waits until they hold twice his share, in jobs that may last; more, and no hour evens out."""

HALF_LIFE_MS_MIN = 60_000
HALF_LIFE_MS_MAX = 366 * 24 * 3_600_000
"""Under a minute there is no memory, over a year no forgetting."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """An amount of each resource that counts; may be negative where it is a difference."""

    gpu_milli: int = 0
    """Whole GPUs, each by its worth: otherwise an H100 would be as small a share as a card for games."""
    cpus: int = 0
    memory_mib: int = 0

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(
            self.gpu_milli + other.gpu_milli, self.cpus + other.cpus, self.memory_mib + other.memory_mib
        )

    def minus(self, other: Amounts) -> Amounts:
        return Amounts(
            self.gpu_milli - other.gpu_milli, self.cpus - other.cpus, self.memory_mib - other.memory_mib
        )


NOTHING = Amounts()


def total(amounts: Sequence[Amounts]) -> Amounts:
    """All of them together."""
    return Amounts(
        sum(one.gpu_milli for one in amounts),
        sum(one.cpus for one in amounts),
        sum(one.memory_mib for one in amounts),
    )


def amounts_of(models: Iterable[str], cpus: int = 0, memory_mib: int = 0) -> Amounts:
    """What devices of these models are, with the processor and memory held beside them; a processor is no GPU."""
    gpu_milli = sum(worth_milli(model) for model in models if model != CPU_MODEL)
    return Amounts(gpu_milli, cpus, memory_mib)


@dataclass(frozen=True, slots=True)
class FairnessPolicy:
    """What an operator may turn."""

    half_life_ms: int = 24 * 3_600_000
    """Yesterday's use counts half of today's."""
    memory_bp: int = BASIS_POINTS
    """How far memory moves a tenant at most, ahead or behind, in basis points of one fair share; 0 is no memory."""


def check_policy(policy: FairnessPolicy) -> None:
    """Refuse a policy that nobody can mean; raises RefusedError naming the field."""
    if not HALF_LIFE_MS_MIN <= policy.half_life_ms <= HALF_LIFE_MS_MAX:
        raise invalid("fairness.half_life_ms", "the half-life of use must be a minute to 366 days")
    if not 0 <= policy.memory_bp <= BASIS_POINTS:
        raise invalid(
            "fairness.memory_bp",
            f"memory moves a tenant by 0 to {BASIS_POINTS} basis points of a fair share: by more, it could shut one out",
        )


def check_weight(weight: int) -> None:
    """Refuse a weight that orders nothing; raises RefusedError."""
    if not 1 <= weight <= WEIGHT_MAX:
        raise invalid(
            "tenant.weight",
            f"a tenant's weight must be 1 to {WEIGHT_MAX}, and {WEIGHT_DEFAULT} is everybody's; not {weight}",
        )


# ------------------------------------------------------------ memory


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant in the units of memory: made once for all the tenants that are looked at."""

    at_ms: int
    half_life_ms: int
    period: int
    """Half-lives since 1970."""
    growth: int
    """From one to two within a period, in ``GROWTH_BITS``: by how much more a change counts than at its beginning."""


@lru_cache(maxsize=16)
def moment(at_ms: int, half_life_ms: int) -> Moment:
    """The instant ``at_ms`` of control time. All that a plan leads to happens in one."""
    period, into_ms = divmod(max(0, at_ms), half_life_ms)
    growth = 2 * decayed(ONE, half_life_ms - into_ms, half_life_ms)
    return Moment(at_ms, half_life_ms, period, growth * (1 << GROWTH_BITS) // ONE)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant holds, and how far the mean of what it held lies from that. Fit to be stored."""

    held: Amounts = NOTHING
    deviation: Amounts = NOTHING
    """(mean - held) × growth, in units of ``period``."""
    period: int = 0
    half_life_ms: int = 0
    """With which ``deviation`` and ``period`` were written."""


def mean_held(usage: Usage, now: Moment) -> Amounts:
    """The exponential mean of what the tenant held until ``now``: what half-lives of holding less would forget."""
    held = usage.held
    if usage.deviation == NOTHING:
        return held
    deviation = _deviation(usage, now)
    return Amounts(
        max(0, held.gpu_milli + _quotient(deviation.gpu_milli, now.growth)),
        max(0, held.cpus + _quotient(deviation.cpus, now.growth)),
        max(0, held.memory_mib + _quotient(deviation.memory_mib, now.growth)),
    )


def changed(usage: Usage, now: Moment, gained: Amounts = NOTHING, lost: Amounts = NOTHING) -> Usage:
    """With more or less held from ``now`` on: the mean has not moved yet, so the deviation takes up the difference."""
    difference = gained.minus(lost)
    deviation = _deviation(usage, now)
    return Usage(
        held=usage.held.plus(difference),
        deviation=Amounts(
            deviation.gpu_milli - difference.gpu_milli * now.growth,
            deviation.cpus - difference.cpus * now.growth,
            deviation.memory_mib - difference.memory_mib * now.growth,
        ),
        period=max(usage.period, now.period) if usage.half_life_ms == now.half_life_ms else now.period,
        half_life_ms=now.half_life_ms,
    )


def _deviation(usage: Usage, now: Moment) -> Amounts:
    """In units of the moment's period; control time never runs backwards, and an earlier period is taken for the same."""
    deviation = usage.deviation
    if deviation == NOTHING:
        return NOTHING
    if usage.half_life_ms != now.half_life_ms:
        return _in_other_units(usage, now)
    divisor = 1 << min(PERIODS_MAX, max(0, now.period - usage.period))
    if divisor == 1:
        return deviation
    return Amounts(
        _quotient(deviation.gpu_milli, divisor),
        _quotient(deviation.cpus, divisor),
        _quotient(deviation.memory_mib, divisor),
    )


def _in_other_units(usage: Usage, now: Moment) -> Amounts:
    """The operator chose another half-life: from here on the same mean fades by it."""
    before = moment(now.at_ms, usage.half_life_ms)
    mean = mean_held(usage, before)
    away = mean.minus(usage.held)
    return Amounts(away.gpu_milli * now.growth, away.cpus * now.growth, away.memory_mib * now.growth)


def _quotient(value: int, divisor: int) -> int:
    """Rounded towards zero, or a deviation of one unit below would stay for ever."""
    return value // divisor if value >= 0 else -(-value // divisor)


# ------------------------------------------------------------ shares


@dataclass(frozen=True, slots=True)
class Contender:
    """A tenant that wants something or holds something."""

    tenant_id: TenantId
    usage: Usage
    weight: int = WEIGHT_DEFAULT
    since_ms: int = 0
    """When the job was submitted that it would have next: of equals who waits longest is first."""


def dominant_share(amounts: Amounts, capacity: Amounts, weight: int = 1) -> int:
    """The largest share of any one resource over the weight, in SHARE_ONE for a weight of one.

    A resource that the fleet has nothing of says nothing.
    """
    largest = max(
        amounts.gpu_milli * SHARE_ONE // capacity.gpu_milli if capacity.gpu_milli > 0 else 0,
        amounts.cpus * SHARE_ONE // capacity.cpus if capacity.cpus > 0 else 0,
        amounts.memory_mib * SHARE_ONE // capacity.memory_mib if capacity.memory_mib > 0 else 0,
    )
    return largest // weight


def _behind(
    contenders: Sequence[Contender], capacity: Amounts, policy: FairnessPolicy, now_ms: int
) -> dict[TenantId, int]:
    """How far each stands behind whoever had least lately, as a share over the weight.

    That is its place in the order of what they had: the weight of those who had less, in part where it was hardly less.
    Between the first and the last lie two fair shares at most, and what all others are ahead of the last one is then,
    whatever the weights, no more than their fair shares together. O(n log n).
    """
    now = moment(now_ms, policy.half_life_ms)
    weights = max(1, sum(one.weight for one in contenders))
    faded = ONE - decayed(ONE, NEARLY_MS, policy.half_life_ms)
    nearly = max(1, SHARE_ONE * faded // (ONE * weights))
    had = [dominant_share(mean_held(one.usage, now), capacity, one.weight) for one in contenders]
    ordered = sorted(zip(had, (one.weight for one in contenders), strict=True))
    amounts = [amount for amount, _ in ordered]
    weight_before = [0, *accumulate(weight for _, weight in ordered)]
    sum_before = [0, *accumulate(amount * weight for amount, weight in ordered)]

    def place(amount: int) -> int:
        """The weight of all who had ``nearly`` less, none of who had as much more; times 2 · nearly, to be whole."""
        less, more = bisect_right(amounts, amount - nearly), bisect_left(amounts, amount + nearly)
        near = weight_before[more] - weight_before[less]
        ramp = (amount + nearly) * near - (sum_before[more] - sum_before[less])
        return 2 * nearly * weight_before[less] + ramp

    places = [place(amount) for amount in had]
    least = min(places, default=0)
    unit = nearly * weights * weights * BASIS_POINTS
    return {
        one.tenant_id: SHARE_ONE * (at - least) * policy.memory_bp // unit
        for one, at in zip(contenders, places, strict=True)
    }


@dataclass(slots=True)
class _Seat:
    """A tenant at the table of one plan."""

    weight: int
    held: Amounts
    behind: int
    """By memory, as a share over the weight."""
    since_ms: int
    share: int
    misses: int = 0


_Place = tuple[int, int, int, TenantId]
"""(share, misses, since when it waits, tenant): the least is next."""


class Turns:
    """Whose turn it is while a plan hands out: O(log tenants) for each step. Lives as long as one plan."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        capacity: Amounts,
        policy: FairnessPolicy,
        now_ms: int,
        misses_max: int,
    ) -> None:
        """``misses_max``: jobs of one tenant that may turn out not to fit before it sits the rest of the plan out."""
        self._capacity = capacity
        self._misses_max = misses_max
        behind = _behind(contenders, capacity, policy, now_ms)
        self._fair = SHARE_ONE // max(1, sum(one.weight for one in contenders))
        self._seats: dict[TenantId, _Seat] = {}
        for one in contenders:
            away = behind[one.tenant_id]
            share = away + dominant_share(one.usage.held, capacity, one.weight)
            self._seats[one.tenant_id] = _Seat(one.weight, one.usage.held, away, one.since_ms, share)
        self._places: dict[TenantId, _Place] = {
            tenant_id: self._place_of(tenant_id) for tenant_id in self._seats
        }
        self._heap = list(self._places.values())
        heapq.heapify(self._heap)

    def share(self, tenant_id: TenantId) -> int:
        """Its weighted dominant share with all that this plan gave it, and how far memory puts it behind."""
        return self._seats[tenant_id].share

    def is_beyond(self, tenant_id: TenantId) -> bool:
        """Whether it stands beyond its fair share: by what it holds, and by how far memory puts it behind."""
        return self._seats[tenant_id].share > self._fair

    def next(self) -> TenantId | None:
        """Who has the smallest share; of equals who missed less, then who waits longest. None when nobody is left."""
        while self._heap:
            place = self._heap[0]
            if self._places.get(place[3]) is place:
                return place[3]
            heapq.heappop(self._heap)
        return None

    def gave(self, tenant_id: TenantId, amounts: Amounts) -> None:
        """The plan gives or reserves this to a tenant, whoever's turn it is; a stranger's does not count."""
        seat = self._seats.get(tenant_id)
        if seat is not None:
            seat.held = seat.held.plus(amounts)
            seat.share = seat.behind + dominant_share(seat.held, self._capacity, seat.weight)
            self._moved(tenant_id)

    def took(self, tenant_id: TenantId, amounts: Amounts) -> None:
        """The plan takes this back from a tenant."""
        self.gave(tenant_id, NOTHING.minus(amounts))

    def missed(self, tenant_id: TenantId) -> None:
        """A job of its did not fit. The next of its jobs may, until it has had enough of tries."""
        seat = self._seats[tenant_id]
        seat.misses += 1
        if seat.misses >= self._misses_max:
            self.leave(tenant_id)
        else:
            self._moved(tenant_id)

    def leave(self, tenant_id: TenantId) -> None:
        """It wants nothing more of this plan."""
        self._places.pop(tenant_id, None)

    def _moved(self, tenant_id: TenantId) -> None:
        if tenant_id in self._places:
            before, place = self._places[tenant_id], self._place_of(tenant_id)
            self._places[tenant_id] = place
            if self._heap[0] is before:
                heapq.heapreplace(self._heap, place)
            else:
                heapq.heappush(self._heap, place)

    def _place_of(self, tenant_id: TenantId) -> _Place:
        seat = self._seats[tenant_id]
        return (seat.share, seat.misses, seat.since_ms, tenant_id)


def order(
    contenders: Sequence[Contender], capacity: Amounts, policy: FairnessPolicy, now_ms: int
) -> tuple[TenantId, ...]:
    """All of them by whose turn it is, while nothing is handed out."""
    turns = Turns(contenders, capacity, policy, now_ms, misses_max=1)
    return tuple(sorted((one.tenant_id for one in contenders), key=lambda one: (turns.share(one), one)))
