"""Labs for tests: one per call, all gone when the module ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.lab.lab import Lab, missing
from tests.lab.topology import LabHost

LabFactory = Callable[[Sequence[LabHost]], Lab]


@pytest.fixture(scope="module")
def lab_factory() -> Iterator[LabFactory]:
    """Open labs that stay until the module's last test."""
    if reason := missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda hosts: stack.enter_context(Lab(hosts))
