"""What a tenant may hold at once, use in a month, and spend in a month; and the sentence that says why not.

A month is a calendar month of UTC: an operator's invoices and a tenant's budget are of months, and "from the first on
you have 500 again" is understood without a formula. Each quota is optional. What is committed (held back for work that
runs) counts like what is spent, so that no two jobs can each use the last of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from orchestrator.core.errors import invalid
from orchestrator.core.market.pricing import HOUR_MS, credits_text

MONTH_HOURS_MAX = 31 * 24

GPUS_MAX = 1_000_000
"""Ten times the largest fleet this is made for; more is a slip of the finger."""

GPU_MS_MAX = GPUS_MAX * MONTH_HOURS_MAX * HOUR_MS
"""What so many GPUs can do in the longest month: far within 64 bits."""

MICROCREDITS_MAX = 10**15
"""A billion credits: more than a month of such a fleet costs, and sums of thousands stay within 64 bits."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

YEAR_9999_MS = 253_370_764_800_000
"""The last January that the calendar knows: a month after it has no end."""


# ------------------------------------------------------------ months


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month of UTC."""

    year: int
    month: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    @property
    def start_ms(self) -> int:
        return (datetime(self.year, self.month, 1, tzinfo=UTC) - _BEGINNING) // timedelta(milliseconds=1)

    @property
    def end_ms(self) -> int:
        """The first instant of the next one."""
        return self.next.start_ms

    @property
    def next(self) -> Month:
        return Month(self.year + self.month // 12, self.month % 12 + 1)


def month_of(at_ms: int) -> Month:
    """The month in which an instant lies; raises RefusedError for one that no calendar has."""
    if not 0 <= at_ms < YEAR_9999_MS:
        raise invalid("at_ms", f"{at_ms} is no time between 1970 and 9999; look at the machine's clock")
    day = _BEGINNING + timedelta(milliseconds=at_ms)
    return Month(day.year, day.month)


@dataclass(frozen=True, slots=True)
class MonthUse:
    """What a tenant used and spent of one month so far."""

    month: Month
    gpu_ms: int = 0
    microcredits: int = 0


NO_USE = MonthUse(Month(1970, 1))
"""Of a tenant that never used anything."""


def after_use(use: MonthUse, gpus: int, start_ms: int, end_ms: int) -> MonthUse:
    """With ``gpus`` held in [start_ms, end_ms). It goes over into the month of the end; what lay before that is past."""
    now = _in_month(use, month_of(max(start_ms, end_ms - 1)))
    within_ms = min(end_ms, now.month.end_ms) - max(start_ms, now.month.start_ms)
    return MonthUse(now.month, now.gpu_ms + gpus * max(0, within_ms), now.microcredits)


def after_spending(use: MonthUse, microcredits: int, at_ms: int) -> MonthUse:
    """With a payment; one that belongs to a month already past changes nothing of this one."""
    month = month_of(at_ms)
    now = _in_month(use, month)
    if now.month != month:
        return now
    return MonthUse(month, now.gpu_ms, now.microcredits + microcredits)


def in_month_of(use: MonthUse, at_ms: int) -> MonthUse:
    """What counts at ``at_ms``: nothing yet, where a new month has begun."""
    return _in_month(use, month_of(at_ms))


def _in_month(use: MonthUse, month: Month) -> MonthUse:
    return use if month <= use.month else MonthUse(month)


# ------------------------------------------------------------ quotas


@dataclass(frozen=True, slots=True)
class Quota:
    """A tenant's limits; None is no limit."""

    gpus: int | None = None
    """At once."""
    gpu_ms_per_month: int | None = None
    microcredits_per_month: int | None = None


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a tenant stands: ``…_committed`` is held back for what runs, and not in ``…_used`` or ``…_spent`` yet."""

    month: Month
    gpus_held: int = 0
    gpu_ms_used: int = 0
    gpu_ms_committed: int = 0
    microcredits_spent: int = 0
    microcredits_committed: int = 0


@dataclass(frozen=True, slots=True)
class QuotaRequest:
    """What a job would add. Where its length or its price is not known (None), it starts while anything is left."""

    gpus: int
    gpu_ms: int | None = None
    microcredits: int | None = None


def check_quota(quota: Quota) -> None:
    """Refuse a quota that nobody can mean; raises RefusedError naming the field."""
    _check_range("quota.gpus", quota.gpus, GPUS_MAX, "GPUs at once")
    _check_range("quota.gpu_ms_per_month", quota.gpu_ms_per_month, GPU_MS_MAX, "GPU-milliseconds a month")
    _check_range(
        "quota.microcredits_per_month", quota.microcredits_per_month, MICROCREDITS_MAX, "microcredits a month"
    )
    gpus, gpu_ms = quota.gpus, quota.gpu_ms_per_month
    if gpus is None or gpu_ms is None:
        return
    if (gpus == 0) != (gpu_ms == 0):
        raise invalid(
            "quota.gpus",
            f"{gpus} GPUs at once contradicts {_hours(gpu_ms)} GPU-hours a month: make both 0, or neither",
        )
    reachable_ms = gpus * MONTH_HOURS_MAX * HOUR_MS
    if gpu_ms > reachable_ms:
        raise invalid(
            "quota.gpu_ms_per_month",
            f"{_hours(gpu_ms)} GPU-hours a month can never be used with {gpus} GPUs at once, which make"
            f" {_hours(reachable_ms)} at most: lower it, leave it out, or raise the GPUs",
        )


def never(quota: Quota, request: QuotaRequest) -> str | None:
    """Why the quota refuses a request even of a tenant that holds, used and spent nothing; None where it does not."""
    _check_request(request)
    if quota.gpus is not None and request.gpus > quota.gpus:
        return (
            f"the quota of {quota.gpus} GPUs at once is less than the {request.gpus} asked for:"
            " ask for fewer, or ask the operator for a larger quota"
        )
    gpu_ms, money = quota.gpu_ms_per_month, quota.microcredits_per_month
    if gpu_ms is not None and request.gpu_ms is not None and request.gpu_ms > gpu_ms:
        return (
            f"the quota of {_hours(gpu_ms)} GPU-hours a month is less than the {_hours(request.gpu_ms)} asked"
            " for: ask for fewer or for less time, or ask the operator for a larger quota"
        )
    if money is not None and request.microcredits is not None and request.microcredits > money:
        return (
            f"the quota of {credits_text(money)} credits a month is less than the {credits_text(request.microcredits)}"
            " that this would hold: ask for less or for cheaper machines, or ask the operator for a larger quota"
        )
    return None


def refusal(quota: Quota, standing: Standing, request: QuotaRequest) -> str | None:
    """Why the quota does not let the request start now: which one, how much of it is used, what to do. None: it may."""
    whatever = never(quota, request)
    if whatever is not None:
        return whatever
    if quota.gpus is not None and standing.gpus_held + request.gpus > quota.gpus:
        return (
            f"the quota of {quota.gpus} GPUs at once leaves {max(0, quota.gpus - standing.gpus_held)}, as"
            f" {standing.gpus_held} are held, and {request.gpus} are asked for: it starts when enough of your own"
            " jobs have ended; stop one, or ask the operator for a larger quota"
        )
    return _month_refusal(quota, standing, request)


def gpus_in_excess(quota: Quota, standing: Standing, request: QuotaRequest) -> int:
    """How many of the GPUs that its tenant holds would have to go for a request to start; 0 where that would not do."""
    if quota.gpus is None or never(quota, request) or _month_refusal(quota, standing, request):
        return 0
    return max(0, standing.gpus_held + request.gpus - quota.gpus)


def _month_refusal(quota: Quota, standing: Standing, request: QuotaRequest) -> str | None:
    again = f"it starts from {standing.month.next}-01 UTC on, or when the operator gives a larger quota"
    gpu_ms, money = quota.gpu_ms_per_month, quota.microcredits_per_month
    if gpu_ms is not None and request.gpus > 0:
        gone_ms = standing.gpu_ms_used + standing.gpu_ms_committed
        if gone_ms + _at_least(request.gpu_ms) > gpu_ms:
            asked = "" if request.gpu_ms is None else f", and {_hours(request.gpu_ms)} are asked for"
            return (
                f"the quota of {_hours(gpu_ms)} GPU-hours a month leaves {_hours(max(0, gpu_ms - gone_ms))} of"
                f" {standing.month}, as {_hours(standing.gpu_ms_used)} are used and"
                f" {_hours(standing.gpu_ms_committed)} committed{asked}: {again}"
            )
    if money is not None:
        gone = standing.microcredits_spent + standing.microcredits_committed
        if gone + _at_least(request.microcredits) > money:
            asked = (
                ""
                if request.microcredits is None
                else f", and {credits_text(request.microcredits)} would be held"
            )
            return (
                f"the quota of {credits_text(money)} credits a month leaves {credits_text(max(0, money - gone))} of"
                f" {standing.month}, as {credits_text(standing.microcredits_spent)} are spent and"
                f" {credits_text(standing.microcredits_committed)} committed{asked}: {again}"
            )
    return None


def _at_least(amount: int | None) -> int:
    """What is not known needs something to begin with; what is known to cost nothing needs nothing."""
    return 1 if amount is None else amount


def _check_range(field: str, value: int | None, largest: int, unit: str) -> None:
    if value is not None and not 0 <= value <= largest:
        raise invalid(field, f"{field} must be 0 to {largest} {unit}, or left out for no limit; not {value}")


def _check_request(request: QuotaRequest) -> None:
    _check_range("request.gpus", request.gpus, GPUS_MAX, "GPUs")
    _check_range("request.gpu_ms", request.gpu_ms, GPU_MS_MAX, "GPU-milliseconds")
    _check_range("request.microcredits", request.microcredits, MICROCREDITS_MAX, "microcredits")


def _hours(gpu_ms: int) -> str:
    """Hours with as many decimals as a reader wants, rounded down."""
    hundredths = gpu_ms * 100 // HOUR_MS
    text = f"{hundredths // 100}.{hundredths % 100:02d}".rstrip("0").rstrip(".")
    return "less than 0.01" if gpu_ms and not hundredths else text
