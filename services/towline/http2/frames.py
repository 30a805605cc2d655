"""Frames of HTTP/2 (RFC 9113). Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES: Final = 16_384
"""What both sides take unless they say otherwise. We don't."""
_HEADER: Final = struct.Struct(">HBBBI")
_STREAM: Final = 0x7FFF_FFFF


class Kind(IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """Names of settings."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_PRIORITY: Final = 0x20


class Http2Error(Exception):
    """The peer does not keep to HTTP/2."""


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: Kind, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame to be sent."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: Iterable[tuple[Setting, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", name, value) for name, value in values))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The settings in a SETTINGS frame.

    Raises:
        Http2Error: It is cut off.
    """
    if len(payload) % 6:
        raise Http2Error("a SETTINGS frame of a wrong length")
    return struct.iter_unpack(">HI", payload)


def number(payload: bytes, at: int = 0) -> int:
    """The 32-bit number at `at`, its first bit ignored.

    Raises:
        Http2Error: It is cut off.
    """
    if len(payload) < at + 4:
        raise Http2Error("a frame that is too short")
    return int.from_bytes(payload[at : at + 4], "big") & _STREAM


class FrameReader:
    """Cuts what comes in into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`.

        Raises:
            Http2Error: One is larger than allowed.
        """
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= _HEADER.size:
            high, low, kind, flags, stream = _HEADER.unpack_from(data, at)
            size = high << 8 | low
            if size > MAX_FRAME_BYTES:
                raise Http2Error(f"a frame of {size} bytes")
            after = at + _HEADER.size + size
            if after > end:
                break
            yield Frame(kind, flags, stream & _STREAM, data[at + _HEADER.size : after])
            at = after
        self._rest = data[at:]


def content(received: Frame) -> bytes:
    """What a DATA or HEADERS frame holds, without padding and priority.

    Raises:
        Http2Error: It is cut off.
    """
    payload, padding = received.payload, 0
    if received.flags & _PADDED:
        if not payload:
            raise Http2Error("padding without its length")
        padding, payload = payload[0], payload[1:]
    if received.kind == Kind.HEADERS and received.flags & _PRIORITY:
        payload = payload[5:]
    if padding > len(payload):
        raise Http2Error("more padding than payload")
    return payload[: len(payload) - padding]
