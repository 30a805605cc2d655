"""A call by itself: what is still to be sent of it, what has come, and how it ends. Knows no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote

import grpc
import grpc.aio

from towline.http2.frames import number

Code = grpc.StatusCode
ANSWER_BYTES_MAX: Final = 4 << 20
"""Of one message, unless more is asked for; gRPC's own limit."""
_PREFIX_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length."""
_HTTP_CODES: Final[Mapping[str, grpc.StatusCode]] = {
    "400": Code.INTERNAL,
    "401": Code.UNAUTHENTICATED,
    "403": Code.PERMISSION_DENIED,
    "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE,
    "502": Code.UNAVAILABLE,
    "503": Code.UNAVAILABLE,
    "504": Code.UNAVAILABLE,
}
_CODES: Final = {str(code.value[0]): code for code in grpc.StatusCode}


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """A call's failure, as gRPC's own clients tell it."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details=details)


class NotTakenError(Exception):
    """The peer has not looked at the call: it may be made again on another connection."""


class Call:
    """A call with one answer.

    Args:
        block: Its headers, as they are sent.
        message: The request.
        answer: Gets the answer, or the error.
        answer_bytes_max: A larger answer is an error.
    """

    __slots__ = (
        "_answer_bytes_max",
        "_body",
        "_headers",
        "_request",
        "answer",
        "block",
        "held",
        "stream",
        "unsent",
        "window",
    )

    def __init__(
        self,
        block: bytes,
        message: bytes,
        answer: asyncio.Future[bytes],
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self.block = block
        self.answer = answer
        self._answer_bytes_max = answer_bytes_max
        self._request = b"\0" + len(message).to_bytes(4, "big") + message
        self.unsent = memoryview(self._request)
        self.window = 0
        """Bytes that the peer still takes of it."""
        self.stream = 0
        self.held = 0
        """Bytes that came since the peer was last told that it may send more."""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def rewind(self) -> None:
        """Nothing of it has been looked at: it may be made again."""
        self.unsent, self.stream, self.held = memoryview(self._request), 0, 0
        self._headers, self._body = {}, bytearray()

    def told(self, headers: Iterable[tuple[str, str]]) -> None:
        """Headers or trailers came."""
        self._headers.update(headers)

    def take(self, data: bytes) -> None:
        """A part of the answer came.

        Raises:
            grpc.aio.AioRpcError: It is too large.
        """
        self._body += data
        if len(self._body) > self._answer_bytes_max + _PREFIX_BYTES:
            raise rpc_error(Code.RESOURCE_EXHAUSTED, f"an answer larger than {self._answer_bytes_max} bytes")

    def fail(self, error: Exception) -> None:
        """End it without an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def end(self) -> None:
        """All of the answer is there."""
        body = self._body
        if (error := _status_error(self._headers)) is not None:
            self.fail(error)
        elif len(body) < _PREFIX_BYTES or body[0] or len(body) != _PREFIX_BYTES + number(bytes(body[1:5])):
            self.fail(rpc_error(Code.INTERNAL, "an answer that is no single message without compression"))
        elif not self.answer.done():
            self.answer.set_result(bytes(body[_PREFIX_BYTES:]))


def _status_error(headers: Mapping[str, str]) -> grpc.aio.AioRpcError | None:
    http, status = headers.get(":status"), headers.get("grpc-status")
    if status is None:
        code = _HTTP_CODES.get(http or "", Code.UNKNOWN)
        return rpc_error(code, f"HTTP status {http}, and no gRPC status")
    if status == "0":
        return None
    return rpc_error(_CODES.get(status, Code.UNKNOWN), unquote(headers.get("grpc-message", "")))
