"""Which addresses are plain text."""

from __future__ import annotations

import pytest

from towline.http2 import plain_address


@pytest.mark.parametrize(
    ("address", "secure", "plain"),
    [
        ("http://127.0.0.1:8080", True, ("127.0.0.1", 8080)),
        ("HTTP://localhost:8080", False, ("localhost", 8080)),
        ("grpc://[::1]:8080", False, ("::1", 8080)),
        ("scheduler:8080", False, ("scheduler", 8080)),
        ("scheduler:8080", True, None),
        ("https://scheduler:443", False, None),
        ("grpcs://scheduler:443", False, None),
        ("dns:///scheduler:8080", False, None),
        ("http://scheduler", False, None),
        ("http://scheduler:8080/path", False, None),
        ("unix:/run/scheduler.sock", False, None),
    ],
)
def test_an_address_is_plain_by_its_scheme_or_else_by_the_flag(
    address: str, secure: bool, plain: tuple[str, int] | None
) -> None:
    assert plain_address(address, secure=secure) == plain
