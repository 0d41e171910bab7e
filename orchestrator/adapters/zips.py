"""Whether an uploaded zip may be handed to a machine that will unpack it. Blocking."""

from __future__ import annotations

import stat
import struct
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024

ENTRIES_MAX = 20_000
"""A working directory with more files holds data, which belongs into storage."""

DIRECTORY_BYTES_MAX = 8 * MIB
"""Four hundred bytes an entry: the whole list is read into memory, so it is bounded before it is read."""

UNPACKED_BYTES_MAX = 4 * 1024 * MIB
"""Eight times the largest package: source code packs no better than that."""

RATIO_MAX = 200
RATIO_FREE_BYTES = 64 * MIB
"""Packages that unpack to less may pack as well as they like: a file of zeros is no attack."""

NAME_CHARACTERS_MAX = 1_000
"""Paths on Linux end at 4,096 bytes, of which the place of unpacking needs some."""

ENCRYPTED = 0x1

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What every reader unpacks, and all that Ray's client writes."""

END_RECORD = struct.Struct("<4s4H2LH")
END_SIGNATURE = b"PK\x05\x06"
LOCATOR_SIGNATURE = b"PK\x06\x07"
LOCATOR_BYTES = 20
COMMENT_BYTES_MAX = 65_535

KINDS = (0, stat.S_IFREG, stat.S_IFDIR)
"""Kinds of files that may come; zero is written by tools that do not say."""


def check_zip(path: Path) -> None:
    """Raises ValueError with a sentence for the one who packed it."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        raise ValueError("the package is no zip that can be read; pack it again") from None
    unpacked_bytes = 0
    for entry in entries:
        _check_entry(entry)
        unpacked_bytes += entry.file_size
    if unpacked_bytes > UNPACKED_BYTES_MAX:
        raise ValueError(
            f"the package unpacks to {unpacked_bytes} bytes; at most {UNPACKED_BYTES_MAX} are taken"
        )
    if unpacked_bytes > max(RATIO_FREE_BYTES, RATIO_MAX * path.stat().st_size):
        raise ValueError(
            f"the package unpacks to more than {RATIO_MAX} times its size; leave filler files out"
        )


def _check_directory(path: Path) -> None:
    """Bound the list of entries by what its end record says, as the reader will, before the list is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - END_RECORD.size - COMMENT_BYTES_MAX - LOCATOR_BYTES))
        tail = file.read()
    at = len(tail) - END_RECORD.size
    if at < 0 or tail[at : at + 4] != END_SIGNATURE or tail[-2:] != b"\0\0":
        at = tail.rfind(END_SIGNATURE)
    if at < 0 or at + END_RECORD.size > len(tail):
        raise ValueError("the package is no zip file; give --working-dir a directory or a zip")
    _, _, _, _, count, directory_bytes, _, _ = END_RECORD.unpack_from(tail, at)
    if tail[max(0, at - LOCATOR_BYTES) :].startswith(LOCATOR_SIGNATURE) or count > ENTRIES_MAX:
        raise ValueError(f"the package has more than {ENTRIES_MAX} files; leave data out of working_dir")
    if directory_bytes > DIRECTORY_BYTES_MAX:
        raise ValueError("the package's list of files is too long; use fewer files or shorter names")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    shown = repr(name[:80])
    if not name or len(name) > NAME_CHARACTERS_MAX or "\0" in entry.orig_filename:
        raise ValueError(f"the package holds a file with an impossible name: {shown}")
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the package holds {shown}, which leads out of its directory")
    if stat.S_IFMT(entry.external_attr >> 16) not in KINDS:
        raise ValueError(
            f"the package holds {shown}, a link or device; pack plain files and directories only"
        )
    if entry.flag_bits & ENCRYPTED:
        raise ValueError(f"the package holds {shown} encrypted; pack it without a password")
    if entry.compress_type not in METHODS:
        raise ValueError(f"the package holds {shown} in an unusual compression; use deflate")
