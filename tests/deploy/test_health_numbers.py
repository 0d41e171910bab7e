"""`orch status` and the alerts speak of the same things by the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.core.queries import health, overview
from orchestrator.core.wording import DAY_MS, MINUTE_MS, S_MS

RULES = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "orchestrator" / "files" / "rules"

EXPRESSIONS = {
    rule["alert"]: " ".join(rule["expr"].split())
    for path in sorted(RULES.glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}

CERTIFICATES = {
    "OrchestratorCertificateExpiring": (health.CERTIFICATE_SHORT_MS, health.CERTIFICATE_SHORT_ELSE_MS),
    "OrchestratorCertificateExpiresSoon": (health.CERTIFICATE_ENDING_MS, health.CERTIFICATE_ENDING_ELSE_MS),
}


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        ("OrchestratorZoneOutage", "zones_held > 0"),
        ("OrchestratorLoopLagging", f"> {health.LOOP_SLOW_MS // S_MS}"),
        ("OrchestratorLoopStalled", f"> {health.LOOP_STUCK_MS // S_MS}"),
        ("OrchestratorPlanLagging", f"> {health.PLAN_LATE_MS // S_MS}"),
        ("OrchestratorQueueStuck", f"> {health.QUEUE_STUCK_MS // S_MS} "),
        ("OrchestratorQueueStuck", f"[{overview.FORMATION_WINDOW_MS // MINUTE_MS}m]"),
        ("OrchestratorQueueLong", f"> {health.QUEUE_LONG_MS // (60 * MINUTE_MS)} * 3600"),
        ("OrchestratorFormationFailing", f">= {health.FORMATIONS_FAILED_MIN} "),
        ("OrchestratorFormationFailing", f"> {health.FORMATION_FAILING_RATIO} "),
        ("OrchestratorFormationFailing", f"[{overview.FORMATION_WINDOW_MS // MINUTE_MS}m]"),
        ("OrchestratorWorkersLost", f">= {health.LOST_AT_ONCE_MIN} "),
        ("OrchestratorWorkersLost", f"> {health.LOST_AT_ONCE_RATIO} "),
        ("OrchestratorWorkersLost", f"[{overview.LOST_WINDOW_MS // MINUTE_MS}m]"),
        ("OrchestratorBadGpu", f"[{overview.CORDONED_WINDOW_MS // (60 * MINUTE_MS)}h]"),
        ("OrchestratorOutboxAgeing", f"> {health.OUTBOX_OLD_MS // S_MS}"),
        ("OrchestratorReceiptsUnbalanced", "!= 0"),
        ("OrchestratorLedgerUnbalanced", "!= 0"),
        ("OrchestratorRelaySaturated", f"> {health.RELAY_FULL_RATIO}"),
    ],
)
def test_number_of_the_judgement_is_the_alert_s(alert: str, words: str) -> None:
    assert words in f"{EXPRESSIONS[alert]} "


@pytest.mark.parametrize("alert", CERTIFICATES)
def test_days_of_certificates_are_the_alert_s(alert: str) -> None:
    named, others_ms = CERTIFICATES[alert]
    for left_ms in (*named.values(), others_ms):
        days = left_ms // DAY_MS
        assert f"< {days} * 86400" in EXPRESSIONS[alert] or (days == 1 and "< 86400" in EXPRESSIONS[alert])
