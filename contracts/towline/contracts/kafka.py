"""Kafka itself: waiting for a broker, and creating the topics of the contract."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from towline.contracts.errors import KafkaUnavailableError, TowlineError
from towline.contracts.settings import KafkaSettings
from towline.contracts.topics import TOPICS, TopicSpec

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

REFUSALS: Final = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)
"""Errors of the broker that waiting does not mend."""
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_NO_ERROR: Final = 0


class TopicError(TowlineError):
    """A topic could not be created; the message says which, why, and what to do."""


def backoff_s(attempt: int) -> float:
    """Seconds to wait after the `attempt`-th failure, from 0."""
    return _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]


async def connect(
    make: Callable[[], _T],
    start: Callable[[_T], Awaitable[None]],
    discard: Callable[[_T], Awaitable[None]],
    *,
    bootstrap: str,
    timeout_s: float | None,
) -> _T:
    """A started aiokafka client; while no broker answers, tries again with backoff and a line in the log.

    Args:
        make: Makes a client. A new one each time: aiokafka's do not survive a failed start.
        start: Starts it.
        discard: Closes one whose start failed.
        bootstrap: The brokers' addresses, for messages.
        timeout_s: Gives up after this many seconds; None waits for ever.

    Raises:
        KafkaUnavailableError: No broker answered in time.
    """
    problem: Exception | None = None
    try:
        async with asyncio.timeout(timeout_s):
            for attempt in itertools.count():
                client = make()
                try:
                    await start(client)
                    return client
                except (KafkaError, OSError) as error:
                    problem = error
                    await discard(client)
                except BaseException:
                    await asyncio.shield(discard(client))
                    raise
                _log.warning(
                    "kafka_unavailable",
                    extra={"bootstrap": bootstrap, "attempt": attempt + 1, "error": str(problem)},
                )
                await asyncio.sleep(backoff_s(attempt))
    except TimeoutError as error:
        raise KafkaUnavailableError(
            f"no Kafka broker answered at {bootstrap} within {timeout_s:g} s ({problem or error!r}): "
            "start it, or set TOWLINE_KAFKA_BOOTSTRAP to where it is"
        ) from error
    raise AssertionError("unreachable")


@asynccontextmanager
async def admin(
    settings: KafkaSettings, *, timeout_s: float | None = 30.0
) -> AsyncGenerator[AIOKafkaAdminClient]:
    """An admin client, connected.

    Raises:
        KafkaUnavailableError: No broker answered within `timeout_s` seconds.
    """

    def make() -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(
            **settings.connection(), client_id="towline-admin", request_timeout_ms=10_000
        )

    client = await connect(
        make,
        lambda client: client.start(),
        lambda client: client.close(),
        bootstrap=settings.bootstrap,
        timeout_s=timeout_s,
    )
    try:
        yield client
    finally:
        await client.close()


async def ensure_topics(
    settings: KafkaSettings,
    *,
    partitions: int | None = None,
    insists: bool = True,
    replication_factor: int = -1,
    timeout_s: float = 30.0,
) -> tuple[str, ...]:
    """Create those of the contract's topics that are not there yet. Idempotent, safe to call concurrently.

    A topic that exists is never changed; one that differs in what the contract relies on (compaction of the
    catalog), or from `partitions`, is logged as `topic_differs`. Without `partitions` any number is right:
    it is for whoever created the topic to say.

    Args:
        settings: Where Kafka is, and the topics' prefix.
        partitions: Instead of each specification's own number, except for topics with one partition.
        insists: Whether `partitions` is asked of topics that exist, too.
        replication_factor: -1 takes the broker's default.
        timeout_s: In seconds, for reaching a broker and again for the rest.

    Returns:
        The names of the topics that were created now.

    Raises:
        KafkaUnavailableError: No broker answered in time.
        TopicError: The broker refused to create a topic.
    """
    try:
        async with admin(settings, timeout_s=timeout_s) as client, asyncio.timeout(timeout_s):
            existing = set(await client.list_topics())
            missing = {
                settings.topics.name(spec.name): spec
                for spec in TOPICS
                if settings.topics.name(spec.name) not in existing
            }
            created = await _create(client, missing, partitions, replication_factor) if missing else ()
            await _until_led(client, settings)
            await _report_differences(client, settings, partitions if insists else None)
    except TimeoutError as error:
        raise KafkaUnavailableError(
            f"the broker at {settings.bootstrap} did not create or answer for the topics "
            f"within {timeout_s:g} s: see its log"
        ) from error
    except (KafkaError, OSError) as error:
        if isinstance(error, REFUSALS):
            raise
        # It answered at first, and went away in between.
        raise KafkaUnavailableError(f"the broker at {settings.bootstrap} went away: {error!r}") from error
    for topic in created:
        _log.info("topic_created", extra={"topic": topic})
    return created


def _partitions(spec: TopicSpec, override: int | None) -> int:
    return spec.partitions if override is None or spec.partitions == 1 else override


async def _create(
    client: AIOKafkaAdminClient,
    missing: dict[str, TopicSpec],
    partitions: int | None,
    replication_factor: int,
) -> tuple[str, ...]:
    topics: list[NewTopic] = []
    for name, spec in missing.items():
        topic = NewTopic(name, _partitions(spec, partitions), 1, topic_configs=dict(spec.settings))
        # Set afterwards: the constructor refuses -1, by which the broker takes its own default.
        topic.replication_factor = replication_factor
        topics.append(topic)
    response: Any = await client.create_topics(topics, timeout_ms=10_000)
    created: list[str] = []
    for topic, code, *rest in cast("list[tuple[str, int, str | None]]", response.topic_errors):
        error = for_code(code)
        if code == _NO_ERROR:
            created.append(topic)
        elif error is not TopicAlreadyExistsError:
            raise TopicError(_refusal(topic, error, rest[0] if rest else None))
    return tuple(created)


def _refusal(topic: str, error: type[KafkaError], message: str | None) -> str:
    fix = "see the broker's log"
    if error in {ClusterAuthorizationFailedError, TopicAuthorizationFailedError}:
        fix = "let this user create topics, or create them beforehand as in docs/wire-contract.md"
    reason = f"{error.__name__}: {message or 'no reason given'}"
    return f"topic {topic}: the broker refused to create it ({reason}): {fix}"


async def _described(client: AIOKafkaAdminClient, settings: KafkaSettings) -> dict[str, list[dict[str, Any]]]:
    names = [settings.topics.name(spec.name) for spec in TOPICS]
    topics = cast("list[dict[str, Any]]", await client.describe_topics(names))
    return {topic["topic"]: topic["partitions"] for topic in topics if topic["error_code"] == _NO_ERROR}


async def _until_led(client: AIOKafkaAdminClient, settings: KafkaSettings) -> None:
    """Wait until every partition has a leader: a new topic cannot be written to before."""
    attempt = 0
    while True:
        described = await _described(client, settings)
        if len(described) == len(TOPICS) and all(
            partition["leader"] >= 0 for partitions in described.values() for partition in partitions
        ):
            return
        await asyncio.sleep(backoff_s(attempt))
        attempt += 1


async def _report_differences(
    client: AIOKafkaAdminClient, settings: KafkaSettings, override: int | None
) -> None:
    described = await _described(client, settings)
    for spec in TOPICS:
        name = settings.topics.name(spec.name)
        wanted, actual = _partitions(spec, override), len(described.get(name, ()))
        if actual != wanted and (override is not None or spec.partitions == 1):
            _log.warning(
                "topic_differs",
                extra={"topic": name, "setting": "partitions", "wanted": wanted, "actual": actual},
            )
    catalog = settings.topics.catalog
    policy = await _setting(client, catalog, "cleanup.policy")
    if policy is not None and "compact" not in policy:
        _log.warning(
            "topic_differs",
            extra={"topic": catalog, "setting": "cleanup.policy", "wanted": "compact", "actual": policy},
        )


async def _setting(client: AIOKafkaAdminClient, topic: str, name: str) -> str | None:
    """A topic's setting; None if this user may not read it."""
    answers: Any = await client.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, {name: None})]
    )
    for answer in answers:
        for _code, _message, _kind, _topic, entries in answer.resources:
            for entry in entries:
                if entry[0] == name:
                    return cast("str", entry[1])
    return None
