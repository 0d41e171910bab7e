"""Machines and jobs of the model fleet (model.py): made up, and nothing that a panel shows by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

HOUR_S = 3_600

SHAPES = (
    ("consumer", "RTX 4090", 1, "eu-north", 14),
    ("consumer", "RTX 3090", 2, "eu-west", 8),
    ("miner", "RTX 3080", 6, "us-east", 6),
    ("datacenter", "A100-80GB", 8, "eu-north", 4),
    ("datacenter", "H100-80GB", 8, "us-east", 2),
    ("apple", "M2 Ultra", 1, "eu-west", 3),
    ("cpu", "", 0, "eu-north", 3),
)
"""Class, model, GPUs, region and how many such workers."""


@dataclass(slots=True)
class Worker:
    """One machine of the model."""

    worker: str
    name: str
    supplier: str
    hardware_class: str
    model: str
    gpus: int
    region: str
    group: str
    silent_share: float
    """How much of its time it is away."""
    version: str
    liveness: str = "live"
    silent_s: float = 0
    back_s: float = 0
    used: int = 0
    hold: str = ""
    heat: float = 0.5
    certificate_s: float = 0
    sessions: int = 1

    @property
    def owned(self) -> dict[str, str]:
        """The labels of what is counted by worker."""
        return {"worker": self.worker, "supplier": self.supplier, "hardware_class": self.hardware_class}

    @property
    def target(self) -> dict[str, str]:
        """The labels that service discovery gives to what is scraped from it."""
        return {**self.owned, "group": self.group}

    @property
    def placeable(self) -> bool:
        """Whether new work may be given."""
        return self.liveness == "live" and not self.hold


@dataclass(slots=True)
class Job:
    """One job of the model, from its coming to its end."""

    hardware_class: str
    gpus: int
    came_s: float
    run_s: float
    reason: str = "busy"
    phase: str = "waiting"
    phase_ends_s: float = 0
    placed_s: float = 0
    started: bool = False
    cluster: str = ""
    on: list[tuple[Worker, int]] = field(default_factory=list)


def joined(chance: random.Random) -> Iterator[Worker]:
    """The fleet at its beginning."""
    number = 0
    for hardware_class, model, gpus, region, count in SHAPES:
        for _ in range(count):
            number += 1
            supplier = f"sup_{1 + number % 7:04d}" if hardware_class != "datacenter" else "sup_0009"
            yield Worker(
                worker=f"wrk_{number:04d}",
                name=f"{hardware_class}-{number:02d}",
                supplier=supplier,
                hardware_class=hardware_class,
                model=model,
                gpus=gpus,
                region=region,
                group=str(1 + number // 5) if gpus else "",
                silent_share=0.12 if number in {9, 20} else 0.004 * chance.random(),
                version="0.2.0" if chance.random() < 0.9 else "0.1.3",
                hold={5: "schedule", 17: "quarantined", 25: "owner"}.get(number, ""),
                certificate_s=HOUR_S * (12 + 11 * chance.random()),
            )
