"""API keys: high-entropy secrets of which only the SHA-256 is kept.

A key file holds one JSON object a line: ``{"name": "ci", "sha256": "…", "roles": ["read", "start"]}``; empty
lines and lines that begin with ``#`` are skipped. The name is the subject: the approver, the requester.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection

from towline.relay.errors import RelaySettingsError
from towline.relay.principals import Principal, Role, bearer
from towline.relay.problems import ProblemError

KEY_PREFIX: Final = "tlk_"
_SECRET_BYTES: Final = 32


class KeyEntry(BaseModel):
    """One line of a key file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=128)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    roles: list[Role]


def key_hash(key: str) -> str:
    """What is kept of a key. A fast hash will do: there is nothing to guess in 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(name: str, roles: Iterable[Role]) -> tuple[str, str]:
    """A new key, to be shown once, and its line for the key file."""
    key = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return key, key_line(key, name, roles)


def key_line(key: str, name: str, roles: Iterable[Role]) -> str:
    """The line of `key` for the key file."""
    return KeyEntry(name=name, sha256=key_hash(key), roles=sorted(set(roles))).model_dump_json()


def parse_keys(text: str, *, where: str) -> dict[str, Principal]:
    """Principals by key hash.

    Raises:
        RelaySettingsError: A line is not valid; it is named, its content is not shown.
    """
    principals: dict[str, Principal] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = KeyEntry.model_validate(json.loads(line))
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise RelaySettingsError(f"{where}, line {number}: {field}: {problem['msg']}") from None
        except ValueError:
            raise RelaySettingsError(f"{where}, line {number}: is not a JSON object") from None
        principals[entry.sha256] = Principal(entry.name, frozenset(entry.roles))
    if not principals:
        raise RelaySettingsError(f"{where}: holds no key; make one with: towline relay new-key NAME")
    return principals


class KeyAuth:
    """Knows callers by ``Authorization: Bearer tlk_…`` or ``X-API-Key: tlk_…``."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self._principals = principals

    async def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """See `Authenticator.authenticate`."""
        key = connection.headers.get("x-api-key") or bearer(connection)
        if key is None or not key.startswith(KEY_PREFIX):
            return None
        principal = self._principals.get(key_hash(key))
        if principal is None:
            raise ProblemError(
                401, "unknown_key", "the API key is not known here", headers={"WWW-Authenticate": "Bearer"}
            )
        return principal
