"""Server-sent events as bytes. Pure."""

from __future__ import annotations

import re
from typing import Final

HEARTBEAT: Final = b": heartbeat\n\n"
OPENING: Final = b"retry: 1000\n\n"
"""Tells a browser how long to wait, in ms, before it connects again."""
START_ID: Final = "0-0"
"""Cursor before the first entry."""
_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_ID_NUMBER_MAX: Final = 2**64 - 1


def encode(entry_id: str, event: str, data: str) -> bytes:
    """One event. `data` is JSON on one line."""
    return f"id: {entry_id}\nevent: {event}\ndata: {data}\n\n".encode()


def chunk(body: bytes) -> bytes:
    """`body` as a chunk of a chunked HTTP/1.1 response; nothing for nothing: an empty one would end it."""
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""


def is_cursor(value: str) -> bool:
    """Whether `value` may be an entry's id."""
    return _ID.fullmatch(value) is not None and max(id_key(value)) <= _ID_NUMBER_MAX


def id_key(entry_id: str) -> tuple[int, int]:
    """Sort key of entry ids."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def reset(reason: str) -> bytes:
    """All that was sent before is void; what follows begins anew. A client that resumes here gets all."""
    return encode(START_ID, "reset", f'{{"reason":"{reason}"}}')
