"""Write the chart's values.schema.json and the table of values in its README.

usage: chart.py           write both
       chart.py --check   write nothing; exit 1 where one is not as it should be

values.yaml is the source: its comments describe each key, its values give the types, and comment lines that begin
with @ say what else holds:

    @enum A B       one of these words             @list T            any number of T: port, or one of @text's
    @pattern RE     what a string must match       @port · @min N     of a number
    @text T         of this kind (chart_names.py)  @duration          such as 30s
    @labels · @annotations   maps of these         @open              whatever Kubernetes takes
    @resources · @tolerations · @peers             as Kubernetes has them
    @serve · @worker   settings of `orch serve` · `orch worker join` that the chart does not make itself
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from orchestrator.cli.serve_settings import ServeSettings
from orchestrator.cli.worker_settings import WorkerSettings
from scripts.chart_names import LABEL_KEY, LABEL_VALUE, MAPS, TEXTS, mapped

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "orchestrator"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
TABLE_BEGIN = "<!-- values: made by `make chart` -->"
TABLE_END = "<!-- end of values -->"

SERVE_OWN = frozenset(
    (
        *("data_dir", "listen", "session_listen", "session_address", "runtimes_dir", "price_file"),
        *("gateway", "gateway_names", "gateway_url", "gateway_certificate", "gateway_key", "gateway_tls"),
        "gateway_plain",
        *("metrics", "metrics_token_file", "database_url", "database_url_file", "admin_token_file"),
        *("overlay_listen", "overlay_address", "overlay_beacons", "overlay_network"),
        *("overlay_bridge_listen", "overlay_bridge_address"),
    )
)
"""What the chart sets by values of its own."""

WORKER_OWN = frozenset(
    (
        *("control_plane", "token_file", "open_enrolment", "ca_pin", "name", "isolation", "data_dir", "yes"),
        *("webhook", "webhook_file", "runtimes_dir", "head_slots", "simulate", "gpus"),
    )
)
"""The same for agents; and devices that are only pretended, which no chart is for."""

DURATION = r"^[0-9]+(ms|s|m|h)$"
QUANTITY = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}

PATTERNS = {"notice": {"pattern": r"^([0-9]{1,7}ms|[0-9]{1,4}s|[0-9]{1,2}m|[01]h)$"}}
"""Settings that the chart reads, too: how long a pod may take to end follows from them. An hour is the longest notice."""

NOTHING_MEANS_NONE = frozenset(
    ("labels", "annotations", "resources", "tolerations", "open", "serve", "worker")
)
"""Rules of maps and lists that may be set to null, or left empty in a file, which takes their defaults away. Any other
key that is empty is refused: templates would take it for false, and what is false is often the weaker choice."""

BEGINNING_MIN = 4
"""A key that begins like another is meant as that one; fewer letters are shared by chance."""

Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One key of values.yaml. ``rules`` are its @ lines; ``children`` None: it has no keys of its own here."""

    path: str
    description: str
    rules: tuple[str, ...]
    default: Any
    children: tuple[Value, ...] | None

    @property
    def key(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]


def read_values(text: str) -> tuple[Value, ...]:
    """The keys of values.yaml, with the comments above each."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise SystemExit("values.yaml: keys with values are expected")
    return tuple(_children(root, text.splitlines(), ""))


def _children(node: yaml.MappingNode, lines: list[str], above: str) -> Iterator[Value]:
    for key, value in node.value:
        comments = _comments(lines, key.start_mark.line)
        rules = tuple(line[1:] for line in comments if line.startswith("@"))
        path = f"{above}.{key.value}" if above else key.value
        closed = isinstance(value, yaml.MappingNode) and not rules
        yield Value(
            path=path,
            description=" ".join(line for line in comments if not line.startswith("@")),
            rules=rules,
            default=yaml.safe_load(yaml.serialize(value)),
            children=tuple(_children(value, lines, path)) if closed else None,
        )


def _comments(lines: list[str], line: int) -> list[str]:
    """The comment lines right above a key, at its own indentation, top first."""
    indent = len(lines[line]) - len(lines[line].lstrip())
    found: list[str] = []
    while line > 0 and lines[line - 1].startswith(" " * indent + "#"):
        line -= 1
        found.insert(0, lines[line].strip()[1:].strip())
    return found


def schema_of(values: tuple[Value, ...]) -> Schema:
    """The whole schema."""
    # Helm hands `global` to every chart that is part of another.
    properties = {value.key: _schema(value) for value in values} | {"global": {"type": "object"}}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values"}
    return {**draft, **closed(properties), "required": _needed(values)}


def closed(properties: dict[str, Schema]) -> Schema:
    """An object of these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "propertyNames": named(sorted(properties)),
    }


def named(known: list[str]) -> Schema:
    """What a key must be: one of those known. Helm then tells which one is meant where that is clear, else all."""
    hints = [(slips_of(key), key) for key in known]
    hints += [(beginning_of(key), key) for key in sorted(known, key=len, reverse=True) if beginning_of(key)]
    found: Schema = {"enum": known}
    for pattern, key in reversed(hints):
        found = {"if": {"pattern": pattern}, "then": {"const": key}, "else": found}
    return {"if": {"enum": known}, "else": found}


def slips_of(key: str) -> str:
    """A pattern of what is one slip away from a key: a letter left out, changed, too many, or two that changed places."""
    letters = [re.escape(letter) for letter in key]
    slips = ["".join((*letters[:at], ".{0,2}", *letters[at + 1 :])) for at in range(len(letters))]
    slips += [
        "".join((*letters[:at], letters[at + 1], letters[at], *letters[at + 2 :]))
        for at in range(len(letters) - 1)
        if letters[at] != letters[at + 1]
    ]
    return f"^({'|'.join(slips)})$"


def beginning_of(key: str) -> str:
    """A pattern of what begins as a key does; empty where that says too little."""
    return "" if len(key) <= BEGINNING_MIN else f"^{re.escape(key[: max(BEGINNING_MIN, len(key) // 2)])}"


def text_of(schema: Schema) -> str:
    """JSON with a line for each thing, but what a key must be on one line: it is for Helm, not for readers."""
    lines: dict[str, str] = {}

    def set_aside(value: Any) -> Any:
        if isinstance(value, list):
            return [set_aside(one) for one in value]
        if not isinstance(value, dict):
            return value
        kept = {name: set_aside(one) for name, one in value.items()}
        if isinstance(kept.get("propertyNames"), dict):
            mark = f"propertyNames {len(lines)}"
            lines[json.dumps(mark)] = json.dumps(kept["propertyNames"], separators=(",", ":"))
            kept["propertyNames"] = mark
        return kept

    text = json.dumps(set_aside(schema), indent=1, ensure_ascii=False)
    for mark, line in lines.items():
        text = text.replace(mark, line)
    return text + "\n"


def _schema(value: Value) -> Schema:
    described = {"description": value.description} if value.description else {}
    if value.children is not None:
        properties = {child.key: _schema(child) for child in value.children}
        return {**described, **closed(properties), "required": _needed(value.children)}
    found: Schema = {}
    for rule in value.rules:
        name, _, argument = rule.partition(" ")
        found |= _ruled(name, argument)
    if "type" not in found and "enum" not in found:
        found["type"] = _type_of(value.default)
    return {**described, **found}


def _needed(values: tuple[Value, ...]) -> list[str]:
    """Keys that hold something in any case. Helm fills in defaults first, so that only what is null is missed."""
    return [
        value.key
        for value in values
        if not any(rule.partition(" ")[0] in NOTHING_MEANS_NONE for rule in value.rules)
    ]


def _ruled(name: str, argument: str) -> Schema:
    """What one @ line means."""
    match name:
        case "enum":
            return {"enum": argument.split()}
        case "pattern":
            return {"type": "string", "pattern": argument}
        case "text":
            return dict(TEXTS[argument])
        case "duration":
            return {"type": "string", "pattern": DURATION}
        case "port":
            return dict(PORT)
        case "min":
            return {"type": "integer", "minimum": int(argument)}
        case "labels" | "annotations":
            return dict(MAPS[name])
        case "list":
            return {"type": "array", "items": dict(PORT if argument == "port" else TEXTS[argument])}
        case "open":
            return {"type": "object", "additionalProperties": True}
        case "resources":
            amounts = mapped(QUANTITY)
            return closed({"requests": amounts, "limits": amounts})
        case "tolerations":
            return {"type": "array", "items": closed(_TOLERATION)}
        case "peers":
            return {"type": "array", "items": _peer()}
        case "serve":
            return _settings(ServeSettings, SERVE_OWN)
        case "worker":
            return _settings(WorkerSettings, WORKER_OWN)
        case _:
            raise SystemExit(f"values.yaml: @{name} means nothing")


def _peer() -> Schema:
    """A NetworkPolicy's: addresses, or pods by their labels and their namespaces'.

    Of a selector the API would drop a mistyped key, and what is left would select everybody.
    """
    expression = closed(
        {
            "key": {"type": "string", "pattern": LABEL_KEY},
            "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            "values": {"type": "array", "items": {"type": "string", "pattern": LABEL_VALUE}},
        }
    )
    expressions = {"type": "array", "items": {**expression, "required": ["key", "operator"]}}
    selector = closed({"matchLabels": dict(MAPS["labels"]), "matchExpressions": expressions})
    selectors = dict.fromkeys(("podSelector", "namespaceSelector"), selector)
    except_ = {"type": "array", "items": dict(TEXTS["network"])}
    block = {**closed({"cidr": dict(TEXTS["network"]), "except": except_}), "required": ["cidr"]}
    return {
        **closed({**selectors, "ipBlock": block}),
        "minProperties": 1,
        "if": {"required": ["ipBlock"]},
        "then": {"maxProperties": 1},
    }


_TOLERATION: dict[str, Schema] = {
    "key": {"type": "string", "pattern": LABEL_KEY},
    "value": {"type": "string", "pattern": LABEL_VALUE},
    "operator": {"enum": ["Exists", "Equal"]},
    "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    "tolerationSeconds": {"type": "integer"},
}


def _settings(model: type[BaseSettings], own: frozenset[str]) -> Schema:
    """The settings of a command that are left to the operator, as their model has them."""
    whole = model.model_json_schema()
    kinds = whole.get("$defs", {})
    return closed(
        {
            name: {**_plain(field, kinds), **PATTERNS.get(name, {})}
            for name, field in whole["properties"].items()
            if name not in own
        }
    )


def _plain(field: Schema, kinds: dict[str, Schema]) -> Schema:
    """A field's type and bounds, without references; a secret or a path is a string."""
    choices = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    chosen = choices[0]
    if "$ref" in chosen:
        chosen = kinds[str(chosen["$ref"]).rpartition("/")[2]]
    kept = {name: chosen[name] for name in ("type", "enum", "minimum", "maximum") if name in chosen}
    if kept.get("type") == "array":
        kept["items"] = {"type": "string"}
    return kept


def _type_of(default: Any) -> str:
    match default:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def table_of(values: tuple[Value, ...]) -> str:
    """The README's table: a line for each key that holds a value."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for value in _leaves(values):
        default = json.dumps(value.default, ensure_ascii=False)
        meaning = value.description + _choices(value)
        lines.append(f"| `{value.path}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _choices(value: Value) -> str:
    """The words that are allowed."""
    words = next((rule.partition(" ")[2] for rule in value.rules if rule.startswith("enum ")), "")
    return f" ({' · '.join(words.split())})" if words else ""


def _leaves(values: tuple[Value, ...]) -> Iterator[Value]:
    for value in values:
        if value.children is None:
            yield value
        else:
            yield from _leaves(value.children)


def readme_with(text: str, table: str) -> str:
    """The README with this table in its place."""
    before, _, rest = text.partition(TABLE_BEGIN)
    _, _, after = rest.partition(TABLE_END)
    return f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}"


def made() -> dict[Path, str]:
    """Each file that is made, with what it should hold."""
    values = read_values(VALUES.read_text(encoding="utf-8"))
    return {
        SCHEMA: text_of(schema_of(values)),
        README: readme_with(README.read_text(encoding="utf-8"), table_of(values)),
    }


def main(arguments: list[str]) -> int:
    """As the module's docstring says."""
    stale = [
        path for path, text in made().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not as values.yaml has it: run make chart", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(made()[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
