"""`ray start` with what it has no flag for: a script of its own, run by whichever interpreter has the node's Ray.

It imports nothing of this package: the runtime in a box has none of it. Ray calls ``adjust`` by the name
``__main__.adjust`` (RAY_START_HOOK) in this very process.
"""

import os
import runpy
from typing import Any

MEMBER_ID_ENV = "ORCH_MEMBER_ID"


def adjust(ray_params: Any, head: bool) -> None:  # noqa: FBT001 - so Ray calls it
    """Give each node a directory of its own for unpacked packages, and a head no Ray Client.

    Ray unpacks into the session directory, which unboxed nodes of one machine share here, and each node replaces on
    first use what another has unpacked: the driver would lose its working directory under its feet. Ray Client's
    server nothing here speaks to, and it takes 90 MB.
    """
    ray_params.runtime_env_dir_name = f"runtime_resources-{os.environ[MEMBER_ID_ENV]}"
    if head:
        ray_params.ray_client_server_port = None


if __name__ == "__main__":
    runpy.run_module("ray.scripts.scripts", run_name="__main__")
