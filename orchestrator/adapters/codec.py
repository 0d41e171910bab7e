"""Entities and events as JSON, with versions: what the store keeps.

An event is kept under (type, version). When a type's fields change, its version rises in ``EVENT_VERSIONS`` and an
upcaster from the older one is added, so that the oldest log can still be replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import msgspec

from orchestrator.core import messages as m
from orchestrator.core.entities import TABLES, Entity

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

UnreadableError = msgspec.DecodeError
"""What stands in a body is no entity or event of this version."""

EVENT_TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(m.Event)}

EVENT_VERSIONS: dict[str, int] = {}
"""Types whose shape has changed since the first release; every other is at version 1."""

UPCASTERS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From (type, version) to the body of the next version."""

_encoder = msgspec.json.Encoder()
_entity_decoders = {table: msgspec.json.Decoder(kind) for table, kind in TABLES.items()}
_event_decoders = {name: msgspec.json.Decoder(kind) for name, kind in EVENT_TYPES.items()}


def encode(value: object) -> bytes:
    """Compact JSON of an entity, an event or any other dataclass; bytes become base64."""
    return _encoder.encode(value)


def decode_entity(table: str, body: bytes) -> Entity:
    """The entity of a row."""
    entity: Entity = _entity_decoders[table].decode(body)
    return entity


def event_version(event_type: str) -> int:
    """The version that is written now."""
    return EVENT_VERSIONS.get(event_type, 1)


def decode_event(event_type: str, version: int, body: bytes) -> m.Event:
    """An event of any version that was ever written."""
    if version < event_version(event_type):
        raw: dict[str, Any] = msgspec.json.decode(body)
        while version < event_version(event_type):
            raw = UPCASTERS[event_type, version](raw)
            version += 1
        body = _encoder.encode(raw)
    event: m.Event = _event_decoders[event_type].decode(body)
    return event


def decode_as(body: bytes, kind: type[T]) -> T:
    """The inverse of ``encode`` for any dataclass."""
    return msgspec.json.decode(body, type=kind)
