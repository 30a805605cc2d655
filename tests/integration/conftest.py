"""Real parts, one of each for the whole run, and full stacks on top of them.

Of a run in several processes the parts are those of `tests.shared_parts`. A part whose address is in the
environment (`TOWLINE_KAFKA_BOOTSTRAP`, `TOWLINE_REDIS_URL`, `TOWLINE_SCHEDULER_ADDRESS`) is used instead of
starting one. A test that kills a part makes its own:
``with KafkaPart(data=tmp_path / "kafka") as kafka: …``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tests.shared_parts import addresses_of

from towline.contracts.kafka import ensure_topics
from towline.contracts.settings import KafkaSettings
from towline.dev import KafkaPart, SchedulerPart, ValkeyPart
from towline.dev.stack import ROLES, Stack, StackPlan

StackFactory = Callable[..., Stack]
_GIVEN = dict(os.environ)


@pytest.fixture(scope="session")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the session's parts; each part's output is in its ``log`` (Kafka: ``output.log``)."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="session")
def running_parts(pytestconfig: pytest.Config) -> Mapping[str, str]:
    """Addresses of parts that run already, by the variable that tells them."""
    return {**addresses_of(pytestconfig), **_GIVEN}


@pytest.fixture(scope="session")
def kafka(parts_folder: Path, running_parts: Mapping[str, str]) -> Generator[str]:
    """Bootstrap address of the session's Kafka."""
    if address := running_parts.get("TOWLINE_KAFKA_BOOTSTRAP"):
        yield address
        return
    with KafkaPart(data=parts_folder / "kafka") as part:
        yield part.bootstrap


@pytest.fixture(scope="session")
def valkey(parts_folder: Path, running_parts: Mapping[str, str]) -> Generator[str]:
    """redis:// URL of the session's Valkey."""
    if address := running_parts.get("TOWLINE_REDIS_URL"):
        yield address
        return
    with ValkeyPart(data=parts_folder / "valkey") as part:
        yield part.url


@pytest.fixture(scope="session")
def scheduler(parts_folder: Path, running_parts: Mapping[str, str]) -> Generator[str]:
    """http:// address of the session's scheduler. Use a task hub of your own."""
    if address := running_parts.get("TOWLINE_SCHEDULER_ADDRESS"):
        yield address
        return
    with SchedulerPart(data=parts_folder / "scheduler") as part:
        yield part.address


@pytest.fixture
def kafka_settings(kafka: str) -> KafkaSettings:
    """The session's Kafka with topics under a prefix of this test's own (3 partitions each)."""
    settings = KafkaSettings(bootstrap=kafka, topic_prefix=unique_prefix())
    _run(lambda: asyncio.run(ensure_topics(settings, partitions=3)))
    return settings


@pytest.fixture
def stack(kafka: str, valkey: str, scheduler: str, tmp_path: Path) -> Generator[StackFactory]:
    """Start stacks: ``stack("module:attr")`` gives running bridge, worker and relay of their own.

    Each has its own topic prefix and task hub on the session's Kafka, Valkey and scheduler;
    ``stack(app, own=("kafka",))`` gives it parts of its own, to be killed. Members: see
    `towline.dev.stack.Stack`: ``.kafka`` (settings for a client), ``.relay_url``, ``.redis_url``,
    ``.scheduler_address``, ``["worker"].kill()`` … `start`.
    """
    with _stacks(kafka, valkey, scheduler, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def module_stack(
    kafka: str, valkey: str, scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[StackFactory]:
    """As `stack`, for a stack that all tests of a module share: starting one takes seconds."""
    with _stacks(kafka, valkey, scheduler, tmp_path_factory.mktemp("stacks")) as start:
        yield start


@contextmanager
def _stacks(kafka: str, valkey: str, scheduler: str, folder: Path) -> Generator[StackFactory]:
    shared = {
        "kafka": ("TOWLINE_KAFKA_BOOTSTRAP", kafka),
        "valkey": ("TOWLINE_REDIS_URL", valkey),
        "scheduler": ("TOWLINE_SCHEDULER_ADDRESS", scheduler),
    }
    with ExitStack() as exits:

        def start(
            app: str,
            *,
            own: tuple[str, ...] = (),
            settings: Mapping[str, str] | None = None,
            roles: tuple[str, ...] = ROLES,
        ) -> Stack:
            name = uuid4().hex[:8]
            plan = StackPlan(
                data=folder / f"stack-{name}",
                app=app,
                given=dict(address for part, address in shared.items() if part not in own),
                settings={
                    "TOWLINE_KAFKA_TOPIC_PREFIX": f"t{name}.",
                    "TOWLINE_SCHEDULER_TASKHUB": f"t{name}",
                    "TOWLINE_RELAY_GROUP": f"t{name}.relay",
                    **(settings or {}),
                },
                roles=roles,
                partitions=3,
            )
            made = Stack(plan)
            exits.callback(made.stop)
            _run(made.start)
            return made

        yield start


def unique_prefix() -> str:
    """A topic prefix that no other test has."""
    return f"t{uuid4().hex[:8]}."


def _run(call: Callable[[], object]) -> None:
    """Call it in a thread: fixtures may be set up while an event loop runs."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(call).result()
