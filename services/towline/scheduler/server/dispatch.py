"""Which work goes to which worker: queues of runnable work, streams with capacity, leases."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.model import Activity


class Kind(IntEnum):
    """Kinds of work items."""

    ORCHESTRATION = 0
    ACTIVITY = 1
    ENTITY = 2


Subject: TypeAlias = "tuple[int, str] | Activity"
"""An activity, or hub and id of an instance or entity (which need not be in memory)."""

DEFAULT_CAPACITY: Final = 200
"""Work items that a worker gets which names no limit for a kind."""


@dataclass(slots=True, eq=False)
class Work:
    """One runnable thing, from being queued until it is answered."""

    kind: Kind
    hub: int
    name: str
    version: str
    subject: Subject
    number: int = 0
    """Order in which things became runnable."""
    lost_by: Stream | None = None
    """Stream that had it last: another one is preferred."""
    token: str = ""
    deadline: float = 0.0
    lease_s: float = 0.0
    backoff_s: float = 0.0
    """Time before it goes out again when it is given back the next time; 0 before the first."""
    fresh: bool = False
    """The first turn of an instance that nobody waits for yet: what is under way goes before it."""
    ahead: bool = False
    """What it is about may be handed out while it is being committed."""
    suspect: bool = False
    """It was lost so often that it may be what ends its workers: one gets a single such item at a time."""


Filter: TypeAlias = Mapping[str, frozenset[str]] | None
"""Accepted names with their versions (none listed: all); None: everything."""


def filters_of(request: pb.GetWorkItemsRequest) -> tuple[Filter, Filter, Filter]:
    """What a worker accepts of each kind. An empty list means nothing of that kind."""
    if not request.HasField("workItemFilters"):
        return None, None, None
    listed = request.workItemFilters
    orchestrations: dict[str, frozenset[str]] = {}
    for item in listed.orchestrations:
        orchestrations[item.name] = _merge(orchestrations.get(item.name), frozenset(item.versions))
    activities: dict[str, frozenset[str]] = {}
    for item in listed.activities:
        activities[item.name] = _merge(activities.get(item.name), frozenset(item.versions))
    return orchestrations, activities, {item.name.lower(): frozenset[str]() for item in listed.entities}


def _merge(before: frozenset[str] | None, versions: frozenset[str]) -> frozenset[str]:
    # "All versions" (an empty set) swallows any list.
    if before is None:
        return versions
    return before | versions if before and versions else frozenset()


@dataclass(slots=True, eq=False)
class Stream:
    """One worker's stream of work items."""

    hub: int
    worker: str
    capacity: tuple[int, int, int]
    filters: tuple[Filter, Filter, Filter]
    outstanding: list[int] = field(default_factory=lambda: [0, 0, 0])
    pending: deque[Work | None] = field(default_factory=deque["Work | None"])
    """Assigned and not yet written; None stands for a health ping."""
    held: dict[str, Work] = field(default_factory=dict[str, Work])
    """Written and not yet answered, by token."""
    suspect: Work | None = None
    """What may end the worker, if it has such a thing: it gets no other until this has proved harmless."""
    repeats_reports: bool = False
    """The worker reports until it is heard: what has reached it is answered, if it lives."""
    fetches_history: bool = False
    """The worker can fetch a history that is not in the work item."""
    keeps_orchestrations: bool = False
    """It goes on with an orchestration from where its last turn there left it."""
    closed: bool = False
    notify: Callable[[], None] = lambda: None
    """Called when there is something to write, or it was closed."""
    write: Callable[[], None] = lambda: None
    """Writes what there is to write at once."""

    def accepts(self, kind: Kind, name: str, version: str) -> bool:
        """Whether the worker wants work of this kind."""
        wanted = self.filters[kind]
        if wanted is None:
            return True
        versions = wanted.get(name)
        return versions is not None and (not versions or version in versions)

    def free(self, kind: Kind) -> bool:
        """Whether it may get one more."""
        return self.outstanding[kind] < self.capacity[kind]

    def trusts(self, *, suspect: bool) -> bool:
        """Whether it may get work that is `suspect` or not."""
        return self.suspect is None or not suspect

    @property
    def load(self) -> int:
        """How much it has to do."""
        return sum(self.outstanding)

    def push(self, work: Work | None) -> None:
        """Give it work (None: a health ping)."""
        self.pending.append(work)
        self.notify()

    def close(self) -> None:
        """Let it end."""
        self.closed = True
        self.notify()


_Key: TypeAlias = tuple[str, str, bool, bool]
_Identity: TypeAlias = tuple[Kind, int | tuple[int, str]]
_FAIR_EVERY: Final = 8
"""Of so many work items one is handed out by its age alone."""
_HAD_TURN_MAX: Final = 10_000
"""Instances of which it is known who had their last turn."""
_LOOK_AHEAD: Final = 16
"""So far into a queue a worker's own instances are looked for."""
_PROBATION_S: Final = 30.0
"""What has not ended its worker in that time holds up no other suspect."""


class Dispatcher:
    """Queues by (hub, kind, name, version, fresh, suspect), so that what nobody wants blocks nothing else.

    Instances under way go before new ones: in a flood of these, a decision would otherwise wait until all
    that were started before it had their first turn, and all of them would be under way at once. One item
    in eight is handed out by age alone, so that new instances are never shut out.

    A turn goes to the worker that had the instance's last one, if that has room: it may have kept the code
    where it waits, where any other one replays the run from its beginning.

    What was lost with its worker time and again goes to a worker that has no other such work. So the one that
    ends its workers is told from those that were in their hands with it.
    """

    def __init__(self) -> None:
        self.streams: dict[int, list[Stream]] = {}
        self.redeliveries = 0
        self._queues: dict[tuple[int, Kind], dict[_Key, deque[Work]]] = {}
        self._queued: set[tuple[_Identity, str, str]] = set()
        self._held_back: dict[_Identity, asyncio.TimerHandle] = {}
        self._had_turn: OrderedDict[Subject, Stream] = OrderedDict()
        """Whom instances had their last turn from, while a hub has several workers."""
        self._number = 0
        self._picked = 0
        self.waiting = [0, 0, 0]
        self._paused = False

    # -- queueing

    def pause(self) -> None:
        """Queue everything and hand out nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Hand out what was queued meanwhile."""
        self._paused = False
        for streams in self.streams.values():
            for stream in streams:
                for kind in Kind:
                    self._fill(stream, kind)

    def offer(self, work: Work) -> None:
        """Hand work out, or queue it. The same subject is queued once under one name and version."""
        place = _place(work)
        if place in self._queued or place[0] in self._held_back:
            return
        self._queued.add(place)
        self._number += 1
        work.number = self._number
        self.waiting[work.kind] += 1
        stream = self._choose(work)
        if stream is not None:
            self._assign(stream, work)
            return
        queues = self._queues.setdefault((work.hub, work.kind), {})
        key = (work.name, work.version, work.fresh, work.suspect)
        queue = queues.get(key)
        if queue is None:
            queue = queues[key] = deque()
        queue.append(work)

    def hold_back(self, work: Work, delay_s: float, then: Callable[[], None]) -> None:
        """Offer nothing about this subject for a while, then call ``then``."""
        self.let_go(work.kind, work.subject)
        identity = _identity(work.kind, work.subject)

        def release() -> None:
            del self._held_back[identity]
            then()

        self._held_back[identity] = asyncio.get_running_loop().call_later(delay_s, release)

    def let_go(self, kind: Kind, subject: Subject) -> None:
        """Hold a subject back no longer. Nobody is called then."""
        if self._held_back:
            handle = self._held_back.pop(_identity(kind, subject), None)
            if handle is not None:
                handle.cancel()

    def _choose(self, work: Work) -> Stream | None:
        if self._paused:
            return None
        had_turn = self._had_turn.get(work.subject) if work.kind is Kind.ORCHESTRATION else None
        best: Stream | None = None
        best_load = 0
        for stream in self.streams.get(work.hub, ()):
            if (
                not stream.free(work.kind)
                or stream.closed
                or not stream.trusts(suspect=work.suspect)
                or not stream.accepts(work.kind, work.name, work.version)
            ):
                continue
            if stream is had_turn and stream is not work.lost_by:
                return stream
            load = stream.load + (1_000_000 if stream is work.lost_by else 0)
            if best is None or load < best_load:
                best, best_load = stream, load
        return best

    def _assign(self, stream: Stream, work: Work) -> None:
        stream.outstanding[work.kind] += 1
        if work.suspect:
            stream.suspect = work
        stream.push(work)

    def _release(self, stream: Stream, work: Work) -> None:
        """A worker has one thing less to do."""
        stream.outstanding[work.kind] -= 1
        if stream.suspect is work:
            self._clear_of_suspicion(stream)
        else:
            self._fill(stream, work.kind)

    def _clear_of_suspicion(self, stream: Stream) -> None:
        stream.suspect = None
        for kind in Kind:
            self._fill(stream, kind)

    def _fill(self, stream: Stream, kind: Kind) -> None:
        queues = None if self._paused else self._queues.get((stream.hub, kind))
        while queues and stream.free(kind) and not stream.closed:
            by_age = self._picked % _FAIR_EVERY == 0
            best: deque[Work] | None = None
            best_rank = (False, 0)
            for (name, version, fresh, suspect), queue in queues.items():
                rank = (fresh and not by_age, queue[0].number)
                if (
                    (best is None or rank < best_rank)
                    and stream.trusts(suspect=suspect)
                    and stream.accepts(kind, name, version)
                ):
                    best, best_rank = queue, rank
            if best is None:
                return
            self._picked += 1
            work = best.popleft() if by_age else self._pop(best, stream)
            if not best:
                del queues[work.name, work.version, work.fresh, work.suspect]
            self._assign(stream, work)

    def _pop(self, queue: deque[Work], stream: Stream) -> Work:
        """The first that `stream` had before, if one is near the head; else the head."""
        if self._had_turn and queue[0].kind is Kind.ORCHESTRATION and not queue[0].fresh:
            for index in range(min(len(queue), _LOOK_AHEAD)):
                if self._had_turn.get(queue[index].subject) is stream:
                    work = queue[index]
                    del queue[index]
                    return work
        return queue.popleft()

    def had_last_turn(self, stream: Stream, work: Work) -> bool:
        """Whether `stream` had an instance's last turn, as far as is known: of one worker it is assumed."""
        return len(self.streams.get(work.hub, ())) == 1 or self._had_turn.get(work.subject) is stream

    def _note_turn(self, stream: Stream, subject: Subject) -> None:
        had_turn = self._had_turn
        had_turn[subject] = stream
        had_turn.move_to_end(subject)
        if len(had_turn) > _HAD_TURN_MAX:
            had_turn.popitem(last=False)

    # -- streams

    def attach(self, stream: Stream) -> None:
        """A worker is there."""
        self.streams.setdefault(stream.hub, []).append(stream)
        for kind in Kind:
            self._fill(stream, kind)

    def detach(self, stream: Stream) -> list[Work]:
        """A worker's stream has ended. What it was not yet sent goes to others at once.

        Returns:
            The work that it was sent and has not answered.
        """
        stream.closed = True
        streams = self.streams.get(stream.hub, [])
        if stream in streams:
            streams.remove(stream)
        if not streams:
            self.streams.pop(stream.hub, None)
        for subject in [subject for subject, had in self._had_turn.items() if had is stream]:
            del self._had_turn[subject]
        unsent = [work for work in stream.pending if work is not None]
        stream.pending.clear()
        for work in unsent:
            self.waiting[work.kind] -= 1
            self._queued.discard(_place(work))
            self.offer(work)
        lost = list(stream.held.values())
        stream.held.clear()
        return lost

    # -- leases

    def sent(self, stream: Stream, work: Work) -> None:
        """Work is about to be written to a stream under ``work.token``."""
        self.waiting[work.kind] -= 1
        self._queued.discard(_place(work))
        stream.held[work.token] = work

    def skipped(self, stream: Stream, work: Work) -> None:
        """Assigned work turned out to be no longer wanted."""
        self.waiting[work.kind] -= 1
        self._queued.discard(_place(work))
        self._release(stream, work)

    def answered(self, stream: Stream, token: str) -> Work | None:
        """A worker is done with something: it has room again."""
        work = self._take_back(stream, token)
        if work is not None and work.kind is Kind.ORCHESTRATION and len(self.streams.get(stream.hub, ())) > 1:
            self._note_turn(stream, work.subject)
        return work

    def expired(self, now: float) -> list[tuple[Stream, Work]]:
        """Take back what is past its deadline (of ``loop.time()``)."""
        found: list[tuple[Stream, Work]] = []
        for streams in list(self.streams.values()):
            for stream in list(streams):
                late = [token for token, work in stream.held.items() if work.deadline <= now]
                for token in late:
                    if (work := self._take_back(stream, token)) is not None:
                        self._had_turn.pop(work.subject, None)
                        found.append((stream, work))
                suspect = stream.suspect
                if suspect is not None and suspect.token in stream.held:
                    sent_at = suspect.deadline - suspect.lease_s
                    if sent_at + _PROBATION_S <= now:
                        self._clear_of_suspicion(stream)
        return found

    def _take_back(self, stream: Stream, token: str) -> Work | None:
        work = stream.held.pop(token, None)
        if work is not None:
            self._release(stream, work)
        return work

    def ping(self) -> None:
        """Send every idle stream a sign of life: workers drop one that is silent for two minutes."""
        for streams in self.streams.values():
            for stream in streams:
                if not stream.pending:
                    stream.push(None)

    def write_now(self, hub: int) -> None:
        """Have what was handed out to a hub's workers on its way before this returns."""
        for stream in self.streams.get(hub, ()):
            if stream.pending:
                stream.write()

    def drop_hub(self, hub: int) -> None:
        """Forget what is queued for a hub, and end its streams."""
        for kind in Kind:
            for queue in self._queues.pop((hub, kind), {}).values():
                for work in queue:
                    self.waiting[kind] -= 1
                    self._queued.discard(_place(work))
        for stream in list(self.streams.get(hub, ())):
            stream.close()

    def clear(self) -> None:
        """Forget what is queued, held back and handed out; the streams stay."""
        for handle in self._held_back.values():
            handle.cancel()
        self._held_back.clear()
        self._queues.clear()
        self._queued.clear()
        self.waiting = [0, 0, 0]
        for streams in self.streams.values():
            for stream in streams:
                stream.pending.clear()
                stream.held.clear()
                stream.outstanding = [0, 0, 0]
                stream.suspect = None

    def queued(self) -> Iterator[tuple[Work, int]]:
        """The oldest of each queue, and how many are in it."""
        for queues in self._queues.values():
            for queue in queues.values():
                yield queue[0], len(queue)

    def counts(self) -> dict[str, int]:
        """Work items by kind and state, for metrics."""
        counts = {"streams": sum(map(len, self.streams.values()))}
        for kind in Kind:
            counts[f"waiting_{kind.name.lower()}"] = self.waiting[kind]
            counts[f"leased_{kind.name.lower()}"] = sum(
                1
                for streams in self.streams.values()
                for stream in streams
                for work in stream.held.values()
                if work.kind == kind
            )
        return counts


def _identity(kind: Kind, subject: Subject) -> _Identity:
    return kind, subject.row if isinstance(subject, Activity) else subject


def _place(work: Work) -> tuple[_Identity, str, str]:
    """Where it is queued: who takes an instance may not take what is started under its id afterwards."""
    return _identity(work.kind, work.subject), work.name, work.version
