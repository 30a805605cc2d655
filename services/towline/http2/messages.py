"""How gRPC puts messages into a stream of data (PROTOCOL-HTTP2.md, "Length-Prefixed-Message")."""

from __future__ import annotations

from typing import Final

PREFIX_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length."""


def prefixed(message: bytes) -> bytes:
    """A message as it is sent, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message
