"""Addresses that a role listens on, as settings and command lines give them."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

_PORT_MAX: Final = 65_535


def is_port(text: str) -> bool:
    """Whether `text` is the number of a port, 0 (any) included."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(_PORT_MAX)) and int(text) <= _PORT_MAX


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of "host:port"; no host, as in ":8081" or "8081", is 127.0.0.1.

    Raises:
        ValueError: It is not of that form.
    """
    host, _, port = listen.rpartition(":")
    if not is_port(port):
        raise ValueError(f"{listen!r} is not host:port, for example 127.0.0.1:8081")
    return host.strip("[]") or "127.0.0.1", int(port)


def _checked(listen: str) -> str:
    split_listen(listen)
    return listen


ListenAddress: TypeAlias = Annotated[str, AfterValidator(_checked)]
"""A setting whose text `split_listen` takes."""


class ListenError(OSError):
    """An address can't be served; the message names it and is one line for a person."""
