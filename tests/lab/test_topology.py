"""The lab's table and its plan of addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.topology import HOSTS_MAX, LabHost, LinkQuality, firewall, parse_table, plan


def test_parse_table_all_keys_gives_the_hosts_in_order() -> None:
    text = """
        [[host]]
        name = "head"
        [[host]]
        name = "w1"
        nat = "symmetric"
        delay_ms = 10
        loss_percent = 0.5
        rate_mbit = 100
    """
    assert parse_table(text) == (
        LabHost("head"),
        LabHost("w1", "symmetric", delay_ms=10, loss_percent=0.5, rate_mbit=100),
    )


def test_parse_table_default_has_four_nats_two_of_them_symmetric() -> None:
    hosts = parse_table(Path(__file__).with_name("default.toml").read_text())
    nats = [host.nat for host in hosts]
    assert nats.count("none") == 2
    assert nats.count("symmetric") == 2
    assert len(nats) == 6
    assert {host.delay_ms for host in hosts if host.nat != "none"} == {10, 20, 40, 80}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[host]]\nnat = "none"', "name"),
        ('[[host]]\nname = "w1"\nrtt_ms = 3', "rtt_ms"),
        ('[[host]]\nname = "w1"\ndelay_ms = "3"', "delay_ms of host w1"),
        ('[[host]]\nname = "w1"\ndelay_ms = -1', "delay_ms"),
        ('[[host]]\nname = "w1"\nloss_percent = 101', "loss_percent"),
        ('[[host]]\nname = "w1"\nrate_mbit = -5', "rate_mbit"),
        ('[[host]]\nname = "w1"\nnat = "full"', "nat of w1"),
        ('[[host]]\nname = "w-1"', "w-1"),
        ('[[host]]\nname = "core"', "core"),
        ('[[host]]\nname = "averylongname"', "averylongname"),
        ('host = "w1"', "host"),
        ("hosts = 3", "hosts"),
    ],
)
def test_parse_table_bad_entry_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        parse_table(text)


def test_plan_any_gives_each_host_addresses_of_its_own() -> None:
    sites = plan([LabHost(f"h{number}", "cone") for number in range(HOSTS_MAX)])
    addresses = [address for site in sites for address in (site.public_ip, site.address, site.lan_ip)]
    assert len(set(addresses)) == 3 * HOSTS_MAX
    assert max(len(site.core_port) for site in sites) <= 15


def test_plan_same_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice: a"):
        plan([LabHost("a"), LabHost("b"), LabHost("a")])


@pytest.mark.parametrize("count", [0, HOSTS_MAX + 1])
def test_plan_too_few_or_many_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=str(HOSTS_MAX)):
        plan([LabHost(f"h{number}") for number in range(count)])


def test_site_public_host_has_no_lan() -> None:
    (site,) = plan([LabHost("a")])
    assert (site.address, site.edge, site.router) == (site.public_ip, "a", "core")
    with pytest.raises(ValueError, match="no LAN"):
        _ = site.lan_ip


def test_firewall_each_nat_differs_where_it_should() -> None:
    assert "fully-random" in firewall("symmetric")
    assert "fully-random" not in firewall("cone")
    assert "udp drop" in firewall("udp-blocked")
    assert "udp" not in firewall("symmetric")


def test_link_quality_zero_is_a_perfect_link() -> None:
    assert LabHost("a").link == LinkQuality(delay_ms=0, loss_percent=0, rate_mbit=0)
