"""DEMO: seconds of `make demo` once everything is set up, from the start of its process to its end.

Inside the clock: starting control plane, head host and five agents, forming the cluster, the whole training job,
receipts, their offline verification, and ending every process. Outside: `make setup`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import Case, FigureError, Target, note

RUN = Path(__file__).resolve().parents[1] / "examples" / "demo" / "run.py"
TIMEOUT_S = 600.0
"""Five times the target: beyond it the demo hangs."""
ERROR_LINES = 5
TARGET = Target(120.0, "<=", "value")


def measure() -> list[Case]:
    """One run. Raises FigureError where the demo does not succeed."""
    note("DEMO: running the demo once")
    began_s = time.monotonic()
    try:
        answer = subprocess.run(
            [sys.executable, str(RUN), "--json"],
            cwd=RUN.parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise FigureError(f"the demo did not end within {TIMEOUT_S:g} s") from None
    seconds = time.monotonic() - began_s
    if answer.returncode != 0:
        raise FigureError(f"the demo failed: {' / '.join(answer.stderr.splitlines()[-ERROR_LINES:])}")
    said = json.loads(answer.stdout.splitlines()[-1])
    remark = (
        f"job {said['job_status']}, accuracy {said['accuracy']}, {said['members']} members, "
        f"{said['receipts_verified']} receipts verified; {said['seconds']} s by its own clock"
    )
    return [Case("DEMO", "make-demo", seconds, "s", 1, seconds, seconds, target=TARGET, remark=remark)]
