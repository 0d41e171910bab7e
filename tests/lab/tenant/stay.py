"""A job that has a task on each of COUNT machines and goes on until it is stopped."""

from __future__ import annotations

import sys
import threading

import ray


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Resident:
    def ready(self) -> str:
        return str(ray.util.get_node_ip_address())


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    resident = ray.remote(Resident).options(num_gpus=1, scheduling_strategy="SPREAD")
    residents = [resident.remote() for _ in range(int(sys.argv[1]))]
    say("settled on", *sorted(ray.get([one.ready.remote() for one in residents])))
    threading.Event().wait()
