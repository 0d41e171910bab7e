"""A model fleet: a made-up network that moves, for pictures and for tests of queries. Nothing in it was measured.

Some dozens of workers of all classes fall silent and come back, jobs arrive, wait, form clusters, run and end, receipts
are sealed at the hour. In the middle of its time a region is cut off for some minutes, and later the control plane is
started again, so that the pictures show what bad looks like. The same seed and steps make the same numbers.

A history that is written at once has no marks where series end, so Prometheus would show one for five minutes more: a
state that nobody is in is shown as 0, and what is stacked adds up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from deploy.dashboards.model_machines import Job, Worker, joined
from deploy.dashboards.series import Sample, Series

HOUR_S = 3_600
OUTAGE_S = (2.75 * HOUR_S, 2.95 * HOUR_S)
"""When a region is cut off."""

RESTART_S = 4.5 * HOUR_S
"""When the control plane is started again."""

ROUTES = (
    ("GET", "/api/version", 0.004, 3.0),
    ("POST", "/api/jobs/", 0.02, 0.3),
    ("GET", "/api/jobs/", 0.012, 0.8),
    ("GET", "/api/jobs/{submission_id}", 0.006, 6.0),
    ("GET", "/api/jobs/{submission_id}/logs", 0.03, 1.2),
    ("GET", "/api/jobs/{submission_id}/logs/tail", 40.0, 0.2),
    ("PUT", "/api/packages/{protocol}/{name}", 0.4, 0.2),
)
"""Method, route, seconds of an answer and how many there are in a second."""

PHASES = (("preparing", 24.0), ("starting_head", 9.0), ("joining", 6.0))
"""On the way to ready, with the mean seconds of each."""

REASONS = ("busy", "apart", "quota")
"""Why the model's jobs wait."""

LIVENESS = ("live", "suspect", "lost")

GPU_STATES = ("free", "leased", "reserved", "held", "unreachable")


class Fleet:
    """The model's state and the numbers that its exporters show."""

    def __init__(self, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._series = Series()
        self._age_s = 0.0
        self._up_s = 0.0
        self._began_s: float | None = None
        self._cpu_s = 0.0
        self._clusters = 0
        self._unposted = 0.0
        self._unposted_s = 0.0
        self._jobs: list[Job] = []
        self._workers = list(joined(self._random))

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self._age_s += seconds
        self._up_s += seconds
        if self._age_s - seconds < RESTART_S <= self._age_s:
            self._series.begin_anew()
            self._up_s = seconds
            self._began_s = None
        for worker in self._workers:
            self._live(worker, seconds)
        self._arrive(seconds)
        for job in list(self._jobs):
            self._advance(job)
        self._plan(seconds)
        self._decide(seconds)
        self._answer(seconds)
        self._book(seconds)
        self._series.forget_gauges()
        self._show_fleet()
        self._show_work()
        self._show_control_plane()

    def network(self, now_s: float) -> Iterator[Sample]:
        """What /metrics shows, the process's own included."""
        if self._began_s is None:
            self._began_s = now_s - self._up_s
        yield from self._series.samples("network")
        yield Sample("process_start_time_seconds", (), self._began_s)
        yield Sample("process_cpu_seconds_total", (), self._cpu_s)
        yield Sample("process_resident_memory_bytes", (), 310e6 + 2e4 * math.sqrt(self._up_s))
        yield Sample("process_open_fds", (), 90.0 + self._connected())
        yield Sample("process_max_fds", (), 20_000.0)

    def alerts(self) -> Iterator[tuple[str, str]]:
        """Alert and severity of what Prometheus would say, for pictures of a history that none of its rules saw."""
        yield "OrchestratorBadGpu", "warning"
        if self._silent():
            yield "OrchestratorZoneOutage", "critical"

    def workers(self) -> Iterator[Sample]:
        """What the workers' pages show."""
        return self._series.samples("workers")

    def agents(self) -> Iterator[tuple[Worker, list[Sample]]]:
        """What each agent that can be reached shows."""
        for worker in self._workers:
            if worker.liveness == "live":
                own = Series()
                own.put("orchestrator_agent_build_info", 1, version=worker.version)
                own.put("orchestrator_agent_session_connected", 1)
                own.add("orchestrator_agent_sessions_total", worker.sessions)
                own.put("orchestrator_agent_heartbeat_rtt_seconds", self._about(0.03 + worker.silent_share))
                own.put("orchestrator_agent_statements_unacknowledged", float(self._random.randrange(3)))
                free = 600e9 * (1 - 0.97 * worker.silent_share**0.25)
                own.put("orchestrator_agent_disk_free_bytes", free - 20e9 * worker.used)
                own.put("orchestrator_agent_members", float(min(worker.used, 1)), phase="up")
                yield worker, list(own.samples("agent"))

    def ray_nodes(self) -> Iterator[tuple[str, str, Worker, list[Sample]]]:
        """Member, cluster, worker and what is shown of each Ray node; utilization in percent, as Ray has it."""
        for job in self._jobs:
            if job.phase != "running":
                continue
            for index, (worker, gpus) in enumerate(job.on):
                busy = self._about(86, 0.06)
                node = (("IsHeadNode", "true" if index == 0 else "false"),)
                shown = [
                    Sample("ray_node_cpu_utilization", node, min(100, self._about(38))),
                    Sample("ray_node_mem_used", node, self._about(52e9, 0.05)),
                    Sample("ray_node_mem_total", node, 128e9),
                    Sample("ray_node_network_receive_speed", node, self._about(40e6 * len(job.on))),
                ]
                for gpu in range(gpus):
                    device = (*node, ("GpuIndex", str(gpu)))
                    shown.append(Sample("ray_node_gpus_utilization", device, min(100, busy)))
                    shown.append(Sample("ray_node_gram_used", device, 17_000 + 10 * busy))
                    shown.append(Sample("ray_node_gram_available", device, 7_000 - 10 * busy))
                yield f"{job.cluster}-{index}", job.cluster, worker, shown

    # ---- machines

    def _live(self, worker: Worker, seconds: float) -> None:
        series = self._series
        cut = OUTAGE_S[0] <= self._age_s <= OUTAGE_S[1] and worker.region == "us-east"
        away_s = 240.0
        if cut or (worker.back_s <= 0 and self._random.random() < worker.silent_share * seconds / away_s):
            worker.back_s = max(worker.back_s, 60 if cut else away_s)
        worker.back_s = max(0, worker.back_s - seconds)
        worker.silent_s = worker.silent_s + seconds if worker.back_s else 0
        was = worker.liveness
        worker.liveness = "live" if worker.silent_s < 26 else "suspect" if worker.silent_s < 90 else "lost"
        if was != worker.liveness:
            series.add("orchestrator_worker_transitions_total", liveness=worker.liveness)
            worker.sessions += worker.liveness == "live"
        series.add("orchestrator_worker_expected_seconds_total", seconds, **worker.owned)
        series.add("orchestrator_worker_up_seconds_total", seconds * (was == "live"), **worker.owned)
        worker.heat += (worker.used / max(worker.gpus, 1) - worker.heat) * min(1, seconds / 120)
        worker.certificate_s -= seconds
        if worker.certificate_s < 10 * HOUR_S and worker.liveness == "live":
            worker.certificate_s = 24 * HOUR_S
        if self._random.random() < seconds / (20 * HOUR_S):
            series.add(
                "orchestrator_device_faults_total", kind=self._random.choice(("ecc", "xid", "thermal"))
            )
        if self._random.random() < seconds / (200 * HOUR_S):
            series.add("orchestrator_hardware_changes_total")

    def _silent(self) -> bool:
        """Whether a region is away for so long that it is noticed."""
        return OUTAGE_S[0] + 120 <= self._age_s <= OUTAGE_S[1] + 60

    def _connected(self) -> int:
        return sum(1 for worker in self._workers if not worker.back_s) if self._up_s > 30 else 0

    # ---- work

    def _arrive(self, seconds: float) -> None:
        wave = 1 + 0.7 * math.sin(self._age_s / HOUR_S * 1.6)
        while self._random.random() < 1 - math.exp(-seconds * wave / 130):
            seconds /= 3
            hardware_class = self._random.choices(("consumer", "miner", "datacenter"), (6, 2, 3))[0]
            gpus = self._random.choice((1, 1, 1, 2, 4) if hardware_class != "datacenter" else (1, 4, 8, 16))
            run_s = self._random.lognormvariate(math.log(1_300), 0.8)
            self._jobs.append(Job(hardware_class, gpus, self._age_s, run_s))

    def _plan(self, seconds: float) -> None:
        series = self._series
        for _ in range(max(1, round(seconds / 5))):
            series.observe("orchestrator_plan_seconds", self._about(0.006, 0.6))
        if self._random.random() < seconds / 400:
            series.add("orchestrator_plans_stale_total")
        for job in self._jobs:
            if job.phase == "waiting" and not self._place(job):
                series.add("orchestrator_plan_rejections_total", max(1, seconds // 5), reason=job.reason)

    def _place(self, job: Job) -> bool:
        fitting = [worker for worker in self._workers if worker.hardware_class == job.hardware_class]
        free = [(worker, worker.gpus - worker.used) for worker in fitting if worker.placeable]
        if sum(count for _, count in free) < job.gpus:
            job.reason = (REASONS[0], *REASONS)[int(job.run_s) % 4]
            return False
        missing = job.gpus
        for worker, count in sorted(free, key=lambda pair: -pair[1]):
            given = min(count, missing)
            if given > 0:
                job.on.append((worker, given))
                worker.used += given
                missing -= given
        warm = self._random.random() < 0.25
        self._clusters += 1
        job.cluster = f"clu_{self._clusters:04d}"
        job.placed_s = self._age_s
        self._series.add("orchestrator_plan_placements_total", kind="warm" if warm else "new")
        if warm:
            self._run(job)
        else:
            self._enter(job, 0)
        return True

    def _enter(self, job: Job, index: int) -> None:
        name, mean_s = PHASES[index]
        took_s = self._random.lognormvariate(math.log(mean_s), 0.5)
        job.phase, job.phase_ends_s = name, self._age_s + took_s
        self._series.observe("orchestrator_formation_seconds", took_s, phase=name)

    def _run(self, job: Job) -> None:
        if not job.started:
            self._series.observe("orchestrator_job_queue_seconds", self._age_s - job.came_s)
        job.started, job.phase, job.phase_ends_s = True, "running", self._age_s + job.run_s

    def _advance(self, job: Job) -> None:
        series = self._series
        if any(worker.liveness == "lost" for worker, _ in job.on):
            if job.phase != "running":
                series.add("orchestrator_formations_total", outcome="failed")
            series.add("orchestrator_attempts_total", outcome="ground")
            self._leave(job)
            job.phase, job.came_s = "waiting", self._age_s
            return
        if job.phase == "waiting" or self._age_s < job.phase_ends_s:
            return
        names = [name for name, _ in PHASES]
        if job.phase in names[:-1]:
            self._enter(job, names.index(job.phase) + 1)
        elif job.phase == names[-1] and self._random.random() < 0.04:
            series.add("orchestrator_member_replacements_total")
            series.add("orchestrator_plan_placements_total", kind="replacement")
            self._enter(job, 0)
        elif job.phase == names[-1]:
            took_s = self._age_s - job.placed_s
            series.observe("orchestrator_formation_seconds", took_s, phase="total")
            series.add("orchestrator_formations_total", outcome="ready")
            self._run(job)
        else:
            outcome = self._random.choices(("succeeded", "failed", "stopped"), (8, 1.5, 0.7))[0]
            series.add("orchestrator_attempts_total", outcome=outcome)
            series.add("orchestrator_jobs_finished_total", status=outcome.upper())
            if self._random.random() < 0.04:
                series.add("orchestrator_preemptions_total")
            self._leave(job)
            self._jobs.remove(job)

    def _leave(self, job: Job) -> None:
        for worker, count in job.on:
            worker.used -= count
        job.on.clear()

    # ---- control plane

    def _decide(self, seconds: float) -> None:
        series = self._series
        commands = seconds * self._about(9 + len(self._jobs) / 4, 0.1)
        series.add("orchestrator_loop_commands_total", round(commands))
        series.add("orchestrator_loop_events_total", round(commands * self._about(0.22)))
        self._cpu_s += seconds * self._about(0.11, 0.15)
        for _ in range(8):
            batches = commands / 16
            slow = 30 if self._random.random() < 0.01 else 1
            series.observe("orchestrator_loop_decide_seconds", self._about(0.0011, 0.5), batches)
            series.observe("orchestrator_loop_commit_seconds", self._about(0.0042, 0.5) * slow, batches)
            series.observe("orchestrator_loop_wait_seconds", self._about(0.003, 0.6) * slow, batches)
        for target, count in (("agent", len(self._workers)), ("ray", 1 + len(self._jobs))):
            away = sum(1 for worker in self._workers if worker.back_s) if target == "agent" else 0
            for outcome, number in (("ok", count - away), ("away", away), ("timeout", 0.02 * count)):
                series.add(
                    "orchestrator_scrapes_total", number * seconds / 15, target=target, outcome=outcome
                )
            mean_s = {"agent": 0.04, "ray": 0.12}[target]
            for _ in range(4):
                took_s = self._about(mean_s, 0.5)
                series.observe("orchestrator_scrape_seconds", took_s, count * seconds / 60, target=target)
        for door, code, hourly in (
            ("session", "stale", 3),
            ("gateway", "unauthenticated", 40),
            ("operator", "forbidden", 1),
        ):
            if self._random.random() < hourly * seconds / HOUR_S:
                series.add("orchestrator_refusals_total", door=door, code=code)
        bridged = 1e5 * (3 + math.sin(self._age_s / 900)) * seconds
        series.add("orchestrator_relay_bytes_total", round(self._about(bridged)), direction="in")
        series.add("orchestrator_relay_bytes_total", round(self._about(bridged)), direction="out")
        series.add("orchestrator_relay_dropped_datagrams_total", self._random.randrange(3))

    def _answer(self, seconds: float) -> None:
        name = "orchestrator_gateway_request_seconds"
        for method, route, mean_s, rate in ROUTES:
            number = round(self._about(rate * seconds, 0.15)) or 1
            for _ in range(3):
                took_s = self._random.lognormvariate(math.log(mean_s), 0.8)
                self._series.observe(name, took_s, number / 3, method=method, route=route, status="200")
            for status, share in (("404", 0.004), ("429", 0.002), ("500", 0.0004)):
                if self._random.random() < share * number:
                    self._series.observe(name, mean_s / 4, method=method, route=route, status=status)

    def _book(self, seconds: float) -> None:
        series = self._series
        posted = min(self._unposted, max(1, seconds / 6))
        self._unposted -= posted
        self._unposted_s = self._unposted_s + seconds if self._unposted else 0
        series.add("orchestrator_receipts_total", posted, state="posted")
        closed_hours = self._age_s // HOUR_S - (self._age_s - seconds) // HOUR_S
        for job in self._jobs:
            ended = self._random.random() < seconds / 1_500
            if job.phase == "running" and (closed_hours or ended):
                self._unposted += len(job.on)
                for state in ("sealed", "signed"):
                    series.add("orchestrator_receipts_total", len(job.on), state=state)
        for job in self._jobs:
            if job.phase == "running":
                billed = {"hardware_class": job.hardware_class}
                series.add("orchestrator_billed_seconds_total", seconds * job.gpus, **billed)
                series.add("orchestrator_disputed_seconds_total", 0.002 * seconds * job.gpus, **billed)

    # ---- what is shown

    def _show_fleet(self) -> None:
        put = self._series.put
        put("orchestrator_build_info", 1, version="0.2.0")
        tally: dict[tuple[str, ...], float] = {}

        def count(*key: str, number: float = 1) -> None:
            tally[key] = tally.get(key, 0) + number

        for worker in self._workers:
            for state in LIVENESS:
                number = float(state == worker.liveness)
                count("workers", state, worker.hardware_class, number=number)
            count("connected", worker.hardware_class, number=float(not worker.back_s and self._up_s > 30))
            if worker.hold:
                count("hold", worker.hold)
            if worker.group:
                number = float(worker.liveness == "live")
                count("group", worker.group, worker.hardware_class, worker.model, number=number)
            if worker.gpus:
                for state in GPU_STATES:
                    count("gpus", worker.hardware_class, worker.model, state, number=0)
                away = "unreachable" if worker.liveness != "live" else "held" if worker.hold else "free"
                count("gpus", worker.hardware_class, worker.model, "leased", number=worker.used)
                if away == "free" and worker.name == "datacenter-34" and self._age_s % (3 * HOUR_S) < HOUR_S:
                    away = "reserved"
                rest = worker.gpus - worker.used
                count("gpus", worker.hardware_class, worker.model, away, number=rest)
            self._show_worker(worker)
        for key, number in tally.items():
            match key:
                case ("workers", liveness, of):
                    put("orchestrator_workers", number, liveness=liveness, hardware_class=of)
                case ("connected", of):
                    put("orchestrator_workers_connected", number, hardware_class=of)
                case ("hold", kind):
                    put("orchestrator_worker_holds", number, kind=kind)
                case ("gpus", of, model, state):
                    put("orchestrator_gpus", number, hardware_class=of, model=model, state=state)
                case ("group", group, of, model):
                    put("orchestrator_group_workers", number, group=group, hardware_class=of, model=model)
                    near_s = 0.0006 if of == "datacenter" else 0.008 + 0.002 * int(group)
                    for stat, times in (("median", 1), ("longest", 2.1)):
                        rtt_s = self._about(near_s * times, 0.02)
                        put("orchestrator_group_rtt_seconds", rtt_s, group=group, stat=stat)
                    put("orchestrator_group_loss_ratio", self._about(0.0004 * int(group), 0.2), group=group)
        put("orchestrator_groups", len({worker.group for worker in self._workers if worker.group}))
        put("orchestrator_zones_held", float(self._silent()))

    def _show_worker(self, worker: Worker) -> None:
        put = self._series.put
        put(
            "orchestrator_worker_info",
            1,
            **worker.owned,
            name=worker.name,
            region=worker.region,
            group=worker.group,
            agent_version=worker.version,
        )
        own = {"worker": worker.worker}
        put("orchestrator_worker_certificate_remaining_seconds", worker.certificate_s, **own)
        put("orchestrator_worker_cpu_utilization_ratio", min(1, self._about(0.08 + 0.4 * worker.heat)), **own)
        put("orchestrator_worker_memory_used_bytes", self._about(9e9 + 40e9 * worker.heat, 0.03), **own)
        for index in range(worker.gpus if worker.hardware_class != "apple" else 0):
            busy = index < worker.used
            device = {"worker": worker.worker, "device": str(index)}
            hot = 6 * (worker.name == "miner-24")
            warm = 38 + 30 * worker.heat + 8 * busy + hot + index % 3
            put("orchestrator_device_temperature_celsius", round(self._about(warm, 0.02), 1), **device)
            put("orchestrator_device_utilization_ratio", min(1, self._about(0.9)) if busy else 0, **device)
            put("orchestrator_device_memory_used_bytes", 18e9 if busy else 4e8, **device)
            put("orchestrator_device_power_watts", self._about(320 if busy else 28, 0.08), **device)
            ecc = 14.0 * (worker.name == "datacenter-30" and index == 3)
            put("orchestrator_device_ecc_uncorrected", ecc, **device)
            put("orchestrator_device_last_xid", 79.0 * (worker.name == "miner-27" and index == 1), **device)
            slow = warm > 80 or (worker.name == "miner-24" and index == 0)
            put("orchestrator_device_throttled", float(slow), **device)

    def _show_work(self) -> None:
        put = self._series.put
        waiting = [job for job in self._jobs if job.phase == "waiting"]
        for reason in REASONS:
            number = sum(1 for job in waiting if job.reason == reason)
            put("orchestrator_queue_jobs", number, reason=reason)
        put("orchestrator_queue_gpus", sum(job.gpus for job in waiting))
        put(
            "orchestrator_queue_oldest_seconds", max((self._age_s - job.came_s for job in waiting), default=0)
        )
        put("orchestrator_plan_lag_seconds", self._random.random() ** 4)
        put("orchestrator_jobs", len(waiting), status="PENDING")
        put("orchestrator_jobs", len(self._jobs) - len(waiting), status="RUNNING")
        put("orchestrator_jobs", 140, status="SUCCEEDED")
        for phase in ("preparing", "starting_head", "joining", "ready", "closing"):
            known = {"ready": "running"}.get(phase, phase)
            put("orchestrator_clusters", sum(1 for job in self._jobs if job.phase == known), phase=phase)
        put("orchestrator_clusters", self._clusters, phase="closed")
        put("orchestrator_leases", sum(len(job.on) for job in self._jobs), state="open")
        put("orchestrator_leases", self._random.randrange(4), state="closing")
        put("orchestrator_reservations", 2, phase="booked")

    def _show_control_plane(self) -> None:
        put = self._series.put
        put("orchestrator_loop_inbox_commands", self._random.randrange(6))
        put("orchestrator_loop_lag_seconds", self._random.random() ** 3 / 50)
        put("orchestrator_receipts_unposted", self._unposted)
        put("orchestrator_outbox_oldest_seconds", self._unposted_s)
        put("orchestrator_receipts_unaccounted", 0)
        put("orchestrator_ledger_imbalance_microcredits", 0)
        members = sum(len(job.on) for job in self._jobs)
        for way, share in (("direct", 0.7), ("relayed", 0.2), ("bridged", 0.1)):
            put("orchestrator_overlay_tunnels", round(members * share), way=way)
        put("orchestrator_relay_connections", members * 0.4 // 1)
        put("orchestrator_relay_capacity_ratio", members * 0.4 // 1 / 64)
        for name, life_s, since_s in (
            ("authority", 3_650 * 24 * HOUR_S, 40 * 24 * HOUR_S),
            ("session", 7 * 24 * HOUR_S, self._age_s % (84 * HOUR_S)),
            ("gateway", 7 * 24 * HOUR_S, self._age_s % (84 * HOUR_S)),
            ("overlay", 30 * 24 * HOUR_S, 4 * 24 * HOUR_S),
        ):
            put("orchestrator_certificate_remaining_seconds", life_s - since_s, certificate=name)

    def _about(self, value: float, spread: float = 0.2) -> float:
        return value * self._random.lognormvariate(0, spread)
