"""Header blocks: as we write them, and as peers may, with a table or without."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.http2.frames import Http2Error
from towline.http2.headers import HeaderReader, header_block

_headers = st.lists(st.tuples(st.text("abc-", min_size=1), st.text(max_size=400)), max_size=8)
_EVERY_CALL = [(":method", "POST"), (":path", "/service/Method"), ("workerid", "one")]


@given(_headers)
def test_headers_are_read_as_they_were_written(headers: list[tuple[str, str]]) -> None:
    assert list(HeaderReader().read(header_block(headers))) == headers


@given(st.lists(_headers, max_size=6), st.booleans(), st.lists(st.sampled_from((0, 60, 4_096)), max_size=6))
def test_a_peer_may_keep_a_table_of_any_size_and_change_its_mind(
    blocks: list[list[tuple[str, str]]], huffman: bool, sizes: list[int]
) -> None:
    encoder, reader = hpack.Encoder(), HeaderReader()
    for at, headers in enumerate([_EVERY_CALL, *blocks, _EVERY_CALL]):
        if at < len(sizes):
            encoder.header_table_size = sizes[at]
        assert list(reader.read(encoder.encode(headers, huffman=huffman))) == headers


def test_a_block_that_refers_to_a_table_is_read_by_the_table_of_its_own_connection() -> None:
    encoder = hpack.Encoder()
    first, second = encoder.encode(_EVERY_CALL), encoder.encode(_EVERY_CALL)
    assert len(second) < len(first)
    known, unknown = HeaderReader(), HeaderReader()
    assert known.read(first) == known.read(second) == tuple(_EVERY_CALL)
    with pytest.raises(Http2Error):
        unknown.read(second)


@given(st.binary(max_size=80), st.booleans())
def test_whatever_comes_is_read_or_refused(block: bytes, known: bool) -> None:
    reader = HeaderReader()
    if known:
        reader.read(hpack.Encoder().encode(_EVERY_CALL))
    try:
        headers = reader.read(block)
    except Http2Error:
        return
    assert all(isinstance(text, str) for header in headers for text in header)


def test_a_block_that_grows_without_bound_is_refused() -> None:
    encoder = hpack.Encoder()
    block = encoder.encode([("a", "x" * 3_000)])
    bomb = encoder.encode([("a", "x" * 3_000)] * 100)
    assert len(bomb) < 1_000
    reader = HeaderReader()
    reader.read(block)
    with pytest.raises(Http2Error):
        reader.read(bomb)
