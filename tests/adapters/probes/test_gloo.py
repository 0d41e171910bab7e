from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from deploy.local.ports import free_ports
from orchestrator.adapters.probes import gloo
from orchestrator.adapters.probes.records import RANKS_MAX, read_reduce_line
from tests.adapters.probes.instruments import LOOPBACK

HAS_TORCH = importlib.util.find_spec("torch") is not None
BARE = ("-I", "-S")
"""An interpreter without any installed package."""


def start(*options: str, flags: tuple[str, ...] = ("-P",), **arguments: int) -> subprocess.Popen[str]:
    given = {"rank": 0, "ranks": 2, "port": 1, "rounds": 1, "bytes": 1 << 16, "deadline_s": 30} | arguments
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.Popen(
        [sys.executable, *flags, gloo.__file__, "--host", LOOPBACK, *words, *options],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_gloo_runtime_without_torch_says_so_in_one_line() -> None:
    script = start(flags=BARE)
    out, _ = script.communicate(timeout=60)
    assert script.returncode == gloo.EXIT_NO_TORCH
    assert out.count("\n") == 1
    assert "torch is not importable" in json.loads(out)["error"]
    with pytest.raises(ValueError, match="torch is not importable"):
        read_reduce_line(out)


@pytest.mark.parametrize(
    ("name", "value"), [("ranks", 1), ("ranks", RANKS_MAX + 1), ("rank", 2), ("bytes", 6), ("rounds", 0)]
)
def test_gloo_argument_outside_its_bounds_is_refused(name: str, value: int) -> None:
    script = start(flags=BARE, **{name: value})
    out, err = script.communicate(timeout=60)
    assert (script.returncode, out) == (2, "")
    assert f"--{name}" in err.splitlines()[-1]


def test_gloo_two_ranks_measure_or_both_say_that_torch_is_missing() -> None:
    """Where the interpreter of the tests has torch, this is the real thing."""
    (port,) = free_ports(1)
    scripts = [start(rank=rank, port=port) for rank in range(2)]
    lines = [script.communicate(timeout=60)[0] for script in scripts]
    if HAS_TORCH:
        found = {read_reduce_line(line) for line in lines}
        assert [(measured.ranks, measured.bytes) for measured in found] == [(2, 1 << 16)]
    else:
        assert [script.returncode for script in scripts] == [gloo.EXIT_NO_TORCH] * 2
