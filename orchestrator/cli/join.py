"""What a supplier types to offer a machine, checked before the agent starts."""

from __future__ import annotations

import json
import re
import socket
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from orchestrator.adapters.files import make_folder, write_whole
from orchestrator.cli.errors import usage_error
from orchestrator.cli.output import note
from orchestrator.cli.settings import AGENT_FILE, checked_token, read_token
from orchestrator.cli.worker_settings import WorkerSettings
from orchestrator.core.decisions.terms import check_terms
from orchestrator.core.errors import RefusedError
from orchestrator.core.market.pricing import MICROCREDITS
from orchestrator.core.supply.catalogue import MODELS, Model, find_model, nearest
from orchestrator.core.supply.fleet import Isolation
from orchestrator.core.supply.terms import WEEK_MINUTES, Ask, Terms, Tier, WeekWindow

JOIN_VARIABLE = "ORCH_JOIN_TOKEN"
NAME_CHARACTERS_MAX = 63
"""As long as a host's name may be, which is the default."""

CONSENT_FILE = "consent.json"
CONSENT_VERSION = 2
"""Of the text below: who agreed to an older one is asked again."""

DAY_MINUTES = 24 * 60
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
NIGHTS = "Mon-Sun 22:00-07:00"
"""What the one word `nights` stands for."""

AUTO = "auto"
"""The market's price."""

ROOT = "root"

UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

TERMS_FLAGS = {
    "terms.asks": "--price",
    "terms.asks.model": "--price",
    "terms.regions": "--region",
    "terms.lease_max_ms": "--max-lease",
    "terms.schedule": "--schedule",
    "terms.notice_ms": "--notice",
    "terms.webhook_url": "--webhook",
}
"""What the owner typed for each field of the terms."""

_PRICE = re.compile(r"(?P<model>[^=]+)=\s*(?P<price>[0-9]{1,9}(\.[0-9]{1,6})?|auto)")
_DURATION = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>ms|s|m|h|d)")
_WINDOW = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? +)?"
    r"(?P<from_h>[0-9]{1,2}):(?P<from_m>[0-9]{2}) *- *(?P<to_h>[0-9]{1,2}):(?P<to_m>[0-9]{2})"
)
_SIMULATE = re.compile(r"(?P<model>.+)x(?P<count>[1-9][0-9]{0,2})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def join_token(
    token: str | None,
    token_file: Path | None,
    environ: Mapping[str, str],
    data_dir: Path,
    configured: Path | None = None,
    *,
    open_enrolment: bool = False,
) -> str | None:
    """The join token by flag, variable or the file in the settings; None where the machine needs none any more.

    A machine that has joined goes on without its token, so the file may be gone by then.
    """
    if token is not None and token_file is not None:
        raise usage_error("--token and --token-file: give one of the two, better --token-file")
    if token is not None:
        note(
            "warning: --token is visible to every user of this machine in its process list;"
            f" use --token-file or {JOIN_VARIABLE}"
        )
        return checked_token(token, "--token")
    if token_file is not None:
        return read_token(token_file.expanduser(), "--token-file")
    value = environ.get(JOIN_VARIABLE, "")
    if value.strip():
        return checked_token(value, JOIN_VARIABLE)
    joined = (data_dir / AGENT_FILE).exists()
    if configured is not None and not (joined and not configured.expanduser().exists()):
        return read_token(configured.expanduser(), "token_file")
    if joined or open_enrolment:
        return None
    raise usage_error(
        f"no join token: give --token-file or {JOIN_VARIABLE}; the operator makes one with"
        " `orch token create --role supplier --subject YOUR-NAME`;"
        " or add --open-enrolment where the network takes strangers"
    )


def simulated_models(texts: Sequence[str]) -> list[tuple[Model, int]]:
    """Models of the catalogue and how many of each, from MODELxN."""
    found = []
    for text in texts:
        match = _SIMULATE.fullmatch(text.strip())
        if match is None:
            raise usage_error(f"--simulate: MODELxN such as RTX4090x1 is expected, not {text!r}")
        model = find_model(match["model"])
        if model is None:
            guess = nearest(match["model"], list(MODELS))
            raise usage_error(
                f"--simulate: unknown model {match['model']!r}; did you mean {guess}x{match['count']}?"
            )
        found.append((model, int(match["count"])))
    return found


def machine_name(name: str) -> str:
    """The name to show, by default the host's."""
    found = name or socket.gethostname()
    if len(found) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(found):
        raise usage_error(
            f"--name: letters, digits, dots, dashes and underscores are allowed,"
            f" at most {NAME_CHARACTERS_MAX}, not {found!r}"
        )
    return found


def terms_of(settings: WorkerSettings, now: datetime, machine_zone: str) -> Terms:
    """The owner's terms. Raises a usage error that names the setting."""
    terms = Terms(
        asks=asks(settings.price),
        regions=settings.region,
        lease_max_ms=duration_ms(settings.max_lease, "--max-lease") if settings.max_lease else None,
        schedule=week_windows(settings.schedule, settings.timezone or machine_zone, now),
        idle_only=settings.idle_only,
        tier=tier_of(settings.tier),
        notice_ms=duration_ms(settings.notice, "--notice"),
        webhook_url=settings.webhook,
    )
    try:
        check_terms(terms)
    except RefusedError as error:
        raise usage_error(f"{TERMS_FLAGS.get(error.field, error.field)}: {error.message}") from None
    return terms


def asks(texts: Sequence[str]) -> tuple[Ask, ...]:
    """Prices in whole microcredits; a model at `auto`, as every model by default, has none."""
    if [text.strip().lower() for text in texts] == [AUTO]:
        return ()
    found = []
    for text in texts:
        match = _PRICE.fullmatch(text.strip())
        if match is None:
            raise usage_error(
                "--price: MODEL=CREDITS per GPU-hour with at most six decimals, such as RTX4090=0.35, or `auto`"
                f" alone is expected, not {text[:80]!r}"
            )
        model = find_model(match["model"])
        if model is None:
            guess = nearest(match["model"][:80], list(MODELS))
            raise usage_error(f"--price: unknown model {match['model'][:80]!r}; did you mean {guess}?")
        if match["price"] != AUTO:
            found.append(Ask(model.name, int(Decimal(match["price"]) * MICROCREDITS)))
    return tuple(found)


def tier_of(text: str) -> Tier:
    """A tier by its name."""
    try:
        return Tier(text.strip().lower())
    except ValueError:
        known = [tier.value for tier in Tier]
        raise usage_error(
            f"--tier: {' or '.join(known)} is expected, not {text[:80]!r};"
            f" did you mean {nearest(text[:80], known)}?"
        ) from None


def duration_ms(text: str, name: str) -> int:
    """Milliseconds of `30s`, `12h` or `2d`."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise usage_error(f"{name}: a duration such as 30s, 90m, 12h or 2d is expected, not {text[:80]!r}")
    return int(match["count"]) * UNIT_MS[match["unit"]]


def week_windows(text: str, timezone: str, now: datetime) -> tuple[WeekWindow, ...]:
    """Windows of the owner's week as windows of the UTC week, joined where they touch.

    The zone's offset is that of ``now``: after a change of daylight saving time the agent has to start again to
    follow it.
    """
    if not text.strip():
        return ()
    offset_minutes = _offset_minutes(timezone, now)
    wanted = NIGHTS if text.strip().lower() == "nights" else text
    spans = sorted(
        ((start - offset_minutes) % WEEK_MINUTES, length)
        for part in wanted.split(",")
        for start, length in _spans(part.strip().lower())
    )
    joined: list[tuple[int, int]] = []
    for start, length in spans:
        if joined and start <= sum(joined[-1]):
            first, known = joined[-1]
            joined[-1] = (first, max(known, start + length - first))
        else:
            joined.append((start, length))
    # The last may reach past the week's end into the first.
    while len(joined) > 1 and sum(joined[-1]) >= joined[0][0] + WEEK_MINUTES:
        start, length = joined.pop(0)
        first, known = joined[-1]
        joined[-1] = (first, max(known, start + WEEK_MINUTES + length - first))
    if any(length >= WEEK_MINUTES for _, length in joined):
        return (WeekWindow(0, 0),)
    return tuple(WeekWindow(start, (start + length) % WEEK_MINUTES) for start, length in joined)


def _spans(part: str) -> Iterator[tuple[int, int]]:
    """Each day's window as (first minute of the owner's week, minutes)."""
    match = _WINDOW.fullmatch(part)
    bad = usage_error(
        "--schedule: `nights`, or windows such as `Mon-Fri 18:00-08:00, Sat-Sun 00:00-24:00` are expected,"
        f" not {part[:80]!r}"
    )
    if match is None:
        raise bad
    first, last = match["first"] or DAYS[0], match["last"] or match["first"] or DAYS[-1]
    start = _minute(match["from_h"], match["from_m"])
    end = _minute(match["to_h"], match["to_m"])
    if first not in DAYS or last not in DAYS or start is None or start == DAY_MINUTES or end is None:
        raise bad
    if start == end:
        raise usage_error(f"--schedule: {part!r} is empty; a whole day is 00:00-24:00")
    length = end - start if end > start else end - start + DAY_MINUTES
    days = (DAYS.index(last) - DAYS.index(first)) % len(DAYS) + 1
    for day in range(DAYS.index(first), DAYS.index(first) + days):
        yield day % len(DAYS) * DAY_MINUTES + start, length


def _minute(hours: str, minutes: str) -> int | None:
    """The minute of the day, 24:00 being its end; None for no time of day."""
    minute = int(hours) * 60 + int(minutes)
    return minute if int(minutes) < 60 and minute <= DAY_MINUTES else None  # noqa: PLR2004 - minutes of an hour


def _offset_minutes(timezone: str, now: datetime) -> int:
    """How far the zone is ahead of UTC."""
    if not timezone:
        raise usage_error(
            "--schedule: this machine does not say in which time zone it is; add --timezone, such as Europe/Paris"
        )
    try:
        offset = now.astimezone(zoneinfo.ZoneInfo(timezone)).utcoffset()
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        guess = nearest(timezone[:80], sorted(zoneinfo.available_timezones() or {"UTC"}))
        raise usage_error(
            f"--timezone: no time zone is named {timezone[:80]!r}; did you mean {guess}?"
        ) from None
    return 0 if offset is None else int(offset.total_seconds()) // 60


def consent_lines(user: str, isolation: str, egress: str, data_dir: Path) -> list[str]:
    """What somebody who offers a machine agrees to. A change of meaning raises CONSENT_VERSION."""
    runs = f"What runs here: jobs of the network's tenants, strangers' code, with isolation {isolation}."
    shared = (
        "What is shared with the network: this machine's name and hardware, its load and health, and what jobs"
        " write to their logs; the agent itself sends no other file of yours."
    )
    ends = (
        "It ends when you say so: Ctrl-C, for a service `orch worker uninstall`, gives everything back."
        f" Keys and state are in {data_dir}."
    )
    return [runs, *_reach_lines(user, isolation, egress), shared, ends]


def _reach_lines(user: str, isolation: str, egress: str) -> list[str]:
    """What tenants' code can reach, in plain words."""
    if isolation == Isolation.NONE:
        everything = (
            f"What it can reach: everything that {user} can. Nothing stands between it and the files that {user} may"
            f" read or change, the other programs of {user}, the agent's keys, the internet and your own network."
        )
        return [everything]
    means = {
        AUTO: "in the strongest isolation this machine can do; where it can do none, no job comes here",
        Isolation.BOX: "in a box",
        Isolation.CONTAINER: "in a container",
    }
    network = (
        "It reaches the other machines of its own cluster and the internet, but nothing of your own network."
        if egress == "internet"
        else "It reaches the other machines of its own cluster, but neither the internet nor your own network."
    )
    reach = (
        f"What it can reach: it is kept {means[isolation]}. There it sees the GPUs given to it, a folder of its own and"
        " the programs it runs on; none of your files, of your other programs and of the agent's keys."
        f" {network}"
    )
    limits = (
        "What isolation cannot promise: it shares this machine's kernel and GPU driver, and a hole in these is a way"
        " out. The jobs use your electricity, and with the internet your line and its address."
    )
    # Root is what somebody stumbles over, so it is not left unsaid.
    above = (
        "As whom: the agent runs as root, which boxes and their networks take to be made. No job ever runs as root:"
        " each box has a user of its own, to whom nothing else on this machine belongs."
    )
    return [reach, *([above] if user == ROOT else []), limits]


def has_consented(data_dir: Path, isolation: str, egress: str) -> bool:
    """Whether this very meaning was agreed to here before."""
    try:
        value = json.loads((data_dir / CONSENT_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and {**value, "given_at_ms": 0} == _agreement(isolation, egress, 0)


def _agreement(isolation: str, egress: str, at_ms: int) -> dict[str, object]:
    return {"version": CONSENT_VERSION, "isolation": isolation, "egress": egress, "given_at_ms": at_ms}


def record_consent(data_dir: Path, isolation: str, egress: str, at_ms: int) -> None:
    """Ask no more on this machine while it runs jobs in this way."""
    make_folder(data_dir)
    write_whole(data_dir / CONSENT_FILE, json.dumps(_agreement(isolation, egress, at_ms)).encode())
