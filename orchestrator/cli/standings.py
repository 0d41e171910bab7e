"""How a worker's standing reads on a terminal: for its owner, and for operators."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from orchestrator.api.v1 import standing_pb2, telemetry_pb2, terms_pb2
from orchestrator.cli.wording import MS_PER_S
from orchestrator.core.market.pricing import MICROCREDITS

DAY_MINUTES = 24 * 60
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BASIS_POINTS = 10_000
GIB = 1 << 30


def instant_ms(unix_ms: int) -> str:
    """UTC to the second; nothing for zero."""
    if not unix_ms:
        return ""
    return datetime.fromtimestamp(unix_ms / MS_PER_S, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span_text(duration_ms: int) -> str:
    """The largest unit that says it exactly, such as 12h or 1500ms."""
    for unit_ms, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if duration_ms and duration_ms % unit_ms == 0:
            return f"{duration_ms // unit_ms}{unit}"
    return f"{duration_ms}ms"


def holds_lines(standing: standing_pb2.Standing) -> list[str]:
    """Why the worker, or a device of it, gets nothing new."""
    lines = []
    for hold in standing.holds:
        until = f" until {instant_ms(hold.until_unix_ms)}" if hold.until_unix_ms else ""
        lines.append(f"{hold.kind}: {hold.reason} (since {instant_ms(hold.since_unix_ms)}{until})")
    lines += [
        f"device {hold.device_id}: {hold.reason} (since {instant_ms(hold.since_unix_ms)})"
        for hold in standing.device_holds
    ]
    return lines


def terms_fields(terms: terms_pb2.Terms) -> dict[str, str]:
    """What the owner asks and allows."""
    prices = [f"{ask.model} {_credits(ask.microcredits_per_gpu_hour)}" for ask in terms.asks]
    return {
        "price": f"{', '.join(prices)} credits per GPU-hour" if prices else "auto",
        "regions": ", ".join(terms.regions),
        "longest lease": span_text(terms.lease_max_ms) if terms.lease_max_ms else "no limit",
        "schedule": _schedule(terms.schedule),
        "idle only": "yes" if terms.idle_only else "no",
        "tier": "committed" if terms.committed else "interruptible",
        "notice": span_text(terms.notice_ms) if terms.notice_ms else "the network's",
        "webhook": "set" if terms.webhook_url else "none",
    }


def standing_fields(standing: standing_pb2.Standing) -> dict[str, str]:
    """Everything but the terms, a line each; what repeats is numbered."""
    score = f"{standing.reliability_bp / (BASIS_POINTS / 100):.2f} %"
    return {
        **_numbered("hold", holds_lines(standing)),
        "why this class": standing.class_reason,
        "reliability": score,
        **_numbered("because", standing.reliability_reasons),
        **_numbered(
            "alert",
            [f"{one.kind}: {one.text} ({instant_ms(one.at_unix_ms)})" for one in standing.alerts],
        ),
        **{
            name: text
            for name, text in (("upgrade", standing.upgrade_notice), ("clock", standing.clock_notice))
            if text
        },
    }


def sample_rows(samples: Iterable[telemetry_pb2.DeviceSample]) -> list[tuple[str, ...]]:
    """The newest measurement of each device, under SAMPLE_COLUMNS."""
    return [
        (
            one.device_id,
            f"{one.utilization_ratio:.0%}",
            f"{one.owner_utilization_ratio:.0%}",
            f"{one.memory_used_bytes / GIB:.1f} GiB",
            f"{one.power_watts:.0f} of {one.power_limit_watts:.0f} W",
            f"{one.temperature_celsius:.0f} °C",
            str(one.ecc_uncorrected) if one.HasField("ecc_uncorrected") else "",
            str(one.last_xid) if one.last_xid else "",
            ", ".join(one.throttle_reasons),
        )
        for one in samples
    ]


SAMPLE_COLUMNS = ("DEVICE", "USE", "OWNER", "MEMORY", "POWER", "HEAT", "ECC", "XID", "THROTTLED BY")


def _numbered(name: str, lines: Iterable[str]) -> dict[str, str]:
    return {f"{name} {number}": line for number, line in enumerate(lines, 1)}


def _credits(microcredits: int) -> str:
    text = f"{microcredits // MICROCREDITS}.{microcredits % MICROCREDITS:06d}"
    return text.rstrip("0").rstrip(".")


def _schedule(windows: Iterable[terms_pb2.WeekWindow]) -> str:
    texts = [
        "always"
        if window.start_minute == window.end_minute
        else f"{_minute(window.start_minute)} to {_minute(window.end_minute)}"
        for window in windows
    ]
    return f"{', '.join(texts)} UTC" if texts else "always"


def _minute(minute: int) -> str:
    day, rest = divmod(minute, DAY_MINUTES)
    return f"{DAYS[day % len(DAYS)]} {rest // 60:02d}:{rest % 60:02d}"
