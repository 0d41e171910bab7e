"""What runtimes there are, what names them, and which descriptions are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.adapters.runtimes import DEFAULT_NAME, CatalogueError, bundled, catalogue, load_directory
from orchestrator.adapters.runtimes.lock_text import LOCK_BYTES_MAX

HASH = f"--hash=sha256:{'a' * 64}"
GOOD_TOML = 'python = "3.12"\nray = "2.60.0"\npackages = ["ray[default]==2.60.0", "Some.Thing"]\n'
GOOD_LOCK = (
    f"ray==2.60.0 \\\n    {HASH} \\\n    {HASH}\n# note\nsome-thing==1.0 ; sys_platform == 'linux' {HASH}\n"
)


def write(
    folder: Path, toml: str = GOOD_TOML, lock: str | bytes | None = GOOD_LOCK, name: str = "mine"
) -> Path:
    (folder / f"{name}.toml").write_text(toml)
    if lock is not None:
        (folder / f"{name}.lock").write_bytes(lock if isinstance(lock, bytes) else lock.encode())
    return folder


def test_bundled_default_holds_what_ray_needs_to_make_environments() -> None:
    (default,) = [one for one in bundled() if one.name == DEFAULT_NAME]
    assert (default.python, default.ray_version) == ("3.11", "2.60.0")
    names = {one.partition("==")[0] for one in default.locked}
    assert {"ray", "scikit-learn", "numpy", "scipy", "uv", "pip", "virtualenv", "aiohttp", "grpcio"} <= names


def test_bundled_locks_name_no_place_and_serve_both_machines() -> None:
    for one in bundled():
        assert b"://" not in one.lock
        assert b"aarch64" in one.lock
        assert b"x86_64" in one.lock


def test_directory_good_pair_is_loaded_as_written(tmp_path: Path) -> None:
    (one,) = load_directory(write(tmp_path))
    assert (one.name, one.python, one.ray_version) == ("mine", "3.12", "2.60.0")
    assert one.packages == ("ray[default]==2.60.0", "Some.Thing")
    assert one.locked == ("ray==2.60.0", "some-thing==1.0")


def test_digest_another_name_or_list_is_the_same_runtime() -> None:
    one = bundled()[0]
    assert replace(one, name="other", packages=("ray",)).digest == one.digest
    assert len(one.digest) == 64


@pytest.mark.parametrize(
    "change", [{"python": "3.12"}, {"ray_version": "2.59.0"}, {"lock": b"ray==2.60.0\n"}]
)
def test_digest_another_content_is_another_runtime(change: dict[str, str | bytes]) -> None:
    one = bundled()[0]
    assert replace(one, **change).digest != one.digest  # type: ignore[arg-type]  # the table is of two types


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("python = ", "is not TOML"),
        (GOOD_TOML + 'colour = "red"\n', "colour: no such field"),
        (GOOD_TOML.replace("3.12", "3.12.1"), "python: must be a minor version"),
        (GOOD_TOML.replace('"3.12"', "3.12"), "python: must be a minor version"),
        (GOOD_TOML.replace('ray = "2.60.0"', 'ray = ">=2"'), "ray: must be a full version"),
        ('python = "3.12"\nray = "2.60.0"\n', "packages: must be a list"),
        (GOOD_TOML.replace('"Some.Thing"', "1"), "packages: each must be a requirement"),
        (GOOD_TOML.replace("Some.Thing", "x @ git+ssh://host"), "packages: each must be a requirement"),
    ],
)
def test_description_bad_is_refused_with_file_and_field(tmp_path: Path, toml: str, names: str) -> None:
    with pytest.raises(CatalogueError, match=r"mine\.toml: ") as caught:
        load_directory(write(tmp_path, toml))
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("ray==2.60.0\n", "line 1: ray has no hash"),
        (f"ray>=2 {HASH}\n", "line 1: not of the form"),
        (f"ray==2.* {HASH}\n", "line 1: not of the form"),
        (f"# ours\n\n-e . {HASH}\n", "line 3: an option"),
        ("--index-url https://u:secret@host/simple\n", "line 1: an option"),
        (f"ray @ https://u:secret@host/ray.whl {HASH}\n", "line 1: an address or a path"),
        (f"./ray.whl {HASH}\n", "line 1: an address or a path"),
        ("ray==2.60.0 --hash=md5:aa\n", "no --hash=sha256"),
        (f"ray==2.60.0 {HASH} --pre\n", "no --hash=sha256"),
        ("# nothing\n", "names no package"),
        (b"\xff\xfe", "is not text"),
        (b"#" * (LOCK_BYTES_MAX + 1), "at most"),
        (f"ray==2.59.0 {HASH}\nsome-thing==1 {HASH}\n", "ray: must be locked as ray==2.60.0"),
        (f"ray==2.60.0 {HASH}\n", "Some.Thing of mine.toml is not locked"),
        (None, "cannot be read"),
    ],
)
def test_lock_bad_is_refused_with_file_and_line_and_no_secret(
    tmp_path: Path, lock: str | bytes | None, says: str
) -> None:
    with pytest.raises(CatalogueError, match=r"mine\.lock: ") as caught:
        load_directory(write(tmp_path, lock=lock))
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_directory_lock_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lonely.lock").write_text(GOOD_LOCK)
    with pytest.raises(CatalogueError, match=r"has no lonely\.toml beside it"):
        load_directory(tmp_path)


def test_directory_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="name: a runtime's name"):
        load_directory(write(tmp_path, name="My Runtime"))


def test_directory_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="name a folder"):
        load_directory(tmp_path / "none")


def test_catalogue_own_runtime_stands_beside_the_bundled(tmp_path: Path) -> None:
    assert [one.name for one in catalogue(write(tmp_path))] == [DEFAULT_NAME, "mine"]
    assert catalogue(None) == bundled()


def test_catalogue_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"default\.toml: name: default comes with the project"):
        catalogue(write(tmp_path, name=DEFAULT_NAME))
