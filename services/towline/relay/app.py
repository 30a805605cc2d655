"""Puts the relay together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from towline.relay.guard import Guard
from towline.relay.limits import RateLimiter
from towline.relay.openapi import description_routes
from towline.relay.pages import page_routes
from towline.relay.principals import Authenticator, NoAuth
from towline.relay.problems import HANDLERS
from towline.relay.routes import Door
from towline.relay.settings import RelaySettings
from towline.relay.tracing import TracedCommands
from towline.telemetry import health_routes

Check = Callable[[], str | None]


def build_app(
    door: Door,
    settings: RelaySettings,
    *,
    authenticators: Sequence[Authenticator],
    live: Check,
    ready: Check,
    asked: Callable[[], None],
) -> Starlette:
    """The relay's ASGI application.

    Args:
        door: The API.
        settings: Limits, and whose pages may ask.
        authenticators: Tried in order; the first that knows the caller wins.
        live: What a restart would mend, or None.
        ready: Why the relay is of no use now, or None.
        asked: Called for each request of the API that is let through.
    """
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    middleware = [
        Middleware(
            Guard,
            authenticators=authenticators,
            limiter=RateLimiter(rate_per_s=settings.rate_per_s, burst=settings.rate_burst),
            origins=frozenset(origins),
            admitted=asked,
            loopback_only=any(isinstance(one, NoAuth) for one in authenticators),
        )
    ]
    middleware.append(Middleware(TracedCommands))
    if origins:
        # Outside the guard: a browser asks for permission without credentials.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=[
                    "Authorization",
                    "Content-Type",
                    "Idempotency-Key",
                    "Last-Event-ID",
                    "X-API-Key",
                ],
            ),
        )
    return Starlette(
        routes=[
            *health_routes(live=live, ready=ready),
            *description_routes(),
            *page_routes(),
            *door.routes(),
        ],
        middleware=middleware,
        exception_handlers=dict(HANDLERS),
    )
