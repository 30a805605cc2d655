"""Work that no connected worker takes: a name mistyped, or a worker not started. Its run waits, silently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from towline.scheduler.engine.model import Activity
from towline.scheduler.server.dispatch import Dispatcher, Kind, Work

_log = logging.getLogger(__name__)

_AGAIN_S: Final = 600.0
"""Until the same is said again."""
_AT_ONCE: Final = 10
"""Most lines of one look: names come from callers, and there may be any number of them."""
_NAME_CHARS: Final = 100


class _Key(NamedTuple):
    hub: int
    kind: Kind | None
    """None: no worker is connected, whatever the work is."""
    name: str = ""
    version: str = ""


@dataclass(slots=True)
class _Waiting:
    oldest: Work
    count: int = 0


class Unclaimed:
    """Logs what no connected worker takes.

    Args:
        dispatcher: Has the queues and the workers.
        hubs: Gives the task hubs' numbers by name.
        after_s: It is said when nobody has taken it for so long, in seconds.
    """

    def __init__(
        self, dispatcher: Dispatcher, hubs: Callable[[], Mapping[str, int]], *, after_s: float
    ) -> None:
        self._dispatcher = dispatcher
        self._hubs = hubs
        self._after_s = after_s
        self._since: dict[_Key, float] = {}
        self._said: dict[_Key, float] = {}

    def look(self, now: float) -> None:
        """Say what has waited long enough. `now` is in seconds; only differences count."""
        found = _waiting(self._dispatcher)
        self._since = {key: self._since.get(key, now) for key in found}
        self._said = {key: at for key, at in self._said.items() if now - at < _AGAIN_S}
        due = [key for key, since in self._since.items() if now - since >= self._after_s]
        names = {number: name for name, number in self._hubs().items()}
        for key in [key for key in due if key not in self._said and key.hub in names][:_AT_ONCE]:
            self._said[key] = now
            _say(key, found[key], names[key.hub])


def unclaimed(dispatcher: Dispatcher) -> list[int]:
    """How many work items no connected worker takes, by kind."""
    counts = [0] * len(Kind)
    for work, count in _untaken(dispatcher):
        counts[work.kind] += count
    return counts


def _untaken(dispatcher: Dispatcher) -> Iterator[tuple[Work, int]]:
    for work, count in dispatcher.queued():
        streams = dispatcher.streams.get(work.hub, ())
        if not any(stream.accepts(work.kind, work.name, work.version) for stream in streams):
            yield work, count


def _waiting(dispatcher: Dispatcher) -> dict[_Key, _Waiting]:
    found: dict[_Key, _Waiting] = {}
    for work, count in _untaken(dispatcher):
        known = work.hub in dispatcher.streams
        key = _Key(work.hub, work.kind, work.name, work.version) if known else _Key(work.hub, None)
        waiting = found.setdefault(key, _Waiting(work))
        waiting.count += count
        if work.number < waiting.oldest.number:
            waiting.oldest = work
    return found


def _say(key: _Key, waiting: _Waiting, hub: str) -> None:
    facts: dict[str, object] = {"hub": hub, "count": waiting.count}
    if key.kind is None:
        items = "1 work item waits" if waiting.count == 1 else f"{waiting.count} work items wait"
        problem = f"no worker is connected to task hub {hub!r}, and {items}: start one"
        _log.warning("work.no_worker", extra={**facts, "error": problem})
        return
    subject = waiting.oldest.subject
    whose = subject.instance_id if isinstance(subject, Activity) else subject[1]
    kind, name = key.kind.name.lower(), key.name[:_NAME_CHARS]
    named = f"{kind} {name!r}" + (f" of version {key.version[:_NAME_CHARS]!r}" if key.version else "")
    problem = (
        f"no connected worker takes {named}, for which {whose} waits: "
        "start one that registers it, or correct the name"
    )
    _log.warning("work.unclaimed", extra={**facts, "kind": kind, "work": name, "id": whose, "error": problem})
