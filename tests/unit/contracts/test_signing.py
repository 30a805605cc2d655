"""Signed decisions: what a signature proves, and everything that it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from towline.contracts import decode, encode
from towline.contracts.errors import SignatureInvalidError, SigningKeyError
from towline.contracts.events import ApprovalDecided, Event, EventRaised
from towline.contracts.signing import DECISION_TOKEN, DecisionSigner, DecisionVerifier, new_signing_key

TOPIC = "towline.approvals"
NOON = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
PRIVATE, PUBLIC = new_signing_key()
SIGNER = DecisionSigner(PRIVATE, topic=TOPIC)
VERIFIER = DecisionVerifier([json.loads(PUBLIC)], topic=TOPIC)


def decision(**fields: Any) -> Event[ApprovalDecided]:
    data = {"run_id": "r-1", "approval_id": "ask", "approved": True, "approver": "ann", **fields}
    return Event(id="d-1", source="test", data=ApprovalDecided.model_validate(data), time=NOON)


def over_the_wire(event: Event[Any]) -> Event[Any]:
    record = encode(event)
    return decode(key=record.key, value=record.value, headers=record.headers)


def test_a_signed_decision_proves_its_approver_after_a_way_over_kafka() -> None:
    signed = SIGNER.sign(decision(data={"n": 1.0, "ü": [None, {"a": None}]}, feedback="fine"), "ann")
    vouched = VERIFIER.verify(over_the_wire(signed))
    assert vouched.approver == "ann"
    assert vouched.key_id == json.loads(PUBLIC)["kid"]
    assert abs(vouched.signed_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_raised_event_is_signed_as_a_decision_is() -> None:
    event = Event(id="e-1", source="test", data=EventRaised(run_id="r-1", name="paid", data=[1]))
    assert VERIFIER.verify(over_the_wire(SIGNER.sign(event, "ann"))).approver == "ann"


SIGNED = SIGNER.sign(decision(), "ann")


@pytest.mark.parametrize(
    "other",
    [
        replace(SIGNED, id="d-2"),
        replace(SIGNED, time=NOON - timedelta(hours=1)),
        replace(SIGNED, time=None),
        *(
            replace(SIGNED, data=decision(**fields).data)
            for fields in (
                {"run_id": "r-2"},
                {"approval_id": "ask~2"},
                {"approved": False},
                {"approver": "eve"},
                {"approver": None},
                {"feedback": "more"},
                {"data": {"amount": 9}},
                {"digest": "d"},
            )
        ),
        replace(SIGNED, data=EventRaised(run_id="r-1", name="ask")),
    ],
)
def test_a_signature_proves_nothing_about_another_event(other: Event[Any]) -> None:
    with pytest.raises(SignatureInvalidError, match="another decision"):
        VERIFIER.verify(other)


def test_a_name_in_the_data_that_the_signer_did_not_vouch_for_is_refused() -> None:
    with pytest.raises(SignatureInvalidError, match="another approver"):
        VERIFIER.verify(SIGNER.sign(decision(approver="boss"), "ann"))


def test_a_signature_is_for_one_installations_topic() -> None:
    with pytest.raises(SignatureInvalidError, match="another installation"):
        VERIFIER.verify(DecisionSigner(PRIVATE, topic="test.approvals").sign(decision(), "ann"))


def token(**changes: Any) -> str:
    """A token as the signer makes it, but for `changes`."""
    old = SIGNED.extensions[DECISION_TOKEN]
    header = {**jwt.get_unverified_header(old), **changes.pop("header", {})}
    key = changes.pop("key", jwt.PyJWK(json.loads(PRIVATE)).key)
    claims = {**jwt.decode(old, options={"verify_signature": False}), **changes}
    algorithm = header.pop("alg")
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers=header)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not signed"),
        ("a.b.c", "not valid"),
        (token(header={"alg": "none"}, key=None), "another kind"),
        (token(header={"alg": "HS256"}, key=json.loads(PUBLIC)["x"]), "another kind"),
        (token(header={"typ": "JWT"}), "another kind"),
        (token(header={"kid": "other"}), "not known"),
        (token(key=jwt.PyJWK(json.loads(new_signing_key()[0])).key), "not valid"),
        (token(sub=None), "not valid"),
        (token(aud=[TOPIC, "x"]), "another installation"),
        (token(iat=int(datetime.now(UTC).timestamp()) + 3600), "not valid"),
    ],
)
def test_a_token_that_the_key_did_not_make_for_this_is_refused(text: str, why: str) -> None:
    extensions = {DECISION_TOKEN: text} if text else {}
    with pytest.raises(SignatureInvalidError, match=why):
        VERIFIER.verify(replace(SIGNED, extensions=extensions))


def test_two_keys_serve_while_keys_are_exchanged() -> None:
    newer_private, newer_public = new_signing_key()
    both = DecisionVerifier([json.loads(PUBLIC), json.loads(newer_public)], topic=TOPIC)
    newer = DecisionSigner(newer_private, topic=TOPIC).sign(decision(), "ann")
    assert [both.verify(event).approver for event in (SIGNED, newer)] == ["ann", "ann"]
    with pytest.raises(SignatureInvalidError, match="not known"):
        DecisionVerifier([json.loads(newer_public)], topic=TOPIC).verify(SIGNED)


def test_a_token_with_the_longest_names_fits_an_attribute() -> None:
    event = replace(decision(run_id="r" * 128, approver="ä" * 128), id="i" * 512)
    assert VERIFIER.verify(over_the_wire(SIGNER.sign(event, "ä" * 128))).approver == "ä" * 128


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        (PUBLIC, "public key"),
        ('{"d": "AA"}', "kid"),
        (json.dumps({**json.loads(PRIVATE), "alg": "HS256"}), "alg"),
        (json.dumps({**json.loads(PRIVATE), "d": "A"}), "no key"),
    ],
)
def test_a_key_of_no_use_is_refused_without_being_shown(key: str, why: str) -> None:
    with pytest.raises(SigningKeyError, match=why) as caught:
        DecisionSigner(key, topic=TOPIC)
    assert json.loads(PRIVATE)["d"] not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([PRIVATE], r"keys\[0\]: is not public"),
        ([PUBLIC, PUBLIC], r"keys\[1\]: kid"),
        ([PUBLIC, "{}"], "kid"),
    ],
)
def test_a_set_of_keys_that_can_not_be_right_is_refused(keys: list[str], why: str) -> None:
    with pytest.raises(SigningKeyError, match=why):
        DecisionVerifier([json.loads(key) for key in keys], topic=TOPIC)
