"""The parts of one stack and how they find one another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr, ValidationError

from towline.contracts.kafka import ensure_topics
from towline.contracts.settings import KafkaSettings, PayloadSettings
from towline.dev.errors import WrongSettingError
from towline.dev.kafka import KafkaPart
from towline.dev.part import Part
from towline.dev.process import LineSink
from towline.dev.roles import ProcessPart, SchedulerPart
from towline.dev.valkey import ValkeyPart

ADDRESS_VARIABLES: Final = (
    "TOWLINE_KAFKA_BOOTSTRAP",
    "TOWLINE_REDIS_URL",
    "TOWLINE_SCHEDULER_ADDRESS",
    "TOWLINE_RELAY_URL",
)
"""A part whose address is given is not started."""
ROLES: Final = ("bridge", "worker", "relay")
PAYLOADS_VARIABLE: Final = "TOWLINE_PAYLOADS_URL"
_TOPICS_TIMEOUT_S: Final = 30.0
_KAFKA_ACCESS: Final = frozenset(
    f"TOWLINE_KAFKA_{name.upper()}" for name in KafkaSettings.model_fields if name != "topic_prefix"
)
"""How a Kafka elsewhere wants to be reached, which does not hold for one that was started here."""
_SCHEDULER_TOKENS: Final = ("TOWLINE_SCHEDULER_TOKEN", "TOWLINE_SCHEDULER_TOKEN_FILE")
PARTITIONS: Final = 3
"""A topic's on a Kafka of the stack's own: one bridge and one relay share them, and each costs the broker and
whoever reads it something with every fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """What a stack consists of."""

    data: Path
    app: str
    """``module:attr`` for ``towline worker --app``."""
    given: Mapping[str, str] = field(default_factory=dict[str, str])
    """Addresses (`ADDRESS_VARIABLES`) of parts that run already, to be used as they are."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """More `TOWLINE_*` variables for bridge, worker and relay."""
    roles: Sequence[str] = ROLES
    """Which of Towline's roles to start."""
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    """Wanted ports by part; another one is taken if a wanted one is not free."""
    partitions: int | None = None
    """Partitions a topic; default: the contract's number, on a Kafka of its own `PARTITIONS`."""
    scheduler_options: Sequence[str] = ()
    """More of the command line of the scheduler, if it is started."""


class Stack:
    """All parts of one stack. Made without starting anything; addresses are known at once.

    `infrastructure` comes first, then the topics, then `roles`. Use it as a context manager, or let
    the supervisor drive the parts.
    """

    def __init__(self, plan: StackPlan, *, sink: LineSink | None = None) -> None:
        """Make it.

        Raises:
            WrongSettingError: A Kafka that is given cannot be reached in the way that its settings say, or
                the address of a payload store cannot be read from its file.
        """
        self.plan = plan
        self.addresses: dict[str, str] = dict(plan.given)
        self.infrastructure: list[Part] = []
        self.roles: list[Part] = []
        scheduler = partial(SchedulerPart, options=plan.scheduler_options)
        for variable, name, make in (
            ("TOWLINE_KAFKA_BOOTSTRAP", "kafka", KafkaPart),
            ("TOWLINE_REDIS_URL", "valkey", ValkeyPart),
            ("TOWLINE_SCHEDULER_ADDRESS", "scheduler", scheduler),
        ):
            if variable not in plan.given:
                part = make(data=plan.data / name, port=plan.ports.get(name), sink=sink)
                self.infrastructure.append(part)
                self.addresses.update(part.addresses)
        for role in plan.roles:
            if role == "relay" and "TOWLINE_RELAY_URL" in plan.given:
                continue
            part = ProcessPart(
                role,
                data=plan.data / role,
                env=self.environment(),
                options=("--app", plan.app) if role == "worker" else (),
                port=plan.ports.get(role),
                sink=sink,
                without=() if self._kafka_is_given else _KAFKA_ACCESS,
            )
            self.roles.append(part)
            self.addresses.update(part.addresses)
        _ = self.kafka  # a wrong setting is told before anything is started

    def environment(self) -> dict[str, str]:
        """The `TOWLINE_*` variables of a process that belongs to this stack."""
        own = {PAYLOADS_VARIABLE: self.payloads_url, **self._scheduler_access()}
        return {**own, **self.plan.settings, **self.addresses}

    def _scheduler_access(self) -> dict[str, str]:
        """Our own scheduler asks for a token if the environment has one, and never for Entra's."""
        if "TOWLINE_SCHEDULER_ADDRESS" in self.plan.given:
            return {}
        has_token = any(os.environ.get(name) for name in _SCHEDULER_TOKENS)
        return {"TOWLINE_SCHEDULER_CREDENTIAL": "token" if has_token else "none"}

    @property
    def parts(self) -> list[Part]:
        """All, in the order in which they are started."""
        return [*self.infrastructure, *self.roles]

    def ports(self) -> dict[str, int]:
        """The first port of each part that was started here."""
        return {part.name: part.own_ports()[0] for part in self.parts}

    def __getitem__(self, name: str) -> Part:
        """The part of that name: kafka, valkey, scheduler, bridge, worker or relay."""
        return next(part for part in self.parts if part.name == name)

    @property
    def kafka(self) -> KafkaSettings:
        """How a client reaches this stack."""
        # How a given Kafka wants to be reached comes from where its roles have it, our own is plain.
        variables = {**os.environ, **self.plan.settings} if self._kafka_is_given else self.plan.settings
        given = {
            name: value
            for name in KafkaSettings.model_fields
            if (value := variables.get(f"TOWLINE_KAFKA_{name.upper()}")) is not None
        }
        prefix = os.environ.get("TOWLINE_KAFKA_TOPIC_PREFIX", "towline.")
        settings: dict[str, Any] = {"topic_prefix": prefix, **given}
        settings["bootstrap"] = self.addresses["TOWLINE_KAFKA_BOOTSTRAP"]
        try:
            return KafkaSettings.model_validate(settings)
        except ValidationError as error:
            raise WrongSettingError(error) from None

    @property
    def _kafka_is_given(self) -> bool:
        return "TOWLINE_KAFKA_BOOTSTRAP" in self.plan.given

    @property
    def payloads_url(self) -> str:
        """Where large inputs and outputs are: in a folder of the stack's, unless another store is set."""
        variables = {**os.environ, **self.plan.settings}
        if (given := variables.get(PAYLOADS_VARIABLE)) is not None:
            return given
        if file := variables.get(f"{PAYLOADS_VARIABLE}_FILE"):
            try:
                url = PayloadSettings(url_file=Path(file)).url
            except ValidationError as error:
                raise WrongSettingError(error) from None
            if url is not None:
                return url.get_secret_value()
        return (self.plan.data.absolute() / "payloads").as_uri()

    @property
    def payloads(self) -> PayloadSettings:
        """How a client reaches them."""
        return PayloadSettings(url=SecretStr(self.payloads_url))

    @property
    def redis_url(self) -> str:
        """redis:// URL."""
        return self.addresses["TOWLINE_REDIS_URL"]

    @property
    def scheduler_address(self) -> str:
        """http:// address."""
        return self.addresses["TOWLINE_SCHEDULER_ADDRESS"]

    @property
    def relay_url(self) -> str:
        """Base URL of the relay."""
        return self.addresses["TOWLINE_RELAY_URL"]

    def start(self) -> None:
        """Start everything, side by side where the order allows it, and wait until all of it is ready.

        Raises:
            DevError: A part could not be started; the others are stopped first.
        """
        try:
            _all_at_once(self.infrastructure, "start")
            asyncio.run(self.create_topics())
            _all_at_once(self.roles, "start")
        except BaseException:
            self.stop()
            raise

    async def create_topics(self) -> None:
        """Create the contract's topics. Idempotent."""
        partitions = self.plan.partitions
        if partitions is None and not self._kafka_is_given:
            partitions = PARTITIONS
        await ensure_topics(
            self.kafka,
            partitions=partitions,
            # A folder may be older than the default.
            insists=self.plan.partitions is not None,
            timeout_s=_TOPICS_TIMEOUT_S,
        )

    def stop(self) -> None:
        """Stop everything: roles first, so that they can still say what they have to."""
        _all_at_once(self.roles, "stop")
        _all_at_once(self.infrastructure, "stop")

    @contextmanager
    def running(self) -> Generator[Stack]:
        """Started on entry, stopped at the end."""
        self.start()
        try:
            yield self
        finally:
            self.stop()


def _all_at_once(parts: Sequence[Part], method: str) -> None:
    """Call `method` of all parts in threads; raises the first error, when all have ended.

    If one cannot be started, nobody waits for the others to be ready: they are of no use without it.
    """
    if not parts:
        return
    with ThreadPoolExecutor(max_workers=len(parts)) as threads:
        calls = [threads.submit(getattr(part, method)) for part in parts]
        done, _ = wait(calls, return_when=FIRST_EXCEPTION)
        failed = next((call for call in done if call.exception() is not None), None)
        if failed is not None and method == "start":
            for part in parts:
                part.kill_now()
    if failed is not None:
        failed.result()
