"""Builds the tests' network of namespaces for a person to play in, until Ctrl-C (make lab, LAB=file.toml make lab)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.lab.lab import Lab, missing
from tests.lab.topology import METADATA_IP, parse_table

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TABLE = ROOT / "tests/lab/default.toml"


def describe(lab: Lab) -> None:
    """Print what there is, and how to enter it."""
    print(f"{'host':<14}{'nat':<13}{'address':<15}{'public':<15}{'RTT +ms':>8}{'loss %':>8}{'Mbit/s':>8}")
    for name, site in lab.sites.items():
        link = site.host.link
        rate = f"{link.rate_mbit:g}" if link.rate_mbit else "-"
        print(
            f"{name:<14}{site.host.nat:<13}{site.address:<15}{site.public_ip:<15}"
            f"{link.delay_ms:>8g}{link.loss_percent:>8g}{rate:>8}"
        )
    first = next(iter(lab.sites))
    inner = next((name for name, site in lab.sites.items() if site.has_router), first)
    print(f"""
Enter a host, look at its gateway, measure (each in a shell of its own):
  nsenter --net={lab.namespace(inner)} bash
  nsenter --net={lab.namespace(lab.router(inner))} nft list ruleset
  nsenter --net={lab.namespace(first)} iperf3 --server
  nsenter --net={lab.namespace(inner)} iperf3 --client {lab.public_ip(first)}
A listener on {METADATA_IP} in a gateway plays a cloud's metadata service.
Ctrl-C removes all of it.""")
    sys.stdout.flush()


def stop(_signal: int, _frame: FrameType | None) -> None:
    """End by way of Lab's own clean-up."""
    raise KeyboardInterrupt


def main() -> int:
    """Stand until told to stop."""
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    table = Path(os.environ.get("LAB") or DEFAULT_TABLE)
    try:
        hosts = parse_table(table.read_text())
    except (OSError, ValueError, TypeError) as error:
        print(f"{table}: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        with Lab(hosts) as lab:
            describe(lab)
            signal.pause()
    except KeyboardInterrupt:
        print("\nremoved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
