"""The token of the operator's own file: one at a time."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import authenticate
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import TokenId
from orchestrator.core.supply.fleet import TokenRole
from tests.core.worlds import World, sha

LIFE_MS = 1_000_000


def keep(world: World, secret: str) -> TokenId:
    command = m.KeepAdminToken(TokenId(world.name("tok")), sha(secret), LIFE_MS)
    return TokenId(str(world.do(command).result))


def counts(world: World, secret: str) -> bool:
    try:
        return authenticate(world.state, sha(secret), world.at_ms).role is TokenRole.OPERATOR
    except RefusedError:
        return False


def test_admin_token_exchanged_ends_the_one_before_in_one_decision() -> None:
    world = World()
    first = keep(world, "first")
    assert keep(world, "first") == first
    assert counts(world, "first")
    keep(world, "second")
    assert (counts(world, "first"), counts(world, "second")) == (False, True)
    command = m.KeepAdminToken(TokenId("tok_x"), sha("second"), LIFE_MS)
    assert world.do(command).events == ()


def test_admin_token_exchanged_leaves_tokens_that_never_stood_in_the_file() -> None:
    world = World()
    for role, secret in ((TokenRole.OPERATOR, "colleague"), (TokenRole.SUPPLIER, "garage")):
        token_id = TokenId(world.name("tok"))
        supplier = world.name("sup")
        world.do(m.CreateToken(token_id, role, "garage", sha(secret), LIFE_MS, supplier))  # type: ignore[arg-type]
    keep(world, "first")
    keep(world, "second")
    assert counts(world, "colleague")
    assert authenticate(world.state, sha("garage"), world.at_ms).role is TokenRole.SUPPLIER


def test_admin_token_that_was_made_by_hand_ends_when_the_file_holds_another() -> None:
    world = World()
    made = TokenId(world.name("tok"))
    world.do(m.CreateToken(made, TokenRole.OPERATOR, "", sha("made"), LIFE_MS, "sup_x"))  # type: ignore[arg-type]
    assert keep(world, "made") == made
    assert keep(world, "made") == made
    keep(world, "second")
    assert not counts(world, "made")


@pytest.mark.parametrize("ended", ["revoked", "expired", "is a supplier's"])
def test_admin_token_that_does_not_count_is_refused_and_the_one_before_stays(ended: str) -> None:
    world = World()
    if ended == "is a supplier's":
        world.do(
            m.CreateToken(TokenId("tok_s"), TokenRole.SUPPLIER, "garage", sha("old"), LIFE_MS, "sup_x")  # type: ignore[arg-type]
        )
    else:
        old = keep(world, "old")
        if ended == "revoked":
            world.do(m.RevokeToken(old))
        else:
            world.forward(LIFE_MS)
    keep(world, "present")
    with pytest.raises(RefusedError, match=ended) as refused:
        keep(world, "old")
    assert refused.value.code is RefusalCode.CONFLICT
    assert counts(world, "present")
