"""A training loop that gives way: it writes a checkpoint when its machine is about to go, and goes on elsewhere.

    ray job submit --working-dir examples/checkpointing
        --runtime-env-json '{"env_vars": {"CHECKPOINT_DIR": "/mnt/shared/run-1"}}' -- python train.py --steps 10000

(on one line; CHECKPOINT_DIR is where checkpoints go).

Every process of a job finds ORCH_NOTICE_FILE in its environment. The file appears when a machine of the job's cluster
is about to be taken back: {"notices": [{"member_id", "remaining_ms_at_write", "deadline_unix_ms", "reason"}]}. Where
ORCH_MEMBER_ID is one of those, this very process ends at the deadline; where it is not, a part of the job elsewhere
does. While nothing goes there is no file.

Three things make a job survive that:
1. It looks at the file between steps and writes a checkpoint when the file is there, within the notice.
2. It then exits with a code other than 0. The network sees that the machine went and tries the job again, on another
   one; an exit with 0 would say that the work is done.
3. It begins from the newest checkpoint. CHECKPOINT_DIR has to be where the next attempt finds it, such as a mount or
   a bucket: the disk of a machine that went is gone with it.

A checkpoint now and then is written as well, because a machine that fails gives no notice.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

CHECKPOINT_FILE = "checkpoint.json"
EXIT_GIVING_WAY = 75
"""Anything but 0; by custom this one means: try again later."""


def notices() -> list[dict[str, object]]:
    """Who of this job's cluster is about to go; empty while nobody is."""
    name = os.environ.get("ORCH_NOTICE_FILE")
    try:
        return list(json.loads(Path(name).read_bytes())["notices"]) if name else []
    except FileNotFoundError:
        return []


def load(folder: Path) -> dict[str, float]:
    """The newest state, or where every training begins."""
    try:
        state: dict[str, float] = json.loads((folder / CHECKPOINT_FILE).read_bytes())
    except FileNotFoundError:
        return {"step": 0, "weight": 0.0}
    return state


def save(folder: Path, state: dict[str, float]) -> None:
    """Write beside, then rename: an end in the middle leaves the checkpoint before."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{CHECKPOINT_FILE}.new"
    beside.write_text(json.dumps(state))
    beside.replace(folder / CHECKPOINT_FILE)


def train(folder: Path, steps: int, step_s: float, every: int) -> int:
    """Train up to so many steps, counted over all attempts; the exit code."""
    state = load(folder)
    print(f"beginning at step {state['step']:.0f} of {steps}", flush=True)
    while state["step"] < steps:
        # Stands for a step of real work: gradient descent on (w - 3)^2.
        time.sleep(step_s)
        state["weight"] -= 0.1 * 2 * (state["weight"] - 3.0)
        state["step"] += 1
        going = notices()
        if going or state["step"] % every == 0:
            save(folder, state)
        if going:
            print(f"giving way at step {state['step']:.0f}: {going[0]['reason']}", flush=True)
            return EXIT_GIVING_WAY
    save(folder, state)
    print(f"done: weight {state['weight']:.4f} after {steps} steps", flush=True)
    return 0


def main() -> int:
    """Read what was asked for, and train."""
    parser = argparse.ArgumentParser(description="Train, and give way when asked to.")
    parser.add_argument("--steps", type=int, default=200, help="over all attempts")
    parser.add_argument("--step-s", type=float, default=0.1, help="how long a step takes")
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    options = parser.parse_args()
    folder = os.environ.get("CHECKPOINT_DIR")
    if not folder:
        sys.stderr.write("set CHECKPOINT_DIR to a directory that the next attempt finds too\n")
        return 2
    return train(Path(folder), options.steps, options.step_s, options.every)


if __name__ == "__main__":
    sys.exit(main())
