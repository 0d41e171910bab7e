"""What an hour of a device costs: the supplier's own ask, or the market's ``auto``; and what a quote says.

One credit is one US dollar. A cloud's price counts only as a *median* of three providers at least, each with its date, so
that nobody is beaten on paper by one dear competitor. An ``auto`` ask is set so low that a tenant who pays in the dearest
way, every fee included, still pays the promised part less than that median, where the supplier's cost allows it.

Everything is in whole microcredits and basis points. Whoever pays is rounded for: charges, fees and ``auto`` asks round
down; a rate that is shown rounds up and a difference to a cloud rounds down, so that nothing looks cheaper than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.core.errors import invalid
from orchestrator.core.market.worth import UNIT, worth_milli
from orchestrator.core.supply.catalogue import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MICROCREDITS = 1_000_000
"""In one credit, which is one US dollar."""

HOUR_MS = 3_600_000

BASIS_POINTS = 10_000

PROVIDERS_MIN = 3
"""A median of fewer is one provider's price, or the mean of two."""

DISCOUNT_BP_MIN = 1_000
"""What is promised: at least a tenth below the clouds."""

QUOTE_MS_MAX = 366 * 24 * HOUR_MS
"""Nobody's machines are promised for longer than a year."""


def credits_text(microcredits: int) -> str:
    """Credits with as many of six decimals as there are."""
    sign = "-" if microcredits < 0 else ""
    whole, rest = divmod(abs(microcredits), MICROCREDITS)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


# ------------------------------------------------------------ clouds


@dataclass(frozen=True, slots=True)
class CloudPrice:
    """One provider's published price of one model in one region on one day."""

    model: str
    provider: str
    region: str
    day: date
    microcredits_per_gpu_hour: int


@dataclass(frozen=True, slots=True)
class Source:
    """Which price a median rests on."""

    provider: str
    day: date


@dataclass(frozen=True, slots=True)
class CloudMedian:
    """The median over three providers or more, each with one price."""

    microcredits_per_gpu_hour: int
    sources: tuple[Source, ...]
    """One per provider, by name."""


def median_microcredits(prices: Sequence[int]) -> int:
    """The middle one; of an even number the mean of the middle two, rounded down, against whoever boasts of it."""
    if not prices:
        raise invalid("prices", "there is no median of no prices; give one at least")
    ordered = sorted(prices)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def cloud_medians(prices: Iterable[CloudPrice], today: date) -> dict[str, CloudMedian]:
    """By model, of those that enough providers publish a price of.

    A provider counts once, with the cheapest of its regions, each at its latest date; what is dated after ``today`` does
    not count. Old prices do: they are shown with their date.
    """
    latest: dict[tuple[str, str, str], CloudPrice] = {}
    for one in prices:
        key = (one.model, one.provider, one.region)
        if one.day <= today and (key not in latest or _newness(one) > _newness(latest[key])):
            latest[key] = one
    chosen: dict[str, dict[str, CloudPrice]] = {}
    for one in sorted(latest.values(), key=lambda each: (each.microcredits_per_gpu_hour, each.region)):
        chosen.setdefault(one.model, {}).setdefault(one.provider, one)
    return {
        model: CloudMedian(
            median_microcredits([one.microcredits_per_gpu_hour for one in by_provider.values()]),
            tuple(Source(name, by_provider[name].day) for name in sorted(by_provider)),
        )
        for model, by_provider in sorted(chosen.items())
        if len(by_provider) >= PROVIDERS_MIN
    }


def _newness(price: CloudPrice) -> tuple[date, int]:
    """Of two prices of one day the cheaper one counts."""
    return price.day, -price.microcredits_per_gpu_hour


# ------------------------------------------------------------ fees


class Currency(StrEnum):
    """What a tenant pays in."""

    NATIVE = "native"
    STABLECOIN = "stablecoin"


@dataclass(frozen=True, slots=True)
class PricePolicy:
    """What an operator may turn, in basis points and microcredits."""

    discount_bp: int = DISCOUNT_BP_MIN
    """How far below the clouds' median a tenant pays by ``auto``, every fee included."""
    native_fee_bp: int = 0
    stablecoin_fee_bp: int = 200
    reservation_fee_bp: int = 25
    """On each side: the tenant pays it on top, the supplier's is taken from his part."""
    unit_microcredits: int = 300_000
    """An hour of an RTX 4090 where no cloud price of any model is known; the others by their worth."""

    def payment_fee_bp(self, currency: Currency) -> int:
        """Of paying in a currency."""
        match currency:
            case Currency.NATIVE:
                return self.native_fee_bp
            case Currency.STABLECOIN:
                return self.stablecoin_fee_bp

    @property
    def tenant_fees_bp_max(self) -> int:
        """What a tenant pays on top in the dearest way."""
        return max(self.native_fee_bp, self.stablecoin_fee_bp) + self.reservation_fee_bp


def check_policy(policy: PricePolicy) -> None:
    """Refuse a policy that breaks the promise or takes more than all; raises RefusedError naming the field."""
    if not DISCOUNT_BP_MIN <= policy.discount_bp <= BASIS_POINTS:
        raise invalid(
            "pricing.discount_bp",
            f"the discount is {DISCOUNT_BP_MIN} to {BASIS_POINTS} basis points, as a tenth is promised at least;"
            f" not {policy.discount_bp}",
        )
    for name, value in (
        ("native_fee_bp", policy.native_fee_bp),
        ("stablecoin_fee_bp", policy.stablecoin_fee_bp),
        ("reservation_fee_bp", policy.reservation_fee_bp),
    ):
        if not 0 <= value <= BASIS_POINTS:
            raise invalid(f"pricing.{name}", f"a fee is 0 to {BASIS_POINTS} basis points; not {value}")
    if policy.unit_microcredits <= 0:
        raise invalid("pricing.unit_microcredits", "an hour that costs nothing prices nothing; give a price")


@dataclass(frozen=True, slots=True)
class Charge:
    """What becomes of a price: who pays what. Microcredits."""

    price: int
    payment_fee: int
    tenant_reservation_fee: int
    supplier_reservation_fee: int

    @property
    def tenant_pays(self) -> int:
        return self.price + self.payment_fee + self.tenant_reservation_fee


def charge(price: int, currency: Currency, policy: PricePolicy) -> Charge:
    """The fees on a price, each rounded down for who pays it."""
    if price < 0:
        raise invalid("price", f"a price is 0 or more microcredits; not {price}")
    reservation = price * policy.reservation_fee_bp // BASIS_POINTS
    return Charge(price, price * policy.payment_fee_bp(currency) // BASIS_POINTS, reservation, reservation)


def price_of_use(microcredits_per_gpu_hour: int, gpu_ms: int) -> int:
    """What GPU-milliseconds cost, rounded down."""
    return microcredits_per_gpu_hour * gpu_ms // HOUR_MS


# ------------------------------------------------------------ asks


class Basis(StrEnum):
    """What an ``auto`` ask rests on."""

    MEDIAN = "median"
    """Cloud prices of the model itself."""
    OTHER_MODELS = "other models"
    """Cloud prices of other models, by worth: no claim is made against any cloud."""
    POLICY = "policy"
    """The operator's price of the unit, by worth."""
    COST = "cost"
    """What it costs the supplier, which is more than all of the above."""


@dataclass(frozen=True, slots=True)
class AutoAsk:
    """The market's price of a model, and why, in sentences."""

    microcredits_per_gpu_hour: int
    basis: Basis
    reasons: tuple[str, ...]


def auto_ask(
    model: str,
    medians: Mapping[str, CloudMedian],
    policy: PricePolicy,
    cost_microcredits: int | None = None,
) -> AutoAsk:
    """What a model is asked for where its owner leaves it to the market, never below ``cost_microcredits`` an hour."""
    if model not in MODELS:
        raise invalid("model", f"unknown model {model[:80]!r}: use a name of the catalogue")
    median = medians.get(model)
    if median is not None:
        reference, basis = median.microcredits_per_gpu_hour, Basis.MEDIAN
        why = f"the median of {len(median.sources)} clouds is {credits_text(reference)} credits per GPU-hour of {model}"
    elif medians:
        reference, basis = _by_worth(model, medians), Basis.OTHER_MODELS
        why = (
            f"fewer than {PROVIDERS_MIN} clouds publish a price of {model}; by the worth of models with prices it"
            f" would be {credits_text(reference)} credits per GPU-hour"
        )
    else:
        reference, basis = policy.unit_microcredits * worth_milli(model) // UNIT, Basis.POLICY
        why = (
            f"no cloud price is known; the operator's price by worth is {credits_text(reference)} credits per GPU-hour"
            f" of {model}"
        )
    ask = below(reference, policy)
    if cost_microcredits is not None and ask < cost_microcredits:
        cost = (
            f"it costs its owner {credits_text(cost_microcredits)}, which keeps it from {credits_text(ask)}"
        )
        return AutoAsk(cost_microcredits, Basis.COST, (why, cost))
    return AutoAsk(ask, basis, (why,))


def auto_asks(medians: Mapping[str, CloudMedian], policy: PricePolicy) -> dict[str, AutoAsk]:
    """Of every model of the catalogue: made once for a price file."""
    return {model: auto_ask(model, medians, policy) for model in MODELS}


def below(reference: int, policy: PricePolicy) -> int:
    """The highest price at which a tenant, fees included, pays the promised part less than ``reference``."""
    kept = BASIS_POINTS - policy.discount_bp
    return reference * kept // (BASIS_POINTS + policy.tenant_fees_bp_max)


def _by_worth(model: str, medians: Mapping[str, CloudMedian]) -> int:
    """What the models with prices say of this one: those of its classes if there are any, as classes have markets."""
    classes = MODELS[model].classes
    alike = [name for name in medians if name in MODELS and MODELS[name].classes & classes] or list(medians)
    return median_microcredits(
        [medians[name].microcredits_per_gpu_hour * worth_milli(model) // worth_milli(name) for name in alike]
    )


# ------------------------------------------------------------ quotes


@dataclass(frozen=True, slots=True)
class Quote:
    """What a tenant would get, when, and what it would pay. It promises nothing: asks move."""

    model: str
    gpus: int
    duration_ms: int
    available_now: bool
    when_ms: int | None
    """Control time from which it could start; None: nothing that runs now would make room by ending."""
    microcredits_per_gpu_hour: int
    """The mean over its GPUs before fees, rounded up."""
    charge: Charge
    """Of the whole of it."""
    currency: Currency
    cloud_median: int | None
    below_median_bp: int | None
    """How far the tenant's payment, fees included, lies below the median's; negative where it lies above."""
    sources: tuple[Source, ...]
    diameter_us: int | None
    """The longest round trip expected between two of its machines; None where nothing is known, 0 on one machine."""
    reasons: tuple[str, ...]

    @property
    def total_microcredits(self) -> int:
        return self.charge.tenant_pays


@dataclass(frozen=True, slots=True)
class Offer:
    """What a placement for a quote came to: one price per GPU, and when it could begin."""

    microcredits_per_gpu_hour: tuple[int, ...]
    available_now: bool
    when_ms: int | None
    diameter_us: int | None = None
    reasons: tuple[str, ...] = ()


def quote(
    model: str,
    offer: Offer,
    duration_ms: int,
    median: CloudMedian | None,
    currency: Currency,
    policy: PricePolicy,
    without_median: str = "",
) -> Quote:
    """The offer with its total for ``duration_ms``, beside the clouds' median. Raises RefusedError.

    ``without_median`` says why there is none, where that is not because too few clouds publish one.
    """
    rates = offer.microcredits_per_gpu_hour
    if not rates:
        raise invalid("gpus", "a quote is for one GPU at least")
    if not 0 < duration_ms <= QUOTE_MS_MAX:
        raise invalid("hours", f"a quote is for more than nothing and at most a year; not {duration_ms} ms")
    if min(rates) < 0:
        raise invalid("price", "a price is 0 or more microcredits")
    whole = charge(price_of_use(sum(rates), duration_ms), currency, policy)
    if median is None:
        few = f"fewer than {PROVIDERS_MIN} clouds publish a price of {model}, so none is compared with"
        against = (without_median or few,)
        below_bp = None
    else:
        below_bp = _below_bp(whole.tenant_pays, median.microcredits_per_gpu_hour * len(rates), duration_ms)
        against = (_against(median, below_bp, policy),)
    return Quote(
        model=model,
        gpus=len(rates),
        duration_ms=duration_ms,
        available_now=offer.available_now,
        when_ms=offer.when_ms,
        microcredits_per_gpu_hour=-(-sum(rates) // len(rates)),
        charge=whole,
        currency=currency,
        cloud_median=None if median is None else median.microcredits_per_gpu_hour,
        below_median_bp=below_bp,
        sources=() if median is None else median.sources,
        diameter_us=offer.diameter_us,
        reasons=(*offer.reasons, *against),
    )


def _below_bp(paid: int, median_per_hour: int, duration_ms: int) -> int | None:
    """``paid`` for ``duration_ms`` against a cloud's price of the same hours, rounded down."""
    cloud = median_per_hour * duration_ms
    if cloud == 0:
        return None
    return (cloud - paid * HOUR_MS) * BASIS_POINTS // cloud


def _against(median: CloudMedian, below_bp: int | None, policy: PricePolicy) -> str:
    days = [source.day for source in median.sources]
    rests = f"the median of {len(days)} clouds, dated {min(days)} to {max(days)}"
    if below_bp is None:
        return f"{rests}, is nothing, so there is no difference to it"
    part = f"{abs(below_bp) // 100}.{abs(below_bp) % 100:02d} %"
    if below_bp < 0:
        return f"fees included it is {part} above {rests}: these machines' owners ask more"
    short = (
        ""
        if below_bp >= policy.discount_bp
        else ": less than is aimed at, as these machines' owners ask more"
    )
    return f"fees included it is {part} below {rests}{short}"
