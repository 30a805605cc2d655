"""The dead letters as one list: what is open, what was replayed or discarded. Pure.

The topic `dead-letters` is the only store. Next to the letters it holds *marks*: records whose key is a
letter's origin (``topic/partition/offset``) and whose headers are

| header | value |
|---|---|
| `towline_dead_letter_mark` | `replayed` or `discarded` |
| `towline_dead_letter_mark_of` | the origin |
| `towline_dead_letter_mark_note` | why, if somebody said so |

A letter is open until a mark of it comes. What is replayed carries `towline_replay_of` (the origin it was
replayed from) and `towline_replay_count`; if it fails again, that is a new letter with a new origin.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, cast

from towline.contracts.attributes import CE_PREFIX, is_structured, parse_json
from towline.contracts.cloudevents import Record
from towline.contracts.errors import DecodeError
from towline.delivery.dead_letters import (
    DEAD_LETTER_PREFIX,
    ERROR,
    OFFSET,
    PARTITION,
    REASON,
    TIME,
    TOPIC,
    VALUE_LEFT_OUT,
    Headers,
    Origin,
)
from towline.delivery.membership import KafkaRecord

MARK: Final = f"{DEAD_LETTER_PREFIX}mark"
MARK_OF: Final = f"{DEAD_LETTER_PREFIX}mark_of"
MARK_NOTE: Final = f"{DEAD_LETTER_PREFIX}mark_note"
REPLAY_OF: Final = "towline_replay_of"
REPLAY_COUNT: Final = "towline_replay_count"

_NUMBER: Final = re.compile("[0-9]{1,19}")
"""Anybody can write these headers: other digits than ASCII's, or too many, are more than `int` takes."""

LetterState: TypeAlias = Literal["open", "replayed", "discarded"]
FILTER_FIELDS: Final = ("reason", "type", "run", "topic", "key", "event", "source")


class LetterError(Exception):
    """A dead letter can't be treated as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    origin: Origin
    record: Record
    """Key, value and headers as they were at the origin."""
    reason: str
    error: str
    time: str
    value_left_out: bool = False
    state: LetterState = "open"
    note: str | None = None

    @property
    def replay_count(self) -> int:
        """How often this record was replayed before it failed here."""
        text = _header(self.record.headers, REPLAY_COUNT)
        return int(text) if _NUMBER.fullmatch(text) else 0

    def fields(self) -> dict[str, str]:
        """What filters look at."""
        told = _attributes(self.record)
        key = (self.record.key or b"").decode("utf-8", "replace")
        return {
            "reason": self.reason,
            "type": told.get("type", ""),
            "run": told.get("subject") or key,
            "topic": self.origin.topic,
            "key": key,
            "event": told.get("id", ""),
            "source": told.get("source", ""),
        }

    def summary(self) -> dict[str, Any]:
        """What `list` prints."""
        return {
            "id": str(self.origin),
            "state": self.state,
            "time": self.time,
            "error": self.error,
            "replays": self.replay_count,
            "note": self.note,
            **self.fields(),
        }


@dataclass(slots=True)
class Letters:
    """All letters of the topic, in its order."""

    _by_origin: dict[Origin, Letter] = field(default_factory=dict[Origin, Letter])
    _early_marks: dict[Origin, KafkaRecord] = field(default_factory=dict[Origin, KafkaRecord])
    """Marks that were read before their letters."""
    unreadable_count: int = 0
    """Records that are neither letters nor marks."""

    def add(self, record: KafkaRecord) -> None:
        """Take on the topic's next record."""
        headers = {name: _text(value) for name, value in record.headers}
        if MARK in headers:
            self._mark(record, headers)
            return
        origin = parse_origin("/".join(headers.get(name, "") for name in (TOPIC, PARTITION, OFFSET)))
        if origin is None:
            self.unreadable_count += 1
        else:
            kept = tuple((n, v) for n, v in record.headers if not n.startswith(DEAD_LETTER_PREFIX))
            self._put(origin, Record(record.key, record.value, kept), record, headers)

    def _put(self, origin: Origin, original: Record, record: KafkaRecord, headers: Mapping[str, str]) -> None:
        known = self._by_origin.get(origin)
        if known is not None and known.record == original:
            return  # a letter written twice is one letter
        # Another one of that origin: its topic was made anew. A mark of the one before says nothing of it.
        self._by_origin.pop(origin, None)
        self._by_origin[origin] = Letter(
            origin,
            original,
            reason=headers.get(REASON, ""),
            error=headers.get(ERROR, ""),
            time=headers.get(TIME, ""),
            value_left_out=VALUE_LEFT_OUT in headers,
        )
        early = self._early_marks.pop(origin, None)
        # Only partitions have no order among them: one that came before in the same was another letter's.
        if early is not None and early.partition != record.partition:
            self._mark(early, {name: _text(value) for name, value in early.headers})

    def _mark(self, record: KafkaRecord, headers: Mapping[str, str]) -> None:
        origin = parse_origin(headers.get(MARK_OF, ""))
        state = headers[MARK]
        if origin is None or state not in ("replayed", "discarded"):
            return
        if origin not in self._by_origin:
            self._early_marks[origin] = record
            return
        marked = replace(self._by_origin[origin], state=state, note=headers.get(MARK_NOTE))
        self._by_origin[origin] = marked

    def find(self, text: str) -> Letter:
        """The letter of that id (``topic/partition/offset``).

        Raises:
            LetterError: There is none.
        """
        origin = parse_origin(text)
        if origin is None:
            raise LetterError(f"{text!r} is no id of a dead letter: give TOPIC/PARTITION/OFFSET as listed")
        letter = self._by_origin.get(origin)
        if letter is None:
            raise LetterError(f"no dead letter {text}: see `towline dead-letters list --all`")
        return letter

    def select(
        self, filters: Iterable[str] = (), *, states: Sequence[LetterState] = ("open",)
    ) -> list[Letter]:
        """Letters in one of `states` that fit all `filters`, in the order of the topic.

        Args:
            filters: ``field=pattern`` with a field of `FILTER_FIELDS` and ``*`` and ``?`` as wildcards.
            states: Which states.

        Raises:
            LetterError: A filter is malformed.
        """
        wanted = [_parse_filter(text) for text in filters]
        return [
            letter
            for letter in self._by_origin.values()
            if letter.state in states
            and all(fnmatch.fnmatchcase(letter.fields()[name], pattern) for name, pattern in wanted)
        ]


def replay_record(letter: Letter, *, replays_max_count: int) -> Record:
    """The record to publish again at the letter's origin.

    Raises:
        LetterError: It was replayed too often already, or its value is not in the letter.
    """
    count = letter.replay_count
    if count >= replays_max_count:
        raise LetterError(
            f"{letter.origin}: was replayed {count} times and failed each time ({letter.reason}): "
            "mend the cause, then raise --max-replays, or discard it"
        )
    if letter.value_left_out:
        raise LetterError(
            f"{letter.origin}: its value was too large for the dead letters: publish it again from its "
            "origin, where it is until the topic's retention ends, or discard it"
        )
    kept = tuple(
        (name, value) for name, value in letter.record.headers if name not in (REPLAY_OF, REPLAY_COUNT)
    )
    marks = ((REPLAY_OF, str(letter.origin).encode()), (REPLAY_COUNT, str(count + 1).encode()))
    return Record(letter.record.key, letter.record.value, kept + marks)


def mark_record(letter: Letter, state: LetterState, note: str | None = None) -> Record:
    """The mark that takes a letter off the open ones."""
    origin = str(letter.origin).encode()
    headers: Headers = ((MARK, state.encode()), (MARK_OF, origin))
    if note:
        headers += ((MARK_NOTE, note.encode()),)
    return Record(origin, b"", headers)


def parse_origin(text: str) -> Origin | None:
    """``topic/partition/offset``, or None."""
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.partition("/")
    if not (topic and _NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset)):
        return None
    return Origin(topic, int(partition), int(offset))


def _parse_filter(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not equals or name not in FILTER_FIELDS:
        raise LetterError(f"--filter {text!r}: give FIELD=PATTERN with a field of {', '.join(FILTER_FIELDS)}")
    return name, pattern


def _attributes(record: Record) -> Mapping[str, str]:
    """What the event says of itself, in binary or structured mode, as far as it can be read."""
    if is_structured(record.headers):
        try:
            members = parse_json(record.value, "value")
        except DecodeError:
            return {}
        if not isinstance(members, dict):
            return {}
        named = cast("dict[str, Any]", members).items()
        return {name: value for name, value in named if isinstance(value, str)}
    # The first of each name counts, as for `decode`.
    return {
        name.lower().removeprefix(CE_PREFIX): _text(value)
        for name, value in reversed(record.headers)
        if name.lower().startswith(CE_PREFIX)
    }


def _header(headers: Headers, name: str) -> str:
    return next((_text(value) for known, value in headers if known == name), "")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
