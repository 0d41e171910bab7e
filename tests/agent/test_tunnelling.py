"""Tunnels of all members of one machine, as its agent reports them."""

from __future__ import annotations

from orchestrator.adapters.node_records import NodeStatus
from orchestrator.agent.tunnelling import tunnel_counts
from orchestrator.api.v1 import telemetry_pb2


def test_tunnels_of_all_members_are_added_and_over_tls_all_are_bridged() -> None:
    statuses = [
        NodeStatus("up", overlay_transport="udp", tunnels_direct=3, tunnels_relayed=1),
        NodeStatus("up", overlay_transport="udp", tunnels_direct=2),
        NodeStatus("up", overlay_transport="tls", tunnels_direct=1, tunnels_relayed=4),
        NodeStatus("starting"),
    ]
    assert tunnel_counts(statuses) == telemetry_pb2.TunnelCounts(direct=5, relayed=1, bridged=5)
    assert tunnel_counts([]) == telemetry_pb2.TunnelCounts()
