"""The all-reduce by torch seen from outside the box: what it is given, what is believed, and that nothing stays.

In place of the runtime's Python a script of the test's own runs in a real box; the real torch is in the lab.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.tiers import detect
from orchestrator.adapters.probes.records import ReduceMeasured
from orchestrator.adapters.probes.torch_reduce import OUTPUT_BYTES_MAX, TorchPlan, has_torch, measure_torch
from orchestrator.adapters.probes.wire import ProbeFailed
from tests.adapters.box.harness import box_of, output_of, pretended_host, start
from tests.polling import wait_until, wait_until_async

PLAN = TorchPlan(
    namespace_pid=1,
    interpreter="/nowhere/bin/python",
    rank=1,
    ranks=2,
    host="198.18.0.2",
    port=7449,
    interface="overlay0",
    bytes=1 << 20,
    rounds=3,
    deadline_s=20,
)
MEASURED = ReduceMeasured(2, 1 << 20, 1000, "gloo")
LINE = {
    "method": "gloo",
    "ranks": 2,
    "bytes": 1 << 20,
    "duration_us": 1000,
    "bus_bits_per_s": MEASURED.bus_bits_per_s,
}

STAY = "import signal; print('here', flush=True); signal.pause()"

ENDED_S = 60.0
"""A killed process is gone within milliseconds where the machine is not busy."""

GONE_PID = (1 << 22) + 1
"""Above every pid that Linux gives."""


def with_torch(prefix: Path, packages: str = "lib/python3.11/site-packages") -> str:
    """The interpreter of a Python that has torch, of which only the names are there."""
    folder = prefix / packages / "torch"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return str(prefix / "bin" / "python")


def answering(line: object) -> str:
    return f"echo '{json.dumps(line)}'"


@dataclass
class Rig:
    """A box in which something stays, and a runtime in it whose Python is a shell script."""

    box: Box
    plan: TorchPlan
    before: set[int]

    def write(self, script: str) -> None:
        python = Path(self.plan.interpreter)
        python.parent.mkdir(exist_ok=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    async def measure(self, script: str) -> ReduceMeasured:
        """What comes of a script; nothing of it may be left in the box."""
        self.write(script)
        try:
            return await measure_torch(self.plan)
        finally:
            await wait_until_async(
                lambda: self.box.members() == self.before, what="it to be gone", deadline_s=ENDED_S
            )


@pytest.fixture
def rig() -> Iterator[Rig]:
    tier = detect()
    if tier.tier == "none":
        pytest.skip(f"needs a machine that can make boxes: {tier.reason}")
    with pretended_host() as place, box_of(place.spec()) as box:
        start(box, STAY)
        wait_until(lambda: "here" in output_of(box), what="a process in the box", deadline_s=ENDED_S)
        interpreter = with_torch(Path(box.spec.shared_dir) / "runtime")
        yield Rig(
            box, replace(PLAN, namespace_pid=box.namespace_pid, interpreter=interpreter), set(box.members())
        )


async def test_torch_line_of_the_script_is_what_was_measured(rig: Rig) -> None:
    assert await rig.measure(answering(LINE)) == MEASURED


async def test_torch_noise_beside_the_line_is_no_matter(rig: Rig) -> None:
    script = f"head -c 1000000 /dev/zero >&2; {answering(LINE)}; echo warning >&2"
    assert await rig.measure(script) == MEASURED


async def test_torch_script_is_isolated_and_told_its_part(rig: Rig) -> None:
    with pytest.raises(ProbeFailed) as caught:
        await rig.measure('test "$1 $2" = "-I -c" && shift 3; echo "$@" >&2')
    told = "--rank 1 --ranks 2 --host 198.18.0.2 --port 7449 --bytes 1048576 --rounds 3 --deadline-s 15"
    assert str(caught.value).endswith(f": {told}")


async def test_torch_environment_is_bare(rig: Rig) -> None:
    with pytest.raises(ProbeFailed) as caught:
        await rig.measure("env >&2")
    said = str(caught.value)
    variables = {word.partition("=")[0] for word in said.split() if "=" in word}
    given = {"PATH", "HOME", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    # The shell's own, and one that Python sets where there is no locale.
    assert variables - {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"} == given
    assert {"GLOO_SOCKET_IFNAME=overlay0", "NCCL_SOCKET_IFNAME=overlay0"} < set(said.split())


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (answering({"error": "rank 0 did not come"}), "rank 0 did not come"),
        ("echo hello", "no JSON"),
        (answering({**LINE, "ranks": 3}), "ranks"),
        (answering({**LINE, "ranks": 1}), "ranks"),
        (answering({**LINE, "bytes": 1 << 19, "bus_bits_per_s": MEASURED.bus_bits_per_s // 2}), "asked for"),
        (answering({**LINE, "method": "ring"}), "'ring'"),
        (answering({**LINE, "bus_bits_per_s": 1}), "bus_bits_per_s"),
        (f"{answering(LINE)}; {answering(LINE)}", "no JSON"),
        (f"head -c {OUTPUT_BYTES_MAX + 1} /dev/zero; exec tail -f /dev/null", "printed more than"),
        ("printf 'no such\\033thing' >&2; exit 3", r"exited 3: no such\?thing"),
        ("exit 0", "exited 0: it said nothing"),
    ],
)
async def test_torch_output_that_is_no_answer_is_refused_with_a_reason(
    rig: Rig, script: str, complaint: str
) -> None:
    with pytest.raises(ProbeFailed, match=complaint):
        await rig.measure(script)


async def test_torch_that_hangs_is_ended_at_the_deadline(rig: Rig) -> None:
    rig.plan = replace(rig.plan, deadline_s=2)
    with pytest.raises(ProbeFailed, match="not done within 2 s"):
        await rig.measure("exec tail -f /dev/null")


async def test_torch_that_is_not_wanted_any_more_leaves_no_process(rig: Rig) -> None:
    measuring = asyncio.create_task(rig.measure("exec tail -f /dev/null"))
    await wait_until_async(
        lambda: len(rig.box.members()) > len(rig.before), what="it to run", deadline_s=ENDED_S
    )
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring


async def test_torch_runtime_without_it_or_box_that_is_gone_says_so() -> None:
    with pytest.raises(ProbeFailed, match="has no torch"):
        await measure_torch(replace(PLAN, namespace_pid=os.getpid()))
    with pytest.raises(ProbeFailed, match="has no torch"):
        await measure_torch(replace(PLAN, namespace_pid=GONE_PID))


async def test_torch_process_that_is_in_no_box_is_not_entered(tmp_path: Path) -> None:
    plan = replace(PLAN, namespace_pid=os.getpid(), interpreter=with_torch(tmp_path))
    with pytest.raises(ProbeFailed, match="not in a box"):
        await measure_torch(plan)


@pytest.mark.parametrize(
    ("packages", "found"),
    [
        ("lib/python3.11/site-packages", True),
        ("local/lib/python3.12/dist-packages", True),
        ("lib/python3/dist-packages", True),
        ("lib/other", False),
        ("site-packages", False),
    ],
)
def test_has_torch_looks_among_the_packages_of_that_interpreter(
    tmp_path: Path, packages: str, *, found: bool
) -> None:
    assert has_torch(os.getpid(), with_torch(tmp_path / "here", packages)) is found
    assert not has_torch(os.getpid(), str(tmp_path / "there" / "bin" / "python"))


@pytest.mark.parametrize("interpreter", ["", "python", "/", "/usr/bin/python3"])
def test_has_torch_process_that_is_gone_or_interpreter_that_is_no_path_has_none(interpreter: str) -> None:
    assert not has_torch(GONE_PID, interpreter)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda: replace(PLAN, ranks=1), "ranks"),
        (lambda: replace(PLAN, rank=2), "rank"),
        (lambda: replace(PLAN, namespace_pid=0), "namespace_pid"),
        (lambda: replace(PLAN, bytes=(1 << 20) + 1), "bytes"),
        (lambda: replace(PLAN, deadline_s=1), "deadline_s"),
    ],
)
def test_torch_plan_outside_its_bounds_is_refused_by_field(
    change: Callable[[], TorchPlan], field: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field} is"):
        change()
