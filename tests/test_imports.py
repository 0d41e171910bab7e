"""No two modules need each other, whether at once or when a function is called."""

from __future__ import annotations

import graphlib

import grimp

import orchestrator

GENERATED = "orchestrator.api"


def test_modules_import_each_other_in_no_circle() -> None:
    graph = grimp.build_graph(orchestrator.__name__, exclude_type_checking_imports=True, cache_dir=None)
    needs = {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules
        if not module.startswith(GENERATED)
    }
    assert len(needs) > 100
    # It says who is in the circle.
    graphlib.TopologicalSorter(needs).prepare()
