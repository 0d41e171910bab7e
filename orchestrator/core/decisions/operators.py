"""Tenants, suppliers and tokens."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, assert_never

from orchestrator.core import messages as m
from orchestrator.core.errors import NAME_CHARACTERS_MAX, RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import TenantId
from orchestrator.core.supply.catalogue import nearest
from orchestrator.core.supply.fleet import Supplier, Token, TokenRole
from orchestrator.core.tenancy.fairness import check_weight
from orchestrator.core.tenancy.quotas import check_quota
from orchestrator.core.tenancy.tenants import Tenant

if TYPE_CHECKING:
    from orchestrator.core.state import State

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,62}")
"""Names stand in tables, labels and file names: printable, short, no surprise."""

ADMIN_FILE_SUBJECT = "admin file"
"""Of the token that stands in the operator's own file, so that the one before it is known."""

TOKEN_TTL_MS_MAX = 366 * 24 * 3_600_000
"""A token nobody remembers giving out must end by itself."""


HINTED_MAX = 1_000
"""Names that a misspelt one is compared with: each comparison costs microseconds, and everybody waits."""


def check_name(field: str, name: str) -> None:
    """Refuse a name that could not be shown safely."""
    if not NAME_PATTERN.fullmatch(name):
        raise invalid(field, f"{field} {name[:70]!r} must be 1 to 63 letters, digits, dots, dashes or spaces")


def create_tenant(state: State, command: m.CreateTenant, at_ms: int) -> m.Decision:
    """A new tenant; its name is unique."""
    check_name("name", command.name)
    known = next((tenant for tenant in state.tenants.values() if tenant.name == command.name), None)
    if known is not None:
        raise RefusedError(
            RefusalCode.ALREADY_EXISTS, f"tenant {command.name!r} exists already as {known.tenant_id}", "name"
        )
    tenant = Tenant(command.tenant_id, command.name, at_ms)
    return m.Decision((m.TenantCreated(tenant),), tenant.tenant_id)


def set_tenant(state: State, command: m.SetTenant) -> m.Decision:
    """Another weight or quota; setting what is set already changes nothing."""
    tenant = find_tenant(state, command.tenant)
    quota = tenant.quota
    if command.gpus is not None:
        quota = replace(quota, gpus=command.gpus.at_most)
    if command.gpu_ms_per_month is not None:
        quota = replace(quota, gpu_ms_per_month=command.gpu_ms_per_month.at_most)
    if command.microcredits_per_month is not None:
        quota = replace(quota, microcredits_per_month=command.microcredits_per_month.at_most)
    weight = tenant.weight if command.weight is None else command.weight
    check_weight(weight)
    check_quota(quota)
    if (weight, quota) == (tenant.weight, tenant.quota):
        return m.Decision((), tenant.tenant_id)
    return m.Decision((m.TenantChanged(tenant.tenant_id, weight, quota),), tenant.tenant_id)


def create_token(state: State, command: m.CreateToken, at_ms: int) -> m.Decision:
    """A new token; a supplier's first token makes the supplier."""
    if not 0 < command.ttl_ms <= TOKEN_TTL_MS_MAX:
        raise invalid("ttl_seconds", f"ttl_seconds must be from 1 to {TOKEN_TTL_MS_MAX // 1000}")
    if command.head_host and command.role is not TokenRole.SUPPLIER:
        raise invalid("head_host", "only a supplier's token makes a head host")
    events: list[m.Event] = []
    match command.role:
        case TokenRole.OPERATOR:
            subject_id = "operator"
        case TokenRole.TENANT:
            subject_id = find_tenant(state, command.subject).tenant_id
        case TokenRole.SUPPLIER:
            check_name("subject", command.subject)
            known = next(
                (s for s in state.suppliers.values() if command.subject in (s.name, s.supplier_id)), None
            )
            supplier = known or Supplier(command.supplier_id, command.subject, at_ms)
            if known is None:
                events.append(m.SupplierCreated(supplier))
            subject_id = supplier.supplier_id
        case _:
            assert_never(command.role)
    token = Token(
        token_id=command.token_id,
        role=command.role,
        subject_id=subject_id,
        secret_sha256=command.secret_sha256,
        created_at_ms=at_ms,
        expires_at_ms=at_ms + command.ttl_ms,
        used=False,
        revoked=False,
        head_host=command.head_host,
    )
    return m.Decision((*events, m.TokenCreated(token)), token.token_id)


def keep_admin_token(state: State, command: m.KeepAdminToken, at_ms: int) -> m.Decision:
    """One secret at a time is that of the operator's own file; its id. Repeating it changes nothing."""
    known = state.token_by_hash.get(command.secret_sha256)
    events: list[m.Event] = []
    if known is None:
        kept = command.token_id
        expires_at_ms = at_ms + command.ttl_ms
        events.append(
            m.TokenCreated(
                Token(
                    kept,
                    TokenRole.OPERATOR,
                    ADMIN_FILE_SUBJECT,
                    command.secret_sha256,
                    at_ms,
                    expires_at_ms,
                    used=False,
                    revoked=False,
                )
            )
        )
    else:
        kept, token = known.token_id, state.tokens[known.token_id]
        standing = token.state_at(at_ms)
        if token.role is not TokenRole.OPERATOR or standing != "live":
            said = f"is {standing}" if standing != "live" else f"is a {token.role.value}'s"
            raise RefusedError(
                RefusalCode.CONFLICT, f"the token in the operator's file {said}; put a new one there"
            )
        if token.subject_id != ADMIN_FILE_SUBJECT:
            # Made by hand, or by an earlier version: it ends when the file holds another, whoever serves then.
            events.append(m.TokenCreated(replace(token, subject_id=ADMIN_FILE_SUBJECT)))
    events.extend(
        m.TokenRevoked(one.token_id)
        for one in state.tokens.values()
        if one.token_id != kept and one.state_at(at_ms) == "live" and one.subject_id == ADMIN_FILE_SUBJECT
    )
    return m.Decision(tuple(events), kept)


def find_tenant(state: State, name: str) -> Tenant:
    """A tenant by id or name; the refusal names the nearest, as only operators name tenants."""
    by_id = state.tenants.get(TenantId(name))
    found = by_id or next((tenant for tenant in state.tenants.values() if tenant.name == name), None)
    if found is not None:
        return found
    names = [tenant.name for tenant in islice(state.tenants.values(), HINTED_MAX)]
    if not names:
        raise RefusedError(
            RefusalCode.NOT_FOUND, "there are no tenants yet: `orch tenant create NAME` makes one", "tenant"
        )
    shown = name[:NAME_CHARACTERS_MAX]
    message = f"no tenant named {shown!r}: did you mean {nearest(shown, names)!r}?"
    raise RefusedError(RefusalCode.NOT_FOUND, message, "tenant")


def revoke_token(state: State, command: m.RevokeToken) -> m.Decision:
    """Ends a token; repeating it changes nothing."""
    token = state.tokens.get(command.token_id)
    if token is None:
        raise not_found("token", command.token_id)
    if token.revoked:
        return m.Decision((), token.token_id)
    return m.Decision((m.TokenRevoked(token.token_id),), token.token_id)


def authenticate(state: State, secret_sha256: str, at_ms: int) -> Token:
    """The live token of a secret; UNAUTHENTICATED with the reason otherwise."""
    token = state.token_by_hash.get(secret_sha256)
    if token is None:
        raise RefusedError(
            RefusalCode.UNAUTHENTICATED, "this token is not known here; ask the operator for a new one"
        )
    token = state.tokens[token.token_id]
    standing = token.state_at(at_ms)
    if standing != "live":
        raise RefusedError(
            RefusalCode.UNAUTHENTICATED, f"this token is {standing}; ask the operator for a new one"
        )
    return token
