"""`orch authority beacon`: what an operator carries to a machine of his own, and that nebula runs on it."""

from __future__ import annotations

import ipaddress
import json
import stat
import subprocess
from pathlib import Path

import pytest

from orchestrator.adapters.keys import Keys
from orchestrator.adapters.overlay.config import Landmark
from orchestrator.cli.overlay import overlay_authority
from orchestrator.control.beacon import BEACON_GROUP, BEACON_LIFE_MS
from tests.adapters.overlay.underlay import LIGHTHOUSE_PORT, NEEDS, PREFIX, Underlay, wall_s
from tests.cli.conftest import Orch
from tests.nebula_certificates import read_certificate

ADDRESS = "198.18.0.2"


def made(orch: Orch, keys: Keys, out: Path, *arguments: str) -> dict[str, str]:
    """The command as the operator of these keys runs it."""
    answer = orch(
        *("authority", "beacon", "--address", ADDRESS, "--out", str(out), "--data-dir", str(keys.folder)),
        *arguments,
        *("--output", "json"),
    )
    assert answer.code == 0, answer.err
    said: dict[str, str] = json.loads(answer.out)
    return said


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Of a control plane that was started once."""
    return Keys(tmp_path / "control", founded=False)


def test_beacon_written_is_certified_by_the_network_and_its_key_is_the_owners_only(
    orch: Orch, keys: Keys, tmp_path: Path
) -> None:
    out = tmp_path / "beacon"
    said = made(orch, keys, out)
    certificate = read_certificate((out / "certificate.pem").read_text())
    assert certificate.issuer == overlay_authority(keys).fingerprint
    assert (certificate.addresses, certificate.groups) == ((f"{ADDRESS}/15",), (BEACON_GROUP,))
    assert abs(certificate.not_after_s - wall_s() - BEACON_LIFE_MS // 1000) < 60
    assert str(ipaddress.ip_address(ADDRESS)) in said["tell"]
    for name in ("key.pem", "certificate.pem", "authorities.pem", "config.json"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600, name
    assert (out / "key.pem").read_text() not in json.dumps(said)
    # Again is renewal: the same host with the same key, for longer.
    key = (out / "key.pem").read_bytes()
    made(orch, keys, out)
    assert (out / "key.pem").read_bytes() == key


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--address", "198.18.1.2"), "198.18.0.1 to 198.18.0.255"),
        (("--address", "198.18.0.0"), "198.18.0.1 to 198.18.0.255"),
        (("--address", "beacon"), "198.18.0.1 to 198.18.0.255"),
        (("--address", ADDRESS, "--overlay-network", "10.0.0.0/16"), "10.0.0.1 to 10.0.0.255"),
        (("--address", ADDRESS, "--overlay-network", "10.0.0.0/30"), "too small"),
    ],
)
def test_beacon_address_of_no_beacon_is_refused_and_nothing_written(
    orch: Orch, keys: Keys, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "beacon"
    answer = orch("authority", "beacon", *arguments, "--out", str(out), "--data-dir", str(keys.folder))
    assert (answer.code, out.exists()) == (2, False)
    assert said in answer.err


def test_beacon_without_a_control_planes_directory_is_refused_and_makes_none(
    orch: Orch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    answer = orch(
        *("authority", "beacon", "--address", ADDRESS, "--out", str(tmp_path / "beacon")),
        *("--data-dir", str(elsewhere)),
    )
    assert (answer.code, elsewhere.exists()) == (2, False)
    assert "--data-dir" in answer.err


@pytest.mark.skipif(NEEDS != "", reason=NEEDS)
def test_beacon_run_as_printed_lets_two_nodes_find_each_other(orch: Orch, keys: Keys, tmp_path: Path) -> None:
    said = made(orch, keys, tmp_path / "beacon", "--listen-port", str(LIGHTHOUSE_PORT))
    with Underlay(tmp_path / "lab", ("a", "b")) as underlay:
        underlay.authority = overlay_authority(keys)
        place, _, program = said["run_there"].rpartition(" && ")
        with (tmp_path / "beacon.log").open("wb") as log:
            beacon = subprocess.Popen(
                ["ip", "netns", "exec", f"{PREFIX}-hub", "sh", "-c", f"{place} && exec {program}"],
                stdout=log,
                stderr=log,
            )
        underlay.on_exit(beacon.wait)
        underlay.on_exit(beacon.kill)
        landmark = Landmark(ADDRESS, (f"{underlay.ip('hub')}:{LIGHTHOUSE_PORT}",))
        server = underlay.add("a", 11, "cluster-one", landmarks=[landmark])
        friend = underlay.add("b", 12, "cluster-one", landmarks=[landmark])
        underlay.serve(server)
        underlay.talk(friend, server).goes_on()
        assert "beacon-198.18.0.2" in underlay.log_of(friend)
