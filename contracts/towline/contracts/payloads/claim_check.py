"""Claim check for events: large data goes to a payload store, the record carries a reference to it.

After the CloudEvents extension Dataref: the attribute ``dataref`` instead of the data, never both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from towline.contracts.attributes import CE_PREFIX
from towline.contracts.cloudevents import Record, decode
from towline.contracts.errors import DataElsewhereError, DecodeError, EncodeError, PayloadMissingError
from towline.contracts.events import Event
from towline.contracts.payload_reference import DATAREF
from towline.contracts.payloads.store import PayloadStore


async def checked_in(record: Record, event_id: str, store: PayloadStore) -> Record:
    """`record` with its data in `store` and a reference in its place.

    Raises:
        EncodeError: The store takes no data so large.
        PayloadStoreAwayError: The store does not answer.
    """
    try:
        reference = await store.put(record.value or b"")
    except EncodeError as error:
        raise EncodeError(f"event {event_id}: {error}") from error
    header = (f"{CE_PREFIX}{DATAREF}", str(reference).encode())
    return replace(record, value=None, headers=(*record.headers, header))


async def decode_resolved(
    store: PayloadStore | None,
    *,
    key: bytes | None = None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
) -> Event:
    """As `decode`; data that is kept elsewhere is fetched.

    Raises:
        DecodeError: As `decode` raises it; with reason ``payload_missing`` if the store does not have the
            data, ``data_elsewhere`` (`DataElsewhereError`) if no store is configured.
        PayloadStoreAwayError: The store does not answer; try again.
    """
    named = tuple(headers)
    try:
        return decode(key=key, value=value, headers=named)
    except DataElsewhereError as elsewhere:
        if store is None:
            raise
        try:
            data = await store.get(elsewhere.reference)
        except PayloadMissingError as error:
            raise DecodeError("payload_missing", f"dataref: {error}", field=DATAREF) from error
    return decode(key=key, value=value, headers=named, data=data)
