"""The job of P11: one object between two members by Ray, then as many bytes by a plain TCP connection, in turn.

Prints one JSON line a round, in seconds: {"ray_s": …, "tcp_s": …}, and before them {"addresses": [holder's, asker's]}.
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CONNECT_TIMEOUT_S = 30.0


class Holder:
    """Has the bytes."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes = np.random.default_rng(0).integers(0, 256, size_bytes, dtype=np.uint8)

    def put(self) -> list[Any]:
        """A new object each time, so that nobody has it yet. In a list: a bare reference would be resolved."""
        return [ray.put(self._bytes)]

    def offer(self) -> tuple[str, int]:
        """Where the bytes can be had once over TCP."""
        address = ray.util.get_node_ip_address()
        listener = socket.create_server((address, 0))

        def serve() -> None:
            connection, _ = listener.accept()
            with listener, connection:
                connection.recv(1)
                connection.sendall(self._bytes.data)

        threading.Thread(target=serve, daemon=True).start()
        return address, listener.getsockname()[1]


class Asker:
    """Wants the bytes."""

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def by_ray(self, refs: list[Any], size_bytes: int) -> float:
        """Seconds from asking until the object lies in this member's store."""
        began_s = time.perf_counter()
        got = ray.get(refs[0])
        taken_s = time.perf_counter() - began_s
        if got.nbytes != size_bytes:
            raise RuntimeError(f"{got.nbytes} bytes came instead of {size_bytes}")
        return taken_s

    def by_tcp(self, offered: tuple[str, int], size_bytes: int) -> float:
        """Seconds from asking, on a connection that stands, until the last byte is here."""
        buffer = memoryview(bytearray(size_bytes))
        with socket.create_connection(offered, CONNECT_TIMEOUT_S) as connection:
            began_s = time.perf_counter()
            connection.sendall(b"?")
            received = 0
            while received < size_bytes:
                count = connection.recv_into(buffer[received:])
                if count == 0:
                    raise RuntimeError(f"the connection ended after {received} bytes")
                received += count
            return time.perf_counter() - began_s


def actor(kind: type, node: str) -> Any:
    """An actor class that runs on that node."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_gpus=1, num_cpus=0)(kind).options(scheduling_strategy=strategy)


def main() -> None:
    """Take turns; who goes first changes from round to round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    ray.init(log_to_driver=False)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if len(nodes) != 2:
        raise SystemExit(f"this job wants two members with a GPU, and has {len(nodes)}")
    holder = actor(Holder, nodes[0]).remote(arguments.bytes)
    asker = actor(Asker, nodes[1]).remote()
    offered = ray.get(holder.offer.remote())
    print(json.dumps({"addresses": [offered[0], ray.get(asker.address.remote())]}), flush=True)
    ray.get(asker.by_tcp.remote(offered, arguments.bytes))
    for number in range(arguments.rounds):
        result = {}
        for way in ("ray_s", "tcp_s") if number % 2 else ("tcp_s", "ray_s"):
            if way == "ray_s":
                refs = ray.get(holder.put.remote())
                result[way] = ray.get(asker.by_ray.remote(refs, arguments.bytes))
                del refs
            else:
                offered = ray.get(holder.offer.remote())
                result[way] = ray.get(asker.by_tcp.remote(offered, arguments.bytes))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
