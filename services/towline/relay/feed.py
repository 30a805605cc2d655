"""The newest entries of one stream, encoded once for all of its clients. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from towline.contracts.stream import DATA_FIELD, TERMINAL_ENTRY_TYPES, TYPE_FIELD
from towline.relay import sse

if TYPE_CHECKING:
    from towline.relay.reader import Client

PAGE_COUNT: Final = 500
"""Entries read at once."""
_KEEP_COUNT: Final = 1_000
_KEEP_BYTES: Final = 1_000_000

Encode = Callable[[str, dict[str, str]], bytes]
RawEntry = tuple[str, dict[str, str]]
Ending = Callable[[], Awaitable[RawEntry | None]]


def encode_entry(entry_id: str, fields: dict[str, str]) -> bytes:
    """An entry of a run's stream as an SSE event."""
    return sse.encode(entry_id, fields.get(TYPE_FIELD, "message"), fields.get(DATA_FIELD, "{}"))


@dataclass(frozen=True, slots=True)
class Source:
    """A stream that is fed to clients."""

    key: str
    channel: str
    encode: Encode = encode_entry
    variant: str = ""
    """Clients of one key with the same variant share a feed: they see the same bytes."""
    ending: Ending | None = field(default=None, compare=False)
    """Gives the entry that ended the stream, if nothing else of it is left: it has expired."""

    @property
    def name(self) -> str:
        """What feeds are known by."""
        return f"{self.key}\n{self.variant}"


class News(NamedTuple):
    """What a stream's channel says: the entries that were appended, and which was the last before them.

    A reader whose last entry is `before` has all that there is with them; any other reads the stream.
    """

    before: str
    entries: Sequence[RawEntry]


def parse_news(message: str) -> News | None:
    """`message` as `towline.contracts.stream.wake_channel` describes it; None if it holds no entries."""
    before, *fields = message.split("\n")
    if len(fields) == 3:
        entry_id, kind, data = fields
        return News(before, [(entry_id, {TYPE_FIELD: kind, DATA_FIELD: data})])
    if not fields or len(fields) % 3:
        return None
    return News(
        before,
        [
            (entry_id, {TYPE_FIELD: kind, DATA_FIELD: data})
            for entry_id, kind, data in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
        ],
    )


@dataclass(slots=True)
class Piece:
    """What a client is to be sent next."""

    body: bytes
    cursor: str
    """Where the client is after it."""
    over: bool = False
    """The stream ends here."""


class Delivery(NamedTuple):
    """Entries on their way to a feed's clients."""

    feed: Feed
    chunk: bytes
    """As a chunk of a response."""
    before: str
    """Id of the last entry before them."""
    after: str
    """Id of the last one of them."""

    def send(self, now: float) -> None:
        """Send them to the clients that wait for just these, tell the others to look."""
        feed, chunk, before, after = self
        if feed.ended:
            # Each client leaves with them: what it is sent and the end of its response are one write.
            feed.wake()
            return
        for client in feed.clients:
            if not client.offer(chunk, before, after, now):
                client.news.set()


class Feed:
    """The newest entries of one stream, for any number of clients.

    `floor` is the id after which the kept entries begin, `last` that of the newest one. `generation` grows
    with each reset.
    """

    __slots__ = (
        "_bytes",
        "_found",
        "bodies",
        "clients",
        "ended",
        "floor",
        "generation",
        "heard",
        "ids",
        "last",
        "source",
    )

    def __init__(self, source: Source, floor: str) -> None:
        self.source = source
        self.floor = self.last = floor
        self.ids: list[str] = []
        self.bodies: list[bytes] = []
        self.clients: set[Client] = set()
        self.generation: int = 0
        self.ended = False
        self.heard = False
        """News came since the last poll."""
        self._bytes = 0
        self._found: tuple[str, bytes, str] | None = None

    def extend(self, entries: Sequence[RawEntry]) -> bytes:
        """Newer entries came; gives them as they are sent."""
        self._found = None
        new: list[bytes] = []
        for entry_id, fields in entries:
            body = self.source.encode(entry_id, fields)
            new.append(body)
            self.ids.append(entry_id)
            self.bodies.append(body)
            self._bytes += len(body)
            self.last = entry_id
            if fields.get(TYPE_FIELD) in TERMINAL_ENTRY_TYPES:
                self.ended = True
                break
        drop = 0
        while len(self.ids) - drop > _KEEP_COUNT or (self._bytes > _KEEP_BYTES and len(self.ids) - drop > 1):
            self._bytes -= len(self.bodies[drop])
            drop += 1
        if drop:
            self.floor = self.ids[drop - 1]
            del self.ids[:drop], self.bodies[:drop]
        return b"".join(new)

    def newer(self, entries: Sequence[RawEntry]) -> Sequence[RawEntry]:
        """Those of `entries` (in order) that are not here yet."""
        last = sse.id_key(self.last)
        return [entry for entry in entries if sse.id_key(entry[0]) > last]

    def restart(self) -> None:
        """What was known is void: begin before the first entry."""
        self.floor = self.last = sse.START_ID
        self.ended, self._bytes, self._found = False, 0, None
        self.ids.clear()
        self.bodies.clear()
        self.generation += 1

    def after(self, cursor: str) -> tuple[bytes, str] | None:
        """Kept entries after `cursor` and where they lead; None if `cursor` lies before what is kept."""
        # Most clients are at the same place: what one was given fits the next.
        if self._found is not None and self._found[0] == cursor:
            return self._found[1:]
        key = sse.id_key(cursor)
        if key < sse.id_key(self.floor):
            return None
        begin = bisect_right(self.ids, key, key=sse.id_key)
        if begin == len(self.ids):
            return b"", cursor
        self._found = (cursor, b"".join(self.bodies[begin:]), self.last)
        return self._found[1:]

    def wake(self) -> None:
        """Tell all clients to look."""
        for client in self.clients:
            client.news.set()

    def hear(self, told: Iterable[News | None]) -> tuple[bool, Delivery | None]:
        """Take what was told in messages that came together: one write to each client for all of it.

        Returns:
            Whether that is all that there is, else the stream has to be read; and what is to be delivered.
        """
        whole, last, entries = True, self.last, list[RawEntry]()
        for news in told:
            if news is None or news.before != last:
                whole = False
                continue
            entries += news.entries
            last = entries[-1][0]
        return whole, self.add(entries) if entries and not self.ended else None

    def add(self, entries: Sequence[RawEntry]) -> Delivery:
        """Newer entries came, which are to be delivered."""
        before = self.last
        body = self.extend(entries)
        return Delivery(self, sse.chunk(body), before, self.last)

    def take(self, entries: Sequence[RawEntry], *, now: float) -> None:
        """Newer entries came: they are delivered."""
        self.add(entries).send(now)
