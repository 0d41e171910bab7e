"""P8 `f1-20ms`: how well pairs within 20 ms are found when each worker measures only 32 others.

Ours is `orchestrator.core.nearness.latency` itself, asked for orders of eight probes each ten minutes of a made-up
clock; one worker's results are in before the next one is asked. A pair counts as near if its measured time, or else
its predicted one, is at most 20 ms, with no factor on it. The peer is a factorisation of the logarithms of rank 10 by
alternating least squares, given as many pairs as 32 probes of each worker are, drawn by chance and none twice. What
was measured counts as known for it too; its regularisation and the factor on its bound are the best of a grid on frame
1.

Beside it: the same factorisation fed with the very pairs that ours probed (`-same-pairs`), and Vivaldi with heights in
four dimensions on the peer's pairs (`-vivaldi`), its factor from frame 1 as well. Frames: 490 × 490 round-trip times
between PlanetLab hosts, or those that `BENCH_RTT` names (`rtt.py`). Ours was tuned on PlanetLab's frame 1, the peers are
tuned on the first; the others are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks import rtt
from benchmarks.report import Case, Target, compared, note
from benchmarks.rtt import Table
from benchmarks.stats import median, paired_ratio_interval
from orchestrator.core.ids import WorkerId
from orchestrator.core.nearness.latency import PROBES_PER_ORDER_MAX, LatencyMap
from orchestrator.sim.plots import Curve

SEEDS = 5
TUNING_SEEDS = 2
PROBES = 32
BOUND_MS = 20.0
TARGET = Target(1.1, ">=", "ratio")

ORDER_EVERY_MS = 600_000
ORDERS_MAX = 8
"""The budget of an hour gives orders of fewer than eight at times: 32 probes take some five."""
MAX_AGE_MS = 6 * 3_600_000

RANK = 10
SWEEPS = 20
REGULARISATIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FACTORS = tuple(factor / 20 for factor in range(4, 61))
"""On the 20 ms, for the peers: 0.2 to 3.0."""

DIMENSIONS = 4
VIVALDI_ROUNDS = 150
VIVALDI_GAIN = 0.25

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ours:
    """What the production code knows at the end."""

    best_ms: Table
    """Measured, or else predicted."""
    probed: Mask
    probes: int
    found: float
    """Share of the near pairs that was measured."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Constants of the peers, from frame 1."""

    regularisation: float
    factor: float
    same_pairs_regularisation: float
    same_pairs_factor: float
    vivaldi_factor: float


@dataclass(slots=True)
class Scores:
    """F1 of each side, run by run."""

    ours: list[float] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    same_pairs: list[float] = field(default_factory=list)
    vivaldi: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)


def f1(truth_ms: Table, near: Mask) -> float:
    """Of all unordered pairs: how well ``near`` tells those within the bound."""
    above = np.triu_indices(len(truth_ms), 1)
    really, said = truth_ms[above] <= BOUND_MS, near[above]
    return 2 * int((really & said).sum()) / max(1, int(really.sum()) + int(said.sum()))


def near_by(truth_ms: Table, measured: Mask, guessed_ms: Table, factor: float) -> Mask:
    """What was measured is known; of the rest the guess decides."""
    return np.where(measured, truth_ms <= BOUND_MS, guessed_ms <= BOUND_MS * factor)


def ours(truth_ms: Table, seed: int) -> Ours:
    """Let the production code choose and learn PROBES of each worker."""
    chance = np.random.default_rng(seed)
    count = len(truth_ms)
    names = [WorkerId(f"wrk-{seed}-{k}") for k in range(count)]
    index = {name: k for k, name in enumerate(names)}
    knowledge = LatencyMap()
    probed = np.zeros((count, count), dtype=np.bool_)
    left = [PROBES] * count
    turns = chance.permutation(count).tolist()
    now_ms = 0
    for order in range(ORDERS_MAX):
        for turn, k in enumerate(turns):
            now_ms = order * ORDER_EVERY_MS + turn * ORDER_EVERY_MS // count
            asked = min(PROBES_PER_ORDER_MAX, left[k])
            targets = knowledge.probe_targets(names[k], names, asked, seed + order, now_ms, MAX_AGE_MS)
            knowledge.spend(names[k], len(targets), now_ms)
            left[k] -= len(targets)
            for peer in targets:
                knowledge.observe(names[k], peer, max(1, round(truth_ms[k, index[peer]] * 1_000)), now_ms)
                probed[k, index[peer]] = probed[index[peer], k] = True
        knowledge.update(now_ms, MAX_AGE_MS, count)
    matrix = knowledge.matrix(names, now_ms, MAX_AGE_MS)
    best_ms: Table = np.where(matrix.best_us >= 0, matrix.best_us / 1_000, np.inf)
    near = np.triu(truth_ms <= BOUND_MS, 1)
    found = float((matrix.measured_us[near] >= 0).mean())
    return Ours(best_ms, probed, PROBES * count - sum(left), found)


def pairs_by_chance(count: int, chance: np.random.Generator) -> Mask:
    """PROBES new pairs for each of ``count`` workers."""
    taken = np.eye(count, dtype=np.bool_)
    for k in chance.permutation(count).tolist():
        peers = chance.choice(np.flatnonzero(~taken[k]), PROBES, replace=False)
        taken[k, peers] = taken[peers, k] = True
    np.fill_diagonal(taken, val=False)
    return taken


def factorised_ms(
    truth_ms: Table, measured: Mask, regularisation: float, chance: np.random.Generator
) -> Table:
    """Log-ALS: two factors of RANK whose product fits the logarithms that were measured, first columns as biases."""
    logs = np.log(np.where(measured, truth_ms, 1.0))
    mean = logs[measured].mean()
    rest = np.where(measured, logs - mean, 0.0)
    weight = measured.astype(np.float64)
    left = chance.normal(0.0, 0.1, (len(truth_ms), RANK))
    right = chance.normal(0.0, 0.1, (len(truth_ms), RANK))
    left[:, 0] = right[:, 1] = 1.0
    ridge = np.eye(RANK) * regularisation

    def solved(other: Table, wanted: Table) -> Table:
        outer = (other[:, :, None] * other[:, None, :]).reshape(len(other), -1)
        normal = (weight @ outer).reshape(-1, RANK, RANK) + ridge
        return np.linalg.solve(normal, (wanted @ other)[..., None])[..., 0].astype(np.float64)

    for _ in range(SWEEPS):
        left = solved(right, rest)
        right = solved(left, rest.T)
    product = left @ right.T
    guess: Table = np.exp((product + product.T) / 2 + mean)
    return guess


def vivaldi_ms(truth_ms: Table, measured: Mask, chance: np.random.Generator) -> Table:
    """Vivaldi with heights: each worker moves against one neighbour at a time, by how sure both are."""
    count = len(truth_ms)
    neighbours = [np.flatnonzero(measured[k]) for k in range(count)]
    point = chance.normal(0.0, 1.0, (count, DIMENSIONS))
    height, error = np.full(count, 5.0), np.ones(count)
    for _ in range(VIVALDI_ROUNDS):
        for k in chance.permutation(count).tolist():
            peer = int(chance.choice(neighbours[k]))
            gap = point[k] - point[peer]
            straight = float(np.sqrt(gap @ gap)) + 1e-9
            rtt = truth_ms[k, peer]
            fitted = straight + height[k] + height[peer]
            share = error[k] / (error[k] + error[peer])
            misfit = abs(fitted - rtt) / rtt
            error[k] = min(2.0, misfit * VIVALDI_GAIN * share + error[k] * (1 - VIVALDI_GAIN * share))
            pull = VIVALDI_GAIN * share * (rtt - fitted)
            point[k] += pull * gap / fitted
            height[k] = max(0.1, height[k] + pull * height[k] / fitted)
    apart = point[:, None, :] - point[None, :, :]
    guess: Table = np.sqrt((apart**2).sum(axis=2)) + height[:, None] + height[None, :]
    return guess


def tuned(truth_ms: Table) -> Tuned:
    """The peers at their best on one frame."""
    draws: list[tuple[np.random.Generator, Mask, Mask, Table]] = []
    for seed in range(TUNING_SEEDS):
        chance = np.random.default_rng(seed)
        measured, probed = pairs_by_chance(len(truth_ms), chance), ours(truth_ms, seed).probed
        draws.append((chance, measured, probed, vivaldi_ms(truth_ms, measured, chance)))

    def total(pairs: list[tuple[Mask, Table]], factor: float) -> float:
        return sum(f1(truth_ms, near_by(truth_ms, mask, guess, factor)) for mask, guess in pairs)

    def grid(masks: list[tuple[np.random.Generator, Mask]]) -> tuple[float, float]:
        scored: list[tuple[float, float, float]] = []
        for regularisation in REGULARISATIONS:
            pairs = [(mask, factorised_ms(truth_ms, mask, regularisation, chance)) for chance, mask in masks]
            scored.extend((total(pairs, factor), regularisation, factor) for factor in FACTORS)
        _, regularisation, factor = max(scored)
        return regularisation, factor

    by_chance = grid([(chance, measured) for chance, measured, _, _ in draws])
    same_pairs = grid([(chance, probed) for chance, _, probed, _ in draws])
    points = [(measured, guess) for _, measured, _, guess in draws]
    return Tuned(*by_chance, *same_pairs, max(FACTORS, key=lambda factor: total(points, factor)))


def measure() -> list[Case]:
    """Ours and the peers by turns, on each reported frame and seed."""
    frames = rtt.read_frames()
    constants = tuned(frames[0])
    note(f"P8 latency: constants of the peers from the first frame: {constants}")
    scores = Scores()
    for number, truth_ms in enumerate(frames[1:], start=2):
        for seed in range(SEEDS):
            chance = np.random.default_rng((number, seed))
            result = ours(truth_ms, 1_000 * number + 100 * seed)
            drawn = pairs_by_chance(len(truth_ms), chance)
            guesses = (
                (drawn, factorised_ms(truth_ms, drawn, constants.regularisation, chance), constants.factor),
                (
                    result.probed,
                    factorised_ms(truth_ms, result.probed, constants.same_pairs_regularisation, chance),
                    constants.same_pairs_factor,
                ),
                (drawn, vivaldi_ms(truth_ms, drawn, chance), constants.vivaldi_factor),
            )
            scores.ours.append(f1(truth_ms, result.best_ms <= BOUND_MS))
            for side, guess in zip((scores.factors, scores.same_pairs, scores.vivaldi), guesses, strict=True):
                side.append(f1(truth_ms, near_by(truth_ms, *guess)))
            scores.found.append(result.found)
            scores.pairs.append(int(result.probed.sum()) // 2)
            note(
                f"P8 latency: frame {number} seed {seed}: {result.probes} probes, ours {scores.ours[-1]:.3f},"
                f" log-ALS {scores.factors[-1]:.3f}, with our pairs {scores.same_pairs[-1]:.3f},"
                f" Vivaldi {scores.vivaldi[-1]:.3f}"
            )
    return cases(scores)


def cases(scores: Scores) -> list[Case]:
    """One case against each peer."""
    remark = (
        f"{PROBES} probes a worker; ours made {np.median(scores.pairs):,.0f} different pairs of them and so measured"
        f" {np.median(scores.found):.0%} of the near ones; {len(scores.ours) // SEEDS} frames, {SEEDS} seeds each"
    )
    interval = paired_ratio_interval(scores.ours, scores.factors)
    case = compared("P8", "f1-20ms", "F1", scores.ours, scores.factors, TARGET, interval, remark)
    return [
        replace(case, curves=_by_frame(scores)),
        compared("P8", "f1-20ms-same-pairs", "F1", scores.ours, scores.same_pairs),
        compared("P8", "f1-20ms-vivaldi", "F1", scores.ours, scores.vivaldi),
    ]


def _by_frame(scores: Scores) -> tuple[Curve, ...]:
    """For each frame its seeds' F1 by method, in the order of the plot's names."""
    sides = (scores.ours, scores.same_pairs, scores.factors, scores.vivaldi)
    curves = []
    for number in range(len(scores.ours) // SEEDS):
        parts = [side[number * SEEDS : (number + 1) * SEEDS] for side in sides]
        points = [(float(place), median(part)) for place, part in enumerate(parts)]
        curves.append(
            Curve(f"frame {number + 2}", points, [(min(one), max(one)) for one in parts], joined=False)
        )
    return tuple(curves)
