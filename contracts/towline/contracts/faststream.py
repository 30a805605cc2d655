"""Typed events for FastStream subscribers: pass `decoder` to a subscriber, or to the whole broker.

Example:
    ```python
    from faststream import AckPolicy, FastStream
    from faststream.kafka import KafkaBroker

    from towline.contracts import Event, RunCompleted, RunOutcome
    from towline.contracts.faststream import decoder, parser

    broker = KafkaBroker("127.0.0.1:9092")

    @broker.subscriber(
        "towline.results",
        group_id="invoicing",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK,
        decoder=decoder,
        parser=parser,
        no_reply=True,
    )
    async def on_outcome(event: Event[RunOutcome]) -> None:
        if isinstance(event.data, RunCompleted):
            print(event.data.run_id, event.data.output)

    app = FastStream(broker)
    ```

Set the options above: FastStream's own begin at the end of the topic (`auto_offset_reset`) and send what a
handler returns as a reply (`no_reply`). What its acknowledgement policies promise:

- ``ACK``: a handler that raises loses its event. Catch in the handler what can be mended.
- ``NACK_ON_ERROR``: an event whose handler always raises, or a record that is no event, is tried again
  for ever and holds up its partition.

FastStream does not drop repeats: use `event.id` as a key, or `TowlineClient.results`, which drops them,
passes over records that are no events, and commits only what was handled.

A record that is no event of the contract makes `decoder` raise `DecodeError`, which FastStream logs; with
``ACK`` the subscriber goes on with the next one. `parser` lets records through to it that FastStream's own
refuses (header values that are no UTF-8, or null).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from towline.contracts.events import Event
from towline.contracts.payloads import PayloadStore, decode_resolved, open_payload_store

__all__ = ["decoder", "parser"]


async def decoder(message: Any) -> Event:
    """The event in a FastStream `KafkaMessage`.

    Data that is kept in a payload store is fetched from the one that `TOWLINE_PAYLOADS_URL` names.

    Raises:
        DecodeError: The record is no event of the contract.
        PayloadStoreAwayError: The store does not answer.
        TypeError: The subscriber is a batch one: subscribe without ``batch=True``.
    """
    record = message.raw_message
    _check_is_one(record)
    return await decode_resolved(_payload_store(), key=record.key, value=record.value, headers=record.headers)


_stores: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, PayloadStore | None]] = WeakKeyDictionary()


def _payload_store() -> PayloadStore | None:
    """The store, one for each event loop: its connections belong to the loop that made them."""
    loop = asyncio.get_running_loop()
    if loop not in _stores:
        _stores[loop] = open_payload_store()
    return _stores[loop]


async def parser(record: Any, original: Callable[[Any], Awaitable[Any]]) -> Any:
    """FastStream's own parser, given header values that it can read; `decoder` reads the record itself.

    Raises:
        TypeError: As for `decoder`.
    """
    _check_is_one(record)
    if all(value is not None and _is_utf8(value) for _, value in record.headers):
        return await original(record)
    readable = tuple(
        (name, (value or b"").decode("utf-8", "replace").encode()) for name, value in record.headers
    )
    headers, record.headers = record.headers, readable
    try:
        return await original(record)
    finally:
        record.headers = headers


def _check_is_one(record: Any) -> None:
    if isinstance(record, tuple | list):
        raise TypeError("towline's decoder takes single records: subscribe without batch=True")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
