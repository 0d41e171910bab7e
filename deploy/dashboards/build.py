"""Writes the dashboards' JSON into the chart: ``python -m deploy.dashboards.build``.

The source is here, the chart only carries what comes out; a test holds the two together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.dashboards import clusters, control_plane, fleet, scheduling

FOLDER = Path(__file__).parents[1] / "helm" / "orchestrator" / "files" / "dashboards"
"""Where the chart's ConfigMap takes them from."""


def built() -> dict[str, str]:
    """All dashboards' JSON by file name."""
    made = (fleet, clusters, scheduling, control_plane)
    return {f"{module.UID.removeprefix('orchestrator-')}.json": module.build() for module in made}


def main() -> None:
    """Write what has changed, remove what is no longer made, and say so."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = built()
    for stale in sorted(FOLDER.glob("*.json")):
        if stale.name not in files:
            stale.unlink()
            print(f"removed {stale.name}", file=sys.stderr)
    for name, text in files.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
