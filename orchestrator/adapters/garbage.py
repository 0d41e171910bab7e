"""Python's collector of cycles, told about a large state that stays."""

from __future__ import annotations

import gc

YOUNG_MAX = 50_000
"""Allocations between looks at the young: entities are many, and none of them is part of a cycle."""


def spare_loaded_state() -> None:
    """Leave everything alive now out of every later collection.

    Walking a state of ten thousand workers takes a tenth of a second, in which nobody is answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 50, 100)
