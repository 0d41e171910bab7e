"""The unmodified `ray job` against the gateway: all it can do, and whether its exit code is the truth."""

from __future__ import annotations

import asyncio
import io
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.app import Gateway
from tests.gateway.fake_jobs import QUEUED, SECRET, TENANT, FakeJobs
from tests.gateway.ray_cli import DEADLINE_S, REPOSITORY, RayCli, finished, read_until
from tests.polling import wait_until_async


@pytest.fixture
def ray(gateway: Gateway) -> RayCli:
    return RayCli(f"http://{gateway.host}:{gateway.port}", SECRET)


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("print('hello')\n")
    return tmp_path


async def followed(jobs: FakeJobs, submission_id: str) -> None:
    """Until the job is there and its log is followed."""
    key = (TENANT, submission_id)
    await wait_until_async(
        lambda: key in jobs.records and jobs.records[key].followers > 0,
        what=f"the log of {submission_id} to be followed",
        deadline_s=DEADLINE_S,
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [(JobStatus.SUCCEEDED, 0, 0), (JobStatus.FAILED, 3, 1), (JobStatus.STOPPED, None, 0)],
)
async def test_submit_queued_then_ended_prints_the_log_and_exits_truthfully(
    jobs: FakeJobs, ray: RayCli, working_dir: Path, status: JobStatus, exit_code: int | None, expected: int
) -> None:
    options = [
        "--working-dir",
        ".",
        "--runtime-env-json",
        '{"env_vars": {"K": "hush"}, "excludes": ["*.bin"]}',
    ]
    options += [
        "--metadata-json",
        '{"orch.gpus": "1"}',
        "--entrypoint-num-gpus",
        "1",
        "--entrypoint-memory",
        "9",
    ]
    process = await ray.start(
        "submit", "--submission-id", "mine", *options, "--", "python", "a.py", cwd=working_dir
    )
    await followed(jobs, "mine")
    assert (await jobs.job(TENANT, "mine")).status is JobStatus.PENDING
    jobs.run(TENANT, "mine")
    jobs.write_log(TENANT, "mine", "hello from the driver \u00fc\n".encode())
    jobs.end(TENANT, "mine", status, exit_code)
    code, output = await finished(process)
    assert code == expected
    assert "hello from the driver \u00fc\n" in output
    job = await jobs.job(TENANT, "mine")
    assert (job.request.entrypoint, job.request.entrypoint_num_gpus) == ("python a.py", 1.0)
    (package,) = jobs.packages.values()
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["a.py"]


@pytest.mark.parametrize("fault", ["the log's source fails", "the gateway closes"])
async def test_submit_tail_lost_while_running_does_not_exit_zero(
    jobs: FakeJobs, ray: RayCli, gateway: Gateway, fault: str
) -> None:
    process = await ray.start("submit", "--submission-id", "mine", "--", "true")
    await followed(jobs, "mine")
    jobs.run(TENANT, "mine")
    jobs.write_log(TENANT, "mine", b"still running\n")
    await read_until(process, "still running")
    if fault == "the gateway closes":
        await gateway.close()
    else:
        jobs.break_log(TENANT, "mine", RuntimeError("lost"))
    code, output = await finished(process)
    assert code != 0
    assert "succeeded" not in output


async def test_submit_server_killed_while_running_does_not_exit_zero() -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway.serve_fake", cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    port = int(await server.stdout.readline())
    process = await RayCli(f"http://127.0.0.1:{port}", SECRET).start("submit", "--", "true")
    await read_until(process, "still running")
    server.kill()
    await server.communicate()
    code, output = await finished(process)
    assert code != 0
    assert "succeeded" not in output


async def test_status_list_logs_stop_delete_each_do_what_they_say(jobs: FakeJobs, ray: RayCli) -> None:
    code, output = await ray.run("submit", "--no-wait", "--submission-id", "mine", "--", "true")
    assert (code, "'mine' submitted successfully" in output) == (0, True)
    jobs.write_log(TENANT, "mine", b"so far {}\n")
    (status, shown), (listed, listing), (logged, logs), (refused, refusal) = await asyncio.gather(
        ray.run("status", "mine"), ray.run("list"), ray.run("logs", "mine"), ray.run("delete", "mine")
    )
    assert (status, listed, logged) == (0, 0, 0)
    assert "PENDING" in shown
    assert QUEUED in shown
    assert "submission_id='mine'" in listing
    assert "so far {}\n" in logs
    assert refused != 0
    assert "has not ended; stop it first" in refusal
    stopped, output = await ray.run("stop", "mine")
    assert (stopped, "'mine' was stopped" in output) == (0, True)
    deleted, output = await ray.run("delete", "mine")
    assert (deleted, "'mine' deleted successfully" in output) == (0, True)
    assert jobs.records == {}


async def test_refusals_are_shown_as_sentences(ray: RayCli) -> None:
    nobody, stranger = RayCli(ray.url, ""), RayCli(ray.url, "orch_wrong")
    (none, missing), (wrong, unknown), (bad, refusal) = await asyncio.gather(
        nobody.run("list"),
        stranger.run("list"),
        ray.run("submit", "--runtime-env-json", '{"conda": "torch"}', "--", "true"),
    )
    assert none != 0
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in missing
    assert wrong != 0
    assert "this token is not known or was revoked" in unknown
    assert "orch_wrong" not in unknown
    assert bad != 0
    assert "runtime_env['conda'] is not offered" in refusal
    assert "name its packages in pip or uv" in refusal
