"""Which addresses may be spoken to without TLS, and so without gRPC's core."""

from __future__ import annotations


def plain_address(address: str, *, secure: bool) -> tuple[str, int] | None:
    """Host and port of an address that is spoken to in plain text; None for any other.

    Args:
        address: ``host:port``, with or without a scheme, as the Durable Task SDK takes it.
        secure: Whether an address without a scheme means TLS.
    """
    scheme, separator, rest = address.partition("://")
    if (scheme.lower() not in {"http", "grpc"}) if separator else secure:
        return None
    host, colon, port = (rest if separator else address).rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
