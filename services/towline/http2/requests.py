"""What the headers of a gRPC call ask for (gRPC's PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from towline.http2.headers import Headers, header_block, literal

_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])")
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
_UNQUOTED: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
_DETAILS_CHARACTERS: Final = 2_000
"""Longer ones are cut off: clients take 8 KiB of headers."""

OPENED: Final = b"\x88\x0f\x10" + literal("application/grpc")
"""Headers of an answer: ``:status`` 200 and name ``content-type`` are entries 8 and 31 of the static table
(RFC 7541, appendix A)."""
SUCCEEDED: Final = header_block((("grpc-status", "0"),))
"""Trailers of a call that went well."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of a call before its message."""

    path: str
    metadata: Headers
    timeout_s: float | None
    """Seconds from its arrival that the caller waits."""
    window_bits: int | None
    """How its messages may be compressed, as zlib has it; None if they are not."""
    http_refusal: str = ""
    """HTTP status if it is no gRPC call."""
    refusal: str = ""
    """What can't be done, of one that is."""


@lru_cache(maxsize=512)
def read_request(headers: Headers) -> Request:
    """The request that the headers of a call make."""
    values = dict(headers)
    encoding = values.get("grpc-encoding", "identity")
    timeout = values.get("grpc-timeout")
    measured = None if timeout is None else _TIMEOUT.fullmatch(timeout)
    http_refusal, refusal = "", ""
    if not values.get("content-type", "").startswith("application/grpc"):
        http_refusal = "415"
    elif values.get(":method") != "POST":
        http_refusal = "405"
    elif timeout is not None and measured is None:
        refusal = f"grpc-timeout: {timeout!r} is no number of at most 8 digits with a unit"
    elif encoding != "identity" and encoding not in _WINDOW_BITS:
        refusal = f"grpc-encoding: {encoding!r} is not known here; send identity, deflate or gzip"
    return Request(
        path=values.get(":path", ""),
        metadata=tuple(header for header in headers if not header[0].startswith(":")),
        timeout_s=None if measured is None else int(measured[1]) * _UNITS_S[measured[2]],
        window_bits=_WINDOW_BITS.get(encoding),
        http_refusal=http_refusal,
        refusal=refusal,
    )


def ended(code: int, details: str, *, opened: bool) -> bytes:
    """Trailers of a call; with its headers, unless they have been sent."""
    message = quote(details[:_DETAILS_CHARACTERS], _UNQUOTED)
    trailers = header_block((("grpc-status", str(code)), ("grpc-message", message)))
    return trailers if opened else OPENED + trailers


def refused(http_status: str) -> bytes:
    """Headers of the answer to what is no gRPC call."""
    return header_block(((":status", http_status),))


def decompressed(data: bytes, window_bits: int | None, bytes_max: int) -> bytes | None:
    """A message as it was before it was compressed; None if it is larger than allowed.

    Raises:
        ValueError: It is not what its encoding says.
    """
    if window_bits is None:
        raise ValueError("grpc-encoding does not say how it was compressed")
    reader = zlib.decompressobj(window_bits)
    try:
        message = reader.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(message) > bytes_max:
        return None
    if not reader.eof:
        raise ValueError("it breaks off")
    return message
