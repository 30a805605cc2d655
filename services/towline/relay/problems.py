"""HTTP errors as problem+json (RFC 9457): each names the field and the fix."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from towline.contracts.errors import PayloadStoreAwayError
from towline.relay.errors import RedisAwayError, RelayError

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_TITLES: Final[Mapping[int, str]] = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body too large",
    415: "Unsupported media type",
    422: "Invalid input",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


class ProblemError(RelayError):
    """An answer other than success.

    Args:
        status: HTTP status.
        code: Stable word for programs.
        detail: What is wrong and how to mend it.
        errors: One {field, message} for each field at fault.
        headers: More response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The problem as JSON."""
        body: dict[str, Any] = {
            "type": f"urn:towline:problem:{self.code}",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        return {**body, "errors": list(self.errors)} if self.errors else body

    def response(self) -> Response:
        """The problem as a response."""
        return JSONResponse(self.body(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid(error: ValidationError) -> ProblemError:
    """The problem that names each field that a model refused."""
    errors = [
        {"field": ".".join(str(part) for part in item["loc"]) or "body", "message": item["msg"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return ProblemError(422, "invalid_input", detail, errors=errors)


def on_problem(_request: Request, error: Exception) -> Response:
    """Starlette's handler for `ProblemError`."""
    assert isinstance(error, ProblemError)
    return error.response()


def on_redis_away(_request: Request, error: Exception) -> Response:
    """Starlette's handler for `RedisAwayError`."""
    _log.warning("redis_away", extra={"error": str(error)})
    return ProblemError(
        503, "redis_away", "the stream store does not answer; try again", headers={"Retry-After": "1"}
    ).response()


def on_payload_store_away(_request: Request, error: Exception) -> Response:
    """Starlette's handler for `PayloadStoreAwayError`."""
    _log.warning("payload_store_away", extra={"error": str(error)})
    return ProblemError(
        503,
        "payload_store_away",
        "the payload store does not answer; try again",
        headers={"Retry-After": "2"},
    ).response()


def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's handler for its own errors: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "http_error")
    return ProblemError(error.status_code, code, error.detail, headers=error.headers).response()


def on_caller_left(_request: Request, _error: Exception) -> Response:
    """Starlette's handler for a caller that leaves before its body is whole: nobody takes the answer."""
    return ProblemError(400, "incomplete_body", "body: ended before it was whole").response()


def on_bug(_request: Request, error: Exception) -> Response:
    """Starlette's handler for everything else."""
    _log.error("request_failed", exc_info=error)
    return ProblemError(500, "internal_error", "the request failed; the relay's log says why").response()


HANDLERS: Final = {
    ProblemError: on_problem,
    RedisAwayError: on_redis_away,
    PayloadStoreAwayError: on_payload_store_away,
    ClientDisconnect: on_caller_left,
    HTTPException: on_http_exception,
    Exception: on_bug,
}
