"""Header blocks of HTTP/2 (RFC 7541), written and read."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import hpack

from towline.http2.frames import Http2Error

Headers = tuple[tuple[str, str], ...]

HEADER_LIST_BYTES: Final = 65_536
"""Larger ones are not read."""
TABLE_BYTES: Final = 4_096
"""Size of a table of which nothing was said."""
_REMEMBERED_BYTES: Final = 2_048
_SIZE_UPDATE: Final = 0x20
_SIZE_UPDATE_MASK: Final = 0xE0
NO_TABLE: Final = bytes((_SIZE_UPDATE,))
"""Begins a block: the table of who wrote it has the size 0 from now on."""


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as literals that are never indexed: the same bytes each time, to be made once."""
    return b"".join(b"\x00" + literal(name) + literal(value) for name, value in headers)


def literal(value: str) -> bytes:
    """A string as it is in a block, without Huffman coding."""
    data = value.encode()
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    prefix, size = bytearray((127,)), size - 127
    while size >= 128:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data


class HeaderReader:
    """Reads the header blocks of one peer, in the order in which they come.

    A peer that keeps no table, as we ask all to, sends blocks that stand alone: each is decoded once and
    remembered. Until it has heard of that it may keep one.
    """

    def __init__(self) -> None:
        self._decoder: Any = hpack.Decoder(HEADER_LIST_BYTES)

    def read(self, block: bytes) -> Headers:
        """The headers in a block.

        Raises:
            Http2Error: It can't be read; nor can any that follows.
        """
        if (
            len(block) <= _REMEMBERED_BYTES
            and not self._decoder.header_table.dynamic_entries
            and (headers := _alone(block)) is not None
        ):
            return headers
        return _decode(self._decoder, block)


@lru_cache(maxsize=512)
def _alone(block: bytes) -> Headers | None:
    """The headers in a block that neither needs nor makes a table; None if it does."""
    if block and block[0] & _SIZE_UPDATE_MASK == _SIZE_UPDATE:
        return None
    decoder: Any = hpack.Decoder(HEADER_LIST_BYTES)
    try:
        headers = _decode(decoder, block)
    except Http2Error:
        return None
    return None if decoder.header_table.dynamic_entries else headers


def _decode(decoder: Any, block: bytes) -> Headers:
    try:
        decoded: list[tuple[bytes, bytes]] = decoder.decode(block, raw=True)
    except hpack.HPACKError as error:
        raise Http2Error(f"a header block that can't be read: {error!r}") from error
    return tuple((name.decode(errors="replace"), value.decode(errors="replace")) for name, value in decoded)
