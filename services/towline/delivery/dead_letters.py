"""Dead letters: a record that could not be trusted, put aside whole, with the reason.

A dead letter carries the original key, value and headers, and these headers of its own:

| header | value |
|---|---|
| `towline_dead_letter_reason` | stable word: `invalid_json`, `run_id_conflict`, … |
| `towline_dead_letter_error` | for a person: what is wrong and how to mend it |
| `towline_dead_letter_topic`, `_partition`, `_offset` | where the record came from: its *origin* |
| `towline_dead_letter_time` | when it was put aside, RFC 3339 |

Writing is at-least-once: a crash between the write and the commit of the origin's offset writes the letter
again. The origin tells the two from two letters, and every reader here (`archive`) counts them as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from towline.contracts.cloudevents import Record
from towline.contracts.errors import EncodeError
from towline.contracts.producer import EventProducer
from towline.delivery.membership import KafkaRecord
from towline.delivery.outcomes import DeadLetter

logger = logging.getLogger(__name__)

Headers = tuple[tuple[str, bytes], ...]
DEAD_LETTER_PREFIX: Final = "towline_dead_letter_"
REASON: Final = f"{DEAD_LETTER_PREFIX}reason"
ERROR: Final = f"{DEAD_LETTER_PREFIX}error"
TOPIC: Final = f"{DEAD_LETTER_PREFIX}topic"
PARTITION: Final = f"{DEAD_LETTER_PREFIX}partition"
OFFSET: Final = f"{DEAD_LETTER_PREFIX}offset"
TIME: Final = f"{DEAD_LETTER_PREFIX}time"
VALUE_LEFT_OUT: Final = f"{DEAD_LETTER_PREFIX}value_left_out"
"""Size of a value too large for the dead letters' topic: it is still at the origin, until retention."""
_ERROR_MAX_LENGTH: Final = 2_000
_TELLING: Final = ("ce_id", "ce_source", "ce_type", "ce_subject")
_TELLING_MAX_BYTES: Final = 1_000
"""Of a key, or of one of these headers, in a letter that is too large without its value too."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dead letter's record came from."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter_headers(record: KafkaRecord, letter: DeadLetter, *, now: datetime) -> Headers:
    """The headers of the dead letter: the record's, as they are, then our own."""
    own = (
        (REASON, letter.reason),
        (ERROR, letter.error[:_ERROR_MAX_LENGTH]),
        (TOPIC, record.topic),
        (PARTITION, str(record.partition)),
        (OFFSET, str(record.offset)),
        (TIME, now.isoformat()),
    )
    # One that was replayed and failed again leaves its earlier marks behind: only the latest count.
    kept = tuple((name, value) for name, value in record.headers if not name.startswith(DEAD_LETTER_PREFIX))
    return kept + tuple((name, text.encode("utf-8", "replace")) for name, text in own)


class DeadLetterWriter:
    """Writes dead letters to their topic.

    Args:
        producer: Must take records as large as the broker does, and some headers more.
        topic: Full name of the dead letters' topic.
        now: The clock.
    """

    def __init__(
        self,
        producer: EventProducer,
        topic: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._now = now

    async def __call__(self, record: KafkaRecord, letter: DeadLetter) -> None:
        """Put `record` aside.

        Raises:
            PublishError: It was not acknowledged; call again.
        """
        origin = Origin(record.topic, record.partition, record.offset)
        headers = dead_letter_headers(record, letter, now=self._now())
        try:
            await self._send(Record(record.key, record.value, headers), origin)
        except EncodeError:
            logger.warning("dead_letter_value_left_out", extra={"origin": str(origin)})
            size = str(len(record.value or b"")).encode()
            headers = (*headers, (VALUE_LEFT_OUT, size))
            try:
                await self._send(Record(record.key, None, headers), origin)
            except EncodeError:
                # Tried again it would hold its partition for ever.
                logger.warning("dead_letter_key_and_headers_left_out", extra={"origin": str(origin)})
                await self._send(_shortest(record, headers), origin)

    async def _send(self, record: Record, origin: Origin) -> None:
        await self._producer.send_record(self._topic, record, name=f"dead letter of {origin}")


def _shortest(record: KafkaRecord, headers: Headers) -> Record:
    """Our own headers, and of key and headers what tells which event it was and is short."""
    key = record.key if _is_short(record.key) else None
    known = {name: value for name, value in headers if name in _TELLING and _is_short(value)}
    own = tuple((name, value) for name, value in headers if name.startswith(DEAD_LETTER_PREFIX))
    return Record(key, None, (*known.items(), *own))


def _is_short(value: bytes | None) -> bool:
    return len(value or b"") <= _TELLING_MAX_BYTES
