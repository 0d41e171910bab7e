from __future__ import annotations

import asyncio
import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.adapters import zips
from orchestrator.adapters.packages import PackageStore

URI = "gcs://_ray_pkg_0.zip"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PackageStore]:
    made = PackageStore(tmp_path / "packages")
    yield made
    made.close()


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def zipped(*entries: zipfile.ZipInfo | str, body: bytes = b"x", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for one in entries or ("a.py",):
            archive.writestr(one, body, compress_type=method)
    return buffer.getvalue()


def with_entry_count(data: bytes, count: int) -> bytes:
    """The same archive, lying about its number of files."""
    at = data.rfind(zips.END_SIGNATURE)
    return data[: at + 8] + struct.pack("<HH", count, count) + data[at + 12 :]


def encrypted() -> bytes:
    data = bytearray(zipped("a.py"))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


BAD = {
    "no zip": b"no zip at all",
    "nothing": b"",
    "half": zipped("a.py", body=bytes(range(256)) * 40)[:200],
    "absolute": zipped("/etc/passwd"),
    "parent": zipped("a/../../b"),
    "backslashes": zipped(entry("..\\b")),
    "drive": zipped("C:/b"),
    "link": zipped(entry("a", stat.S_IFLNK | 0o777)),
    "device": zipped(entry("a", stat.S_IFCHR | 0o666)),
    "pipe": zipped(entry("a", stat.S_IFIFO | 0o666)),
    "long name": zipped("a" * 2_000),
    "bomb": zipped("a", body=b"\0" * (zips.RATIO_FREE_BYTES + 1)),
    "strange method": zipped("a", method=zipfile.ZIP_LZMA),
    "encrypted": encrypted(),
    "too many": with_entry_count(zipped("a"), zips.ENTRIES_MAX + 1),
    "shifted list": zipped("a") + b"PK\x05\x06" + b"\xff" * 18,
}


@pytest.mark.parametrize("name", BAD)
async def test_put_bad_zip_is_refused_with_a_sentence_and_not_kept(
    store: PackageStore, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="package"):
        await store.put("ten_1", URI, pieces(BAD[name]))
    assert await store.find("ten_1", URI) is None
    assert [path for path in (tmp_path / "packages").rglob("*") if path.is_file()] == []


async def test_put_then_open_gives_the_same_bytes_only_to_its_tenant(store: PackageStore) -> None:
    data = zipped("pkg/a.py", entry("pkg/", stat.S_IFDIR | 0o755), body=bytes(range(256)) * 4_000)
    stored = await store.put("ten_1", URI, pieces(data))
    assert (stored.sha256, stored.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert await store.find("ten_1", URI) == stored
    assert await store.find("ten_2", URI) is None
    assert b"".join([piece async for piece in store.open(stored.sha256)]) == data


async def test_open_what_is_not_there_or_no_hash_is_not_found(store: PackageStore) -> None:
    for sha256 in ("0" * 64, "../../etc/passwd", ""):
        with pytest.raises(FileNotFoundError):
            await anext(aiter(store.open(sha256)))


async def test_put_same_uri_at_once_keeps_one_whole_package(store: PackageStore) -> None:
    data = [zipped("a.py", body=bytes([number]) * 50_000) for number in range(8)]
    await asyncio.gather(*(store.put("ten_1", URI, pieces(one)) for one in data))
    found = await store.find("ten_1", URI)
    assert found is not None
    kept = b"".join([piece async for piece in store.open(found.sha256)])
    assert kept in data


async def test_put_broken_off_in_any_place_leaves_nothing(store: PackageStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield zipped("a")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put("ten_1", URI, broken())
    assert await store.find("ten_1", URI) is None
    assert list((tmp_path / "packages" / "incoming").iterdir()) == []


async def test_start_after_a_crash_sweeps_what_was_coming_and_keeps_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    first = PackageStore(folder)
    stored = await first.put("ten_1", URI, pieces(zipped("a")))
    (folder / "incoming" / "half").write_bytes(b"PK")
    first.close()
    again = PackageStore(folder)
    assert await again.find("ten_1", URI) == stored
    assert list((folder / "incoming").iterdir()) == []
    again.close()
