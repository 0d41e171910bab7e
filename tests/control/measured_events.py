"""Metrics that a simulated hour does not feed, as it lacks what they count. `test_measuring.py` has it happen."""

from __future__ import annotations

NEEDS_AN_EVENT = (
    "build_info",
    "certificate_remaining_seconds",
    "device_faults",
    "gateway_request_seconds",
    "group_loss_ratio",
    "group_rtt_seconds",
    "group_workers",
    "hardware_changes",
    "ledger_imbalance_microcredits",
    "path_probes",
    "plans_stale",
    "preemptions",
    "receipts_unaccounted",
    "refusals",
    "relay_bytes",
    "relay_dropped_datagrams",
)

OF_SCRAPES = ("scrape_seconds", "scrapes")
"""Fed by scrapes through sessions, where these are tested."""
