"""Train a small network on handwritten digits, data-parallel over Ray actors: one per GPU, spread over nodes.

Plain Ray code: it runs unchanged on a laptop, on any Ray cluster, or through `ray job submit`. The arithmetic
is numpy's, so that it needs no particular GPU; each actor still claims one, as a real training would.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from sklearn.datasets import load_digits

Array = npt.NDArray[np.float64]
Parameters = tuple[Array, Array, Array, Array]

PIXELS, HIDDEN, CLASSES = 64, 64, 10
TEST_PART = 5
"""Every fifth picture is kept back to measure with."""
BATCH = 32
LEARNING_RATE = 0.2
MOMENTUM = 0.9
SEED = 7
ACCURACY_MIN = 0.9
PLACEMENT_TIMEOUT_S = 120
PACE_S = 0.2
"""Pause after an epoch when the run is stretched to --seconds, which is about time and not about work."""


@dataclass(frozen=True)
class Digits:
    """Pictures of shape (count, 64) in 0..1, and their digits, of shape (count,)."""

    pictures: Array
    digits: npt.NDArray[np.int64]


def load(part: str) -> Digits:
    """The `train` or `test` part of the set that ships with scikit-learn: nothing is downloaded."""
    found = load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))
    kept = order[::TEST_PART] if part == "test" else np.delete(order, np.s_[::TEST_PART])
    return Digits(found.data[kept] / 16.0, found.target[kept])


def initial_parameters() -> Parameters:
    """He initialisation."""
    draw = np.random.default_rng(SEED).standard_normal
    return (
        draw((PIXELS, HIDDEN)) * np.sqrt(2 / PIXELS),
        np.zeros(HIDDEN),
        draw((HIDDEN, CLASSES)) * np.sqrt(2 / HIDDEN),
        np.zeros(CLASSES),
    )


def forward(parameters: Parameters, pictures: Array) -> tuple[Array, Array]:
    """Hidden activations and the probability of each digit."""
    w1, b1, w2, b2 = parameters
    hidden = np.maximum(pictures @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, powers / powers.sum(axis=1, keepdims=True)


def gradients(parameters: Parameters, batch: Digits) -> tuple[Parameters, float]:
    """Gradients of the mean cross-entropy, and its value."""
    hidden, probabilities = forward(parameters, batch.pictures)
    rows = np.arange(len(batch.digits))
    loss = float(-np.log(probabilities[rows, batch.digits] + 1e-12).mean())
    error = probabilities.copy()
    error[rows, batch.digits] -= 1
    error /= len(rows)
    back = (error @ parameters[2].T) * (hidden > 0)
    return (batch.pictures.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)), loss


class Trainer:
    """Holds one shard of the training set and computes gradients on it."""

    def __init__(self, rank: int, shard: Digits) -> None:
        self.shard = shard
        self.random = np.random.default_rng(SEED + rank)

    def node_id(self) -> str:
        """Ray's id of the node; several nodes may share one address."""
        return str(ray.get_runtime_context().get_node_id())

    def steps_per_epoch(self) -> int:
        """Batches in the shard."""
        return max(1, len(self.shard.digits) // BATCH)

    def step(self, parameters: Parameters) -> tuple[Parameters, float]:
        """Gradients on one random batch."""
        chosen = self.random.choice(
            len(self.shard.digits), size=min(BATCH, len(self.shard.digits)), replace=False
        )
        return gradients(parameters, Digits(self.shard.pictures[chosen], self.shard.digits[chosen]))


def shards(everything: Digits, count: int) -> list[Digits]:
    """Equal parts, so that all finish an epoch together."""
    size = len(everything.digits) // count
    parts = [np.s_[rank * size : (rank + 1) * size] for rank in range(count)]
    return [Digits(everything.pictures[part], everything.digits[part]) for part in parts]


def start_trainers(count: int, gpus_each: int) -> list[Any]:
    """One actor per bundle, each on its own node where there are enough nodes, otherwise spread."""
    resource = "GPU" if gpus_each else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource, 0) >= 1]
    strategy = "STRICT_SPREAD" if len(nodes) >= count else "SPREAD"
    print(f"placing {count} trainers, 1 {resource} each, {strategy} over {len(nodes)} nodes", flush=True)
    group = placement_group([{resource: 1}] * count, strategy=strategy)
    if not group.wait(PLACEMENT_TIMEOUT_S):
        sys.exit(f"no room for {count} trainers after {PLACEMENT_TIMEOUT_S} s: ask for fewer with --workers")
    trainer = ray.remote(Trainer)
    return [
        trainer.options(
            num_cpus=0 if gpus_each else 1,
            num_gpus=gpus_each,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(rank, shard)
        for rank, shard in enumerate(shards(load("train"), count))
    ]


def train(trainers: list[Any], epochs: int, seconds: float) -> Parameters:
    """Synchronous data-parallel descent: every step averages the gradients of all trainers."""
    parameters = initial_parameters()
    velocity: tuple[Array, ...] = tuple(np.zeros_like(values) for values in parameters)
    steps = ray.get(trainers[0].steps_per_epoch.remote())
    began_s = time.monotonic()
    epoch = 0
    while epoch < epochs or time.monotonic() - began_s < seconds:
        rate = LEARNING_RATE / (1 + epoch / 10)
        losses = []
        for _ in range(steps):
            shared = ray.put(parameters)
            answers = ray.get([trainer.step.remote(shared) for trainer in trainers])
            means = [
                np.mean(column, axis=0) for column in zip(*(answer[0] for answer in answers), strict=True)
            ]
            velocity = tuple(MOMENTUM * v - rate * g for v, g in zip(velocity, means, strict=True))
            w1, b1, w2, b2 = (p + v for p, v in zip(parameters, velocity, strict=True))
            parameters = (w1, b1, w2, b2)
            losses.append(float(np.mean([answer[1] for answer in answers])))
        epoch += 1
        spent_s = time.monotonic() - began_s
        print(f"epoch {epoch:3d}  loss {np.mean(losses):.4f}  {spent_s:5.1f} s", flush=True)
        if seconds:
            time.sleep(PACE_S)
    return parameters


def arguments() -> argparse.Namespace:
    """What the command line says; the number of workers may also come from the environment."""
    parser = argparse.ArgumentParser(description="Train a digit classifier, data-parallel over Ray actors.")
    workers = int(os.environ.get("TRAIN_WORKERS", "0"))
    parser.add_argument("--workers", type=int, default=workers, help="trainers; default: one per GPU")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training set, at least")
    parser.add_argument("--seconds", type=float, default=0, help="go on for at least this long")
    return parser.parse_args()


def main() -> int:
    """Train, measure, and say how good it is; 1 where it is not good enough."""
    chosen = arguments()
    ray.init()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus:
        print("no GPU in this cluster: training on processors", flush=True)
    trainers = start_trainers(chosen.workers or gpus or 1, 1 if gpus else 0)
    nodes = sorted(set(ray.get([trainer.node_id.remote() for trainer in trainers])))
    print(
        f"{len(trainers)} trainers on {len(nodes)} nodes: {' '.join(node[:12] for node in nodes)}", flush=True
    )
    parameters = train(trainers, chosen.epochs, chosen.seconds)
    test = load("test")
    accuracy = float((forward(parameters, test.pictures)[1].argmax(axis=1) == test.digits).mean())
    print(f"test accuracy: {accuracy:.3f}", flush=True)
    return 0 if accuracy >= ACCURACY_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
