from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.adapters.log_files import LogFiles


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    made = LogFiles(tmp_path / "logs")
    yield made
    made.close()


async def test_append_overlap_is_passed_over_and_a_gap_is_not_stored(files: LogFiles) -> None:
    assert await files.append("job_1-1", 0, b"abc") == 3
    assert await files.append("job_1-1", 0, b"abc") == 3
    assert await files.append("job_1-1", 1, b"bcde") == 5
    assert await files.append("job_1-1", 7, b"gap") == 5
    assert await files.read("job_1-1", 0, 100) == b"abcde"
    assert await files.read("job_1-1", 3, 1) == b"d"
    assert await files.read("job_1-1", 5, 100) == b""


async def test_read_what_was_never_written_is_empty(files: LogFiles) -> None:
    assert files.size_bytes("job_2-1") == 0
    assert await files.read("job_2-1", 0, 10) == b""


async def test_append_name_that_leads_elsewhere_is_refused(files: LogFiles) -> None:
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="attempt"):
            await files.append(name, 0, b"x")


async def test_append_many_at_once_is_whole(files: LogFiles) -> None:
    chunks = [(offset, bytes([offset])) for offset in range(50)]
    # Each is offered until it fits, as an agent would: none may be lost, none stored twice.
    while files.size_bytes("job_1-1") < 50:
        await asyncio.gather(*(files.append("job_1-1", offset, data) for offset, data in chunks))
    assert await files.read("job_1-1", 0, 100) == bytes(range(50))


async def test_start_after_a_crash_goes_on_where_the_files_end(tmp_path: Path) -> None:
    first = LogFiles(tmp_path / "logs")
    await first.append("job_1-1", 0, b"abc")
    first.close()
    again = LogFiles(tmp_path / "logs")
    assert again.size_bytes("job_1-1") == 3
    assert await again.append("job_1-1", 2, b"cd") == 4
    again.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    text=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20),
)
def test_append_any_pieces_give_a_prefix_of_the_text(
    tmp_path: Path, text: bytes, cuts: list[tuple[int, int]]
) -> None:
    async def ship() -> bytes:
        files = LogFiles(Path(tempfile.mkdtemp(dir=tmp_path)))
        for start, length in cuts:
            size = await files.append("a", start, text[start : start + length])
            assert size == files.size_bytes("a")
        data = await files.read("a", 0, 1000)
        files.close()
        return data

    assert text.startswith(asyncio.run(ship()))
