"""Tokens, tenants and joining: one use, one key, and every way in which a token is of no use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decide import REQUEST_LIFE_MS
from orchestrator.core.decisions.fleet import recoveries_left
from orchestrator.core.decisions.operators import TOKEN_TTL_MS_MAX, authenticate
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import DeviceId, JobId, SupplierId, TenantId, TokenId, WorkerId
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.fleet import HardwareClass, Inventory, Liveness, TokenRole
from tests.core.worlds import World, inventory, sha


def refused(world: World, command: m.Command) -> RefusedError:
    before, version = world.state.rows(), world.state.version
    with pytest.raises(RefusedError) as caught:
        world.do(command)
    assert (world.state.rows(), world.state.version) == (before, version)
    return caught.value


def test_join_token_is_used_up_by_the_first_machine() -> None:
    world = World()
    token = world.token()
    world.do(world.joining(inventory(), token=token))
    refusal = refused(world, world.joining(inventory(), token=token))
    assert refusal.code is RefusalCode.UNAUTHENTICATED
    assert "used" in refusal.message


def test_join_repeated_with_the_same_key_gets_the_same_worker() -> None:
    world = World()
    first = world.joining(inventory())
    worker_id = world.do(first).result
    again = world.do(replace(first, worker_id=WorkerId("wkr_other")))
    assert (again.result, again.events) == (worker_id, ())


def test_join_with_a_known_key_and_a_fresh_token_is_refused() -> None:
    world = World()
    first = world.joining(inventory())
    world.do(first)
    refusal = refused(world, replace(first, token_sha256=world.token()))
    assert (refusal.code, refusal.field) == (RefusalCode.ALREADY_EXISTS, "statement_key")


def test_join_with_a_known_key_and_another_suppliers_used_token_is_refused() -> None:
    world = World()
    first = world.joining(inventory())
    world.do(first)
    foreign = world.token(subject="other garage")
    world.do(world.joining(inventory(), token=foreign))
    assert refused(world, replace(first, token_sha256=foreign)).code is RefusalCode.ALREADY_EXISTS


def test_join_token_expired_is_refused() -> None:
    world = World()
    token = world.token(ttl_ms=1_000)
    world.forward(1_000)
    assert "expired" in refused(world, world.joining(inventory(), token=token)).message


def test_join_token_revoked_is_refused_and_revoking_twice_changes_nothing() -> None:
    world = World()
    token = world.token()
    token_id = world.state.token_by_hash[token].token_id
    world.do(m.RevokeToken(token_id))
    assert world.do(m.RevokeToken(token_id)).events == ()
    assert "revoked" in refused(world, world.joining(inventory(), token=token)).message


def test_join_token_unknown_is_refused() -> None:
    world = World()
    refusal = refused(world, world.joining(inventory(), token=sha("guess")))
    assert refusal.code is RefusalCode.UNAUTHENTICATED
    assert "not known" in refusal.message


@pytest.mark.parametrize("role", [TokenRole.TENANT, TokenRole.OPERATOR])
def test_join_with_a_token_of_another_role_is_refused(role: TokenRole) -> None:
    world = World()
    world.tenant("acme")
    token = world.token(role, "acme")
    refusal = refused(world, world.joining(inventory(), token=token))
    assert refusal.field == "join_token"
    assert world.state.tokens[world.state.token_by_hash[token].token_id].state_at(world.at_ms) == "live"


def _device(offer: Inventory, **changes: object) -> Inventory:
    return replace(offer, devices=(replace(offer.devices[0], **changes),))  # type: ignore[arg-type]


BAD_INVENTORIES = {
    "too many devices": (inventory(count=65, slots=1), "inventory.devices", "65 devices"),
    "no device id": (_device(inventory(), device_id=DeviceId("")), "inventory.devices.device_id", "1 to 128"),
    "spaced device id": (
        _device(inventory(), device_id=DeviceId("a b")),
        "inventory.devices.device_id",
        "spaces",
    ),
    "device twice": (
        replace(inventory(), devices=inventory().devices * 2),
        "inventory.devices.device_id",
        "listed twice",
    ),
    "unknown model": (_device(inventory(), model="RTX4091"), "inventory.devices.model", "'RTX4090'"),
    "model of another class": (
        replace(
            inventory("H100", hardware_class=HardwareClass.DATACENTER), hardware_class=HardwareClass.CONSUMER
        ),
        "inventory.hardware_class",
        "datacenter",
    ),
    "more memory than the model has": (
        _device(inventory(), memory_bytes=25 * GIB),
        "inventory.devices.memory_bytes",
        "24 GB",
    ),
    "too many slots": (inventory(slots=65), "inventory.slots", "at most 64"),
    "nothing to offer": (inventory(slots=0), "inventory.slots", "at least one"),
}


@pytest.mark.parametrize("case", BAD_INVENTORIES)
def test_join_with_an_impossible_inventory_is_refused_by_field(case: str) -> None:
    offer, field, words = BAD_INVENTORIES[case]
    world = World()
    refusal = refused(world, world.joining(offer))
    assert refusal.field == field
    assert words in refusal.message


def test_reconnect_with_an_impossible_inventory_is_refused_and_nothing_changes() -> None:
    world = World()
    worker_id = world.worker()
    refused(world, m.ConnectWorker(worker_id, BAD_INVENTORIES["unknown model"][0]))
    assert world.who(worker_id).liveness is Liveness.LIVE


@pytest.mark.parametrize("name", ["", "a" * 64, "tab\there", "-dash", "zwölf", "a\n"])
def test_tenant_name_that_cannot_be_shown_is_refused(name: str) -> None:
    assert refused(World(), m.CreateTenant(TenantId("ten_1"), name)).field == "name"


def test_tenant_name_taken_is_refused_with_who_has_it() -> None:
    world = World()
    tenant_id = world.tenant("acme")
    refusal = refused(world, m.CreateTenant(TenantId("ten_x"), "acme"))
    assert refusal.code is RefusalCode.ALREADY_EXISTS
    assert tenant_id in refusal.message


@pytest.mark.parametrize("ttl_ms", [0, -1, TOKEN_TTL_MS_MAX + 1])
def test_token_life_out_of_bounds_is_refused(ttl_ms: int) -> None:
    command = m.CreateToken(TokenId("t"), TokenRole.OPERATOR, "", sha("s"), ttl_ms, SupplierId("sup_1"))
    assert refused(World(), command).field == "ttl_seconds"


def test_token_for_an_unknown_tenant_is_refused() -> None:
    command = m.CreateToken(TokenId("t"), TokenRole.TENANT, "nobody", sha("s"), 1_000, SupplierId("sup_1"))
    assert refused(World(), command).code is RefusalCode.NOT_FOUND


def test_token_of_a_tenant_authenticates_as_often_as_it_lives() -> None:
    world = World()
    tenant_id = world.tenant("acme")
    digest = world.token(TokenRole.TENANT, "acme", ttl_ms=5_000)
    assert authenticate(world.state, digest, world.at_ms).subject_id == tenant_id
    assert authenticate(world.state, digest, world.at_ms + 4_999).role is TokenRole.TENANT
    with pytest.raises(RefusedError, match="expired"):
        authenticate(world.state, digest, world.at_ms + 5_000)


def test_supplier_is_made_by_its_first_token_and_named_by_the_next() -> None:
    world = World()
    world.token(subject="garage")
    world.token(subject="garage")
    (supplier,) = world.state.suppliers.values()
    world.token(subject=supplier.supplier_id)
    assert len(world.state.suppliers) == 1
    assert {one.subject_id for one in world.state.tokens.values()} == {supplier.supplier_id}


def test_request_repeated_gets_the_same_answer_and_makes_nothing() -> None:
    world = World()
    first = world.do(m.CreateTenant(TenantId("ten_a"), "acme", "req-1"))
    again = world.do(m.CreateTenant(TenantId("ten_b"), "acme", "req-1"))
    assert (again.result, again.events) == (first.result, ())
    assert list(world.state.tenants) == ["ten_a"]


def test_request_id_used_for_another_content_is_refused() -> None:
    world = World()
    world.do(m.CreateTenant(TenantId("ten_a"), "acme", "req-1"))
    refusal = refused(world, m.CreateTenant(TenantId("ten_b"), "beta", "req-1"))
    assert (refusal.code, refusal.field) == (RefusalCode.CONFLICT, "request_id")


def test_request_id_of_a_refused_request_stays_free() -> None:
    world = World()
    refused(world, m.CreateTenant(TenantId("ten_a"), "", "req-1"))
    assert world.do(m.CreateTenant(TenantId("ten_a"), "acme", "req-1")).result == "ten_a"


def test_request_record_is_forgotten_after_its_life_and_not_before() -> None:
    world = World()
    world.do(m.CreateTenant(TenantId("ten_a"), "acme", "req-1"))
    world.tick(REQUEST_LIFE_MS)
    assert len(world.state.requests) == 1
    world.tick(1)
    assert world.state.requests == {}


def test_submission_repeated_is_the_same_job_and_another_content_is_refused() -> None:
    world = World()
    job_id = world.submit()
    job = world.job(job_id)
    again = m.SubmitJob(
        job_id=JobId("job_other"),
        tenant_id=job.tenant_id,
        submission_id=job.submission_id,
        request=job.request,
        request_sha256=job.request_sha256,
    )
    repeated = world.do(again)
    assert (repeated.result, repeated.events) == (job_id, ())
    refusal = refused(world, replace(again, request_sha256=sha("other")))
    assert (refusal.code, refusal.field) == (RefusalCode.ALREADY_EXISTS, "submission_id")


def test_submission_id_belongs_to_its_tenant_alone() -> None:
    world = World()
    job = world.job(world.submit(tenant="acme"))
    other = world.tenant("beta")
    name = world.do(m.SubmitJob(JobId("job_b"), other, job.submission_id, job.request, "x")).result
    assert name == "job_b"
    assert world.state.job_named(job.tenant_id, "job_b") is None
    assert world.state.job_named(other, job.job_id) is None


# ---------------------------------------------------------------- certificates

DAY_MS = 24 * 3_600_000


def recovered(world: World, worker_id: WorkerId) -> m.Decision:
    return world.do(m.RecoverWorker(worker_id, world.who(worker_id).tls_key_sha256))


def test_recovery_of_a_machine_that_is_on_for_eight_hours_a_day_never_ends() -> None:
    """Sixteen hours off, and a certificate that is never renewed: the worst of such a month."""
    world = World()
    worker_id = world.worker()
    for _ in range(30):
        world.forward(DAY_MS)
        recovered(world, worker_id)
    policy = world.state.policies.fleet
    assert recoveries_left(world.who(worker_id), policy, world.at_ms) >= policy.recoveries_max - 2


def test_recovery_again_and_again_is_stopped_until_time_has_passed() -> None:
    world = World()
    worker_id = world.worker()
    for left in (4, 3, 2, 1, 0):
        recovered(world, worker_id)
        assert recoveries_left(world.who(worker_id), world.state.policies.fleet, world.at_ms) == left
        world.forward(60_000)
    refusal = refused(world, m.RecoverWorker(worker_id, world.who(worker_id).tls_key_sha256))
    assert refusal.code is RefusalCode.EXHAUSTED
    assert "5 times lately" in refusal.message
    tries = 0
    for _ in range(10 * 24):
        world.forward(3_600_000)
        try:
            recovered(world, worker_id)
        except RefusedError:
            continue
        tries += 1
    # Whoever asks each hour for ten days gets the three or so a day that a bad machine may need, and no more.
    assert 25 <= tries <= 35


def test_certificate_is_recorded_once_a_generation() -> None:
    world = World()
    worker_id = world.worker()
    issued = world.do(m.RecordCertificate(worker_id, 1))
    assert issued.events == (m.CertificateIssued(worker_id, 1),)
    assert world.do(m.RecordCertificate(worker_id, 1)).events == ()
    world.do(m.RecordCertificate(worker_id, 2))
    assert world.who(worker_id).certificate_generation == 2
