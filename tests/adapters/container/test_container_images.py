"""Images that are here, and images that would take more than they may: a Python without end, one too large."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from orchestrator.adapters.box.tiers import Found
from orchestrator.adapters.container import images
from orchestrator.adapters.container.images import ImageUnavailableError, here, provide
from orchestrator.adapters.container.podman import podman
from orchestrator.adapters.container.tiers import trial
from tests.images import imported_image

GIB = 1024**3
IMAGE = f"docker.io/team/image@sha256:{'ab' * 32}"
Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - what shutil gives

PODMAN = """#!/bin/sh
echo "$*" >> "$STORAGE/calls"
case "$*" in
*" image exists "*) exit 1 ;;
*" info "*) echo "$STORAGE" ;;
*" images "*) cat "$STORAGE/images" ;;
*" pull "*) echo $$ > "$STORAGE/puller"; echo layer > "$TMPDIR/layer"; exec sleep 1000 ;;
esac
"""


def test_image_whose_python_never_ends_is_refused_and_leaves_no_container(
    container_tier: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if container_tier.tier != "container":
        pytest.skip(f"needs podman that works (apt-get install podman runc): {container_tier.reason}")
    python = tmp_path / "runtime" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/dash\nwhile :; do :; done\n")
    python.chmod(0o755)
    monkeypatch.setattr(images, "ASK_SECONDS_MAX", 3)
    with imported_image(tmp_path / "runtime", f"orch-test-loop{os.getpid()}") as reference:
        assert reference in here(trial().runtime), "it is named as a job would name it"
        with pytest.raises(ImageUnavailableError, match="its python3 did not say within 3 s"):
            provide(reference, trial().runtime)
        # And where podman itself has to be given up first, which its monitor outlives.
        monkeypatch.setattr(images, "ASK_SECONDS_MAX", 50)
        monkeypatch.setattr(images, "ASK_TIMEOUT_S", 3.0)
        with pytest.raises(ImageUnavailableError, match="podman run did not end within 3 s"):
            provide(reference, trial().runtime)
        left = podman(trial().runtime, ["ps", "--all", "--format={{.Names}} {{.Image}}"])
    assert f"loop{os.getpid()}" not in left
    assert f"-{threading.get_native_id()} " not in left


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Podman's storage, as a podman sees it whose fetches never end."""
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    folder = tmp_path / "storage"
    folder.mkdir()
    program.write_text(PODMAN.replace("$STORAGE", str(folder)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return folder


def test_image_that_fills_the_disk_while_it_comes_is_ended_and_removed(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Usage:
        came = any(path.glob("orch-pull-*/layer"))
        return Usage(100 * GIB, 0, 9 * GIB if came else 50 * GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    forsaken = storage / f"orch-pull-{2**22 + 1}"
    forsaken.mkdir()
    with pytest.raises(ImageUnavailableError, match=r"too large for this machine: .*10 GiB"):
        provide(IMAGE, "runc")
    puller = (storage / "puller").read_text().strip()
    assert not Path("/proc", puller).exists()
    assert list(storage.glob("orch-pull-*")) == []
    assert (storage / "calls").read_text().splitlines()[-1].endswith(f" rmi --force {IMAGE}")


def test_image_is_not_begun_on_a_disk_that_is_nearly_full(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, 39 * GIB))
    with pytest.raises(ImageUnavailableError, match="39 GiB are free"):
        provide(IMAGE, "runc")
    assert " pull " not in (storage / "calls").read_text()


def test_images_that_are_here_are_named_as_jobs_name_them_the_newest_first(storage: Path) -> None:
    listed = [
        {"Created": 1, "RepoDigests": [IMAGE, "docker.io/team/image:latest"]},
        {"Created": 2, "RepoDigests": None},
        {"Created": 3, "RepoDigests": [IMAGE.replace("team", "other")]},
        {"Created": 4},
    ]
    (storage / "images").write_text(json.dumps(listed))
    assert here("runc") == [IMAGE.replace("team", "other"), IMAGE]
    (storage / "images").write_text("[]")
    assert here("runc") == []


@pytest.mark.parametrize("said", ["", "{", '[{"RepoDigests": []}]', '["image"]', '[{"Created": "long ago"}]'])
def test_images_of_a_podman_that_is_not_understood_are_an_error(storage: Path, said: str) -> None:
    (storage / "images").write_text(said)
    with pytest.raises(OSError, match="podman images: not understood"):
        here("runc")
