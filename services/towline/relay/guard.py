"""What stands before every route: who calls, how often, and the headers that every answer carries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from towline.relay.auth.choose import is_loopback
from towline.relay.limits import RateLimiter
from towline.relay.pages import PAGE_PATHS
from towline.relay.principals import Authenticator, Principal, Role
from towline.relay.problems import ProblemError

OPEN_PATHS: Final = PAGE_PATHS | {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}
"""Served to everybody: they tell nothing about runs."""
_SECURITY_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        authenticators: Tried in order; the first that knows the caller wins.
        limiter: Counts requests by caller.
        admitted: Called for each request of the API that is let through.
        origins: Other origins whose pages may send commands.
        loopback_only: Answer requests to this machine's own names only.
        open_paths: Served without credentials.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticators: Sequence[Authenticator],
        limiter: RateLimiter,
        admitted: Callable[[], None],
        origins: frozenset[str] = frozenset(),
        loopback_only: bool = False,
        open_paths: frozenset[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._authenticators = authenticators
        self._limiter = limiter
        self._admitted = admitted
        self._origins = origins
        self._loopback_only = loopback_only
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            if scope["path"] not in self._open_paths:
                connection = HTTPConnection(scope)
                self._refuse_other_sites(connection)
                principal = await self._who(connection)
                self._limit(principal)
                scope.setdefault("state", {})["principal"] = principal
                self._admitted()
        except ProblemError as problem:
            await problem.response()(scope, receive, send_secured)
            return
        await self._app(scope, receive, send_secured)

    def _refuse_other_sites(self, connection: HTTPConnection) -> None:
        """A page of another site must not send commands, nor reach an open relay under a name of its own."""
        host = connection.headers.get("host", "")
        if self._loopback_only and not is_loopback(_split(f"//{host}").hostname or ""):
            raise ProblemError(
                403, "wrong_host", "a relay without auth answers to 127.0.0.1 and localhost only"
            )
        origin = connection.headers.get("origin")
        if origin is None or connection.scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        if origin not in self._origins and _split(origin).netloc != host:
            raise ProblemError(
                403,
                "cross_origin",
                f"pages of {origin} may not send commands: see TOWLINE_RELAY_CORS_ORIGINS",
            )

    def _limit(self, principal: Principal) -> None:
        wait_s = self._limiter.take(principal.limit_key, now=time.monotonic())
        if wait_s > 0:
            raise ProblemError(
                429,
                "rate_limited",
                f"too many requests; try again in {wait_s:.2f} s",
                headers={"Retry-After": str(int(wait_s) + 1)},
            )

    async def _who(self, connection: HTTPConnection) -> Principal:
        for authenticator in self._authenticators:
            principal = await authenticator.authenticate(connection)
            if principal is not None:
                return principal
        raise ProblemError(
            401,
            "no_credentials",
            "send an API key or a token in the header Authorization: Bearer …",
            headers={"WWW-Authenticate": "Bearer"},
        )


def require(connection: HTTPConnection, role: Role) -> Principal:
    """The caller, who must have `role`.

    Raises:
        ProblemError: They have not (403).
    """
    principal: Any = connection.scope["state"]["principal"]
    assert isinstance(principal, Principal)
    if role not in principal.roles:
        raise ProblemError(
            403, "role_missing", f"this needs the role {role!r}; {principal.subject} does not have it"
        )
    return principal


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # "[" without "]"
        return urlsplit("")
