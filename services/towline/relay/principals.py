"""Who calls, and what they may do. Pure.

Roles: `read` sees runs and streams, `start` starts and controls runs, `approve` decides approvals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from starlette.requests import HTTPConnection

Role: TypeAlias = Literal["read", "start", "approve"]
ROLES: Final[frozenset[Role]] = frozenset({"read", "start", "approve"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller."""

    subject: str | None
    """Who it is, as it appears as approver and requester; None when the relay runs without auth."""
    roles: frozenset[Role]
    expires_at: float | None = None
    """Unix time at which the credentials end, and with them the caller's streams."""

    @property
    def limit_key(self) -> str:
        """What its requests are counted under."""
        return self.subject or "anyone"


ANYONE: Final = Principal(None, ROLES)
"""Every caller of a relay without auth, which listens on loopback only."""


class Authenticator(Protocol):
    """Finds out who calls."""

    async def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """The caller; None if the request carries no credentials of this kind.

        Raises:
            ProblemError: It carries some, and they are not valid.
        """
        ...


def parse_roles(names: Iterable[object]) -> frozenset[Role]:
    """The known roles among `names`; others are another system's and mean nothing here."""
    return frozenset(name for name in names if name in ROLES)


def bearer(connection: HTTPConnection) -> str | None:
    """The credentials of ``Authorization: Bearer …``."""
    scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else None


class NoAuth:
    """Lets everybody in."""

    async def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """See `Authenticator.authenticate`."""
        del connection
        return ANYONE
