"""The nemesis: faults of the parts of one stack with two bridges and two workers."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError
from tests.chaos.app import EFFECTS_VARIABLE
from tests.chaos.links import Link, LinkedKafka, Links

from towline.dev import ports
from towline.dev.errors import DevError
from towline.dev.part import Part
from towline.dev.roles import ProcessPart
from towline.dev.stack import Stack, StackPlan

APP: Final = "tests.chaos.app:app"
ROLES: Final = ("relay", "bridge", "worker", "bridge-2", "worker-2")
NEIGHBOURS: Final[Mapping[str, tuple[str, ...]]] = {
    "bridge": ("kafka", "scheduler"),
    "worker": ("kafka", "scheduler", "valkey"),
    "relay": ("kafka", "valkey"),
}
"""Who is reached by a link, which can be parted. The second bridge and worker have none."""
LINKS: Final = tuple(f"{part}~{other}" for part, others in NEIGHBOURS.items() for other in others)
PARTS: Final = ("kafka", "valkey", "scheduler", *ROLES)
BACK_WITHIN_S: Final = 120.0
"""A part that is not ready so long after it was started again is a finding."""

Fault = tuple[str, str]
"""What, and to whom."""
SHORT: Final[tuple[Fault, ...]] = (
    ("kill", "worker"),
    ("kill", "bridge"),
    ("flush", "valkey"),
    ("kill", "scheduler"),
    ("cut", "worker~kafka"),
    ("stop", "bridge-2"),
    ("kill", "valkey"),
    ("full", "scheduler"),
    ("kill", "relay"),
    ("cut", "bridge~scheduler"),
    ("kill", "kafka"),
    ("stop", "worker-2"),
    ("kill", "everything"),
)
"""The short test: each part once, then all. Restarts in good order take their time: see `faults`."""
EACH_ONCE: Final[tuple[Fault, ...]] = (*(("kill", name) for name in PARTS), ("kill", "everything"))
_WEIGHTS: Final[Mapping[Fault, int]] = {
    **{("kill", name): 4 for name in ("worker", "worker-2", "bridge", "bridge-2", "scheduler")},
    **{("kill", name): 2 for name in ("relay", "kafka", "valkey")},
    **{("stop", name): 2 for name in ("worker", "worker-2", "bridge", "bridge-2")},
    **{("stop", name): 1 for name in ("scheduler", "relay", "kafka", "valkey")},
    **{("cut", link): 1 for link in LINKS},
    ("full", "scheduler"): 2,
    ("flush", "valkey"): 2,
    ("roll", "workers"): 1,
    ("roll", "bridges"): 1,
    ("kill", "everything"): 1,
}


def faults(seed: int) -> Generator[Fault]:
    """Without end; the first ones are each of a kind."""
    rng = random.Random(f"faults/{seed}")
    yield from (*SHORT, ("roll", "workers"), ("roll", "bridges"))
    yield from (("stop", name) for name in PARTS)
    yield from (("cut", link) for link in LINKS)
    while True:
        yield from rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))


@dataclass(frozen=True, slots=True)
class Happened:
    """One fault, for the report."""

    at_s: float
    what: str
    whom: str
    back_after_s: float


@dataclass(slots=True)
class Fleet:
    """A stack, and a second bridge and worker."""

    stack: Stack
    effects_file: Path
    links: Links
    parts: dict[str, Part] = field(default_factory=dict[str, Part])

    @classmethod
    def planned(cls, folder: Path, *, unknown_run_grace_s: float) -> Fleet:
        """Made without starting anything. All of it is under `folder`."""
        name, effects = uuid4().hex[:8], folder / "effects.jsonl"
        plan = StackPlan(
            data=folder,
            app=APP,
            settings={
                "TOWLINE_KAFKA_TOPIC_PREFIX": f"c{name}.",
                "TOWLINE_SCHEDULER_TASKHUB": f"c{name}",
                "TOWLINE_BRIDGE_UNKNOWN_RUN_GRACE_S": str(unknown_run_grace_s),
                "TOWLINE_BRIDGE_SWEEP_EVERY_S": "5",
                # Half of the turns go on where the last one ended, half replay after a crash: both are met.
                "TOWLINE_WORKER_REPLAY": "never",
                EFFECTS_VARIABLE: str(effects),
            },
            roles=(),
            partitions=3,
        )
        stack = Stack(plan)
        links = _linked(stack)
        for name in ROLES:
            role = name.removesuffix("-2")
            part = ProcessPart(
                role,
                name=name,
                data=folder / name,
                env={**stack.environment(), **_addresses(name, links)},
                options=("--app", APP) if role == "worker" else (),
            )
            stack.roles.append(part)
            stack.addresses.update(part.addresses)
        return cls(stack, effects, Links(links), {part.name: part for part in stack.parts})

    @contextmanager
    def running(self) -> Generator[Fleet]:
        """Started on entry, stopped at the end."""
        self.effects_file.parent.mkdir(parents=True, exist_ok=True)
        self.effects_file.touch()
        with self.links, self.stack.running():
            yield self

    def of(self, whom: str) -> list[Part]:
        """A part, the part at the beginning of a link, ``everything``, ``workers`` or ``bridges``."""
        if whom == "everything":
            return list(self.parts.values())
        if whom in ("workers", "bridges"):
            return [self.parts[whom[:-1]], self.parts[f"{whom[:-1]}-2"]]
        return [self.parts[whom.partition("~")[0]]]


def _linked(stack: Stack) -> dict[str, Link]:
    """The links, with a Kafka that can be reached by them in place of the stack's."""
    kafka = LinkedKafka(data=stack.plan.data / "kafka")
    stack.infrastructure[0] = kafka
    stack.addresses.update(kafka.addresses)
    behind = {part: ports.lease() for part in NEIGHBOURS}
    port_of = {part.name: part.own_ports()[0] for part in stack.infrastructure}
    links = {
        name: Link(behind[part] if other == "kafka" else port_of[other])
        for name in LINKS
        for part, _, other in [name.partition("~")]
    }
    kafka.listeners = {part.upper(): (port, links[f"{part}~kafka"]) for part, port in behind.items()}
    return links


def _addresses(part: str, links: Mapping[str, Link]) -> dict[str, str]:
    """Where a part finds those of its neighbours that it reaches by a link."""
    forms = {
        "kafka": ("TOWLINE_KAFKA_BOOTSTRAP", "127.0.0.1:{}"),
        "scheduler": ("TOWLINE_SCHEDULER_ADDRESS", "http://127.0.0.1:{}"),
        "valkey": ("TOWLINE_REDIS_URL", "redis://127.0.0.1:{}/0"),
    }
    linked = ((forms[other], links[f"{part}~{other}"]) for other in NEIGHBOURS.get(part, ()))
    return {variable: form.format(link.port) for (variable, form), link in linked}


class Nemesis:
    """Lets faults happen to a fleet, one after the other, and mends each before the next of the same part."""

    def __init__(self, fleet: Fleet, *, say: Callable[[str], None], stopped_s: float) -> None:
        """Make it.

        Args:
            fleet: Whom they happen to.
            say: Takes a line for each.
            stopped_s: How long a part that is stopped (SIGSTOP) stays so.
        """
        self._fleet = fleet
        self._say = say
        self._stopped_s = stopped_s
        self._began = time.monotonic()
        self._threads = ThreadPoolExecutor(max_workers=2 * len(fleet.parts))
        self._locks = {name: asyncio.Lock() for name in fleet.parts}
        self.happened: list[Happened] = []
        self.problems: list[str] = []

    async def rage(self, plan: Generator[Fault] | tuple[Fault, ...], *, for_s: float, every_s: float) -> None:
        """Start a fault every `every_s` for `for_s` seconds, then wait until all parts are back."""
        self._began = time.monotonic()
        kinds: Mapping[str, Callable[[str], Awaitable[None]]] = {
            "kill": self._kill,
            "stop": self._stop,
            "roll": self._roll,
            "flush": self._flush,
            "cut": self._cut,
            "full": self._full,
        }
        under_way: list[asyncio.Task[None]] = []
        for number, (what, whom) in enumerate(plan):
            at_s = number * every_s
            if at_s >= for_s:
                break
            await asyncio.sleep(max(0.0, self._began + at_s - time.monotonic()))
            under_way.append(asyncio.create_task(self._happen(what, whom, kinds[what])))
        await asyncio.gather(*under_way)
        self._threads.shutdown()

    async def _happen(self, what: str, whom: str, act: Callable[[str], Awaitable[None]]) -> None:
        parts = sorted(part.name for part in self._fleet.of(whom))
        # Always in the same order: two faults that share parts wait for one another and never for ever.
        for name in parts:
            await self._locks[name].acquire()
        at_s = time.monotonic() - self._began
        self._say(f"{at_s:6.1f} s  {what} {whom}")
        try:
            await act(whom)
        except (DevError, OSError) as error:
            self.problems.append(f"{what} {whom} at {at_s:.1f} s: {error}")
        finally:
            for name in parts:
                self._locks[name].release()
        self.happened.append(Happened(at_s, what, whom, time.monotonic() - self._began - at_s))

    async def _kill(self, whom: str) -> None:
        parts = self._fleet.of(whom)
        await asyncio.gather(*(self._in_thread(part.kill) for part in parts))
        for part in parts:
            await self._in_thread(part.spawn)
        await asyncio.gather(*(self._in_thread(part.wait_ready, BACK_WITHIN_S) for part in parts))

    async def _stop(self, whom: str) -> None:
        (part,) = self._fleet.of(whom)
        os.killpg(part.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._stopped_s)
        finally:
            os.killpg(part.pid, signal.SIGCONT)
        await self._in_thread(part.wait_ready, BACK_WITHIN_S)

    async def _roll(self, whom: str) -> None:
        for part in self._fleet.of(whom):
            await self._in_thread(part.stop)
            await self._in_thread(part.spawn)
            await self._in_thread(part.wait_ready, BACK_WITHIN_S)

    async def _flush(self, _: str) -> None:
        async with Redis.from_url(self._fleet.stack.redis_url) as redis:
            with suppress(RedisError):
                await redis.flushall()

    async def _cut(self, whom: str) -> None:
        (part,) = self._fleet.of(whom)
        self._fleet.links.set_parted(whom, True)
        try:
            await asyncio.sleep(self._stopped_s)
        finally:
            self._fleet.links.set_parted(whom, False)
        await self._in_thread(part.wait_ready, BACK_WITHIN_S)

    async def _full(self, whom: str) -> None:
        """No write of its reaches any file, as on a full disk: the limit of a file's size does the same."""
        (part,) = self._fleet.of(whom)
        _, hard = resource.prlimit(part.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(part.pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            await asyncio.sleep(self._stopped_s)
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(part.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await self._in_thread(part.wait_ready, BACK_WITHIN_S)

    async def _in_thread(self, call: Callable[..., object], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
