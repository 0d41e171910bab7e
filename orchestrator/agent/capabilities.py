"""How this machine can keep tenants' code apart: what its owner asks for, held against what is possible here."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.adapters.box import tiers
from orchestrator.adapters.container import tiers as containers
from orchestrator.adapters.overlay import process
from orchestrator.adapters.runtimes import RuntimeUnavailableError, find_uv
from orchestrator.agent.identity import StartError
from orchestrator.agent.inventory import AUTO, Capabilities, Offer
from orchestrator.core.supply.fleet import NEBULA, REMARK_CHARACTERS_MAX, Isolation

NO_OVERLAY = "none"


def runtimes_fault() -> str:
    """Why no runtime can be built here, in one sentence with the remedy; empty if one can."""
    try:
        find_uv()
    except RuntimeUnavailableError as error:
        return str(error)
    return ""


def found_capabilities(
    offer: Offer,
    detect: Callable[[], tiers.Found] | None = None,
    available: Callable[[], str] = process.available,
    unbuildable: Callable[[], str] = runtimes_fault,
) -> Capabilities:
    """Look at this machine; ``available`` and ``unbuildable`` say why it can have no overlay and no runtime, or nothing.

    A container is only looked for where it is asked for: it is the stronger tier, but takes longer to start, needs a
    second store of images on the owner's disk, and what podman can do differs from machine to machine. So auto is a
    box at most. Raises StartError where something was asked for by name that is not possible: an owner who asks for a
    box must not find out later that there was none.
    """
    if offer.isolation == Isolation.NONE:
        _refuse_overlay(offer, "without isolation there is none; leave one of the two flags out")
        return Capabilities(Isolation.NONE, NO_OVERLAY)
    if detect is None:
        detect = containers.detect if offer.isolation == Isolation.CONTAINER else tiers.detect
    found = detect()
    if found.tier != Isolation.NONE:
        # Whatever is isolated runs on a runtime; better missed now than when the join token is spent.
        lacking = unbuildable()
        found = tiers.Found(Isolation.NONE, lacking) if lacking else found
    best = Isolation(found.tier)
    wanted = best if offer.isolation == AUTO else Isolation(offer.isolation)
    if not best.at_least(wanted):
        raise StartError(f"--isolation {wanted}: this machine can do {best} at most: {found.reason}")
    if wanted is Isolation.NONE:
        _refuse_overlay(offer, f"without isolation there is none: {found.reason}")
        reason = f"no isolation, so no job comes here: {found.reason}; or consent with --isolation none"
        return Capabilities(Isolation.NONE, NO_OVERLAY, (_remark(reason),))
    if offer.overlay == NO_OVERLAY:
        return _alone(wanted, "--overlay none was asked for")
    fault = available()
    if not fault:
        return Capabilities(wanted, NEBULA)
    _refuse_overlay(offer, fault)
    return _alone(wanted, fault)


def _refuse_overlay(offer: Offer, reason: str) -> None:
    if offer.overlay == NEBULA:
        raise StartError(f"--overlay {NEBULA}: {reason}")


def _alone(isolation: Isolation, reason: str) -> Capabilities:
    return Capabilities(isolation, NO_OVERLAY, (_remark(f"serves one-machine clusters only: {reason}"),))


def _remark(text: str) -> str:
    """As the control plane takes it: a tool's words may be long and hold anything."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable[:REMARK_CHARACTERS_MAX]
