"""A call by itself: what is still to be sent of it, what has come, and how it ends. Knows no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote

import grpc
import grpc.aio

from towline.http2.connection import Stream
from towline.http2.frames import number
from towline.http2.messages import PREFIX_BYTES, prefixed

Code = grpc.StatusCode
ANSWER_BYTES_MAX: Final = 4 << 20
"""Of one message, unless more is asked for; gRPC's own limit."""
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


class Exchange(Stream):
    """What calls of all kinds have in common.

    Args:
        block: Its headers, as they are sent.
        message: The request.
    """

    __slots__ = ("_headers", "_request", "block")

    ends_with_data = True

    def __init__(self, block: bytes, message: bytes) -> None:
        super().__init__()
        self.block = block
        self._request = prefixed(message)
        self.unsent = memoryview(self._request)
        self._headers: dict[str, str] = {}

    def rewind(self) -> None:
        """Nothing of it has been looked at: it may be made again."""
        self.unsent, self.stream, self.held, self._headers = memoryview(self._request), 0, 0, {}

    def told(self, headers: Iterable[tuple[str, str]], *, last: bool) -> None:
        """Headers came, or trailers."""
        del last
        self._headers.update(headers)

    def take(self, data: bytes) -> None:
        """A part of what it is answered by came.

        Raises:
            grpc.aio.AioRpcError: It is too large, or not to be understood.
        """
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        raise NotImplementedError

    def end(self) -> None:
        """Nothing more will come."""
        raise NotImplementedError

    def _status_error(self) -> grpc.aio.AioRpcError | None:
        http, status = self._headers.get(":status"), self._headers.get("grpc-status")
        if status is None:
            code = _HTTP_CODES.get(http or "", Code.UNKNOWN)
            return rpc_error(code, f"HTTP status {http}, and no gRPC status")
        if status == "0":
            return None
        return rpc_error(_CODES.get(status, Code.UNKNOWN), unquote(self._headers.get("grpc-message", "")))


class Call(Exchange):
    """A call with one answer.

    Args:
        block: Its headers, as they are sent.
        message: The request.
        answer: Gets the answer, or the error.
        answer_bytes_max: A larger answer is an error.
    """

    __slots__ = ("_answer_bytes_max", "_body", "answer")

    def __init__(
        self,
        block: bytes,
        message: bytes,
        answer: asyncio.Future[bytes],
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        super().__init__(block, message)
        self.answer = answer
        self._answer_bytes_max = answer_bytes_max
        self._body = bytearray()

    def rewind(self) -> None:
        """Nothing of it has been looked at: it may be made again."""
        super().rewind()
        self._body = bytearray()

    def take(self, data: bytes) -> None:
        """A part of the answer came."""
        self._body += data
        if len(self._body) > self._answer_bytes_max + PREFIX_BYTES:
            raise rpc_error(Code.RESOURCE_EXHAUSTED, f"an answer larger than {self._answer_bytes_max} bytes")

    def fail(self, error: Exception) -> None:
        """End it without an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def end(self) -> None:
        """All of the answer is there."""
        body = self._body
        if (error := self._status_error()) is not None:
            self.fail(error)
        elif len(body) < PREFIX_BYTES or body[0] or len(body) != PREFIX_BYTES + number(bytes(body[1:5])):
            self.fail(rpc_error(Code.INTERNAL, "an answer that is no single message without compression"))
        elif not self.answer.done():
            self.answer.set_result(bytes(body[PREFIX_BYTES:]))
