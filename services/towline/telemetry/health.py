"""The small HTTP server of a role that has no HTTP of its own: ``/healthz``, ``/readyz``, ``/metrics``.

It runs in a thread with an event loop of its own, so that it answers also while the role's loop is
busy: a stuck consumer is then reported, instead of looking like a dead host.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeAlias

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from towline.telemetry.listen import ListenError, split_listen

Check: TypeAlias = Callable[[], str | None]
"""Answers None when all is well, otherwise what is wrong, for a person. Called from another thread."""

_STOP_TIMEOUT_S: Final = 2.0


def well() -> str | None:
    """The check that always passes."""
    return None


def health_routes(*, live: Check = well, ready: Check = well) -> list[Route]:
    """Routes for ``/healthz``, ``/readyz`` and ``/metrics``, to mount in a role's own application.

    Args:
        live: What is wrong with this process that a restart would mend, or None.
        ready: Why this process can't do its work now, or None.
    """

    def answer(check: Check) -> Callable[[Request], Response]:
        def endpoint(_request: Request) -> Response:
            problem = check()
            return JSONResponse(
                {"status": "ok"} if problem is None else {"status": "unavailable", "reason": problem},
                status_code=200 if problem is None else 503,
            )

        return endpoint

    def metrics(_request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/healthz", answer(live)),
        Route("/readyz", answer(ready)),
        Route("/metrics", metrics),
    ]


class HealthServer:
    """Serves `health_routes` on `listen` ("host:port"; port 0 takes a free one) while the context is open.

    Raises:
        ValueError: `listen` is no such address.
        ListenError: On entry, if the address can't be bound.
    """

    def __init__(self, listen: str, *, live: Check = well, ready: Check = well) -> None:
        self._host, self._port = split_listen(listen)
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=health_routes(live=live, ready=ready)),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """The address that is served, "host:port"."""
        return f"{self._host}:{self._port}"

    def __enter__(self) -> Self:
        listener = self._listener()
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="health-server", daemon=True
        )
        self._thread.start()
        return self

    def _listener(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
            listener.listen()
        except OSError as error:
            listener.close()
            raise ListenError(f"cannot serve health checks on {self.address}: {error}") from error
        return listener

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)
