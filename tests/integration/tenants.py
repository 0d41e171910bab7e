"""The tenant's side of a real network: Ray's own command, and what the operator then sees of the job."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from examples.demo.network import BIN
from orchestrator.api.v1 import jobs_pb2, operator_pb2
from orchestrator.cli.errors import CliError
from orchestrator.cli.wording import job_status_name
from orchestrator.receipts.bundle import VerifiedBundle, verify_bundle
from orchestrator.receipts.receipt import EPOCH_MS
from tests.integration.network import Network
from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[2]
TRAIN_DIGITS = REPOSITORY / "examples" / "train_digits"

JOB_S = 100.0
"""Forming a gang takes some 15 s on idle cores, the longest job here half a minute."""

BOOKED_S = 90.0
"""Statement, countersignature and posting follow the end of a job within seconds; an agent may have to start first."""


@dataclass(frozen=True)
class Paid:
    """A lease's receipts in order: one, or where it crossed the full hour one on either side of it."""

    bundles: tuple[VerifiedBundle, ...]

    @property
    def worker_id(self) -> str:
        """Who is paid."""
        return self.bundles[0].receipt.worker_id

    @property
    def attempt_id(self) -> str:
        """For which try."""
        return self.bundles[0].receipt.attempt_id

    @property
    def start_ms(self) -> int:
        """When the first begins."""
        return self.bundles[0].receipt.start_ms

    @property
    def end_ms(self) -> int:
        """When the last ends."""
        return self.bundles[-1].receipt.end_ms

    @property
    def billed_ms(self) -> int:
        """Device-milliseconds, of all of them."""
        return sum(bundle.receipt.billed_ms for bundle in self.bundles)

    @property
    def final(self) -> bool:
        """Whether the worker has said that it was the last."""
        return self.bundles[-1].statements[-1].final


def _start_ms(paid: Paid | VerifiedBundle) -> int:
    return paid.start_ms if isinstance(paid, Paid) else paid.receipt.start_ms


def _end_ms(receipts: Iterable[operator_pb2.Receipt]) -> int:
    return max(receipt.interval_end.ToMilliseconds() for receipt in receipts)


@dataclass
class Submitted:
    """A `ray job submit` that is attached to its job; what it prints lies in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        """All it printed so far."""
        return self.output.read_text(errors="replace")

    def code(self, deadline_s: float = JOB_S) -> int:
        """Its exit code, which it must come to by itself."""
        return self.process.wait(deadline_s)


@dataclass
class Tenant:
    """One tenant with one token."""

    network: Network
    secret: str
    count: int = 0

    CONSENT: ClassVar[Mapping[str, str | int]] = {"isolation": "none"}
    """Keys of every job: these machines have no isolation, to which a job has to consent."""

    # ------------------------------------------------------------ Ray's command

    @property
    def ray_address(self) -> str:
        """The gateway, as Ray's command is told of it."""
        return self.url

    def trust(self) -> list[str]:
        """Options by which Ray's command trusts the gateway."""
        return []

    def ray(self, *arguments: str, deadline_s: float = JOB_S) -> tuple[int, str]:
        """``ray job <arguments>`` to its end: exit code, and all it said."""
        done = self._attached(arguments)
        try:
            return done.code(deadline_s), done.text
        finally:
            end(done)

    def submit(
        self,
        submission_id: str,
        *command: str,
        working_dir: Path | None = None,
        env_vars: Mapping[str, str] | None = None,
        wait: bool = True,
        num_gpus: float = 0.0,
        orch: Mapping[str, str | int] | None = None,
    ) -> Submitted:
        """``ray job submit``, attached unless not waited for; ``orch`` holds keys without their ``orch.``.

        The keys that ``CONSENT`` has are added, unless ``orch`` says otherwise. The driver takes ``num_gpus`` for itself.
        """
        options = ["--submission-id", submission_id, *([] if wait else ["--no-wait"])]
        options += ["--entrypoint-num-gpus", f"{num_gpus:g}"] if num_gpus else []
        options += ["--working-dir", str(working_dir)] if working_dir else []
        options += ["--runtime-env-json", json.dumps({"env_vars": dict(env_vars)})] if env_vars else []
        keys = {**self.CONSENT, **(orch or {})}
        options += ["--metadata-json", json.dumps({f"orch.{name}": str(keys[name]) for name in keys})]
        return self._attached(("submit", *options, "--", *command))

    def run(
        self, submission_id: str, *command: str, working_dir: Path | None = None, num_gpus: float = 0.0
    ) -> str:
        """Submit with no ``orch.`` key but consent, wait for exit code 0; what was printed."""
        job = self.submit(submission_id, *command, working_dir=working_dir, num_gpus=num_gpus)
        try:
            assert job.code() == 0, job.text
            return job.text
        finally:
            end(job)

    def _attached(self, arguments: tuple[str, ...]) -> Submitted:
        self.count += 1
        output = self.network.folder / f"cli-{self.secret[-6:]}-{self.count}.out"
        env = {"RAY_ADDRESS": self.ray_address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.secret}
        verb, *rest = arguments
        command = [str(BIN / "ray"), "job", verb, *self.trust(), *rest]
        with output.open("wb") as file:
            process = self.network.popen("tenant", command, {**env, "NO_COLOR": "1"}, file)
        return Submitted(process, output)

    # ------------------------------------------------------------ HTTP

    @property
    def url(self) -> str:
        """The gateway."""
        return f"http://{self.network.addresses.gateway}"

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens the gateway's pages, without a proxy."""
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> int:
        """The status that the gateway answers with."""
        return self._http(path)[0]

    def read(self, path: str) -> bytes:
        """What the gateway answers."""
        return self._http(path)[1]

    def _http(self, path: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.secret}"})
        try:
            with self.opener().open(request, timeout=20) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    # ------------------------------------------------------------ the operator's view of the job

    def job(self, submission_id: str) -> jobs_pb2.Job:
        """The job; empty where it is not there, or nobody answers now."""
        with contextlib.suppress(CliError), self.network.client() as client:
            return client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job=submission_id)).job
        return jobs_pb2.Job()

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, …"""
        return job_status_name(self.job(submission_id).status)

    def await_status(self, submission_id: str, *wanted: str, deadline_s: float = JOB_S) -> jobs_pb2.Job:
        """Until the job has one of the statuses; the job."""
        with explaining(self, submission_id):
            wait_until(
                lambda: self.status(submission_id) in wanted,
                what=f"{submission_id} to be {' or '.join(wanted)}",
                deadline_s=deadline_s,
            )
        return self.job(submission_id)

    def await_idle(self, submission_id: str) -> None:
        """Until the cluster of an ended job is free for the next one: its agent looks now and then."""
        cluster_id = self.job(submission_id).attempts[-1].cluster_id
        request = operator_pb2.GetClusterRequest(cluster_id=cluster_id)

        def idle() -> bool:
            with self.network.client() as client:
                return client.call(client.operator.GetCluster, request).cluster.HasField("idle_since")

        wait_until(idle, what=f"{cluster_id} to be idle", deadline_s=BOOKED_S)

    def await_output(self, job: Submitted, text: str, *, deadline_s: float = JOB_S) -> None:
        """Until the attached command has printed something."""
        wait_until(
            lambda: text in job.text or job.process.poll() is not None,
            what=f"{text!r} to be printed",
            deadline_s=deadline_s,
        )
        assert text in job.text, job.text

    def receipts(self, submission_id: str, *, count: int) -> list[operator_pb2.Receipt]:
        """The job's receipts once at least so many leases have all of theirs, and all are in the ledger."""
        job_id = self.job(submission_id).job_id
        found: list[operator_pb2.Receipt] = []

        def booked() -> bool:
            with contextlib.suppress(CliError), self.network.client() as client:
                request = operator_pb2.ListReceiptsRequest(job_id=job_id)
                found[:] = client.call(client.operator.ListReceipts, request).receipts
            # What ends with the full hour has a next one, in which the lease went on.
            leases = {one.lease_id for one in found}
            ends_ms = {lease: _end_ms(one for one in found if one.lease_id == lease) for lease in leases}
            whole = [lease for lease in leases if ends_ms[lease] % EPOCH_MS]
            return len(whole) >= max(count, len(leases)) and all(one.state == "posted" for one in found)

        wait_until(booked, what=f"{count} receipts of {submission_id} in the ledger", deadline_s=BOOKED_S)
        return found

    def paid(self, submission_id: str, *, count: int) -> list[Paid]:
        """What so many leases of the job were paid, verified offline: whoever began first comes first."""
        by_lease: dict[str, list[VerifiedBundle]] = {}
        for bundle in verified(self.network, self.receipts(submission_id, count=count)):
            by_lease.setdefault(bundle.receipt.lease_id, []).append(bundle)
        return sorted((Paid(tuple(sorted(each, key=_start_ms))) for each in by_lease.values()), key=_start_ms)


@contextlib.contextmanager
def explaining(tenant: Tenant, submission_id: str) -> Iterator[None]:
    """Add what became of the job to a failure."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {tenant.job(submission_id)}") from None


def end(job: Submitted) -> None:
    """End the command; the job goes on without it."""
    if job.process.poll() is None:
        job.process.kill()
        job.process.wait()


def verified(network: Network, receipts: list[operator_pb2.Receipt]) -> list[VerifiedBundle]:
    """Each receipt's bundle, verified offline with the network's key."""
    with network.client() as client:
        status = client.call(client.operator.GetStatus, operator_pb2.GetStatusRequest())
        key = bytes.fromhex(status.receipt_public_key)
        bundles = [
            client.call(client.operator.GetReceipt, operator_pb2.GetReceiptRequest(receipt_id=one.receipt_id))
            for one in receipts
        ]
    return [verify_bundle(bundle.bundle, key) for bundle in bundles]
