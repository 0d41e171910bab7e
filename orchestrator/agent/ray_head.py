"""A head on this machine, in the agent's own terms: what Ray answers becomes data or one of two errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Coroutine, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from orchestrator.adapters.beneath import open_beneath
from orchestrator.adapters.box.entering import inside
from orchestrator.adapters.box.namespaces import SocketFactory
from orchestrator.adapters.box.tools import BoxError
from orchestrator.adapters.node_records import NodeStatus
from orchestrator.adapters.ray_jobs import RayApiError, RayJobs, driver_log
from orchestrator.adapters.ray_node import drain_command, drain_environment
from orchestrator.agent.ports import DriverStatus, HeadRefusedError, HeadUnreachableError, NodeListed
from orchestrator.api.v1 import worker_pb2

T = TypeVar("T")

ANSWERED = re.compile(r"Ray answered \S+ \S+ with (?P<code>[0-9]{3}):")
"""How RayApiError begins where the head answered at all."""

NOT_THE_REQUEST = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""4xx that blame the head's state or its token; asking a healthy head again may succeed."""

DRAIN_S = 15.0
"""Ray's command imports all of Ray, which takes a second; ten more for a busy machine."""

OUTPUT_BYTES_MAX = 64 * 1024
"""Of what that command says: its last line is shown."""

REASON_CHARACTERS = 200
"""Of the reason that Ray keeps beside a drained node."""

CLIENT_ERRORS = range(400, 500)


class RayHead:
    """One head's API and the log files beside it. Made for each head that runs on this machine."""

    def __init__(self, status: NodeStatus, token: str) -> None:
        sockets = SocketFactory(status.namespace_pid).create if status.namespace_pid else None
        self._jobs = RayJobs(status.dashboard_url, token, sockets)
        self._namespace_pid = status.namespace_pid
        self._interpreter = status.interpreter or sys.executable
        self._temp_dir = Path(status.temp_dir)
        self._session_dir = Path(status.session_dir)
        self._gcs_address = status.gcs_address
        self._token = token

    async def nodes(self) -> Sequence[NodeListed]:
        """Our nodes that the head lists as alive."""
        listed = await _asked(self._jobs.nodes())
        return [
            NodeListed(node.member_id, node.gpus, node.cpus)
            for node in listed
            if node.alive and node.member_id
        ]

    async def is_clean(self) -> bool:
        """Whether nothing of earlier jobs is left."""
        return await _asked(self._jobs.is_clean())

    async def submit(self, attempt: worker_pb2.DesiredAttempt, packages: Mapping[str, Path]) -> None:
        """Put the packages, then start the attempt unless Ray knows it.

        The driver runs on the head unless the tenant asked for entrypoint resources: only those are passed
        on. Raises HeadRefusedError where the request itself is at fault, OSError where a package cannot be
        read.
        """
        runtime_env = _runtime_env(attempt.runtime_env_json)
        try:
            # Right before the submission: Ray forgets a package that no job uses after ten minutes.
            for uri, path in packages.items():
                await _asked(self._jobs.put_package(_gcs_uri(uri), path))
            await _asked(
                self._jobs.submit(
                    attempt.attempt_id,
                    attempt.entrypoint,
                    runtime_env,
                    dict(attempt.metadata),
                    num_cpus=attempt.entrypoint_num_cpus or None,
                    num_gpus=attempt.entrypoint_num_gpus or None,
                    memory_bytes=attempt.entrypoint_memory_bytes or None,
                    entrypoint_resources=dict(attempt.entrypoint_resources) or None,
                )
            )
        except HeadUnreachableError as error:
            if _blames_request(str(error)):
                raise HeadRefusedError(str(error)) from error
            raise

    async def status(self, attempt_id: str) -> DriverStatus | None:
        """How the driver stands; None where Ray does not know it."""
        status = await _asked(self._jobs.status(attempt_id))
        if status is None:
            return None
        return DriverStatus(status.status, status.message, status.driver_exit_code)

    async def stop(self, attempt_id: str) -> None:
        """Ask the driver to end; repeating it changes nothing."""
        await _asked(self._jobs.stop(attempt_id))

    async def drain(self, member_id: str, reason: str, remaining_ms: int) -> bool:
        """Tell Ray that a node will be preempted; whether it has been told.

        A node on which nothing runs ends itself at once when it is drained: then it is left alone until something
        does. Ray offers this over its own protocol only, so one of its commands is run, with this cluster's token.
        """
        node_id = await _asked(self._jobs.working_node(member_id))
        if not node_id:
            return False
        reason = " ".join(reason.split())[:REASON_CHARACTERS] or "the machine goes"
        command = drain_command(
            self._interpreter, self._gcs_address, node_id, reason, max(1, remaining_ms // 1000)
        )
        process = await asyncio.create_subprocess_exec(
            *self._beside_head(command),
            env=drain_environment(self._token, os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = b""
        try:
            async with asyncio.timeout(DRAIN_S):
                output = await _bounded_output(process)
        except TimeoutError:
            raise HeadUnreachableError(f"Ray's drain-node did not end in {DRAIN_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            said = " ".join(output.decode(errors="replace").split())[-REASON_CHARACTERS:]
            raise HeadUnreachableError(f"Ray's drain-node exited {process.returncode}: {said}")
        return True

    def _beside_head(self, command: list[str]) -> list[str]:
        """The command as it is run where the head is. Raises HeadUnreachableError."""
        if not self._namespace_pid:
            return command
        try:
            return inside(self._namespace_pid, command)
        except BoxError as error:
            raise HeadUnreachableError(str(error)) from error

    def read_log(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """Part of the driver's log; empty where there is none yet, or none any more."""
        try:
            log = driver_log(attempt_id)
            session = PurePosixPath(self._session_dir.relative_to(self._temp_dir))
            with open_beneath(self._temp_dir, session / log) as file:
                file.seek(offset)
                return file.read(size_max)
        except (OSError, ValueError):
            return b""

    async def close(self) -> None:
        """Close the connections."""
        await self._jobs.close()


async def _bounded_output(process: asyncio.subprocess.Process) -> bytes:
    """What a command says until it ends. It runs as the tenant's user, who may make it say more than anybody can hold."""
    output = bytearray()
    while process.stdout is not None:
        piece = await process.stdout.read(OUTPUT_BYTES_MAX)
        output += piece
        if not piece:
            break
        if len(output) > OUTPUT_BYTES_MAX:
            process.kill()
            break
    await process.wait()
    return bytes(output[-OUTPUT_BYTES_MAX:])


async def _asked(question: Coroutine[Any, Any, T]) -> T:
    """The answer; whatever is not one means that the head is not to be reached now."""
    try:
        return await question
    except RayApiError as error:
        raise HeadUnreachableError(str(error)) from error
    except (AttributeError, KeyError, IndexError, RecursionError, TypeError, ValueError) as error:
        # Half of an answer from a head that is starting or ending, or another's in its place.
        raise HeadUnreachableError(f"not understood: {type(error).__name__} {error}") from error


def _blames_request(said: str) -> bool:
    answered = ANSWERED.match(said)
    code = int(answered["code"]) if answered else 0
    return code in CLIENT_ERRORS and code not in NOT_THE_REQUEST


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text or "{}")
    except ValueError as error:
        raise HeadRefusedError(f"runtime_env is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise HeadRefusedError("runtime_env must be an object")
    return parsed


def _gcs_uri(uri: str) -> str:
    """The URI, refused where a package cannot be put under it."""
    if not uri.startswith("gcs://"):
        raise HeadRefusedError(f"package {uri[:200]!r} must have a gcs:// URI")
    return uri
