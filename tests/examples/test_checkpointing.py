"""The example that gives way: told once, it goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "checkpointing" / "train.py"


def attempt(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "CHECKPOINT_DIR": str(folder / "kept"),
        "ORCH_NOTICE_FILE": str(folder / "notice.json"),
    }
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", "20", "--step-s", "0", *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_notice_makes_it_write_a_checkpoint_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    notice = {
        "notices": [{"member_id": "m1", "remaining_ms_at_write": 30_000, "reason": "the owner is back"}]
    }
    (tmp_path / "notice.json").write_text(json.dumps(notice))
    for step in (1, 2):
        told = attempt(tmp_path)
        assert told.returncode == 75
        assert f"giving way at step {step}: the owner is back" in told.stdout
    (tmp_path / "notice.json").unlink()
    last = attempt(tmp_path)
    assert last.returncode == 0
    assert "beginning at step 2 of 20" in last.stdout
    assert "after 20 steps" in last.stdout


def test_without_a_notice_it_writes_a_checkpoint_now_and_then(tmp_path: Path) -> None:
    assert attempt(tmp_path, "--every", "7").returncode == 0
    assert json.loads((tmp_path / "kept" / "checkpoint.json").read_text())["step"] == 20


def test_without_a_place_for_checkpoints_it_says_so() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CHECKPOINT_DIR"}
    said = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert said.returncode == 2
    assert "set CHECKPOINT_DIR" in said.stderr
