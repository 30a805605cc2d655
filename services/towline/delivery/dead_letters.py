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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from aiokafka.errors import MessageSizeTooLargeError

from towline.delivery.membership import Record
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


class SendRecord(Protocol):
    """Sends one record and returns when Kafka has acknowledged it; bounded, raises when it has not."""

    async def __call__(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Send it."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dead letter's record came from."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter_headers(record: Record, letter: DeadLetter, *, now: datetime) -> Headers:
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
        send: Sends a record and waits for the acknowledgement.
        topic: Full name of the dead letters' topic.
    """

    def __init__(
        self, send: SendRecord, topic: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._send = send
        self._topic = topic
        self._now = now

    async def __call__(self, record: Record, letter: DeadLetter) -> None:
        """Put `record` aside.

        Raises:
            Exception: It was not acknowledged; call again.
        """
        headers = dead_letter_headers(record, letter, now=self._now())
        try:
            await self._send(self._topic, key=record.key, value=record.value, headers=headers)
        except MessageSizeTooLargeError:
            size = len(record.value or b"")
            logger.warning(
                "dead_letter_value_left_out",
                extra={"topic": record.topic, "partition": record.partition, "offset": record.offset},
            )
            left_out = (*headers, (VALUE_LEFT_OUT, str(size).encode()))
            await self._send(self._topic, key=record.key, value=None, headers=left_out)
