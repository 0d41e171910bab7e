"""Nebula certificates (version 1), made here so that issuing is a pure function of its arguments.

Ed25519 signatures are deterministic, so the same name, address, groups, key and window give the same bytes, and
with them the same fingerprint, whenever and however often. So nobody needs to keep what was issued: a blocklist is
derived from who left and which windows still count.

A *window* is half a certificate's life. Time is cut into windows, counted from 1970; a certificate is for one of
them and good for that and the next, so whoever fetches his once in each window is never without.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orchestrator.adapters.overlay import wire

CERTIFICATE_BANNER = "NEBULA CERTIFICATE"
PRIVATE_KEY_BANNER = "NEBULA X25519 PRIVATE KEY"

KEY_BYTES = 32

GROUPS_MAX = 16
"""A member's certificate names its cluster and little else; all of them travel in each handshake."""

SKEW_MS = 60_000
"""How far behind a peer's clock may be and still find a certificate of a window that has just begun valid."""

LIFE_MS_MIN = 2_000
"""Validity counts in whole seconds, and a window is half of it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SECOND_MS = 1000
_TIME_MAX_S = 2**33
"""In the year 2242: later than anything that is right, and small enough for every reader's clock."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A host's X25519 key: what stays on its machine, and what is certified."""

    private_pem: str = field(repr=False)
    public_bytes: bytes


@dataclass(frozen=True, slots=True)
class MemberCertificate:
    """``fingerprint`` (hex) is what a blocklist names it by."""

    pem: str
    fingerprint: str


def new_key(private_bytes: bytes) -> KeyPair:
    """The pair of 32 secret random bytes."""
    if len(private_bytes) != KEY_BYTES:
        raise ValueError(f"private_bytes has {len(private_bytes)} bytes; a key has {KEY_BYTES}")
    public = X25519PrivateKey.from_private_bytes(private_bytes).public_key().public_bytes_raw()
    return KeyPair(wire.to_pem(PRIVATE_KEY_BANNER, private_bytes), public)


def window(now_ms: int, life_ms: int) -> tuple[int, int]:
    """(not_before_s, not_after_s) of the certificate to have now; the same all through one window."""
    return _window_times(now_ms // _half_ms(life_ms), life_ms)


def next_window_ms(now_ms: int, life_ms: int) -> int:
    """When the next window begins, and with it the renewal."""
    half_ms = _half_ms(life_ms)
    return (now_ms // half_ms + 1) * half_ms


def windows_valid(now_ms: int, life_ms: int) -> tuple[tuple[int, int], ...]:
    """Every window whose certificate anybody might still, or already, take for valid, oldest first.

    By clocks that are wrong by up to SKEW_MS either way; the next window counts as well, as it may have been
    issued before this clock was set back.
    """
    index = now_ms // _half_ms(life_ms)
    around = -(-SKEW_MS // _half_ms(life_ms))
    times = [_window_times(one, life_ms) for one in range(max(index - 1 - around, 0), index + 2)]
    return tuple(one for one in times if one[1] * _SECOND_MS + SKEW_MS >= now_ms)


class Authority:
    """The overlay's certificate authority: a seed, and the certificate that follows from it."""

    def __init__(self, key: Ed25519PrivateKey, raw: bytes, not_before_s: int, not_after_s: int) -> None:
        """Made by `create`; nothing here changes."""
        self._key = key
        self._digest = hashlib.sha256(raw).digest()
        self._not_before_s = not_before_s
        self._not_after_s = not_after_s
        self.certificate_pem = wire.to_pem(CERTIFICATE_BANNER, raw)
        """What every host trusts."""

    @property
    def not_after_ms(self) -> int:
        """When it runs out, by wall clock."""
        return self._not_after_s * 1_000

    @classmethod
    def create(cls, seed: bytes, network_id: str, not_before_s: int, not_after_s: int) -> Authority:
        """The same authority for the same arguments; ``seed`` is 32 secret bytes."""
        if len(seed) != KEY_BYTES:
            raise ValueError(f"seed has {len(seed)} bytes; an authority's has {KEY_BYTES}")
        _check_times(not_before_s, not_after_s)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        details = b"".join(
            (
                wire.bytes_field(1, _checked_name("network_id", network_id)),
                wire.number_field(5, not_before_s),
                wire.number_field(6, not_after_s),
                wire.bytes_field(7, key.public_key().public_bytes_raw()),
                wire.number_field(8, 1),
            )
        )
        return cls(key, _signed(key, details), not_before_s, not_after_s)

    @property
    def fingerprint(self) -> str:
        """Hex; what its certificates name as their issuer."""
        return self._digest.hex()

    def issue(
        self,
        name: str,
        address: str,
        groups: Sequence[str],
        public_key: bytes,
        not_before_s: int,
        not_after_s: int,
    ) -> MemberCertificate:
        """Certify a host's key for one overlay address, such as ``198.18.0.7/15``. Raises ValueError.

        A certificate that reaches beyond the authority's own is refused here, as every peer would refuse it.
        """
        _check_times(not_before_s, not_after_s)
        if not_before_s < self._not_before_s or not_after_s > self._not_after_s:
            raise ValueError(
                f"validity {not_before_s} … {not_after_s} s reaches beyond the authority's own,"
                f" {self._not_before_s} … {self._not_after_s} s; the overlay needs a new authority"
            )
        if len(groups) > GROUPS_MAX:
            raise ValueError(f"groups has {len(groups)} entries; at most {GROUPS_MAX} are allowed")
        if len(public_key) != KEY_BYTES:
            raise ValueError(f"public_key has {len(public_key)} bytes; an X25519 key has {KEY_BYTES}")
        details = b"".join(
            (
                wire.bytes_field(1, _checked_name("name", name)),
                wire.packed_field(2, _address_pair(address)),
                *(wire.bytes_field(4, _checked_name("groups", group)) for group in sorted(set(groups))),
                wire.number_field(5, not_before_s),
                wire.number_field(6, not_after_s),
                wire.bytes_field(7, public_key),
                wire.bytes_field(9, self._digest),
            )
        )
        raw = _signed(self._key, details)
        return MemberCertificate(wire.to_pem(CERTIFICATE_BANNER, raw), hashlib.sha256(raw).hexdigest())

    def fingerprints(
        self, name: str, address: str, groups: Sequence[str], public_key: bytes, now_ms: int, life_ms: int
    ) -> tuple[str, ...]:
        """All that a host may still hold of what `issue` made for it, window by window: what to block."""
        return tuple(
            self.issue(name, address, groups, public_key, not_before_s, not_after_s).fingerprint
            for not_before_s, not_after_s in windows_valid(now_ms, life_ms)
            if not_before_s >= self._not_before_s and not_after_s <= self._not_after_s
        )


def _address_pair(address: str) -> tuple[int, int]:
    try:
        # A missing prefix would silently mean /32.
        interface = ipaddress.IPv4Interface(address if "/" in address else "")
    except ValueError:
        raise ValueError(
            f"address is {address!r}; give an IPv4 address with its prefix, such as 198.18.0.7/15"
        ) from None
    return int(interface.ip), int(interface.netmask)


def _signed(key: Ed25519PrivateKey, details: bytes) -> bytes:
    return wire.bytes_field(1, details) + wire.bytes_field(2, key.sign(details))


def _checked_name(what: str, text: str) -> bytes:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{what} is {text!r}; use 1 to 128 letters, digits, dots, underscores, colons, hyphens"
        )
    return text.encode("ascii")


def _check_times(not_before_s: int, not_after_s: int) -> None:
    if not 0 < not_before_s < not_after_s < _TIME_MAX_S:
        raise ValueError(
            f"not_before_s is {not_before_s} and not_after_s is {not_after_s}; the first must be earlier"
        )


def _half_ms(life_ms: int) -> int:
    if life_ms < LIFE_MS_MIN:
        raise ValueError(f"life_ms is {life_ms}; a certificate lives {LIFE_MS_MIN} ms or longer")
    return life_ms // (2 * _SECOND_MS) * _SECOND_MS


def _window_times(index: int, life_ms: int) -> tuple[int, int]:
    half_s = _half_ms(life_ms) // _SECOND_MS
    start_s = index * half_s
    return start_s - SKEW_MS // _SECOND_MS, start_s + 2 * half_s
