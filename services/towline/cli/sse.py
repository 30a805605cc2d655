"""Reads `text/event-stream`. Pure: lines in, messages out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched message."""

    event: str
    data: str
    id: str
    """The last id that was seen, this message's or an earlier one's; "" before any."""


class Parser:
    """Follows the standard's rules for interpreting an event stream, for lines without their ends."""

    def __init__(self) -> None:
        self.last_id = ""
        """To resume with, as ``Last-Event-ID``."""
        self._event = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Message | None:
        """Take one line; the message that it completes, if it does."""
        if line == "":
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._event = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self.last_id = value
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None
