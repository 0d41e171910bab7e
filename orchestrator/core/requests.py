"""Reading what a tenant asks for out of Ray's own request: the ``orch.`` keys of the job's metadata."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.errors import invalid
from orchestrator.core.images import reference_fault
from orchestrator.core.jobs import JobConditions, Pattern, Requirements
from orchestrator.core.market.pricing import MICROCREDITS
from orchestrator.core.supply.catalogue import CPU_MODEL, MODELS, find_model, nearest
from orchestrator.core.supply.evidence import EvidenceClass, capability_number
from orchestrator.core.supply.fleet import HardwareClass, Isolation
from orchestrator.core.supply.reliability import BASIS_POINTS
from orchestrator.core.supply.terms import REGION, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from orchestrator.core.jobs import JobPolicy

Choice = TypeVar("Choice", HardwareClass, Isolation, EvidenceClass, Tier, Pattern)

PREFIX = "orch."

KEYS = (
    "orch.gpus",
    "orch.gpus_per_worker",
    "orch.gpu_model",
    "orch.hardware_class",
    "orch.min_gpu_memory_gb",
    "orch.min_compute_capability",
    "orch.region",
    "orch.max_price",
    "orch.min_reliability",
    "orch.evidence",
    "orch.tier",
    "orch.max_rtt_ms",
    "orch.min_bandwidth_mbps",
    "orch.pattern",
    "orch.isolation",
    "orch.runtime",
    "orch.image",
    "orch.priority",
    "orch.max_attempts",
    "orch.time_limit",
    "orch.reservation",
)

DIGITS_MAX = 9
"""No count in a request needs more digits, and Python's integers would take millions."""

PRIORITY_MAX = 100

RTT_MS_MAX = 5_000
"""No two places on earth are farther apart; whoever means no bound leaves it out."""

BANDWIDTH_MBPS_MAX = 1_000_000
"""No line between two machines is wider than a terabit."""

TIME_LIMIT = re.compile(r"([0-9]{1,6})(s|m|h|d)")
TIME_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
TIME_LIMIT_MS_MIN, TIME_LIMIT_MS_MAX = 60_000, 366 * 86_400_000

PRICE = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
"""Credits per GPU-hour, to the microcredit."""

FRACTION = re.compile(r"[0-9]{0,6}\.[0-9]{1,6}")

CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}")
"""No vendor has come to a hundred, and what is longer would be read as something else."""

PERCENT = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,2})?")

DIGEST_PREFIX_MIN = 12
"""Of a runtime's digest in hex: as many as are shown, and no name is that by chance."""


def parse_conditions(
    metadata: Mapping[str, str], entrypoint_num_gpus: float, policy: JobPolicy
) -> JobConditions:
    """What a submission's metadata asks for; raises RefusedError naming the key at fault."""
    for key in metadata:
        if key.startswith(PREFIX) and key not in KEYS:
            hint = nearest(key[:80], list(KEYS))
            raise invalid(key[:80], f"unknown key {key[:80]!r}: did you mean {hint!r}?")
    asked = _whole_number(metadata, "orch.gpus", None)
    of_driver = _whole_gpus(entrypoint_num_gpus)
    gpus = asked if asked is not None else max(1, of_driver)
    if gpus > policy.gang_gpus_max:
        raise invalid(
            "orch.gpus", f"orch.gpus={gpus} is above the largest gang of {policy.gang_gpus_max} GPUs"
        )
    if asked is not None and entrypoint_num_gpus > asked:
        message = f"entrypoint_num_gpus={entrypoint_num_gpus:g} contradicts orch.gpus={asked}: the gang must hold it"
        raise invalid("entrypoint_num_gpus", message)
    tier = _choice(metadata, "orch.tier", Tier)
    requirements = Requirements(
        gpus=gpus,
        gpu_model=_model(metadata),
        hardware_class=_choice(metadata, "orch.hardware_class", HardwareClass),
        min_gpu_memory_gb=_whole_number(metadata, "orch.min_gpu_memory_gb", 0) or 0,
        isolation=_isolation(metadata),
        runtime=_runtime(metadata, policy),
        image=_image(metadata),
        gpus_per_worker=_whole_number(metadata, "orch.gpus_per_worker", 0) or 0,
        min_compute_capability=_capability(metadata),
        region=_region(metadata),
        max_price=_price(metadata),
        min_reliability_bp=_percent_bp(metadata),
        min_evidence=_choice(metadata, "orch.evidence", EvidenceClass) or EvidenceClass.T0,
        committed=tier is Tier.COMMITTED,
        max_rtt_ms=_rtt_ms(metadata),
        pattern=_choice(metadata, "orch.pattern", Pattern) or Pattern.ALL_REDUCE,
        min_bandwidth_mbps=_bandwidth_mbps(metadata),
    )
    _refuse_contradictions(requirements)
    priority = _whole_number(metadata, "orch.priority", 0) or 0
    if priority > PRIORITY_MAX:
        raise invalid("orch.priority", f"orch.priority={priority} is above {PRIORITY_MAX}")
    attempts = _whole_number(metadata, "orch.max_attempts", 3) or 0
    if not 1 <= attempts <= policy.max_attempts_max:
        raise invalid("orch.max_attempts", f"orch.max_attempts must be from 1 to {policy.max_attempts_max}")
    return JobConditions(
        requirements,
        priority,
        attempts,
        time_limit_ms=_time_limit_ms(metadata),
        interruptible=tier is Tier.INTERRUPTIBLE,
        reservation=_reservation(metadata),
    )


def for_driver(
    wanted: Requirements,
    *,
    num_cpus: float,
    num_gpus: float,
    memory_bytes: int,
    resources: Mapping[str, float],
) -> Requirements:
    """The same requirements with what the driver wants for itself; refuses what no machine here has."""
    if resources:
        name = min(resources)
        raise invalid(
            "entrypoint_resources", f"no machine here has a resource named {name[:80]!r}; leave it out"
        )
    if not 0 <= num_cpus <= 10**DIGITS_MAX:
        raise invalid("entrypoint_num_cpus", f"entrypoint_num_cpus={num_cpus!r} is not a count of CPUs")
    if num_gpus > 1 and wanted.gpus_per_worker not in (0, wanted.gpus):
        message = (
            f"entrypoint_num_gpus={num_gpus:g} wants the whole gang on one machine, and contradicts"
            f" orch.gpus_per_worker={wanted.gpus_per_worker}"
        )
        raise invalid("entrypoint_num_gpus", message)
    return replace(
        wanted,
        driver_cpus=int(-(-num_cpus // 1)),
        driver_memory_bytes=memory_bytes,
        one_machine=num_gpus > 1,
    )


def _whole_gpus(value: float) -> int:
    if not 0 <= value <= 10**DIGITS_MAX:
        raise invalid("entrypoint_num_gpus", f"entrypoint_num_gpus={value!r} is not a count of GPUs")
    if value > 1 and value % 1:
        # Ray would fail the driver on the machine that was given to it.
        raise invalid(
            "entrypoint_num_gpus",
            f"entrypoint_num_gpus={value:g}: of more than one GPU Ray gives whole ones only; a part of one is below 1",
        )
    return int(-(-value // 1))


def _whole_number(metadata: Mapping[str, str], key: str, default: int | None) -> int | None:
    text = metadata.get(key)
    if text is None:
        return default
    text = text.strip()
    if key in ("orch.gpus", "orch.gpus_per_worker") and FRACTION.fullmatch(text):
        raise invalid(
            key,
            f"{key}={text}: tenants get whole GPUs, so ask for a whole number;"
            " inside your cluster @ray.remote(num_gpus=0.5) shares one",
        )
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX:
        raise invalid(key, f"{key}={text[:40]!r} is not a whole number of at most {DIGITS_MAX} digits")
    return int(text)


def _model(metadata: Mapping[str, str]) -> str | None:
    text = metadata.get("orch.gpu_model")
    if text is None:
        return None
    model = find_model(text[:80])
    if model is None or model.name == CPU_MODEL:
        hint = nearest(text[:80], [name for name in MODELS if name != CPU_MODEL])
        raise invalid("orch.gpu_model", f"unknown GPU model {text[:80]!r}: did you mean {hint!r}?")
    return model.name


def _runtime(metadata: Mapping[str, str], policy: JobPolicy) -> str:
    """The digest behind a runtime's name; a digest, or enough of its beginning, names it too."""
    text = metadata.get("orch.runtime")
    if text is None:
        return ""
    named = text.strip()[:80]
    digest = find_runtime(policy.runtimes, named)
    if digest is not None:
        return digest
    if not policy.runtimes:
        raise invalid("orch.runtime", "this network offers no runtimes; leave orch.runtime out")
    hint = nearest(named, [name for name, _ in policy.runtimes])
    raise invalid("orch.runtime", f"unknown runtime {named!r}: did you mean {hint!r}?")


def _image(metadata: Mapping[str, str]) -> str:
    """The image to run in, in place of a runtime."""
    text = metadata.get("orch.image")
    if text is None:
        return ""
    image = text.strip()
    fault = reference_fault(image)
    if fault:
        raise invalid("orch.image", fault)
    if "orch.runtime" in metadata:
        raise invalid(
            "orch.image", "an image brings its own Python and Ray: leave orch.image or orch.runtime out"
        )
    return image


def _capability(metadata: Mapping[str, str]) -> int:
    text = metadata.get("orch.min_compute_capability")
    if text is None:
        return 0
    number = capability_number(text.strip()) if CAPABILITY.fullmatch(text.strip()) else 0
    if number == 0:
        raise invalid(
            "orch.min_compute_capability",
            f"orch.min_compute_capability={text[:40]!r} is not MAJOR.MINOR, such as 8.9",
        )
    return number


def _region(metadata: Mapping[str, str]) -> str:
    text = metadata.get("orch.region")
    if text is None:
        return ""
    region = text.strip()
    if REGION.fullmatch(region) is None:
        raise invalid(
            "orch.region", f"orch.region={text[:40]!r} is not lower-case letters, digits and dashes"
        )
    return region


def _decimal(
    metadata: Mapping[str, str], key: str, pattern: re.Pattern[str], unit: int, what: str
) -> int | None:
    """A decimal number in whole units of which ``unit`` make one; never by way of a float."""
    text = metadata.get(key)
    if text is None:
        return None
    text = text.strip()
    if pattern.fullmatch(text) is None:
        raise invalid(key, f"{key}={text[:40]!r} is not {what}")
    whole, _, part = text.partition(".")
    places = len(str(unit)) - 1
    return int(whole) * unit + int(part.ljust(places, "0") or 0)


def _price(metadata: Mapping[str, str]) -> int:
    what = "a price per GPU-hour in credits such as 0.45, above 0 and with at most six decimals"
    price = _decimal(metadata, "orch.max_price", PRICE, MICROCREDITS, what)
    if price == 0:
        raise invalid("orch.max_price", f"orch.max_price=0 is not {what}")
    return price or 0


def _percent_bp(metadata: Mapping[str, str]) -> int:
    what = "a percentage from 0 to 100 such as 97.5"
    found = _decimal(metadata, "orch.min_reliability", PERCENT, 100, what)
    if found is not None and found > BASIS_POINTS:
        raise invalid("orch.min_reliability", f"orch.min_reliability={found / 100:g} is not {what}")
    return found or 0


def _rtt_ms(metadata: Mapping[str, str]) -> int:
    found = _whole_number(metadata, "orch.max_rtt_ms", None)
    if found is not None and not 1 <= found <= RTT_MS_MAX:
        raise invalid("orch.max_rtt_ms", f"orch.max_rtt_ms must be from 1 to {RTT_MS_MAX}")
    return found or 0


def _bandwidth_mbps(metadata: Mapping[str, str]) -> int:
    found = _whole_number(metadata, "orch.min_bandwidth_mbps", None)
    if found is not None and not 1 <= found <= BANDWIDTH_MBPS_MAX:
        raise invalid(
            "orch.min_bandwidth_mbps", f"orch.min_bandwidth_mbps must be from 1 to {BANDWIDTH_MBPS_MAX}"
        )
    return found or 0


def _time_limit_ms(metadata: Mapping[str, str]) -> int:
    text = metadata.get("orch.time_limit")
    if text is None:
        return 0
    written = TIME_LIMIT.fullmatch(text.strip())
    found_ms = int(written[1]) * TIME_UNIT_MS[written[2]] if written else 0
    if not TIME_LIMIT_MS_MIN <= found_ms <= TIME_LIMIT_MS_MAX:
        raise invalid(
            "orch.time_limit",
            f"orch.time_limit={text[:40]!r} is not a time such as 90m, 12h or 2d, of a minute to 366 days",
        )
    return found_ms


def _reservation(metadata: Mapping[str, str]) -> str:
    text = metadata.get("orch.reservation")
    if text is None:
        return ""
    if not text.strip():
        raise invalid("orch.reservation", "orch.reservation is empty: name a reservation, or leave it out")
    return text.strip()[:80]


def _isolation(metadata: Mapping[str, str]) -> Isolation:
    """The weakest that serves; only containers have images."""
    wanted = _choice(metadata, "orch.isolation", Isolation) or Isolation.BOX
    return Isolation.CONTAINER if "orch.image" in metadata else wanted


def find_runtime(offered: Iterable[tuple[str, str]], named: str) -> str | None:
    """The digest of the (name, digest) that is meant: by its name, its digest, or enough of that."""
    for name, digest in offered:
        if named == name or (len(named) >= DIGEST_PREFIX_MIN and digest.startswith(named)):
            return digest
    return None


def _choice(metadata: Mapping[str, str], key: str, kind: type[Choice]) -> Choice | None:
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return kind(text.strip().lower())
    except ValueError:
        hint = nearest(text[:80], [choice.value for choice in kind])
        raise invalid(key, f"unknown {key} {text[:80]!r}: did you mean {hint!r}?") from None


def _refuse_contradictions(wanted: Requirements) -> None:
    if wanted.gpus == 0 and (wanted.gpu_model or wanted.min_gpu_memory_gb):
        raise invalid("orch.gpus", "orch.gpus=0 asks for CPU work and contradicts a GPU model or GPU memory")
    if wanted.hardware_class is HardwareClass.CPU and wanted.gpus > 0:
        raise invalid(
            "orch.hardware_class", "class cpu has no GPUs: ask for orch.gpus=0, or for another class"
        )
    if wanted.gpus == 0 and wanted.hardware_class not in (None, HardwareClass.CPU):
        raise invalid("orch.hardware_class", f"orch.gpus=0 runs on class cpu, not on {wanted.hardware_class}")
    if wanted.gpus_per_worker and wanted.gpus % wanted.gpus_per_worker:
        raise invalid(
            "orch.gpus_per_worker",
            f"orch.gpus={wanted.gpus} cannot be shared out by {wanted.gpus_per_worker} on each machine",
        )
    if wanted.gpus == 0 and (wanted.gpus_per_worker or wanted.min_compute_capability):
        raise invalid(
            "orch.gpus", "orch.gpus=0 asks for CPU work and contradicts GPUs per worker or their capability"
        )
    if wanted.gpu_model is not None:
        model = MODELS[wanted.gpu_model]
        if wanted.min_gpu_memory_gb > model.memory_gb:
            message = f"{model.name} has {model.memory_gb} GB, less than the {wanted.min_gpu_memory_gb} GB asked for"
            raise invalid("orch.min_gpu_memory_gb", message)
        if wanted.hardware_class is not None and wanted.hardware_class not in model.classes:
            offered = ", ".join(sorted(model.classes))
            message = (
                f"no {wanted.hardware_class} machine has a {model.name}: it is offered by class {offered}"
            )
            raise invalid("orch.hardware_class", message)
        return
    offered_gb = [
        model.memory_gb for model in MODELS.values() if wanted.hardware_class in (None, *model.classes)
    ]
    if wanted.min_gpu_memory_gb > max(offered_gb):
        of_class = f" of class {wanted.hardware_class}" if wanted.hardware_class is not None else ""
        message = (
            f"no model{of_class} has {wanted.min_gpu_memory_gb} GB of memory, at most {max(offered_gb)} GB"
        )
        raise invalid("orch.min_gpu_memory_gb", message)
