"""`python -m benchmarks.perturb FOLDER [--seed N]`: other data of the same kinds, made of what lies in benchmarks/data.

For whoever asks whether the figures hold on data that nobody has seen. It writes a fleet and a pod list drawn
again from openb's with replacement, processors and memory changed by one factor for all pods that ask for as
much; PlanetLab's frames of three quarters of the machines in another order, each pair changed by a factor of
0.8 to 1.25 that stays and, from frame to frame, by one of 0.97 to 1.03; and the spot trace backwards, begun
elsewhere. It ends with the variables that make the figures use them.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from benchmarks import openb, p5_openb, p9_goodput, rtt
from orchestrator.sim.traces import read_availability

PAIR_FACTOR, FRAME_FACTOR, POD_FACTOR = 1.25, 1.03, 1.5
KEPT = 0.75


def main() -> None:
    """Write them and say how to use them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perturb", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for variable, paths in write(asked.folder, asked.seed).items():
        print(f"export {variable}={os.pathsep.join(map(str, paths))}")


def write(folder: Path, seed: int) -> dict[str, list[Path]]:
    """The files, by the variable that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    nodes = _resampled(openb.FOLDER / openb.NODE_FILE, folder / "nodes.csv", chance, ())
    pods = [
        _resampled(openb.pod_file(trace), folder / f"{trace}.csv", chance, ("cpu_milli", "memory_mib"))
        for trace in p5_openb.TRACES
    ]
    return {
        p5_openb.NODES_VARIABLE: [nodes],
        p5_openb.PODS_VARIABLE: pods,
        rtt.VARIABLE: _frames(folder, chance),
        p9_goodput.SPOT_VARIABLE: [_spot(folder / "spot.csv", chance)],
    }


def _resampled(source: Path, path: Path, chance: np.random.Generator, scaled: tuple[str, ...]) -> Path:
    """As many rows, drawn with replacement; numbers in ``scaled`` columns by one factor for all that have the same."""
    with source.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        factors: dict[tuple[str, ...], float] = {}
        for number in chance.integers(0, len(rows), len(rows)).tolist():
            row = dict(rows[number])
            drawn = float(np.exp(chance.uniform(-1, 1) * np.log(POD_FACTOR)))
            factor = factors.setdefault(tuple(row[name] for name in scaled), drawn)
            row.update((name, str(round(int(row[name]) * factor))) for name in scaled)
            writer.writerow(row)
    return path


def _frames(folder: Path, chance: np.random.Generator) -> list[Path]:
    frames = [rtt.read_frame(path) for path in rtt.FRAMES]
    count = len(frames[0])
    some = chance.permutation(count)[: round(KEPT * count)]
    stays = _factors(len(some), PAIR_FACTOR, chance)
    paths = []
    for number, frame in enumerate(frames, start=1):
        drawn = frame[some[:, None], some] * stays * _factors(len(some), FRAME_FACTOR, chance)
        paths.append(folder / f"rtt_{number}.txt")
        np.savetxt(paths[-1], drawn, fmt="%.3f")
    return paths


def _factors(count: int, most: float, chance: np.random.Generator) -> rtt.Table:
    """One of 1 ÷ most to most for each pair, the same in both directions."""
    logs = np.triu(chance.uniform(-1, 1, (count, count)) * np.log(most), 1)
    factors: rtt.Table = np.exp(logs + logs.T)
    return factors


def _spot(path: Path, chance: np.random.Generator) -> Path:
    """From a moment on and then from the beginning, backwards."""
    known = read_availability(p9_goodput.SPOT)
    until_ms = known[-1][0]
    shift_ms = int(chance.integers(0, until_ms))
    # Each count held until the next line: backwards it holds from there.
    ends = [at_ms for at_ms, _ in known[1:]]
    turned = sorted(
        ((until_ms - end_ms + shift_ms) % until_ms, count)
        for end_ms, (_, count) in zip(ends, known, strict=False)
    )
    lines = [(0, turned[-1][1]), *turned, (until_ms, turned[-1][1])]
    path.write_text("".join(f"{at_ms},{count}\n" for at_ms, count in lines), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
