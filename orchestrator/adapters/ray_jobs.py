"""Ray's Jobs API, spoken by the agent beside the head; the shapes are Ray 2.60's.

Job state is Ray's; nothing is cached here. The driver runs on the head's machine and its log is a file there,
so the agent reads the file instead of Ray's tail, which looks only once a second.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.ray_node import MEMBER_LABEL

REQUEST_TIMEOUT_S = 30.0
"""A first submit starts Ray's job manager and may take seconds; a head that needs longer is broken."""

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""A thousand rows of the state API take a third of it, and reading so much JSON a tenth of a second."""

UPLOAD_TIMEOUT_S = 120.0
"""100 MiB, Ray's own limit for a package, over loopback into the GCS on a busy machine."""

LIST_LIMIT = 1000
"""Ray's state API truncates at this many rows; for `is_clean` one row is enough to say no."""

ERROR_CHARS = 500
"""Ray answers errors with whole tracebacks; the last line is what tells."""

REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Answers about the request rather than about the head's condition."""

TERMINAL_STATUSES = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

PACKAGE_URI_PATTERN = re.compile(r"gcs://([A-Za-z0-9_.-]+)")
"""The only kind of package that can be put into a cluster over HTTP."""

USAGE_PATTERN = re.compile(r"(?<![0-9.])([0-9.]{1,32})/([0-9.]{1,32}) ")
"""`used/total NAME` in /nodes; memory lines carry units and are not matched."""

TEXT_CHARS_MAX = 4000
"""Of any text that is kept of an answer. A tenant's code stands beside the head and may answer in its place."""

USAGE_CHARS_MAX = 100_000
"""Of one node's resources, a line each."""

NODES_MAX = 10_000
"""More than the largest cluster has."""

AMOUNT_MAX = 1e6
"""More GPUs or CPUs than any node has."""

EXIT_CODE_MAX = 2**31 - 1

TIME_MAX_MS = 2**53


class RayApiError(RuntimeError):
    """Ray's HTTP API answered something unexpected; the same call may succeed later."""


class RayUnreachableError(RayApiError):
    """The head did not answer."""


class RayRefusedError(RayApiError):
    """Ray judged the request itself to be wrong; repeating it changes nothing."""


@dataclass(frozen=True, slots=True)
class RayJobStatus:
    """One job as Ray sees it; times are wall-clock ms, None until they are known."""

    submission_id: str
    status: str
    message: str
    driver_exit_code: int | None
    start_time_ms: int | None
    end_time_ms: int | None

    @property
    def is_terminal(self) -> bool:
        """Whether Ray will never change this status again."""
        return self.status in TERMINAL_STATUSES


@dataclass(frozen=True, slots=True)
class RayNodeInfo:
    """One Ray node as the head lists it; `member_id` is empty on a node that is not ours."""

    node_id: str
    member_id: str
    node_ip: str
    alive: bool
    is_head: bool
    gpus: float
    cpus: float
    labels: dict[str, str]


class RayJobs:
    """A client of one cluster's head. Use as an async context manager, or call `close`."""

    def __init__(
        self, dashboard_url: str, token: str, sockets: Callable[[int, int], socket.socket] | None = None
    ) -> None:
        """Remember the head; the token goes into a header and nowhere else.

        ``sockets`` makes one of a family and kind where the head can be reached; without it that is right here.
        """
        self._sockets = sockets
        self._base = dashboard_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections to the head."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory_bytes: int | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
    ) -> None:
        """Start a job unless this id was submitted before: a repeated call changes nothing.

        With no resource named the driver runs on the head, where its log is a file beside the agent.
        """
        body: dict[str, Any] = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": dict(runtime_env),
            "metadata": dict(metadata),
            "entrypoint_num_cpus": num_cpus,
            "entrypoint_num_gpus": num_gpus,
            "entrypoint_memory": memory_bytes,
            "entrypoint_resources": None if entrypoint_resources is None else dict(entrypoint_resources),
        }
        body = {name: value for name, value in body.items() if value is not None}
        code, text = await self._call("POST", "/api/jobs/", json=body)
        if code == HTTPStatus.OK:
            return
        # Ray answers a known id with 500 and a traceback, and has no other way to submit at most once.
        if await self.status(submission_id) is not None:
            return
        raise _refusal("POST /api/jobs/", code, text)

    async def status(self, submission_id: str) -> RayJobStatus | None:
        """Return one job's state; None when Ray does not know the id."""
        path = f"/api/jobs/{quote(submission_id, safe='')}"
        code, text = await self._call("GET", path)
        if code == HTTPStatus.NOT_FOUND:
            return None
        return _job_status(_json_object(f"GET {path}", code, text))

    async def list(self) -> tuple[RayJobStatus, ...]:
        """Return all submitted jobs; drivers that connected on their own are left out."""
        return tuple(_job_status(job) for job in await self._jobs() if job.get("submission_id"))

    async def stop(self, submission_id: str) -> bool:
        """Ask a job to stop; False when Ray does not know it or its supervisor is already gone."""
        path = f"/api/jobs/{quote(submission_id, safe='')}/stop"
        code, text = await self._call("POST", path)
        if code == HTTPStatus.NOT_FOUND:
            return False
        return bool(_json_object(f"POST {path}", code, text).get("stopped"))

    async def put_package(self, uri: str, path: Path) -> bool:
        """Upload a package unless the cluster has it; return whether it was uploaded.

        `uri` is `gcs://NAME.zip`. Ray forgets an unused package after ten minutes: put it right before
        `submit`.
        """
        match = PACKAGE_URI_PATTERN.fullmatch(uri)
        if match is None:
            raise ValueError(f"uri must look like gcs://NAME.zip, got {uri!r}")
        target = f"/api/packages/gcs/{match[1]}"
        code, text = await self._call("GET", target)
        if code == HTTPStatus.OK:
            return False
        if code != HTTPStatus.NOT_FOUND:
            raise _refusal(f"GET {target}", code, text)
        with path.open("rb") as file:
            code, text = await self._call("PUT", target, data=file, timeout_s=UPLOAD_TIMEOUT_S)
        if code != HTTPStatus.OK:
            raise _refusal(f"PUT {target}", code, text)
        return True

    async def nodes(self) -> tuple[RayNodeInfo, ...]:
        """Return the head's node list, dead nodes included; totals are 0 where a node offers none."""
        view = await self._node_view()
        return tuple(_node_info(entry["raylet"]) for entry in view["summary"][:NODES_MAX])

    async def working_node(self, member_id: str) -> str:
        """Return Ray's id of a member's node; empty where nothing runs there, or no such node is alive."""
        view = await self._node_view()
        usage: dict[str, str] = view["nodeLogicalResources"]
        for entry in view["summary"]:
            node = _node_info(entry["raylet"])
            if node.member_id == member_id and node.alive and _in_use(usage.get(node.node_id, "")):
                return node.node_id
        return ""

    async def is_clean(self) -> bool:
        """Report whether the cluster may serve its tenant again: no job, no actor, all resources free."""
        if any(job.get("status") not in TERMINAL_STATUSES for job in await self._jobs()):
            return False
        for kind, gone in (("actors", "DEAD"), ("placement_groups", "REMOVED")):
            query = f"limit={LIST_LIMIT}&filter_keys=state&filter_predicates=!%3D&filter_values={gone}"
            path = f"/api/v0/{kind}?{query}"
            code, text = await self._call("GET", path)
            if _json_object(f"GET {path}", code, text)["data"]["result"]["result"]:
                return False
        view = await self._node_view()
        alive = {
            node["raylet"]["nodeId"] for node in view["summary"] if node["raylet"].get("state") == "ALIVE"
        }
        usage: dict[str, str] = view["nodeLogicalResources"]
        # A node missing from the usage has not reported yet, so nothing is known of it.
        return alive <= usage.keys() and not any(_in_use(usage[node_id]) for node_id in alive)

    async def _jobs(self) -> tuple[dict[str, Any], ...]:
        """Return Ray's list of jobs and drivers as it stands."""
        code, text = await self._call("GET", "/api/jobs/")
        jobs = _json("GET /api/jobs/", code, text)
        if not isinstance(jobs, list):
            raise _refusal("GET /api/jobs/", code, text)
        return tuple(jobs)

    async def _node_view(self) -> dict[str, Any]:
        """Return /nodes; uncached: Ray answers once from a cache of any age and only then refreshes it."""
        path = "/nodes?view=summary&nocache=1"
        code, text = await self._call("GET", path)
        data: dict[str, Any] = _json_object(f"GET {path}", code, text)["data"]
        return data

    def _connector(self) -> aiohttp.TCPConnector:
        sockets = self._sockets
        if sockets is None:
            return aiohttp.TCPConnector()

        def made(address: aiohttp.AddrInfoType) -> socket.socket:
            return sockets(address[0], address[1])

        return aiohttp.TCPConnector(socket_factory=made)

    async def _call(
        self, method: str, path: str, *, timeout_s: float = REQUEST_TIMEOUT_S, **body: Any
    ) -> tuple[int, str]:
        """Send one request; return status code and body. Raises RayApiError when the head does not answer."""
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers, connector=self._connector())
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, f"{self._base}{path}", timeout=timeout, allow_redirects=False, **body
            ) as response:
                return response.status, await _bounded_text(response)
        except (aiohttp.ClientError, BoxError, TimeoutError) as error:
            raise RayUnreachableError(
                f"Ray's head at {self._base} did not answer {method} {path}: {type(error).__name__} {error}"
            ) from error


async def _bounded_text(response: aiohttp.ClientResponse) -> str:
    """An answer as text. Raises RayUnreachableError for one without end: in a box a tenant's code may give it."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise RayUnreachableError(f"Ray's head answered with more than {ANSWER_BYTES_MAX} bytes")
    return body.decode(errors="replace")


def driver_log(submission_id: str) -> PurePosixPath:
    """Return, below the session directory, the file that holds a driver's output where the driver runs."""
    if "/" in submission_id:
        raise ValueError(f"submission_id {submission_id!r} must not hold a slash")
    return PurePosixPath("logs") / f"job-driver-{submission_id}.log"


def _job_status(job: Mapping[str, Any]) -> RayJobStatus:
    """Read the fields we use out of Ray's JobDetails."""
    return RayJobStatus(
        submission_id=_text(job.get("submission_id")),
        status=_text(job["status"]),
        message=_text(job.get("message")),
        driver_exit_code=_whole(job.get("driver_exit_code")),
        start_time_ms=_whole(job.get("start_time"), TIME_MAX_MS),
        end_time_ms=_whole(job.get("end_time"), TIME_MAX_MS),
    )


def _node_info(raylet: Mapping[str, Any]) -> RayNodeInfo:
    """Read the fields we use out of one entry of /nodes."""
    totals = raylet.get("resourcesTotal", {})
    labels = raylet.get("labels", {})
    return RayNodeInfo(
        node_id=_text(raylet["nodeId"]),
        member_id=_text(labels.get(MEMBER_LABEL)),
        node_ip=_text(raylet["nodeManagerAddress"]),
        alive=raylet.get("state") == "ALIVE",
        is_head=bool(raylet.get("isHeadNode")),
        gpus=_amount(totals.get("GPU", 0)),
        cpus=_amount(totals.get("CPU", 0)),
        labels={_text(name): _text(value) for name, value in labels.items()},
    )


def _text(value: object) -> str:
    """A text of an answer, short and such as can be sent on; empty for anything else."""
    return value[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _whole(value: object, largest: int = EXIT_CODE_MAX) -> int | None:
    """A whole number of an answer; None for anything else."""
    return value if type(value) is int and -largest <= value <= largest else None


def _amount(value: object) -> float:
    """A count of devices. Raises ValueError where nothing could have so many, NaN too."""
    amount = float(value) if isinstance(value, int | float) else -1.0
    if not 0 <= amount <= AMOUNT_MAX:
        raise ValueError(f"a node of {str(value)[:40]} devices")
    return amount


def _in_use(usage: str) -> bool:
    """Report whether any counted resource of one node is taken."""
    return any(float(match[1]) > 0 for match in USAGE_PATTERN.finditer(usage[:USAGE_CHARS_MAX]))


def _json(what: str, code: int, text: str) -> Any:
    """Parse a successful answer; anything else is an error."""
    if code != HTTPStatus.OK:
        raise _refusal(what, code, text)
    return json.loads(text)


def _json_object(what: str, code: int, text: str) -> dict[str, Any]:
    """Parse a successful answer that must be an object."""
    parsed = _json(what, code, text)
    if not isinstance(parsed, dict):
        raise _refusal(what, code, text)
    return parsed


def _refusal(what: str, code: int, text: str) -> RayApiError:
    """Build the error for an answer that is not the expected one."""
    kind = RayRefusedError if code in REFUSALS else RayApiError
    return kind(f"Ray answered {what} with {code}: {text.strip()[-ERROR_CHARS:]}")
