"""The operator's rules: who may decide which runs, whatever publishers claim."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from towline.bridge.approvers import ApprovalPolicy
from towline.bridge.errors import ApprovalPolicyError
from towline.contracts.events import ApprovalDecided, Event, EventRaised
from towline.contracts.signing import DecisionSigner, new_signing_key

TOPIC = "towline.approvals"
NOW = datetime.now(UTC)
PRIVATE, PUBLIC = new_signing_key()
SIGNER = DecisionSigner(PRIVATE, topic=TOPIC)
POLICY = {
    "rules": [
        {"run_types": ["payments.small"], "approvers": ["*"]},
        {
            "run_types": ["payments.*", "refund"],
            "approvers": ["ann", "*@finance.example"],
            "open": ["goods_*"],
        },
        {"run_types": ["agent.*"], "approvers": []},
    ],
    "keys": [json.loads(PUBLIC)],
    "trusted_sources": ["crm/*"],
}


@pytest.fixture
def policy(tmp_path: Path) -> ApprovalPolicy:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    return ApprovalPolicy.read(file, topic=TOPIC)


def decided(approver: str | None = "ann", name: str = "ask", **more: Any) -> Event[ApprovalDecided]:
    data = ApprovalDecided(run_id="r-1", approval_id=name, approved=True, approver=approver)
    return Event(id="d-1", source=more.pop("source", "test"), data=data, **more)


def raised(name: str = "ask", **more: Any) -> Event[EventRaised]:
    return Event(id="e-1", source=more.pop("source", "test"), data=EventRaised(run_id="r-1", name=name))


def signed(approver: str) -> Event[ApprovalDecided]:
    return SIGNER.sign(decided(approver), approver)


@pytest.mark.parametrize(
    ("event", "run_type", "why"),
    [
        # The first rule that fits counts; what none fits is open, as without a policy.
        (decided(), "review", None),
        (raised(), "review", None),
        (decided(), "payments.big", "it is not signed"),
        (decided(None), "payments.big", "it is not signed"),
        (decided(), "payments.small", "it is not signed"),
        (decided(), "Payments.big", None),
        # Signed: the name must be one of the rule's.
        (signed("ann"), "payments.big", None),
        (signed("bo@finance.example"), "refund", None),
        (signed("eve"), "refund", "eve may not decide runs of type refund"),
        (signed("eve"), "payments.small", None),
        (signed("ANN"), "refund", "ANN may not"),
        (signed("ann"), "agent.Bot", "ann may not"),
        # A raised event answers an ask of its name too.
        (raised(), "refund", "it is not signed"),
        (SIGNER.sign(raised(), "ann"), "refund", None),
        (SIGNER.sign(raised(), "eve"), "refund", "eve may not"),
        # Names that anybody may answer.
        (raised("goods_received"), "refund", None),
        (decided("eve", "goods_received~2"), "refund", None),
        (raised("goods_received"), "agent.Bot", "it is not signed"),
        # A trusted source's word is taken, where it names somebody.
        (decided("ann", source="crm/7"), "refund", None),
        (decided("eve", source="crm/7"), "refund", "eve may not"),
        (decided(None, source="crm/7"), "refund", "without a name"),
        (raised(source="crm/7"), "refund", "without a name"),
        (decided("ann", source="crm"), "refund", "it is not signed"),
    ],
)  # fmt: skip
def test_who_decides_what(policy: ApprovalPolicy, event: Any, run_type: str, why: str | None) -> None:
    said = policy.refuses(event, run_type=run_type, run_created_at=NOW)
    assert (said is None) if why is None else (why in (said or ""))


def test_a_decision_from_before_the_run_is_not_for_it(policy: ApprovalPolicy) -> None:
    """The run id of a run that was purged may be used again; what was decided then is not decided now."""
    event = signed("ann")
    later = NOW + timedelta(hours=1)
    said = policy.refuses(event, run_type="refund", run_created_at=later)
    assert "before this run began" in (said or "")
    assert policy.refuses(event, run_type="refund", run_created_at=NOW + timedelta(minutes=2)) is None


def test_a_signature_over_another_name_does_not_count_for_a_rule(policy: ApprovalPolicy) -> None:
    event = replace(decided("ann"), extensions=signed("eve").extensions)
    assert "another decision" in (policy.refuses(event, run_type="refund", run_created_at=NOW) or "")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "No such file"),
        ("{", "JSON"),
        ("{}", "rules"),
        ('{"rules": [{"run_types": [], "approvers": []}]}', "rules.0.run_types"),
        ('{"rules": [{"run_types": ["a"], "approver": ["x"]}]}', "rules.0.approver"),
        ('{"rules": [], "key": []}', "key"),
        (json.dumps({"rules": [], "keys": [json.loads(PRIVATE)]}), "keys.0.: is not public"),
    ],
)
def test_a_file_of_no_use_is_refused_with_the_field(text: str | None, named: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ApprovalPolicyError, match=named) as caught:
        ApprovalPolicy.read(file, topic=TOPIC)
    assert "TOWLINE_BRIDGE_APPROVAL_POLICY_FILE" in str(caught.value)
    assert json.loads(PRIVATE)["d"] not in str(caught.value)
