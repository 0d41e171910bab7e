"""The system calls of a container: what podman's own list allows, less what no box allows. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.adapters.box.seccomp import ALLOWED_FAMILIES, CLONE_NEW_ANY, CLONE_NEWTIME, EPERM, MACHINES

PROFILE_PATHS = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
"""Where podman looks for its list, the owner's own first."""

ALLOW = "SCMP_ACT_ALLOW"

NETLINK_FAMILY = 16
NETLINK_AUDIT = 9
"""linux/netlink.h: the one netlink protocol that reaches the machine's audit log."""

UNANSWERED = ("clone3",)
"""Its flags lie in memory, where no filter can read them; answered as unknown, libraries fall back on `clone`."""


def profile(of_podman: str) -> str:
    """The list as JSON: calls that boxes refuse taken out, no new namespaces, no other families, no 32-bit calls.

    Raises ValueError for what is no such list.
    """
    refused = {name for machine in MACHINES.values() for name in machine.denied}
    settled = refused | {"clone", "unshare", "socket", *UNANSWERED}
    try:
        told: dict[str, Any] = json.loads(of_podman)
        rules = [
            {**rule, "names": [name for name in rule["names"] if name not in settled]}
            for rule in told["syscalls"]
        ]
        # The 32-bit calls of the same machine have numbers, and a way to sockets, of their own.
        machines = [{**entry, "subArchitectures": []} for entry in told["archMap"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"podman's list of system calls is not understood: {error!r}") from error
    rules = [rule for rule in rules if rule["names"]]
    rules.append({"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM})
    rules.append(_allowed("clone", _argument(0, CLONE_NEW_ANY, "SCMP_CMP_MASKED_EQ")))
    rules.append(_allowed("unshare", _argument(0, CLONE_NEW_ANY | CLONE_NEWTIME, "SCMP_CMP_MASKED_EQ")))
    for family in ALLOWED_FAMILIES:
        arguments = [_argument(0, family, "SCMP_CMP_EQ")]
        if family == NETLINK_FAMILY:
            arguments.append(_argument(2, NETLINK_AUDIT, "SCMP_CMP_NE"))
        rules.append(_allowed("socket", *arguments))
    return json.dumps({**told, "archMap": machines, "syscalls": rules})


def _allowed(name: str, *arguments: Mapping[str, object]) -> dict[str, Any]:
    return {"names": [name], "action": ALLOW, "args": list(arguments)}


def _argument(index: int, value: int, operation: str) -> Mapping[str, object]:
    """A condition on one argument; the masked comparison asks that none of the bits in ``value`` is set."""
    return {"index": index, "value": value, "valueTwo": 0, "op": operation}
