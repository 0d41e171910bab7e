"""Jobs and their attempts: what a tenant asked for, and each try at it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.ids import AttemptId, ClusterId, DeviceId, JobId, ReservationId, TenantId, WorkerId
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass, Isolation


class JobStatus(StrEnum):
    """Exactly Ray's job statuses, so that Ray's own tools read them."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class AttemptPhase(StrEnum):
    """PLACED: waiting for its cluster or for Ray; RUNNING: the driver runs and leases count; ENDED."""

    PLACED = "placed"
    RUNNING = "running"
    ENDED = "ended"


class Outcome(StrEnum):
    """How an attempt ended; GROUND means the machine, head or network failed, not the tenant's code."""

    NONE = "none"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    GROUND = "ground"


class Pattern(StrEnum):
    """How the members of a gang talk, which says what distance costs."""

    ALL_REDUCE = "all-reduce"
    """Everybody waits for the slowest pair."""
    PIPELINE = "pipeline"
    """Each hands on to the next."""
    INDEPENDENT = "independent"
    """Hardly at all."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the machines must be. Equal requirements have equal answers, so this is a dictionary key."""

    gpus: int = 1
    gpu_model: str | None = None
    hardware_class: HardwareClass | None = None
    min_gpu_memory_gb: int = 0
    isolation: Isolation = Isolation.NONE
    """The weakest that serves: NONE is the job's consent to have none."""
    runtime: str = ""
    """Digest of the runtime asked for; empty: the network's default."""
    image: str = ""
    """NAME@sha256:… of the image asked for in place of a runtime; its isolation is a container then."""
    driver_cpus: int = 0
    """What the driver itself wants of one member; Ray would wait for ever where no node has it."""
    driver_memory_bytes: int = 0
    one_machine: bool = False
    """The driver wants several GPUs for itself, which only one machine can give."""
    gpus_per_worker: int = 0
    """What each member brings; 0: as it comes, a single machine first."""
    min_compute_capability: int = 0
    """MAJOR · 100 + MINOR."""
    region: str = ""
    """Where all of it has to stand."""
    max_price: int = 0
    """Microcredits per device and hour; 0: whatever is asked."""
    min_reliability_bp: int = 0
    min_evidence: EvidenceClass = EvidenceClass.T0
    committed: bool = False
    """Only machines whose owners give a long notice."""
    max_rtt_ms: int = 0
    """Between any two members, as measured; 0: no bound."""
    pattern: Pattern = Pattern.ALL_REDUCE
    min_bandwidth_mbps: int = 0
    """Between any two members, in 10⁶ bits per second, as measured before the start; 0: no bound."""

    @property
    def measured_first(self) -> bool:
        """Whether several machines have to be measured against each other before they start together."""
        return bool(self.max_rtt_ms or self.min_bandwidth_mbps)

    @property
    def device_count(self) -> int:
        """Devices to hold: CPU work holds one CPU device."""
        return max(1, self.gpus)


@dataclass(frozen=True, slots=True)
class JobConditions:
    """All that a tenant says by ``orch.`` keys: what the machines must be, and how the job may be treated."""

    requirements: Requirements
    priority: int = 0
    max_attempts: int = 3
    time_limit_ms: int = 0
    """A try that runs for longer is stopped; 0: as long as it likes."""
    interruptible: bool = False
    """It may be made to give way, with notice, to work that waits longer than it should."""
    reservation: str = ""
    """Name or id of the reservation whose machines it uses."""


@dataclass(frozen=True, slots=True)
class Package:
    """An uploaded package: Ray's name for it and the hash under which its bytes are kept."""

    uri: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A submission, validated. Of Ray's runtime_env it holds ``working_dir``, ``env_vars``, ``pip`` and ``uv`` only."""

    entrypoint: str
    runtime_env_json: str
    metadata: tuple[tuple[str, str], ...]
    packages: tuple[Package, ...]
    requirements: Requirements
    priority: int = 0
    max_attempts: int = 3
    entrypoint_num_cpus: float = 0.0
    entrypoint_num_gpus: float = 0.0
    entrypoint_memory_bytes: int = 0
    entrypoint_resources: tuple[tuple[str, float], ...] = ()
    time_limit_ms: int = 0
    """A try that runs for longer is stopped; 0: as long as it likes."""
    interruptible: bool = False
    """It may be made to give way, with notice, to work that waits longer than it should."""
    reservation_id: ReservationId | None = None
    """Whose machines it uses as long as that has not ended."""

    @property
    def package_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each package that the head fetches."""
        return tuple(package.sha256 for package in self.packages)


@dataclass(frozen=True, slots=True)
class GaveWay:
    """A try that was asked to end for other work."""

    attempt_id: AttemptId
    at_ms: int
    to: str
    """For what, in words that follow "gives way" and name nobody."""


@dataclass(frozen=True, slots=True)
class Nomination:
    """Devices that are kept for a queued job for which others give way: what was free, and what they will free."""

    devices: tuple[tuple[WorkerId, tuple[DeviceId, ...]], ...]
    head_host: WorkerId | None
    made_at_ms: int
    until_ms: int
    """What is not free by then does not come any more."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Machines that are kept for a queued job that was overtaken too often, and when they are enough at the latest."""

    devices: tuple[tuple[WorkerId, tuple[DeviceId, ...]], ...]
    """All of each machine that are of one kind, held ones too."""
    head_host: WorkerId | None
    starts_by_ms: int

    def same_machines(self, other: Promise) -> bool:
        """Whether both name the same devices, in whatever order, and the same place for a head."""
        return self.head_host == other.head_host and frozenset(self.devices) == frozenset(other.devices)


@dataclass(frozen=True, slots=True)
class Job:
    """A request on its way. ``request_sha256`` makes a repeated submission recognisable."""

    job_id: JobId
    tenant_id: TenantId
    submission_id: str
    request_sha256: str
    request: JobRequest
    status: JobStatus
    message: str
    submitted_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    attempts: int
    """Tries so far; the next one's number is one more."""
    starts: int
    """Tries whose driver ran: these count against ``max_attempts``."""
    attempt_id: AttemptId | None
    """The attempt that counts; None while queued."""
    not_before_ms: int
    stop_requested: bool
    driver_exit_code: int | None
    avoid: tuple[WorkerId, ...]
    """Workers that failed this job before it started; not asked again for it."""
    formation_failures: int
    overtaken: int = 0
    """How often a later job was given devices that would have served this one, since it entered the queue."""
    preemptions: int = 0
    """Starts whose ground was taken back; they do not count against ``max_attempts``."""
    gave_way: tuple[GaveWay, ...] = ()
    """Tries that made way for other work: the last, and those of the hour before it."""
    nomination: Nomination | None = None
    """What is kept for it while it waits for others to give way."""
    promise: Promise | None = None
    """What is kept for it while it waits for what runs there to end."""

    @property
    def queue_place(self) -> tuple[int, int, JobId]:
        """What the queue is ordered by."""
        return (-self.request.priority, self.submitted_at_ms, self.job_id)


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The machines that came next, and by what they lost, in words: ``dearer by 0.12 credits an hour``."""

    machines: str
    microcredits_per_hour: int
    lost_by: str
    diameter_us: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was known of an attempt's machines when they were chosen. Prices are of all devices, before fees."""

    microcredits_per_hour: int = 0
    diameter_us: int | None = None
    """The longest round trip between two of them, measured or else predicted; None where nothing told, 0 of one alone."""
    pairs: int = 0
    pairs_measured: int = 0
    """Of these, how many were measured then: the others were predicted, or unknown."""
    runner_up: RunnerUp | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a job on one cluster. ``log_bytes`` is known once the driver's log is complete."""

    attempt_id: AttemptId
    job_id: JobId
    tenant_id: TenantId
    number: int
    cluster_id: ClusterId
    phase: AttemptPhase
    outcome: Outcome
    message: str
    placed_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    log_bytes: int
    log_complete: bool
    explanation: tuple[str, ...]
    chosen: Chosen = Chosen()
    timed_out_ms: int | None = None
    """Since when it is told to stop, as it ran for its job's time limit."""

    @property
    def timed_out(self) -> bool:
        """Whether it came to its job's time limit."""
        return self.timed_out_ms is not None


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """Bounds on requests and the pace of retries."""

    overtaken_max: int = 16
    """A job that so many later ones overtook has machines kept for it: large gangs would wait for ever."""
    gang_gpus_max: int = 64
    """Above this a request is refused at once: nothing in this network could ever form it."""
    max_attempts_max: int = 10
    entrypoint_bytes_max: int = 64 * 1024
    environment_bytes_max: int = 64 * 1024
    """Of runtime_env and of metadata: they travel with every desired state to the head."""
    retry_backoff_ms: int = 2_000
    """Doubles with each failed formation, so that a broken machine is not asked in a tight circle."""
    retry_backoff_max_ms: int = 60_000
    avoid_ms: int = 60_000
    """After this a worker that failed a job before its start may be asked again: it may be the only one."""
    preemptions_max: int = 50
    """A job whose ground was taken back this often writes no checkpoint: from then on its tries count."""
    runtimes: tuple[tuple[str, str], ...] = ()
    """(name, digest) of each runtime that the network offers, the default first."""
    stop_grace_ms: int = 120_000
    """For a try that came to its time limit to end in: its agent takes any driver for ended after half of that."""
    formation_failures_max: int = 20
    """A job whose clusters never form is failed with the last reason instead of trying for ever."""

    @property
    def default_runtime(self) -> str:
        """Digest of the runtime of a job that names none; empty where none is offered."""
        return self.runtimes[0][1] if self.runtimes else ""

    def backoff_ms(self, failures: int) -> int:
        """Pause before the next try after ``failures`` in a row."""
        return min(self.retry_backoff_max_ms, self.retry_backoff_ms * (1 << min(failures, 10)))
