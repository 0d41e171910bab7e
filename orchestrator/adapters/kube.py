"""What a Kubernetes cluster has labelled its node with, asked by a pod of its own node and of nothing else. Blocking.

The pod names its node in ORCH_NODE_NAME, from the downward API's ``spec.nodeName``, and asks with its service account,
which needs one right: ``get`` on ``nodes``. The account's files are read anew for each question, because the cluster
replaces the token while the pod lives.

Labels are words, not proof: administrators set them, labellers do, and the node's own kubelet may set most of those that
are read here itself. So they are shown beside what the machine showed, and decide nothing.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.adapters.devices.reading import number, tidy
from orchestrator.core.supply.evidence import NodeLabels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubernetes.client import Configuration

Answer = TypeVar("Answer")

NODE_VARIABLE = "ORCH_NODE_NAME"
"""Who sets it asks for all of this; without it no question leaves the pod."""

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where every cluster mounts a pod's token and the certificate of its API."""
TOKEN_FILE = "token"  # noqa: S105 -- the name of a file
CA_FILE = "ca.crt"

ANSWER_S = 5.0
"""To connect, and again for each part of the answer: one object of the same cluster takes milliseconds."""
WHOLE_S = 15.0
"""For all of it, names looked up and the answer's last byte included. The agent waits for it, and a name server that is
silent or an answer that drips would otherwise hold it for ever."""

NODE_NAME = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")
"""As Kubernetes has it. Whatever else stood here would be a path, and `..` leads to another object than a node."""

REGION_LABELS = ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region")
ZONE_LABELS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
INSTANCE_LABELS = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
PRODUCT_LABELS = (
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "eks.amazonaws.com/instance-gpu-name",
)
"""Whoever looked at the devices before whoever only sold the machine. `k8s.amazonaws.com/accelerator` and AKS's are not
among them: people write into the one what their autoscaler should look for, and the other says no more than `nvidia`."""
COUNT_LABELS = (
    "nvidia.com/gpu.count",
    "cloud.google.com/gke-accelerator-count",
    "karpenter.k8s.aws/instance-gpu-count",
    "eks.amazonaws.com/instance-gpu-count",
)


class NodeUnknownError(Exception):
    """The labels cannot be had; the text is one line that says what to change, and holds no secret."""


def read_own_node(environ: Mapping[str, str], account: Path | None = None) -> NodeLabels | None:
    """The labels of this pod's node; None where nobody asked for them. Raises NodeUnknownError."""
    node = environ.get(NODE_VARIABLE, "").strip()
    return labels_from(node, _asked(node, environ, account or SERVICE_ACCOUNT)) if node else None


def labels_from(node: str, labels: Mapping[str, str]) -> NodeLabels:
    """What of a node's labels tells of the machine."""
    count = number(_first(labels, COUNT_LABELS))
    return NodeLabels(
        node=tidy(node),
        region=_first(labels, REGION_LABELS),
        zone=_first(labels, ZONE_LABELS),
        instance_type=_first(labels, INSTANCE_LABELS),
        gpu_product=_first(labels, PRODUCT_LABELS),
        gpu_count=count if count is not None and count < 1 << 32 else None,
    )


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := tidy(labels.get(name, "")))), "")


def _asked(node: str, environ: Mapping[str, str], account: Path) -> dict[str, str]:
    """All labels of the node. Raises NodeUnknownError."""
    if NODE_NAME.fullmatch(node) is None:
        raise NodeUnknownError(
            f"{NODE_VARIABLE}={tidy(node)!r} is no node's name; it has to come from `fieldRef: spec.nodeName`"
        )
    try:
        # Not imported above: it is an extra, which only pods need, and it takes most of a second.
        from kubernetes import client  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415
    except ImportError:
        raise NodeUnknownError(
            f"{NODE_VARIABLE} is set, and the package `kubernetes` is not installed here; install this one with its"
            " `kubernetes` extra, or leave the variable out"
        ) from None
    # Named before the time runs: that loads them, seconds where a pod has little of a core.
    api_client, nodes = client.ApiClient, client.CoreV1Api
    configuration = _configuration(environ, account)

    def question() -> tuple[object, object, dict[str, str]]:
        with api_client(configuration) as api:
            found = nodes(api).read_node(node, _request_timeout=(ANSWER_S, ANSWER_S))
        metadata = found.metadata
        return found.kind, metadata and metadata.name, dict(metadata.labels or {}) if metadata else {}

    host = configuration.host
    try:
        kind, name, labels = _within(WHOLE_S, question)
    except client.ApiException as error:
        raise NodeUnknownError(_refusal(node, host, error.status, tidy(str(error.reason)))) from None
    except TimeoutError:
        raise NodeUnknownError(
            f"the API at {host} has not answered whole within {WHOLE_S:g} s; is its name found, and is the network well?"
        ) from None
    except (HTTPError, OSError) as error:
        reason = _said(getattr(error, "reason", None) or error)
        raise NodeUnknownError(
            f"the API at {host} does not answer within {ANSWER_S:g} s: {reason}; does a NetworkPolicy"
            " keep the pod from it?"
        ) from None
    except ValueError:
        # Not quoted: the library's words are pages long.
        kind, name, labels = None, None, {}
    if (kind, name) != ("Node", node):
        raise NodeUnknownError(f"the API at {host} answered with something that is no node {node}")
    return labels


def _within(deadline_s: float, question: Callable[[], Answer]) -> Answer:
    """Its answer, or what it raised. Raises TimeoutError; its thread is left then, and ends with the process."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(question())
        except Exception as error:  # noqa: BLE001 -- raised again by whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name="own-node", daemon=True).start()
    return future.result(deadline_s)


def _configuration(environ: Mapping[str, str], account: Path) -> Configuration:
    """How the API is asked: with the account's files as they are now. Raises NodeUnknownError."""
    from kubernetes import client  # noqa: PLC0415
    from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415
    from kubernetes.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415

    configuration = client.Configuration()
    loader = InClusterConfigLoader(  # type: ignore[no-untyped-call]
        str(account / TOKEN_FILE), str(account / CA_FILE), try_refresh_token=False, environ=environ
    )
    try:
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, UnicodeDecodeError) as error:
        raise NodeUnknownError(
            f"{NODE_VARIABLE} is set, and the API cannot be asked: {_said(error)} (looked in {account}); a pod needs"
            " `serviceAccountName` and `automountServiceAccountToken: true`"
        ) from None
    scheme, _, token = configuration.api_key["BearerToken"].partition(" ")
    # Whoever wrote the file with an editor or a shell has ended its line.
    token = token.strip()
    if not (token and token.isascii() and token.isprintable()):
        raise NodeUnknownError(
            f"{account / TOKEN_FILE} holds no token; does the service account still exist?"
        )
    configuration.api_key["BearerToken"] = f"{scheme} {token}"
    # A cluster's own API is never behind a proxy, and a node that cannot be read now is done without. Set last: naming
    # the host makes the library look for a proxy anew.
    configuration.proxy, configuration.retries = None, 0
    return configuration


def _refusal(node: str, host: str, status: int | None, reason: str) -> str:
    match status:
        case 401:
            return f"the API at {host} does not take the pod's token (401); does the service account still exist?"
        case 403:
            return (
                f"the pod's service account may not read node {node} (403); it needs a ClusterRole with the verb"
                " `get` on `nodes`, and nothing more"
            )
        case 404:
            return f"the API knows no node {node} (404); {NODE_VARIABLE} has to come from `fieldRef: spec.nodeName`"
        case 429:
            return f"the API at {host} has too much to do (429); the next start of this pod asks again"
        case None | 0:
            return f"the API at {host} cannot be believed: {reason}"
        case _:
            return f"the API at {host} answered {status} {reason}".rstrip()


def _said(error: object) -> str:
    """A library's words on one line, without the objects that it names by their addresses in memory."""
    return " ".join(str(error).rpartition(">: ")[2].split()).rstrip(".").lower()
