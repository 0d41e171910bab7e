"""References to container images: by digest alone, so that every member of a cluster has the same."""

from __future__ import annotations

import re

REFERENCE = re.compile(
    r"(?P<registry>localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+)(?P<port>:[0-9]{1,5})?"
    r"(?P<path>(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+)@sha256:(?P<digest>[0-9a-f]{64})"
)
"""Registry, path and digest. A tag beside the digest would be a second answer to the same question."""

REFERENCE_CHARACTERS_MAX = 400
"""Registries take 255 for the path; the digest has 71."""


def reference_fault(text: str) -> str:
    """Why this is no reference that can be honoured, and what to write instead; empty where it is one."""
    example = "registry.example.org/team/image@sha256:… with 64 hex digits"
    if "@sha256:" not in text:
        return f"name the image by its digest, as {example}: a tag can mean another image tomorrow"
    if len(text) > REFERENCE_CHARACTERS_MAX or not REFERENCE.fullmatch(text):
        return f"{text[:80]!r} is no image: write {example}, in lower case, registry included, without a tag"
    return ""


def registry_of(reference: str) -> str:
    """Host, and port where one is named, of a reference that has no fault."""
    found = REFERENCE.fullmatch(reference)
    return found["registry"] + (found["port"] or "") if found is not None else ""
