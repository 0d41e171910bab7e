"""Certificates: the same for the same, readable, bounded, and as the real nebula-cert wants them."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.adapters.overlay.certificates import (
    GROUPS_MAX,
    SKEW_MS,
    Authority,
    MemberCertificate,
    new_key,
    next_window_ms,
    window,
    windows_valid,
)
from tests.adapters.overlay.underlay import HOUR_S, wall_s
from tests.nebula_certificates import read_certificate

NOW_MS = 1_800_000_123_456
LIFE_MS = 3_600_000
KEY = new_key(b"k" * 32)
NEEDS_CERT = "needs nebula-cert; run `apt-get install nebula`"


def an_authority(now_s: int = NOW_MS // 1000) -> Authority:
    return Authority.create(b"s" * 32, "net_1", now_s - 10 * HOUR_S, now_s + 10 * HOUR_S)


def issue(authority: Authority, now_ms: int = NOW_MS, *, name: str = "mb_1") -> MemberCertificate:
    return authority.issue(
        name, "198.18.0.7/15", ["worker", "cluster-1"], KEY.public_bytes, *window(now_ms, LIFE_MS)
    )


def test_issue_same_window_is_byte_identical_and_next_differs() -> None:
    renewal_ms = next_window_ms(NOW_MS, LIFE_MS)
    first = issue(an_authority(), NOW_MS)
    assert issue(an_authority(), renewal_ms - 1) == first
    assert issue(an_authority(), renewal_ms) != first


def test_issue_certificate_says_what_was_certified() -> None:
    authority = an_authority()
    found = read_certificate(issue(authority).pem)
    not_before_s, not_after_s = window(NOW_MS, LIFE_MS)
    assert (found.name, found.addresses) == ("mb_1", ("198.18.0.7/15",))
    assert found.groups == ("cluster-1", "worker")
    assert (found.not_before_s, found.not_after_s) == (not_before_s, not_after_s)
    assert (found.public_key, found.is_authority) == (KEY.public_bytes, False)
    assert (found.issuer, found.fingerprint) == (authority.fingerprint, issue(authority).fingerprint)
    assert read_certificate(authority.certificate_pem).is_authority


@given(now_ms=st.integers(NOW_MS, NOW_MS + 10 * LIFE_MS), life_s=st.integers(2, 7200))
def test_window_any_time_is_valid_now_and_half_a_life_longer(now_ms: int, life_s: int) -> None:
    not_before_s, not_after_s = window(now_ms, life_s * 1000)
    renewal_ms = next_window_ms(now_ms, life_s * 1000)
    assert not_before_s * 1000 + SKEW_MS <= now_ms < renewal_ms
    assert not_after_s * 1000 - renewal_ms == life_s // 2 * 1000


@given(issued_ms=st.integers(NOW_MS, NOW_MS + 4 * LIFE_MS), later_ms=st.integers(0, 2 * LIFE_MS))
def test_fingerprints_of_any_certificate_that_is_still_valid_are_listed(
    issued_ms: int, later_ms: int
) -> None:
    authority = an_authority()
    issued = issue(authority, issued_ms)
    now_ms = issued_ms + later_ms
    listed = authority.fingerprints(
        "mb_1", "198.18.0.7/15", ["worker", "cluster-1"], KEY.public_bytes, now_ms, LIFE_MS
    )
    # A peer whose clock is behind by what is allowed still takes it for valid.
    if read_certificate(issued.pem).not_after_s * 1000 >= now_ms - SKEW_MS:
        assert issued.fingerprint in listed
    assert len(listed) <= 4


def test_windows_valid_any_follow_each_other() -> None:
    times = windows_valid(NOW_MS, LIFE_MS)
    assert window(NOW_MS, LIFE_MS) in times
    assert all(later[0] - earlier[0] == LIFE_MS // 2000 for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "bad name"}, "name is"),
        ({"address": "198.18.0.7"}, "address is"),
        ({"address": "fd00::1/64"}, "address is"),
        ({"groups": ["g"] * (GROUPS_MAX + 1)}, "groups has"),
        ({"groups": ["a,b"]}, "groups is"),
        ({"public_key": b"short"}, "public_key has"),
        ({"not_after_s": 1}, "not_after_s is"),
        ({"not_after_s": NOW_MS // 1000 + 11 * HOUR_S}, "reaches beyond the authority's own"),
    ],
)
def test_issue_bad_argument_is_refused_by_name(changed: dict[str, object], message: str) -> None:
    not_before_s, not_after_s = window(NOW_MS, LIFE_MS)
    arguments: dict[str, object] = {
        "name": "mb_1",
        "address": "198.18.0.7/15",
        "groups": ["cluster-1"],
        "public_key": KEY.public_bytes,
        "not_before_s": not_before_s,
        "not_after_s": not_after_s,
    }
    with pytest.raises(ValueError, match=message):
        an_authority().issue(**(arguments | changed))  # type: ignore[arg-type]  # one of them is wrong on purpose


def test_new_key_shown_says_nothing_of_the_private_half() -> None:
    assert "PRIVATE" not in repr(KEY)


@pytest.mark.skipif(shutil.which("nebula-cert") is None, reason=NEEDS_CERT)
def test_certificate_by_nebula_cert_verifies_and_prints_the_same(tmp_path: Path) -> None:
    now_s = wall_s()
    authority = an_authority(now_s)
    issued = issue(authority, now_s * 1000)
    files = {"ca": authority.certificate_pem, "mb": issued.pem, "other": ""}
    files["other"] = Authority.create(b"o" * 32, "net_1", now_s - 60, now_s + HOUR_S).certificate_pem
    for name, pem in files.items():
        (tmp_path / name).write_text(pem)

    def nebula_cert(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nebula-cert", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert nebula_cert("verify", "-ca", "ca", "-crt", "mb").returncode == 0
    assert nebula_cert("verify", "-ca", "other", "-crt", "mb").returncode != 0
    printed = json.loads(nebula_cert("print", "-json", "-path", "mb").stdout)
    assert printed["fingerprint"] == issued.fingerprint
    assert printed["details"]["issuer"] == authority.fingerprint
    assert printed["details"]["groups"] == ["cluster-1", "worker"]
    assert printed["details"]["ips"] == ["198.18.0.7/15"]
