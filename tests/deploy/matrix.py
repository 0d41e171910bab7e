"""What operators install: each entry of values stands for one way, and every test of manifests goes over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

DIGEST = "sha256:" + "ab" * 32
PIN = "A" * 43

MONITORING = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "scrapeConfig": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "GPUs"}},
}

EVERYTHING: Values = {
    "commonLabels": {"team": "gpu"},
    "imagePullSecrets": ["pull"],
    "images": {
        "controlPlane": {"repository": "registry.example.com/orchestrator/control-plane", "digest": DIGEST},
        "agent": {
            "repository": "registry.example.com/orchestrator/agent",
            "tag": "edge",
            "pullPolicy": "Always",
        },
    },
    "controlPlane": {
        "settings": {
            "idle_teardown_ms": 1_200_000,
            "open_enrolment": True,
            "probation_evidence": "t2",
            "private_webhooks": True,
        },
        "adminToken": {"existingSecret": "admin", "key": "operator"},
        "database": {"existingSecret": "database", "key": "uri"},
        "persistence": {"size": "50Gi", "storageClass": "fast"},
        "runtimesConfigMap": "runtimes",
        "pricesConfigMap": "prices",
        "podAnnotations": {"note": "ours"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podDisruptionBudget": {"enabled": True},
    },
    "gateway": {
        "names": ["gpu.example.com"],
        "tls": {"mode": "secret", "existingSecret": "gateway-tls"},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "sourceRanges": ["192.0.2.0/24"]},
    },
    "public": {"enabled": True, "annotations": {"c": "d"}, "sessionAddress": "join.example.com:7444"},
    "overlay": {
        "address": "beacon.example.com:4242",
        "public": {"enabled": True},
        "bridge": {"enabled": True, "address": "join.example.com:443"},
    },
    "metrics": {"token": {"existingSecret": "metrics", "key": "bearer"}, **MONITORING},
    "headHosts": {
        "replicas": 3,
        "joinTokens": {"existingSecret": "head-tokens"},
        "settings": {"region": ["eu"], "notice": "2m"},
        "persistence": {"storageClass": "fast"},
    },
    "workers": {
        "enabled": True,
        "joinTokens": {"existingSecret": "worker-tokens"},
        "settings": {
            "price": ["H100=2.5"],
            "tier": "committed",
            "notice": "5m",
            "slots": 2,
            "idle_only": False,
        },
        "webhook": {"existingSecret": "hook"},
        "hostNetwork": True,
        "resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"nvidia.com/gpu": 8}},
        "maxUnavailable": "10%",
    },
    "networkPolicy": {
        "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "metricsFrom": [{"podSelector": {}}],
        "databaseTo": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
        "apiServerTo": [{"ipBlock": {"cidr": "198.51.100.1/32"}}],
        "webhookPorts": [443, 9000],
    },
}

MATRIX: Mapping[str, Values] = {
    "minimal": {},
    "everything": EVERYTHING,
    "existing-secrets": {
        "controlPlane": {
            "adminToken": {"existingSecret": "admin"},
            "database": {"existingSecret": "database"},
            "persistence": {"existingClaim": "kept"},
        },
        "gateway": {"tls": {"mode": "secret", "existingSecret": "gateway-tls"}},
        "metrics": {"token": {"existingSecret": "metrics"}},
    },
    "no-overlay": {
        "overlay": {"enabled": False},
        "workers": {"enabled": True, "joinTokens": {"existingSecret": "worker-tokens"}},
    },
    "own-beacons": {
        "overlay": {"beacons": ["198.18.0.1=beacon.example.com:4242"], "bridge": {"enabled": True}}
    },
    "monitoring": {"metrics": MONITORING},
    "several-head-hosts": {"headHosts": {"replicas": 5, "joinTokens": {"existingSecret": "head-tokens"}}},
    "ingress": {
        "gateway": {
            "tls": {"mode": "plain"},
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "host": "ray.example.com",
                "tlsSecret": "ray-tls",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "512m"},
            },
        },
    },
    "workers-without-rights": {
        "workers": {
            "enabled": True,
            "isolation": "none",
            "joinTokens": {"existingSecret": "worker-tokens"},
            "runtimeClassName": "",
        },
    },
    "agents-elsewhere": {
        "controlPlane": {"enabled": False},
        "agents": {"controlPlane": "join.example.com:7443", "caPin": PIN},
        "workers": {"enabled": True, "openEnrolment": True},
        "metrics": MONITORING,
    },
    "network-of-its-own": {
        "controlPlane": {"database": {"existingSecret": "database"}},
        "overlay": {"bridge": {"enabled": True}},
        "headHosts": {"replicas": 1, "joinTokens": {"existingSecret": "head-tokens"}},
        "workers": {"enabled": True, "joinTokens": {"existingSecret": "worker-tokens"}},
    },
    "agents-of-a-private-control-plane": {
        "controlPlane": {"enabled": False},
        "agents": {
            "controlPlane": "10.20.0.5:9443",
            "packageIndex": "https://packages.example.com:8443/simple",
        },
        "overlay": {
            "beacons": [
                "198.18.0.1=10.20.0.6:4242,10.20.0.7:8443",
                "198.18.0.2=beacon.example.com:4242",
            ]
        },
        "workers": {
            "enabled": True,
            "joinTokens": {"existingSecret": "worker-tokens"},
            "nodeEvidence": False,
        },
        "networkPolicy": {
            "controlPlaneTo": [{"ipBlock": {"cidr": "10.30.0.0/24"}}],
            "controlPlanePorts": [7444, 9444],
            "overlayTo": [{"ipBlock": {"cidr": "10.40.0.0/16"}}],
            "packagesTo": [{"ipBlock": {"cidr": "10.50.0.0/24"}}],
            "packagesPorts": [8443],
        },
    },
    "agents-told-of-load-balancers": {
        "public": {"enabled": True, "sessionAddress": "10.20.0.5:9444"},
        "overlay": {
            "address": "10.20.0.5:4242",
            "public": {"enabled": True},
            "bridge": {"enabled": True, "address": "10.20.0.5:443"},
        },
        "workers": {
            "enabled": True,
            "joinTokens": {"existingSecret": "worker-tokens"},
            "nodeEvidence": False,
        },
    },
    "own-beacons-alone": {"overlay": {"beacons": ["198.18.0.1=beacon.example.com:4242"]}},
    "no-policies": {"networkPolicy": {"enabled": False}},
    "long-names": {
        # As long as they may be.
        "fullnameOverride": "a-network-of-graphics-cards-of-long-name",
        "nameOverride": "and-the-chart-is-called-something-longer",
        "metrics": MONITORING,
        "headHosts": {"replicas": 1, "joinTokens": {"existingSecret": "head-tokens"}},
        "workers": {"enabled": True, "joinTokens": {"existingSecret": "worker-tokens"}},
    },
}
