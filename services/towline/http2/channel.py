"""A channel for the code that protoc generates, and for what is built on that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from towline.http2.calls import Calls, Metadata


class DirectChannel(grpc.aio.Channel):
    """Makes short unary calls by `Calls`, all with the same bound and metadata.

    For calls that are to be answered soon: one without an answer for its whole time, on a connection where
    nothing else came meanwhile, ends that connection. Streams raise NotImplementedError when they are called.

    Args:
        calls: Not closed with the channel.
        timeout_s: Longest that a call may take.
        metadata: Headers of each call.
    """

    def __init__(self, calls: Calls, *, timeout_s: float, metadata: Metadata) -> None:
        self._calls, self._timeout_s, self._metadata = calls, timeout_s, metadata

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """A function that makes the call."""
        encode, decode = request_serializer or bytes, response_deserializer or bytes

        async def call(request: Any) -> Any:
            answer = await self._calls.call(
                method, encode(request), timeout_s=self._timeout_s, metadata=self._metadata
            )
            return decode(answer)

        return call

    def unary_stream(self, *_method: Any, **_options: Any) -> Any:
        """Not here; generated code asks for it when it is made."""
        return _not_here

    stream_unary = stream_stream = unary_stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        return None

    async def close(self, grace: float | None = None) -> None:
        """Nothing: the calls are somebody else's."""

    def get_state(self, *_options: Any, **_named: Any) -> NoReturn:
        """Not here: a call connects if need be."""
        _not_here()

    async def wait_for_state_change(self, *_options: Any, **_named: Any) -> NoReturn:
        """Not here."""
        _not_here()

    async def channel_ready(self) -> NoReturn:
        """Not here."""
        _not_here()


def _not_here(*_request: Any, **_options: Any) -> NoReturn:
    raise NotImplementedError("a direct channel makes calls with one answer, and no more than that")
