"""Signed decisions: who decided, vouched for by whoever let them in, so that not every publisher is believed.

A signed decision (or raised event) carries a compact JWT in the CloudEvents attribute `decisiontoken`. It
says who decided (`sub`) and binds that to this one event: a digest of its id, type, time and data (run,
approval, verdict, feedback, approver), the topic (`aud`) and the time of signing (`iat`). Copied to another
event, ask, run or installation it proves nothing. The relay signs what its callers decide; any other service
that knows who its users are may do the same with a key of its own. Needs PyJWT: ``towline[relay]``,
``towline[bridge]`` or ``towline[signing]``. Why: docs/decisions/0009-signed-decisions.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from towline.contracts.canonical import canonical_json, digest
from towline.contracts.errors import SignatureInvalidError, SigningKeyError
from towline.contracts.events import ApprovalDecided, Event, EventRaised

DECISION_TOKEN: Final = "decisiontoken"  # noqa: S105 - the name of an attribute
"""CloudEvents extension attribute that carries the token."""

DataT = TypeVar("DataT", ApprovalDecided, EventRaised)

_TOKEN_TYPE: Final = "towline-decision+jwt"  # noqa: S105 - the name of a kind of token
# Signatures by a private key only: whoever checks them must not be able to make them.
_ALGORITHMS: Final = (
    "EdDSA",
    "ES256",
    "ES384",
    "ES512",
    "PS256",
    "PS384",
    "PS512",
    "RS256",
    "RS384",
    "RS512",
)
_REQUIRED: Final = ("sub", "iat", "aud", "event")
_LEEWAY_S: Final = 60.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PRIVATE_FIELDS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a valid token says."""

    approver: str
    """Who decided."""
    signed_at: datetime
    key_id: str


class DecisionSigner:
    """Signs decisions with one private key.

    Args:
        key: The private key as a JWK (JSON text) with `kid` and `alg`; see `new_signing_key`.
        topic: The full name of the topic that takes decisions, for example ``towline.approvals``.
        now: Unix time.

    Raises:
        SigningKeyError: `key` is none.
    """

    def __init__(self, key: str, *, topic: str, now: Callable[[], float] = time.time) -> None:
        fields = _parsed(key)
        if "d" not in fields:
            raise SigningKeyError("is a public key: give the private one, with the field 'd'")
        self._key = _jwk(fields)
        self._topic = topic
        self._now = now

    def sign(self, event: Event[DataT], approver: str) -> Event[DataT]:
        """`event` with a token which says that `approver` decided just that."""
        claims = {
            "sub": approver,
            "iat": int(self._now()),
            "aud": self._topic,
            "event": _content(event),
        }
        token = jwt.encode(
            claims,
            self._key.key,
            algorithm=self._key.algorithm_name,
            headers={"kid": self._key.key_id, "typ": _TOKEN_TYPE},
        )
        return replace(event, extensions={**event.extensions, DECISION_TOKEN: token})


class DecisionVerifier:
    """Checks tokens by a set of public keys. Two or more serve while keys are exchanged.

    Args:
        keys: Public keys as JWKs with `kid` and `alg`.
        topic: As for `DecisionSigner`.

    Raises:
        SigningKeyError: One of them is no public key, or two have one `kid`; the message names it.
    """

    def __init__(self, keys: Iterable[Mapping[str, Any]], *, topic: str) -> None:
        self._topic = topic
        self._keys: dict[str, jwt.PyJWK] = {}
        for number, fields in enumerate(keys):
            where = f"keys[{number}]"
            if not _PRIVATE_FIELDS.isdisjoint(fields):
                raise SigningKeyError(
                    f"{where}: is not public: only whoever signs may have it; leave out 'd'"
                )
            try:
                key = _jwk(fields)
            except SigningKeyError as error:
                raise SigningKeyError(f"{where}: {error}") from None
            if self._keys.setdefault(str(key.key_id), key) is not key:
                raise SigningKeyError(f"{where}: kid: {key.key_id!r} names another key too")

    def verify(self, event: Event[ApprovalDecided] | Event[EventRaised]) -> Vouched:
        """Who decided, as the event's token proves.

        Raises:
            SignatureInvalidError: It has no token, or one that does not prove it; the message says why.
        """
        token = event.extensions.get(DECISION_TOKEN)
        if token is None:
            raise SignatureInvalidError("it is not signed")
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(str(header.get("kid")))
            if key is None:
                raise SignatureInvalidError("it is signed with a key that is not known here")
            if header.get("typ") != _TOKEN_TYPE or header.get("alg") != key.algorithm_name:
                raise SignatureInvalidError("its signature is of another kind")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._topic,
                leeway=_LEEWAY_S,
                options={"require": list(_REQUIRED), "strict_aud": True},
            )
        except jwt.InvalidAudienceError as error:
            raise SignatureInvalidError("its signature is for another installation's topic") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise SignatureInvalidError(f"its signature is not valid: {error}") from error
        if claims["event"] != _content(event):
            raise SignatureInvalidError("its signature is for another decision")
        approver = str(claims["sub"])
        if isinstance(event.data, ApprovalDecided) and event.data.approver != approver:
            raise SignatureInvalidError("its signature is for another approver")
        return Vouched(approver, datetime.fromtimestamp(float(claims["iat"]), UTC), str(key.key_id))


def new_signing_key() -> tuple[str, str]:
    """A new Ed25519 key pair: private and public JWK, as JSON text. `kid` is its thumbprint (RFC 7638)."""
    fields = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)
    public = {name: fields[name] for name in ("crv", "kty", "x")}
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical_json(public)).digest()).rstrip(b"=")
    named = {"kid": thumbprint.decode(), "alg": "EdDSA", "use": "sig"}
    return json.dumps({**public, "d": fields["d"], **named}), json.dumps({**public, **named})


def _content(event: Event[Any]) -> str:
    """Digest of what the event says. Its time counts: an ask's deadline is compared with it."""
    return digest(
        {
            "id": event.id,
            "type": event.type,
            "time": None if event.time is None else (event.time - _EPOCH) // timedelta(microseconds=1),
            "data": event.data.model_dump(mode="json", exclude_none=True),
        }
    )


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        # Not chained: the error would quote the key.
        raise SigningKeyError("is not JSON: make a key with towline relay new-signing-key") from None
    if not isinstance(fields, dict):
        raise SigningKeyError("is no JSON object: make a key with towline relay new-signing-key")
    return cast("dict[str, Any]", fields)


def _jwk(fields: Mapping[str, Any]) -> jwt.PyJWK:
    key_id = fields.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise SigningKeyError("kid: is missing: give the key a name")
    if fields.get("alg") not in _ALGORITHMS:
        raise SigningKeyError(f"alg: must be one of {', '.join(_ALGORITHMS)}")
    try:
        return jwt.PyJWK(dict(fields))
    except (jwt.PyJWTError, ValueError, KeyError, TypeError):
        raise SigningKeyError(f"kid {key_id!r}: is no key of that kind") from None
