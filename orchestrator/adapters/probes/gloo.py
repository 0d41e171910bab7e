"""An all-reduce by torch among the members of a cluster, as a program of its own: standard library and torch only.

It is run by the runtime's interpreter, inside each member's box, as ``python -I -c TEXT --rank 1 --ranks 3 …``, and
prints one line of JSON: the measurement, or ``{"error": …}`` and a non-zero exit status. Over GPUs (nccl) if every
rank has one, else over TCP on the interface that ``GLOO_SOCKET_IFNAME`` names. Rank 0 keeps the meeting point on
its ``--port``; torch binds that on every interface of the box, so it is for boxes and not for bare hosts.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

PATTERN = 251
"""The vector repeats after so many values; times 64 ranks and their sum still exact in float32."""

EXIT_FAILED = 1
EXIT_NO_TORCH = 3

RANKS_MAX = 64
"""Ranks at most, as the ring has it; all sums stay below 2²⁴."""


class Failed(Exception):
    """No measurement; the message says why."""


def main() -> int:
    """Measure and print; the exit status."""
    arguments = read_arguments()
    go_first()
    try:
        torch = importlib.import_module("torch")
        distributed = importlib.import_module("torch.distributed")
    except ImportError as error:
        return report({"error": f"torch is not importable in this runtime ({error})"}, EXIT_NO_TORCH)
    try:
        return report(measure(torch, distributed, arguments), 0)
    # Whatever torch raises: its own classes, RuntimeError, OSError.
    except Exception as error:  # noqa: BLE001 - the one line of output is how a failure is told
        words = str(error).strip().splitlines() or [type(error).__name__]
        return report({"error": words[0][:500]}, EXIT_FAILED)


def go_first() -> None:
    """Where the box's memory is short, this is what the kernel ends, and not the node beside it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def read_arguments() -> argparse.Namespace:
    """The same on every rank, except ``--rank`` and ``--device``."""
    parser = argparse.ArgumentParser(description="Measure an all-reduce among the members of a cluster.")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--host", required=True, help="rank 0's address")
    parser.add_argument("--port", type=int, required=True, help="where rank 0 keeps the meeting point")
    parser.add_argument("--bytes", type=int, default=16 << 20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deadline-s", type=int, default=60)
    parser.add_argument("--device", type=int, default=0, help="index of the GPU, where there is one")
    found = parser.parse_args()
    if not 1 < found.ranks <= RANKS_MAX or not 0 <= found.rank < found.ranks:
        parser.error(f"--ranks must be 2 to {RANKS_MAX}, and --rank below it")
    if found.bytes < 1 or found.bytes % 4 or found.rounds < 1 or found.deadline_s < 1:
        parser.error("--bytes must be a multiple of 4; --rounds and --deadline-s at least 1")
    return found


def report(line: dict[str, object], status: int) -> int:
    """Print the one line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    return status


def measure(torch: Any, distributed: Any, arguments: argparse.Namespace) -> dict[str, object]:
    """Meet, agree on the method, run the rounds, and agree on the slowest rank's median time."""
    limit = dt.timedelta(seconds=arguments.deadline_s)
    store = distributed.TCPStore(
        arguments.host,
        arguments.port,
        arguments.ranks,
        is_master=arguments.rank == 0,
        timeout=limit,
        wait_for_workers=False,
    )
    method = agree_on_method(store, arguments, has_gpu=torch.cuda.is_available())
    device = torch.device("cuda", arguments.device) if method == "nccl" else torch.device("cpu")
    if method == "nccl":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        method, store=store, rank=arguments.rank, world_size=arguments.ranks, timeout=limit
    )
    try:
        durations_us = [
            one_round(torch, distributed, arguments, device, number) for number in range(arguments.rounds + 1)
        ]
    finally:
        # Rank 0 keeps the store: it must not leave while others still say good-bye.
        distributed.destroy_process_group()
    counted_us = sorted(durations_us[1:])
    duration_us = counted_us[len(counted_us) // 2]
    bits = arguments.bytes * 8 * 1_000_000
    return {
        "method": method,
        "ranks": arguments.ranks,
        "bytes": arguments.bytes,
        "duration_us": duration_us,
        "bus_bits_per_s": bits * 2 * (arguments.ranks - 1) // (arguments.ranks * duration_us),
    }


def agree_on_method(store: Any, arguments: argparse.Namespace, *, has_gpu: bool) -> str:
    """``nccl`` if every rank has a GPU. Failed names the first rank that did not come."""
    store.set(f"method/{arguments.rank}", "nccl" if has_gpu else "gloo")
    methods = set()
    for rank in range(arguments.ranks):
        try:
            methods.add(bytes(store.get(f"method/{rank}")).decode())
        except Exception:  # noqa: BLE001 - torch's class for this differs between its versions
            raise Failed(f"rank {rank} did not come within {arguments.deadline_s} s") from None
    return "nccl" if methods == {"nccl"} else "gloo"


def one_round(torch: Any, distributed: Any, arguments: argparse.Namespace, device: Any, number: int) -> int:
    """Microseconds of the slowest rank; Failed if any rank did not get the true sum."""
    places = torch.arange(arguments.bytes // 4, dtype=torch.int32, device=device) % PATTERN
    vector = (places * (arguments.rank + 1) + number).to(torch.float32)
    distributed.barrier()
    started_ns = now_ns(torch, device)
    distributed.all_reduce(vector)
    elapsed_us = max(1, (now_ns(torch, device) - started_ns) // 1000)
    count = arguments.ranks
    expected = (places * (count * (count + 1) // 2) + number * count).to(torch.float32)
    told = torch.tensor(
        [elapsed_us, int(not torch.equal(vector, expected))], dtype=torch.int64, device=device
    )
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    slowest_us, wrong = (int(value) for value in told.tolist())
    if wrong:
        raise Failed("a rank did not get the true sum: its memory or its path is faulty")
    return slowest_us


def now_ns(torch: Any, device: Any) -> int:
    """When all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()  # noqa: TID251 - a program of its own, which can import nothing of ours


if __name__ == "__main__":
    raise SystemExit(main())
