"""How this machine's members reach others of their clusters: counted here, for the control plane sees no tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.api.v1 import telemetry_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.adapters.node_records import NodeStatus


def tunnel_counts(nodes: Iterable[NodeStatus]) -> telemetry_pb2.TunnelCounts:
    """Of all members that are up: over TLS every tunnel is bridged, as nebula finds no way but the bridge's."""
    counts = telemetry_pb2.TunnelCounts()
    for status in nodes:
        if status.overlay_transport == "tls":
            counts.bridged += status.tunnels_direct + status.tunnels_relayed
        else:
            counts.direct += status.tunnels_direct
            counts.relayed += status.tunnels_relayed
    return counts
