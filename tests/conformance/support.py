"""What all of the suites use: calls that a careful client repeats, and names."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from uuid import uuid4

import grpc

T = TypeVar("T")


def retrying(call: Callable[[], T], *, timeout_s: float = 60.0) -> T:
    """Do what a careful client does while a server restarts: repeat a call that was answered UNAVAILABLE."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            cancelled = code == grpc.StatusCode.CANCELLED  # the SDK replaced its channel under the call
            if not (code == grpc.StatusCode.UNAVAILABLE or cancelled) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:10]}"
