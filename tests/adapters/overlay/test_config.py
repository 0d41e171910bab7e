"""Nebula's configuration: who may come in, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.adapters.overlay.config import Files, Landmark, lighthouse_config, node_config
from orchestrator.adapters.overlay.process import NebulaLighthouse, interface_name, lighthouse_available
from tests.polling import wait_until

FILES = Files(Path("/x/ca"), Path("/x/crt"), Path("/x/key"))
HUB = Landmark("198.18.0.1", ("203.0.113.1:4242", "hub.example:4242"))
RELAY = Landmark("198.18.0.2", ("203.0.113.2:4242",), is_lighthouse=False)


def test_node_config_inbound_and_outbound_name_the_group_only() -> None:
    config = json.loads(node_config(FILES, interface="onb1", group="cluster-1", landmarks=[HUB, RELAY]))
    rule = {"port": "any", "proto": "any", "group": "cluster-1"}
    assert config["firewall"] == {"inbound": [rule], "outbound": [rule]}
    assert config["lighthouse"]["hosts"] == ["198.18.0.1"]
    assert config["relay"]["relays"] == ["198.18.0.1", "198.18.0.2"]
    assert config["static_host_map"]["198.18.0.1"] == ["203.0.113.1:4242", "hub.example:4242"]
    assert config["pki"]["disconnect_invalid"] is True
    assert config["lighthouse"]["remote_allow_list"]["127.0.0.0/8"] is False


def test_node_config_over_a_bridge_goes_by_loopback_only_and_shows_no_address() -> None:
    bridged = Landmark("198.18.0.1", ("127.0.0.1:4300",))
    config = json.loads(
        node_config(
            FILES, interface="onb1", group="cluster-1", landmarks=[bridged], hidden_interfaces=["box.*"]
        )
    )
    assert config["lighthouse"]["remote_allow_list"] == {"0.0.0.0/0": False, "127.0.0.0/8": True}
    assert config["lighthouse"]["local_allow_list"] == {"0.0.0.0/0": False, "interfaces": {"box.*": False}}


def test_lighthouse_config_any_lets_nobody_in() -> None:
    config = json.loads(lighthouse_config(FILES, listen_port=4242, blocklist=["ab" * 32]))
    assert config["firewall"]["inbound"] == []
    assert config["tun"] == {"disabled": True}
    assert (config["lighthouse"]["am_lighthouse"], config["relay"]["am_relay"]) == (True, True)
    assert config["pki"]["blocklist"] == ["ab" * 32]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"interface": "a" * 16}, "interface is"),
        ({"group": "any"}, "group is"),
        ({"group": "a b"}, "group is"),
        ({"landmarks": []}, "landmarks name no lighthouse"),
        ({"landmarks": [RELAY]}, "landmarks name no lighthouse"),
        ({"landmarks": [Landmark("198.18.0.1/15", ("h:1",))]}, "address is"),
        ({"landmarks": [Landmark("198.18.0.1", ("h",))]}, "endpoint is"),
        ({"landmarks": [HUB] * 17}, "landmarks has"),
        ({"blocklist": ["XY"]}, "blocklist holds"),
        ({"listen_port": 70_000}, "listen_port is"),
    ],
)
def test_node_config_bad_argument_is_refused_by_name(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"interface": "onb1", "group": "cluster-1", "landmarks": [HUB]}
    with pytest.raises(ValueError, match=message):
        node_config(FILES, **(arguments | changed))  # type: ignore[arg-type]  # one of them is wrong on purpose


def test_interface_name_any_box_fits_the_kernel_and_is_stable() -> None:
    names = {interface_name(f"wk_{number}/slot-{number}") for number in range(100)}
    assert len(names) == 100
    assert all(len(name) <= 15 for name in names)
    assert interface_name("box") == interface_name("box")


@pytest.mark.skipif(lighthouse_available() != "", reason=lighthouse_available())
def test_lighthouse_that_cannot_run_is_tried_again_ever_more_slowly(tmp_path: Path) -> None:
    lighthouse = NebulaLighthouse(tmp_path / "absent.json", tmp_path / "log")
    lighthouse.start(0)
    now_ms = 0
    starts: list[int] = []
    while now_ms < 8_000:
        wait_until(lambda: not lighthouse.alive(), what="nebula to give up", deadline_s=60)
        lighthouse.tend(now_ms)
        if lighthouse.starts > len(starts) + 1:
            starts.append(now_ms)
        now_ms += 500
    lighthouse.stop()
    assert starts == [500, 2000, 4500]
    assert "absent.json" in lighthouse.fault()
