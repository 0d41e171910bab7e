"""An agent in a pod: what its cluster says of the machine, beside what the machine itself shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.adapters.devices import Reading
from orchestrator.adapters.kube import NodeUnknownError, read_own_node
from orchestrator.core.supply.evidence import NodeLabels
from orchestrator.core.supply.labels import contradictions
from orchestrator.core.supply.terms import REGION, Terms

Say = Callable[[str], None]


def node_labels(environ: Mapping[str, str], say: Say) -> NodeLabels | None:
    """The labels of this pod's node; None outside Kubernetes, and where they cannot be had, which is said."""
    try:
        return read_own_node(environ)
    except NodeUnknownError as error:
        say(f"going on without the labels of this node: {error}")
        return None


def say_contradictions(labels: NodeLabels | None, reading: Reading | None, say: Say) -> None:
    """Tell whoever reads the pod's log first: it is his cluster."""
    if labels is None or reading is None:
        return
    for text in contradictions(labels, reading.gpus, reading.machine):
        say(text)


def terms_by_labels(terms: Terms, labels: NodeLabels | None, say: Say) -> Terms:
    """The owner's terms, with the node's region where he named none. It is the owner's to name, as prices are."""
    if labels is None or not labels.region:
        return terms
    region = labels.region.lower()
    if terms.regions:
        if region not in terms.regions:
            named = ", ".join(terms.regions)
            say(f"region: {named}, as named by --region; the node's label says {region}, which is left aside")
        return terms
    if REGION.fullmatch(region) is None:
        say(f"no region: the node's label says {region!r}, which is no region's name; name one with --region")
        return terms
    say(f"region: {region}, by the label of node {labels.node}; --region names another")
    return replace(terms, regions=(region,))
