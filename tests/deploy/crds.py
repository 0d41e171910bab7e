"""What prometheus-operator takes: its own schemas, held as strictly as `kubectl apply --validate=strict` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SCHEMAS = Path(__file__).resolve().parent / "schemas"

NULL: Schema = {"type": "null"}
IGNORE_CASE = "(?i)"


def strict(node: Any) -> Any:
    """A schema that takes no field but its own, and no null where the API would drop the field."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {name: strict(value) for name, value in node.items()}
    pattern = node.get("pattern")
    if isinstance(pattern, str) and IGNORE_CASE in pattern:
        # Go takes it anywhere, Python at the beginning only.
        found["pattern"] = IGNORE_CASE + pattern.replace(IGNORE_CASE, "")
    if NULL in node.get("anyOf", ()):
        found["anyOf"] = [one for one in found["anyOf"] if one != NULL]
    # A field of an object may have any name, "properties" among them: only a schema says that it is of an object.
    if node.get("type") == "object" and node.get("properties"):
        found.setdefault("additionalProperties", False)
    return found


def kind_of(path: Path) -> Schema:
    """One kind's schema: who it is and what it holds are more than fields that may be left out."""
    found: Schema = strict(json.loads(path.read_text(encoding="utf-8")))
    return {**found, "required": ["apiVersion", "kind", "metadata", "spec"]}


CRDS: dict[str, Schema] = {path.stem: kind_of(path) for path in sorted(SCHEMAS.glob("*.json"))}
