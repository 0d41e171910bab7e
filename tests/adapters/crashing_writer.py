"""A process whose children write batches until they are killed: imported once, forked for each life.

For each line on stdin one child is born. It says ``born <pid> <version>``, then each version once that is durable; when
it has been killed its parent says ``dead``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import NoReturn

from orchestrator.adapters.store import SqlStore, Transaction
from orchestrator.core import messages as m
from orchestrator.core.ids import TenantId
from orchestrator.core.policies import Policies
from orchestrator.core.tenancy.tenants import Tenant

SIZES = 7


def batch_size(version: int) -> int:
    """How many events the batch after ``version`` has: a torn batch shows in the version it leaves."""
    return 1 + version % SIZES


def tenant_batch(base_version: int, size: int) -> Transaction:
    """Tenants named by the version that made them, and one row that every batch writes over."""
    made = [
        Tenant(TenantId(f"ten_{base_version + number:06d}"), f"t{base_version}", base_version)
        for number in range(1, size + 1)
    ]
    last = replace(made[-1], tenant_id=TenantId("ten_last"))
    events = [m.TenantCreated(tenant) for tenant in (*made[:-1], last)]
    rows = [("tenants", event.tenant.tenant_id, event.tenant) for event in events]
    return Transaction(base_version, base_version, events, rows)


def say(words: str) -> None:
    """In one write, so that a kill leaves a line whole or absent."""
    os.write(1, f"{words}\n".encode())


def live(path: str) -> NoReturn:
    """Write until killed."""
    store = SqlStore(f"sqlite:///{path}")
    version = store.load(Policies()).version
    say(f"born {os.getpid()} {version}")
    while True:
        size = batch_size(version)
        store.write(tenant_batch(version, size))
        version += size
        say(str(version))


def main() -> None:
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            live(sys.argv[1])
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
