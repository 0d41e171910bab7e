"""The operator's token exchanged in its file, under a running `orch serve` and between two."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import grpc
import pytest

from orchestrator.api.v1 import operator_pb2, operator_pb2_grpc
from orchestrator.cli.client import open_channel
from tests.control.serving import Serve, serving
from tests.polling import wait_until

DEADLINE_S = 60.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def fresh() -> str:
    return secrets.token_hex(32)


def counts(serve: Serve, secret: str) -> bool:
    """Whether whoever shows this is an operator."""
    with open_channel(serve.endpoints["grpc"], Path(serve.endpoints["ca_file"]).read_bytes()) as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        try:
            stub.GetStatus(operator_pb2.GetStatusRequest(), metadata=(("authorization", f"Bearer {secret}"),))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 -- the other end is an answer
            return False
        return True


def wait_for(serve: Serve, secret: str) -> None:
    wait_until(lambda: counts(serve, secret), what="the new token", deadline_s=DEADLINE_S)


def said(serve: Serve, words: str) -> bool:
    return words in ANSI.sub("", serve.log.read_text())


def test_admin_token_file_exchanged_counts_without_a_restart_and_the_old_one_no_more(tmp_path: Path) -> None:
    """As Kubernetes does it: the file is a link into a folder that is replaced as a whole."""
    first, second, third = fresh(), fresh(), fresh()
    mount = tmp_path / "mount"
    for name, secret in (("..1", first), ("..2", second)):
        (mount / name).mkdir(parents=True)
        (mount / name / "token").write_text(f"{secret}\n")
    (mount / "..data").symlink_to("..1")
    (mount / "token").symlink_to("..data/token")
    flags = ("--admin-token-file", str(mount / "token"))
    with serving(tmp_path / "data", *flags) as serve:
        assert counts(serve, first)
        (mount / "..next").symlink_to("..2")
        (mount / "..next").rename(mount / "..data")
        wait_for(serve, second)
        assert not counts(serve, first)
        assert serve.interrupt() == 0
        text = serve.log.read_text()
        assert first not in text
        assert second not in text
    (mount / "..2" / "token").write_text(third)
    with serving(tmp_path / "data", *flags) as again:
        assert counts(again, third)
        assert not counts(again, second), "exchanged while nobody served"


def test_admin_token_of_the_data_directory_exchanged_by_hand_counts_and_names_the_authority(
    tmp_path: Path,
) -> None:
    with serving(tmp_path / "data") as serve:
        file = tmp_path / "data" / "admin-token"
        old, pin = file.read_text().strip().split(".")
        new = fresh()
        file.write_text(new)
        wait_for(serve, new)
        assert not counts(serve, old)
        wait_until(
            lambda: file.read_text() == f"{new}.{pin}\n", what="the authority's pin", deadline_s=DEADLINE_S
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("short", "could be guessed"),
        ("two words " * 8, "something else than one word"),
        (None, "cannot read"),
    ],
)
def test_admin_token_file_that_cannot_be_used_is_said_and_the_one_before_counts(
    tmp_path: Path, content: str | None, words: str
) -> None:
    token, first, second = tmp_path / "token", fresh(), fresh()
    token.write_text(first)
    with serving(tmp_path / "data", "--admin-token-file", str(token)) as serve:
        if content is None:
            token.unlink()
        else:
            token.write_text(content)
        wait_until(lambda: said(serve, words), what="a word about the file", deadline_s=DEADLINE_S)
        assert said(serve, os.fspath(token))
        assert counts(serve, first)
        token.write_text(second)
        wait_for(serve, second)
        assert not counts(serve, first)


def test_admin_token_that_was_revoked_before_does_not_come_back_by_its_file(tmp_path: Path) -> None:
    token, first, second = tmp_path / "token", fresh(), fresh()
    token.write_text(first)
    with serving(tmp_path / "data", "--admin-token-file", str(token)) as serve:
        token.write_text(second)
        wait_for(serve, second)
        token.write_text(first)
        wait_until(lambda: said(serve, "is revoked"), what="a word about it", deadline_s=DEADLINE_S)
        assert counts(serve, second)
        assert not counts(serve, first)
