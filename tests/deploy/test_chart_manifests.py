"""Every manifest of every way to install: valid for Kubernetes and prometheus-operator, named and labelled alike."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from orchestrator.cli.serve_settings import ServeSettings
from tests.deploy.crds import CRDS
from tests.deploy.matrix import MATRIX, MONITORING, Values
from tests.deploy.tools import CHART, ROOT, named, of_kind, refused, render, run_helm, values_file

KUBERNETES = ("1.27.0", "1.37.0")
"""The oldest that Chart.yaml takes, and the newest whose schemas there are."""

NAME_CHARACTERS_MAX = 63
STATEFUL_CHARACTERS_MAX = 52
"""Kubernetes appends a revision of eleven characters, and takes the whole as a label."""

PROMETHEUS = CHART / "files" / "prometheus.yaml"

LIMITS = {
    "honor_labels": "honorLabels",
    "honor_timestamps": "honorTimestamps",
    "sample_limit": "sampleLimit",
    "label_limit": "labelLimit",
    "label_value_length_limit": "labelValueLengthLimit",
}
"""How Prometheus and its operator call the same bounds; the operator knows none of bodies, which the listener bounds."""

CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding"}
STABLE_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}

each_way = pytest.mark.parametrize("way", MATRIX)


def pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(component, template) of every pod."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            template = manifest["spec"]["template"]
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


@each_way
def test_helm_lint_strict_finds_nothing(way: str, tmp_path: Path) -> None:
    done = run_helm("lint", "--strict", CHART, "--values", values_file(tmp_path, MATRIX[way]))
    assert done.returncode == 0, done.stdout + done.stderr


@each_way
def test_manifests_each_is_valid_kubernetes(way: str) -> None:
    manifests = render(MATRIX[way])
    assert manifests
    for manifest, version in itertools.product(manifests, KUBERNETES):
        if manifest["kind"] in CRDS:
            jsonschema.validate(manifest, CRDS[manifest["kind"]])
        else:
            judge(json.dumps(manifest, sort_keys=True), version)


@cache
def judge(manifest: str, version: str) -> None:
    """Raises ValidationError. Of most objects there are as many alike as there are ways to install."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_names_that_yaml_could_take_for_something_else_stay_text() -> None:
    """`true`, `123` and `1e3` are names that Kubernetes takes."""
    odd: dict[str, Any] = {
        "fullnameOverride": "true",
        "nameOverride": "null",
        "commonLabels": {"year": "2026"},
        "imagePullSecrets": ["123"],
        "images": {"agent": {"repository": "123", "tag": "1e3"}},
        "controlPlane": {
            "adminToken": {"existingSecret": "123", "key": "1"},
            "database": {"existingSecret": "456", "key": "true"},
            "persistence": {"storageClass": "1e3", "size": "20"},
            "runtimesConfigMap": "789",
            "pricesConfigMap": "0",
            "priorityClassName": "1000",
            "nodeSelector": {"disks": "4"},
            "podAnnotations": {"checked": "2026"},
        },
        "gateway": {
            "tls": {"mode": "plain"},
            "ingress": {"enabled": True, "className": "443", "host": "1", "tlsSecret": "2"},
        },
        "metrics": {"token": {"existingSecret": "3", "key": "4"}, **MONITORING},
        "headHosts": {
            "replicas": 1,
            "joinTokens": {"existingSecret": "5"},
            "persistence": {"storageClass": "6"},
        },
        "workers": {
            "enabled": True,
            "joinTokens": {"existingSecret": "7"},
            "webhook": {"existingSecret": "8", "key": "9"},
            "runtimeClassName": "10",
            "dataPath": "/1",
        },
    }
    for way in (
        odd,
        {
            **odd,
            "controlPlane": {"persistence": {"existingClaim": "1"}},
            "gateway": {"tls": {"mode": "secret", "existingSecret": "2"}},
        },
    ):
        for manifest in render(way, release="on", namespace="123"):
            if manifest["kind"] in CRDS:
                jsonschema.validate(manifest, CRDS[manifest["kind"]])
            else:
                judge(json.dumps(manifest, sort_keys=True), KUBERNETES[-1])
            assert isinstance(manifest["metadata"]["name"], str)
            assert manifest["metadata"].get("namespace", "123") == "123"


@each_way
def test_names_each_fits_dns_and_namespace(way: str) -> None:
    for manifest in render(MATRIX[way], release="r" * 53, namespace="n" * 63):
        name = manifest["metadata"]["name"]
        longest = STATEFUL_CHARACTERS_MAX if manifest["kind"] == "StatefulSet" else NAME_CHARACTERS_MAX
        assert len(name) <= longest, name
        assert name == name.strip("-")
        assert manifest["metadata"].get("namespace") == (
            None if manifest["kind"] in CLUSTER_WIDE else "n" * 63
        ), name
        for key, value in manifest["metadata"]["labels"].items():
            assert len(value) <= NAME_CHARACTERS_MAX, key


@each_way
def test_names_of_one_kind_any_two_differ(way: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in render(MATRIX[way])]
    assert len(names) == len(set(names))


@each_way
def test_labels_each_object_and_pod_has_the_same_few(way: str) -> None:
    manifests = render(MATRIX[way])
    wanted = {
        "app.kubernetes.io/instance": "rel",
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/part-of": "orchestrator",
        **MATRIX[way].get("commonLabels", {}),
    }
    labelled = [one["metadata"] for one in manifests] + [
        template["metadata"] for _, template in pods(manifests)
    ]
    for metadata in labelled:
        assert wanted.items() <= metadata["labels"].items(), metadata["name"]
        assert metadata["labels"].keys() >= STABLE_LABELS


@each_way
def test_selectors_each_finds_exactly_its_pods(way: str) -> None:
    manifests = render(MATRIX[way])
    for manifest in manifests:
        if manifest["kind"] not in ("Deployment", "StatefulSet", "DaemonSet", "PodDisruptionBudget"):
            continue
        selector = manifest["spec"]["selector"]["matchLabels"]
        # Labels of versions and the operator's own may change; a selector may not.
        assert set(selector) == STABLE_LABELS
        found = [
            name for name, one in pods(manifests) if selector.items() <= one["metadata"]["labels"].items()
        ]
        assert found == [selector["app.kubernetes.io/component"]]


@each_way
def test_services_each_port_is_one_of_its_pods(way: str) -> None:
    manifests = render(MATRIX[way])
    for service in of_kind(manifests, "Service"):
        selector = service["spec"]["selector"]
        (pod,) = [one for _, one in pods(manifests) if selector.items() <= one["metadata"]["labels"].items()]
        open_ports = {
            (port["name"], port.get("protocol", "TCP"))
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
        }
        wanted = {
            (port["targetPort"], port.get("protocol", "TCP")) for port in service["spec"].get("ports", [])
        }
        assert wanted <= open_ports, service["metadata"]["name"]


@each_way
def test_volumes_each_mount_has_its_volume_and_each_volume_its_object(way: str) -> None:
    manifests = render(MATRIX[way])
    made = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    given = yaml.safe_dump(MATRIX[way])
    for _, template in pods(manifests):
        claims = {"data"} if any(one["kind"] == "StatefulSet" for one in manifests) else set()
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | claims
        for volume in volumes.values():
            sources = {
                "ConfigMap": volume.get("configMap", {}).get("name"),
                "Secret": volume.get("secret", {}).get("secretName"),
                "PersistentVolumeClaim": volume.get("persistentVolumeClaim", {}).get("claimName"),
            }
            for kind, name in sources.items():
                assert name is None or (kind, name) in made or name in given, (kind, name)


@each_way
def test_settings_each_is_whole_toml(way: str) -> None:
    for config in of_kind(render(MATRIX[way]), "ConfigMap"):
        for name, text in config["data"].items():
            if name.endswith(".toml"):
                assert tomllib.loads(text)


def test_settings_numbers_and_words_arrive_as_they_were_given() -> None:
    manifests = render(MATRIX["everything"])
    serve = tomllib.loads(named(manifests, "ConfigMap", "rel-orchestrator-serve")["data"]["serve.toml"])
    # A float of the same value would be refused.
    assert repr(serve["idle_teardown_ms"]) == "1200000"
    assert serve["open_enrolment"] is True
    assert serve["gateway_names"][0] == "gpu.example.com"
    worker = tomllib.loads(named(manifests, "ConfigMap", "rel-orchestrator-worker")["data"]["worker.toml"])
    assert worker["price"] == ["H100=2.5"]
    assert worker["slots"] == 2
    assert worker["control_plane"] == "rel-orchestrator.net.svc:7443"


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "https://rel-orchestrator-gateway.net.svc.cluster.local:8265"),
        (MATRIX["ingress"], "https://ray.example.com"),
        (MATRIX["everything"], "https://gpu.example.com:8265"),
        (
            {"gateway": {"tls": {"mode": "plain"}}},
            "http://rel-orchestrator-gateway.net.svc.cluster.local:8265",
        ),
        ({"gateway": {"names": ["2001:db8::1"], "service": {"port": 443}}}, "https://[2001:db8::1]:443"),
        ({"gateway": {"url": "https://ray.example.org:8443"}}, "https://ray.example.org:8443"),
    ],
)
def test_settings_gateway_url_is_that_by_which_tenants_come(values: Values, url: str) -> None:
    config = named(render(values), "ConfigMap", "rel-orchestrator-serve")["data"]["serve.toml"]
    assert tomllib.loads(config)["gateway_url"] == url
    assert ServeSettings.model_validate(tomllib.loads(config)).gateway_url == url


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *itertools.permutations(
            ("minimal", "everything", "ingress", "several-head-hosts", "network-of-its-own"), 2
        )
    ],
)
def test_upgrade_from_any_to_any_keeps_what_may_not_change(before: str, after: str) -> None:
    old = {(one["kind"], one["metadata"]["name"]): one for one in render(MATRIX[before])}
    for new in render(MATRIX[after], upgrade=True):
        was = old.get((new["kind"], new["metadata"]["name"]))
        if was is not None and new["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            assert new["spec"]["selector"] == was["spec"]["selector"]
            for fixed in ("serviceName", "podManagementPolicy"):
                assert new["spec"].get(fixed) == was["spec"].get(fixed)
            # What they hold is the operator's, and said to be fixed; what they are called is ours.
            claims = [
                [one["metadata"] for one in each["spec"].get("volumeClaimTemplates", ())]
                for each in (new, was)
            ]
            assert claims[0] == claims[1]


def test_upgrade_to_another_version_of_the_chart_leaves_pods_as_they_are(tmp_path: Path) -> None:
    """Else it would drain every node, for a chart that changed elsewhere."""
    pinned = {"images": {name: {"digest": f"sha256:{'0' * 64}"} for name in ("controlPlane", "agent")}}
    values = values_file(tmp_path, {**MATRIX["network-of-its-own"], **pinned})
    found = []
    for version in ("1.0.0", "1.0.1"):
        options = ("--version", version, "--app-version", version, "--destination", tmp_path / version)
        packed = run_helm("package", CHART, *options)
        assert packed.returncode == 0, packed.stderr
        (package,) = (tmp_path / version).glob("*.tgz")
        rendered = run_helm("template", "rel", package, "--values", values)
        manifests = [one for one in yaml.safe_load_all(rendered.stdout) if one]
        assert {one["metadata"]["labels"]["app.kubernetes.io/version"] for one in manifests} == {version}
        found.append(dict(pods(manifests)))
    assert found[0].keys() == {"control-plane", "worker", "head-host"}
    assert found[0] == found[1]


def test_budgets_pods_that_are_not_ready_hinder_no_drain() -> None:
    """Head hosts are not, until they have their tokens."""
    budgets = of_kind(render(MATRIX["everything"]), "PodDisruptionBudget")
    assert len(budgets) == 2
    assert {one["spec"]["unhealthyPodEvictionPolicy"] for one in budgets} == {"AlwaysAllow"}


def test_control_plane_of_any_release_is_alone() -> None:
    deployment = named(render({}), "Deployment", "rel-orchestrator")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_grace_of_agents_follows_their_notice() -> None:
    seconds = {
        name: template["spec"]["terminationGracePeriodSeconds"]
        for name, template in pods(render(MATRIX["everything"]))
    }
    assert seconds["worker"] == 5 * 60 + 120
    assert seconds["head-host"] == 2 * 60 + 120


def test_package_index_of_ones_own_is_what_agents_build_runtimes_from() -> None:
    """As `adapters.runtimes.uv` reads it; the control plane builds none."""
    agents = {"packageIndex": "https://packages.example.com/simple"}
    for name, template in pods(render({**MATRIX["network-of-its-own"], "agents": agents})):
        (container,) = template["spec"]["containers"]
        given = {one["name"]: one.get("value") for one in container["env"]}
        wanted = None if name == "control-plane" else agents["packageIndex"]
        assert given.get("UV_DEFAULT_INDEX") == wanted, name


def test_rules_and_dashboards_each_file_of_the_chart_is_installed() -> None:
    manifests = render(MATRIX["monitoring"])
    rules = sorted((CHART / "files" / "rules").glob("*.yaml"))
    boards = sorted((CHART / "files" / "dashboards").glob("*.json"))
    found = of_kind(manifests, "PrometheusRule")
    groups = [group for one in found for group in one["spec"]["groups"]]
    assert groups == [group for path in rules for group in yaml.safe_load(path.read_text())["groups"]]
    shown = [
        one for one in of_kind(manifests, "ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]
    ]
    kept = {name: text.strip() for one in shown for name, text in one["data"].items()}
    assert kept == {path.name: path.read_text().strip() for path in boards}


def runbook_urls(values: dict[str, Any]) -> dict[str, str]:
    """Of each alert that is installed."""
    metrics = {"prometheusRule": {"enabled": True, **values}}
    found = of_kind(render({"metrics": metrics}), "PrometheusRule")
    rules = [rule for one in found for group in one["spec"]["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules if "alert" in rule}


@pytest.mark.parametrize(
    ("values", "page"),
    [
        ({}, "docs/runbook.md"),
        (
            {"runbookUrl": "https://wiki.example.com/ops?page=gpu&view=1"},
            "https://wiki.example.com/ops?page=gpu&view=1",
        ),
    ],
)
def test_alerts_each_leads_to_its_own_heading_where_the_operators_keep_the_runbook(
    values: dict[str, Any], page: str
) -> None:
    found = runbook_urls(values)
    assert len(found) > 20
    assert found == {alert: f"{page}#{alert.lower()}" for alert in found}


@pytest.mark.parametrize(
    "url",
    [
        "wiki.example.com/runbook",
        "https://example.com/#top",
        "https://example.com/{{ x }}",
        "https://a b",
        "",
    ],
)
def test_runbook_that_no_browser_could_open_is_refused_by_name(url: str, tmp_path: Path) -> None:
    said = refused(tmp_path, {"metrics": {"prometheusRule": {"runbookUrl": url}}})
    assert "runbookUrl" in said


def test_http_sd_each_kind_of_target_has_its_job() -> None:
    jobs = of_kind(render(MATRIX["monitoring"]), "ScrapeConfig")
    urls = [job["spec"]["httpSDConfigs"][0]["url"] for job in jobs]
    at = "http://rel-orchestrator-metrics.net.svc:9464/sd"
    assert sorted(urls) == [f"{at}/agents", f"{at}/ray", f"{at}/workers"]


def test_scrapes_each_is_as_outside_of_kubernetes() -> None:
    outside = yaml.safe_load(PROMETHEUS.read_text())
    wanted = {job["job_name"]: job for job in outside["scrape_configs"] if "http_sd_configs" in job}
    found = {
        job["spec"]["relabelings"][0]["replacement"]: job["spec"]
        for job in of_kind(render(MATRIX["monitoring"]), "ScrapeConfig")
    }
    assert found.keys() == wanted.keys()
    for name, job in wanted.items():
        at, spec = job["http_sd_configs"][0], found[name]
        assert spec["scrapeInterval"] == job.get("scrape_interval", outside["global"]["scrape_interval"])
        assert spec["httpSDConfigs"][0]["refreshInterval"] == at["refresh_interval"]
        assert spec["httpSDConfigs"][0]["url"].endswith(at["url"].partition(":9464")[2])
        for theirs, ours in LIMITS.items():
            assert spec.get(ours) == job.get(theirs), (name, theirs)


def test_chart_packaged_holds_what_it_renders(tmp_path: Path) -> None:
    done = run_helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("orchestrator-*.tgz")
    rendered = run_helm("template", "rel", package)
    assert rendered.returncode == 0, rendered.stderr
    assert "kind: Deployment" in rendered.stdout


def test_chart_version_of_the_app_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
