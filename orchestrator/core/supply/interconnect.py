"""How a machine's own devices reach each other, as a small rank: what its drivers show of NVLink and PCIe.

What was not said ranks with the narrowest: others are preferred to it, and it is kept from nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.supply.evidence import width_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.supply.evidence import DeviceEvidence
    from orchestrator.core.supply.fleet import Device

UNKNOWN_OR_NARROW, PCIE, WIDE_PCIE, NVLINK = range(4)
"""The ranks, worst first."""

INTERCONNECT_WORDS = ("a link that is narrow or not known", "PCIe", "wide PCIe", "NVLink")

LANE_MB_PER_S = {1: 250, 2: 500, 3: 985, 4: 1_969, 5: 3_938, 6: 7_563}
"""What one lane of each PCIe generation carries one way, in 10⁶ bytes, its coding taken off."""

OLDEST_GENERATION = 3
"""Of every GPU in the catalogue; taken where only the width is known."""

PCIE_MB_PER_S, WIDE_PCIE_MB_PER_S = 7_800, 25_000
"""Eight lanes of generation 3, the least that a slot for GPUs has; and sixteen of generation 4, or eight of 5."""


def interconnect_rank(devices: Iterable[Device]) -> int:
    """The rank of the worst linked of them: an exchange among all goes at its pace."""
    return min((_rank(one.evidence) for one in devices), default=UNKNOWN_OR_NARROW)


def _rank(evidence: DeviceEvidence | None) -> int:
    if evidence is None:
        return UNKNOWN_OR_NARROW
    if evidence.nvlink_links:
        return NVLINK
    # An idle GPU lowers its generation: what it can do counts.
    generation = evidence.pcie_generation_max or OLDEST_GENERATION
    newest = max(LANE_MB_PER_S)
    carried = (width_of(evidence) or 0) * LANE_MB_PER_S.get(min(generation, newest), 0)
    if carried >= WIDE_PCIE_MB_PER_S:
        return WIDE_PCIE
    return PCIE if carried >= PCIE_MB_PER_S else UNKNOWN_OR_NARROW
