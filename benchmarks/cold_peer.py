"""The way past us to a cluster: a script that starts the same Ray nodes by `ray start`, and ends them.

Command line and environment of each node are those that our own nodes get, so that only what lies between is compared.
All nodes stand on this machine without boxes and share one temporary directory, as our unboxed nodes here do: started
at once they would race for the names of their sockets, so members start in turn once the head's start has returned.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report import FigureError
from orchestrator.adapters import ray_start
from orchestrator.adapters.clock import boot_id
from orchestrator.adapters.node_records import (
    HEAD_OBJECT_STORE_BYTES,
    MEMBER_OBJECT_STORE_BYTES,
    NodeSpec,
    Role,
)
from orchestrator.adapters.port_blocks import PortBlock, take_port_block
from orchestrator.adapters.process_tree import sweep
from orchestrator.adapters.ray_node import (
    SCRATCH_DIR,
    START_SCRIPT,
    TOKEN_FILE,
    node_environment,
    start_command,
)
from orchestrator.agent.nodes import LOOPBACK_NODE_IP

START_TIMEOUT_S = 120.0
"""As long as a keeper gives its node."""
TOKEN_BYTES = 32


class NodeFailedError(FigureError):
    """A node did not start, on either side: the pair says nothing."""


@dataclass(frozen=True, slots=True)
class PeerCluster:
    """Nodes that are ready to be started: the one with the head, then its members."""

    nodes: tuple[NodeSpec, ...]
    shared_dir: Path
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's CLI is told."""
        return {
            "RAY_ADDRESS": self.nodes[0].dashboard_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def start_head(self) -> None:
        """Returns once the head accepts."""
        self._start(self.nodes[0])

    def start_members(self) -> None:
        """Returns once the last one has joined."""
        for node in self.nodes[1:]:
            self._start(node)

    def end(self) -> None:
        """End every process of every node."""
        for node in reversed(self.nodes):
            sweep(node.member_id)

    def _start(self, node: NodeSpec) -> None:
        started = subprocess.run(
            start_command(node, self.shared_dir / START_SCRIPT),
            env=node_environment(node, self.shared_dir, os.environ),
            cwd=node.temp_dir,
            stdin=subprocess.DEVNULL,
            # To a file: what the nodes leave running would hold a pipe open.
            stdout=(self.shared_dir / f"{node.member_id}.log").open("wb"),
            stderr=subprocess.STDOUT,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if started.returncode != 0:
            said = (self.shared_dir / f"{node.member_id}.log").read_text(errors="replace")[-600:]
            raise NodeFailedError(f"the peer's `ray start` ended with {started.returncode}: {said}")


@contextmanager
def peer_cluster(members: int) -> Iterator[PeerCluster]:
    """A head of its own and ``members`` members of one GPU; without members one node that is both. Ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="orch-peer-"))
    blocks = [take_port_block() for _ in range(members + 1)]
    cluster = PeerCluster(_nodes(folder, blocks, members), folder, secrets.token_hex(TOKEN_BYTES))
    try:
        (folder / SCRATCH_DIR).mkdir()
        (folder / START_SCRIPT).write_bytes(Path(ray_start.__file__).read_bytes())
        (folder / TOKEN_FILE).touch(mode=0o600)
        (folder / TOKEN_FILE).write_text(cluster.token)
        yield cluster
    finally:
        cluster.end()
        for block in blocks:
            block.release()
        shutil.rmtree(folder, ignore_errors=True)


def _nodes(folder: Path, blocks: list[PortBlock], members: int) -> tuple[NodeSpec, ...]:
    head = _node(folder, blocks[0], "head" if members else "solo")
    joined = (_node(folder, block, "member") for block in blocks[1:])
    return (
        head,
        *(replace(one, owns_temp_dir=False, head_gcs_address=head.gcs_address) for one in joined),
    )


def _node(folder: Path, block: PortBlock, role: Role) -> NodeSpec:
    return NodeSpec(
        # Unique, as it is what its processes are found by.
        member_id=f"{folder.name}-{block.index}",
        cluster_id=folder.name,
        role=role,
        gpus=0 if role == "head" else 1,
        cpus=1,
        labels={},
        node_ip=LOOPBACK_NODE_IP,
        ports=block.ports(),
        host_id=boot_id(),
        block_index=block.index,
        temp_dir=str(folder),
        object_store_memory_bytes=HEAD_OBJECT_STORE_BYTES if role == "head" else MEMBER_OBJECT_STORE_BYTES,
    )
