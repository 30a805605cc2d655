"""OpenID Connect: access tokens (JWT) of one issuer for one audience, checked by PyJWT."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import httpx
import jwt
from starlette.requests import HTTPConnection

from towline.relay.errors import RelaySettingsError
from towline.relay.principals import Principal, bearer, parse_roles
from towline.relay.problems import ProblemError

_log = logging.getLogger(__name__)

# Signatures by a public key only: with a shared-secret algorithm the public key would be the secret.
_ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
_KEYS_FRESH_S: Final = 300.0
_FETCH_EVERY_S: Final = 10.0
"""An unknown key id makes us ask for new keys, but no more often than this."""
_FETCH_TIMEOUT_S: Final = 5.0
_LEEWAY_S: Final = 30.0
_TOKEN_LENGTH_MAX: Final = 16_384


class SigningKeys:
    """The issuer's signing keys, fetched when needed and kept for a while.

    Args:
        issuer: Its discovery document says where the keys are.
        jwks_url: Where the keys are, instead.
    """

    def __init__(self, issuer: str, jwks_url: str | None) -> None:
        self._issuer = issuer
        self._url = jwks_url
        self._keys: Mapping[str | None, Any] = {}
        self._fetched_at = -_KEYS_FRESH_S
        self._tried_at = -_FETCH_EVERY_S
        self._fetching = asyncio.Lock()

    async def get(self, key_id: str | None) -> Any:
        """The key named `key_id`, or None.

        Raises:
            ProblemError: The issuer does not answer, and no key is known (503).
        """
        unknown = key_id not in self._keys
        stale = time.monotonic() - self._fetched_at > _KEYS_FRESH_S
        # Somebody is asking already: what is unknown may be in the answer, what is known is good enough.
        if (unknown and self._fetching.locked()) or ((unknown or stale) and self._may_ask()):
            async with self._fetching:
                if self._may_ask():
                    await self._fetch()
        if not self._keys:
            raise ProblemError(
                503,
                "issuer_away",
                "the token issuer's keys cannot be had now; try again",
                headers={"Retry-After": "10"},
            )
        return self._keys.get(key_id)

    def _may_ask(self) -> bool:
        return time.monotonic() - self._tried_at > _FETCH_EVERY_S

    async def _fetch(self) -> None:
        self._tried_at = time.monotonic()
        try:
            async with (
                asyncio.timeout(2 * _FETCH_TIMEOUT_S),
                httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S) as client,
            ):
                url = self._url
                if url is None:
                    document = await client.get(
                        f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
                    )
                    url = str(document.raise_for_status().json()["jwks_uri"])
                    check_url("jwks_uri", url)
                answer = await client.get(url)
                keys = jwt.PyJWKSet.from_dict(answer.raise_for_status().json()).keys
        except Exception as error:  # noqa: BLE001 - it may answer anything, none of it is the caller's mistake
            # Keys that are known stay good: the issuer being away locks nobody out.
            _log.warning("signing_keys_unavailable", extra={"issuer": self._issuer, "error": repr(error)})
            return
        finally:
            # Those who waited for this answer do not ask once more, however long it took.
            self._tried_at = time.monotonic()
        self._keys = {key.key_id: key for key in keys}
        self._fetched_at = time.monotonic()


class OidcAuth:
    """Knows callers by ``Authorization: Bearer <JWT>``.

    Args:
        issuer: Must be the token's `iss`.
        audience: Must be in the token's `aud`.
        keys: The issuer's.
        roles_claim: Claim that lists the roles; dots go down (``realm_access.roles``).
    """

    def __init__(self, *, issuer: str, audience: str, keys: SigningKeys, roles_claim: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys = keys
        self._roles_claim = roles_claim

    async def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """See `Authenticator.authenticate`."""
        token = bearer(connection)
        if token is None or token.count(".") != 2:
            return None
        if len(token) > _TOKEN_LENGTH_MAX:
            raise _invalid("it is too long")
        try:
            key = await self._keys.get(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise _invalid("it is signed with a key that the issuer does not publish")
            claims = jwt.decode(
                token,
                key,
                algorithms=list(_ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise _invalid(str(error)) from error
        return Principal(
            str(claims["sub"]),
            parse_roles(_listed(claims, self._roles_claim)),
            expires_at=float(claims["exp"]) + _LEEWAY_S,
        )


def check_url(name: str, url: str) -> None:
    """Refuse an address at which keys could be replaced on the way.

    Raises:
        RelaySettingsError: It is neither https nor on this machine.
    """
    parsed = httpx.URL(url)
    if parsed.scheme != "https" and parsed.host not in ("127.0.0.1", "localhost", "::1"):
        raise RelaySettingsError(f"{name}: must begin with https://, not {url!r}")


def _invalid(why: str) -> ProblemError:
    return ProblemError(
        401,
        "invalid_token",
        f"the token is not accepted: {why}",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


def _listed(claims: Mapping[str, Any], path: str) -> Iterable[object]:
    value: Any = claims
    for name in path.split("."):
        value = cast("Mapping[str, Any]", value).get(name) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value.split()
    return cast("list[object]", value) if isinstance(value, list) else ()
