"""P11: 100 MB from one member to another by Ray, over the overlay, in the network lab.

One job with an actor on each of two boxed members. Ours: `ray.put` on one, `ray.get` on the other, which has not seen
the object. The peer: as many bytes over one plain TCP connection between the same two processes, from memory to memory,
through the same tunnel; the two take turns. `…-iperf3` is iperf3 between the two boxes, outside Ray, for comparison.

- `direct`: the two reach each other. `relayed`: each is behind a NAT of the kind that gives every destination another
  port, so that what passes goes by the control plane's relay; whether it does is read from that host's byte counters.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab_network import CONTROL, HEAD, LabNetwork, Standing, lab_network
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval
from tests.lab.topology import LabHost, Nat

SIZE_BYTES = 100_000_000
ROUNDS = 7
LEFT_OUT = 1
"""Ray's first transfer between two nodes opens their connections."""
IPERF_RUNS = 3
IPERF_PORT = 5201
IPERF_TIMEOUT_S = 120.0
IPERF_TRIES = 10
IPERF_PAUSE_S = 0.3
"""Its server takes a moment to listen."""
DELAY_MS = 10.0
"""What each machine's link adds to a round trip: 20 ms between two of them, 40 by the relay, less where links overlap."""
MACHINES = ("left", "right")
TARGET = Target(0.8, ">=", "ratio")
JOB = Path(__file__).with_name("transfer_job")


@dataclass(frozen=True, slots=True)
class Shape:
    """One case: how the two machines stand."""

    case: str
    nat: Nat
    relayed: bool


SHAPES = (Shape("direct", "none", relayed=False), Shape("relayed", "symmetric", relayed=True))


@dataclass(frozen=True, slots=True)
class Measured:
    """MB/s of each round."""

    ray: list[float]
    tcp: list[float]
    iperf3: list[float]


def measure(shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS) -> list[Case]:
    """Each shape in a lab of its own. Raises FigureError."""
    cases = []
    for shape in shapes:
        hosts = [LabHost(CONTROL), LabHost(HEAD, delay_ms=DELAY_MS)]
        hosts += [LabHost(name, shape.nat, DELAY_MS) for name in MACHINES]
        with lab_network(hosts) as network:
            measured = _measured(network, shape, rounds)
        interval = paired_ratio_interval(measured.ray, measured.tcp)
        cases.append(compared("P11", shape.case, "MB/s", measured.ray, measured.tcp, TARGET, interval))
        remark = f"the peer is iperf3's median of {len(measured.iperf3)} in the same tunnel"
        peer = [median(measured.iperf3)] * len(measured.ray)
        cases.append(compared("P11", f"{shape.case}-iperf3", "MB/s", measured.ray, peer, remark=remark))
    return cases


def _measured(network: LabNetwork, shape: Shape, rounds: int) -> Measured:
    before_bytes = network.lab.counters(CONTROL).sent_bytes
    command = ["python", "transfer.py", "--bytes", str(SIZE_BYTES), "--rounds", str(rounds + LEFT_OUT)]
    addresses: list[str] = []
    results: list[dict[str, float]] = []
    for line in network.run_job({"orch.gpus": str(len(MACHINES))}, JOB, command):
        found = _result(line)
        if "addresses" in found:
            addresses = found["addresses"]
        elif "ray_s" in found:
            results.append(found)
            text = f"by Ray {found['ray_s']:.2f} s, by TCP {found['tcp_s']:.2f} s"
            note(f"P11 {shape.case} {len(results) - LEFT_OUT or 'left out'}: {text}")
    _check_way(shape, network.lab.counters(CONTROL).sent_bytes - before_bytes, len(results))
    counted = results[LEFT_OUT:]
    standing = {one.address: one for one in map(network.standing, MACHINES)}
    iperf3 = [_iperf(standing[addresses[0]], standing[addresses[1]]) for _ in range(IPERF_RUNS)]
    note(f"P11 {shape.case} iperf3: {', '.join(f'{one:.1f}' for one in iperf3)} MB/s")
    return Measured(
        [SIZE_BYTES / 1e6 / one["ray_s"] for one in counted],
        [SIZE_BYTES / 1e6 / one["tcp_s"] for one in counted],
        iperf3,
    )


def _check_way(shape: Shape, control_bytes: int, rounds: int) -> None:
    """Whether the bytes went by the relay, which stands beside the control plane, exactly where they should."""
    is_relayed = control_bytes > rounds * SIZE_BYTES
    if is_relayed != shape.relayed:
        raise FigureError(f"{shape.case}: {control_bytes / 1e6:.0f} MB left the host of the relay")


def _iperf(holder: Standing, asker: Standing) -> float:
    """MB/s of ten seconds from the holder to the asker, between their boxes' networks."""
    server = subprocess.Popen(
        [
            *_inside(asker),
            "iperf3",
            "--server",
            "--one-off",
            "--bind",
            asker.address,
            "--port",
            str(IPERF_PORT),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        command = [*_inside(holder), "iperf3", "--client", asker.address, "--port", str(IPERF_PORT), "--json"]
        said = b""
        for _ in range(IPERF_TRIES):
            done = subprocess.run(command, capture_output=True, timeout=IPERF_TIMEOUT_S, check=False)
            if done.returncode == 0:
                return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8e6
            said = done.stdout[-300:]
            time.sleep(IPERF_PAUSE_S)
        raise FigureError(f"iperf3 between the boxes: {said!r}")
    finally:
        server.kill()
        server.wait()


def _inside(member: Standing) -> list[str]:
    return ["nsenter", f"--net=/proc/{member.namespace_pid}/ns/net"]


def _result(line: str) -> dict[str, Any]:
    """What the job says; nothing for the CLI's own lines."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
