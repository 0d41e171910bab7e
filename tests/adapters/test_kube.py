"""A pod asks for its own node: what it takes from the labels, and the one line where it cannot have them.

Against a real cluster: copy a service account's `token` and `ca.crt` into a folder, then

    ORCH_TEST_KUBE_ACCOUNT=FOLDER ORCH_NODE_NAME=NODE KUBERNETES_SERVICE_HOST=… KUBERNETES_SERVICE_PORT=… \
        pytest tests/adapters/test_kube.py -m kubernetes

The account needs `get` on `nodes`; `kubectl create token` makes such a token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.adapters import kube
from orchestrator.adapters.kube import NodeUnknownError, read_own_node
from orchestrator.core.supply.evidence import NodeLabels
from tests.adapters.kube_api import ASKED, MANAGED, RECORDED, TOKEN, KubeApi, kube_api
from tests.polling import wait_until
from tests.tls import LOOPBACK

REAL_ACCOUNT = os.environ.get("ORCH_TEST_KUBE_ACCOUNT", "")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path) as found:
        yield found


def refusal(api: KubeApi, environ: dict[str, str]) -> str:
    """The line of a question that was not answered: one, and without the token."""
    with pytest.raises(NodeUnknownError) as raised:
        read_own_node(environ, api.account)
    said = str(raised.value)
    assert "\n" not in said
    assert "eyJ" not in said
    assert " at 0x" not in said
    return said


def test_node_of_a_managed_cluster_tells_place_instance_and_gpus(api: KubeApi) -> None:
    assert read_own_node(api.of(MANAGED), api.account) == NodeLabels(
        node=MANAGED,
        region="eu-west-1",
        zone="eu-west-1b",
        instance_type="p5.48xlarge",
        gpu_product="NVIDIA-H100-80GB-HBM3",
        gpu_count=8,
    )
    assert api.asked == [f"{ASKED}{MANAGED}"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("aks", ("westeurope", "westeurope-1", "Standard_NC24ads_A100_v4", "", None)),
        ("bare-metal", ("", "", "", "NVIDIA-A100-SXM4-80GB", 8)),
        ("eks-auto", ("us-west-2", "us-west-2c", "g6.12xlarge", "l4", 4)),
        ("eks-autoscaler", ("eu-west-1", "eu-west-1a", "g4dn.xlarge", "", None)),
        ("gke", ("europe-west4", "europe-west4-a", "n1-standard-8", "nvidia-tesla-t4", 1)),
    ],
)
def test_node_of_each_kind_of_cluster_tells_what_it_is_labelled_with(
    api: KubeApi, kind: str, told: tuple[str, str, str, str, int | None]
) -> None:
    node = RECORDED[kind].asked.removeprefix(ASKED)
    found = read_own_node(api.of(node), api.account)
    assert found is not None
    assert found.node == node
    assert (found.region, found.zone, found.instance_type, found.gpu_product, found.gpu_count) == told


@pytest.mark.parametrize("name", ["rack3-u12", "stripped"])
def test_node_without_such_labels_tells_its_name_alone(api: KubeApi, name: str) -> None:
    assert read_own_node(api.of(name), api.account) == NodeLabels(node=name)


def test_node_nobody_named_is_not_asked_for(api: KubeApi) -> None:
    assert read_own_node(api.environ, api.account) is None
    assert read_own_node(api.of(" "), api.account) is None
    assert api.asked == []


@pytest.mark.parametrize(
    "name", ["..", ".", "../secrets/all?watch=1", "a/b", "a%2Fb", "Rack3", "x" * 254, "a\nb"]
)
def test_node_name_that_is_none_is_refused_before_anything_is_asked(api: KubeApi, name: str) -> None:
    said = refusal(api, api.of(name))
    assert "is no node's name" in said
    assert "spec.nodeName" in said
    assert api.asked == []


def test_token_that_was_replaced_is_read_anew_at_each_question(api: KubeApi) -> None:
    assert read_own_node(api.of("rack3-u12"), api.account) is not None
    api.token = "eyJhbGciOiJSUzI1NiJ9.second"
    assert "(401)" in refusal(api, api.of("rack3-u12"))
    api.mount(api.token)
    assert read_own_node(api.of("rack3-u12"), api.account) is not None


def test_node_that_may_not_be_read_is_told_with_the_right_it_takes(api: KubeApi) -> None:
    said = refusal(api, api.of("forbidden"))
    assert "(403)" in said
    assert "`get` on `nodes`" in said


def test_node_that_does_not_exist_is_told_with_where_its_name_comes_from(api: KubeApi) -> None:
    said = refusal(api, api.of("elsewhere"))
    assert "no node elsewhere (404)" in said
    assert "spec.nodeName" in said


@pytest.mark.parametrize(
    ("status", "told"), [(410, "answered 410"), (429, "too much to do (429)"), (504, "answered 504")]
)
def test_api_that_refuses_is_asked_once_whenever_it_would_be_asked_again(
    api: KubeApi, status: int, told: str
) -> None:
    api.refusal = status
    assert told in refusal(api, api.of("rack3-u12"))
    assert len(api.asked) == 1


def test_api_that_sends_elsewhere_is_not_followed(api: KubeApi, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with kube_api(tmp_path / "other") as other:
        (api.account / "ca.crt").write_bytes(
            (api.account / "ca.crt").read_bytes() + (other.account / "ca.crt").read_bytes()
        )
        api.moved_to = f"https://{LOOPBACK}:{other.environ['KUBERNETES_SERVICE_PORT']}"
        refusal(api, api.of("rack3-u12"))
        assert len(api.asked) == 1
        assert other.asked == []


def test_api_that_does_not_answer_is_not_waited_for(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    # Connecting has as long, and comes first.
    monkeypatch.setattr(kube, "ANSWER_S", 2.0)
    api.silent.set()
    assert "does not answer within 2 s" in refusal(api, api.of("rack3-u12"))
    wait_until(lambda: len(api.asked) == 1, what="the question", deadline_s=60)


def test_api_whose_answer_drips_is_not_waited_for(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "WHOLE_S", 1.0)
    api.drips.set()
    assert "not answered whole within 1 s" in refusal(api, api.of("rack3-u12"))


def test_api_is_asked_past_any_proxy(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert read_own_node(api.of("rack3-u12"), api.account) is not None


def test_api_that_is_not_there_is_told(api: KubeApi) -> None:
    nowhere = {**api.of("rack3-u12"), "KUBERNETES_SERVICE_PORT": "1"}
    said = refusal(api, nowhere)
    assert "connection refused" in said
    assert "NetworkPolicy" in said


def test_api_of_another_authority_is_not_believed_and_never_shown_the_token(
    api: KubeApi, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with kube_api(tmp_path / "other") as other:
        (other.account / "ca.crt").write_bytes((api.account / "ca.crt").read_bytes())
        assert "certificate verify failed" in refusal(other, other.of("rack3-u12"))
        assert other.asked == []


def test_authority_that_was_replaced_is_read_anew_at_each_question(api: KubeApi, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with kube_api(tmp_path / "other") as other:
        mounted = other.account / "ca.crt"
        now = mounted.read_bytes()
        mounted.write_bytes((api.account / "ca.crt").read_bytes())
        assert "certificate verify failed" in refusal(other, other.of("rack3-u12"))
        mounted.write_bytes(now)
        assert read_own_node(other.of("rack3-u12"), other.account) is not None


def test_authority_that_is_no_certificate_is_told(api: KubeApi) -> None:
    (api.account / "ca.crt").write_text("half a certifi")
    refusal(api, api.of("rack3-u12"))
    assert api.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"7",
        b"{}",
        b'{"kind": "Node", "metadata": {"labels": 3}}',
        b'{"kind": "Node", "metadata": {"name": "another"}}',
        b'{"kind": "APIResourceList", "metadata": {"name": "rack3-u12"}}',
        RECORDED["refused-404"].body.encode(),
    ],
)
def test_answer_that_is_no_node_is_told_without_its_words(api: KubeApi, body: bytes) -> None:
    api.body = body
    assert "something that is no node" in refusal(api, api.of("rack3-u12"))


def test_labels_that_no_machine_has_are_kept_short_and_printable(api: KubeApi) -> None:
    api.body = (
        b'{"kind": "Node", "metadata": {"name": "rack3-u12", "labels": {"nvidia.com/gpu.count": "99999999999", '
        b' "topology.kubernetes.io/zone": "a\\nb",'
        b' "node.kubernetes.io/instance-type": "' + b"x" * 500 + b'"}}}'
    )
    found = read_own_node(api.of("rack3-u12"), api.account)
    assert found is not None
    assert (found.gpu_count, found.zone, found.instance_type) == (None, "a b", "x" * 200)


@pytest.mark.parametrize("name", ["token", "ca.crt"])
def test_account_that_is_not_mounted_is_told_with_what_to_set(api: KubeApi, name: str) -> None:
    (api.account / name).unlink()
    said = refusal(api, api.of("rack3-u12"))
    assert "does not exist" in said
    assert "automountServiceAccountToken" in said
    assert api.asked == []


def test_account_with_an_empty_token_is_told(api: KubeApi) -> None:
    api.mount("")
    assert "token file exists but empty" in refusal(api, api.of("rack3-u12"))


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n"])
def test_token_whose_line_is_ended_is_taken(api: KubeApi, end: str) -> None:
    api.mount(f"{TOKEN}{end}")
    assert read_own_node(api.of("rack3-u12"), api.account) is not None


@pytest.mark.parametrize("token", [f"{TOKEN}\nx", f"{TOKEN}\u00e9", f"{TOKEN}\x00"])
def test_token_that_is_no_header_is_told_and_not_repeated(api: KubeApi, token: str) -> None:
    api.mount(token)
    assert "holds no token" in refusal(api, api.of("rack3-u12"))
    assert api.asked == []


def test_node_named_outside_a_pod_is_told(api: KubeApi) -> None:
    assert "host/port is not set" in refusal(api, {"ORCH_NODE_NAME": "rack3-u12"})


def test_client_that_is_not_installed_is_told_with_its_extra(
    api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert "`kubernetes` extra" in refusal(api, api.of("rack3-u12"))


@pytest.mark.kubernetes
@pytest.mark.skipif(not REAL_ACCOUNT, reason="needs a real cluster: set ORCH_TEST_KUBE_ACCOUNT, as above")
@pytest.mark.allow_hosts([os.environ.get("KUBERNETES_SERVICE_HOST", "127.0.0.1")])
def test_node_of_a_real_cluster_is_read() -> None:
    found = read_own_node(os.environ, Path(REAL_ACCOUNT))
    assert found is not None
    assert found.node == os.environ["ORCH_NODE_NAME"]


@pytest.mark.kubernetes
@pytest.mark.skipif(not REAL_ACCOUNT, reason="needs a real cluster: set ORCH_TEST_KUBE_ACCOUNT, as above")
@pytest.mark.allow_hosts([os.environ.get("KUBERNETES_SERVICE_HOST", "127.0.0.1")])
def test_node_that_a_real_cluster_does_not_have_is_told() -> None:
    with pytest.raises(NodeUnknownError, match=r"knows no node nobody-has-this \(404\)"):
        read_own_node({**os.environ, "ORCH_NODE_NAME": "nobody-has-this"}, Path(REAL_ACCOUNT))
