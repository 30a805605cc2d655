"""The stack that tests run against, by two backends.

`embedded`: Kafka, Valkey and scheduler as processes of this machine, without Docker. `containers`: Kafka and
Redis by testcontainers. Bridge, worker and relay are processes with their production command lines in both.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, cast
from uuid import uuid4

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from towline.contracts.settings import SchedulerSettings
from towline.dev.stack import Stack, StackPlan
from towline.testing.errors import TestKitError

Backend = Literal["embedded", "containers"]

KAFKA_IMAGE: Final = "confluentinc/cp-kafka:7.9.0"
REDIS_IMAGE: Final = "redis:7"
_SKIP_TIME: Final = "/towline.scheduler.Admin/SkipTime"
_SKIP_TIMEOUT_S: Final = 30.0
_PARTITIONS: Final = 3
_START_TIMEOUT_S: Final = 120


class TestStack(Stack):
    """A running stack for tests: a `towline.dev` stack whose time can be skipped."""

    __test__ = False  # pytest would collect it by its name

    @property
    def scheduler(self) -> SchedulerSettings:
        """How to reach its scheduler, for `towline.testing.record`."""
        prefix, environment = "TOWLINE_SCHEDULER_", self.environment()
        given: dict[str, Any] = {
            name: environment[f"{prefix}{name.upper()}"]
            for name in SchedulerSettings.model_fields
            if f"{prefix}{name.upper()}" in environment
        }
        return SchedulerSettings(**given)

    def skip_time(self, duration: timedelta) -> None:
        """Let `duration` pass for timers, timeouts and scheduled starts, at once.

        Raises:
            TestKitError: The scheduler is not one with a test clock (another one was given by
                `TOWLINE_SCHEDULER_ADDRESS`), or it is away.
        """
        request = Duration()
        request.FromTimedelta(duration)
        address, token = self.scheduler_address.removeprefix("http://"), self.scheduler.token
        metadata = [] if token is None else [("authorization", f"Bearer {token.get_secret_value()}")]
        # A proxy of the environment has a loopback of its own.
        options = [("grpc.enable_http_proxy", 0)]
        with cast("Any", grpc).insecure_channel(address, options=options) as channel:
            call = channel.unary_unary(_SKIP_TIME)
            try:
                answer = call(request.SerializeToString(), metadata=metadata, timeout=_SKIP_TIMEOUT_S)
                Timestamp.FromString(answer)
            except grpc.RpcError as error:
                raise TestKitError(
                    f"the scheduler at {address} does not skip time: it must be Towline's own with "
                    f"--test-clock ({cast('Any', error).details()})"
                ) from error


@contextmanager
def running_stack(
    app: str,
    *,
    data: Path,
    backend: Backend = "embedded",
    environ: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> Generator[TestStack]:
    """A stack with `app` on it, under a topic prefix, task hub and Redis key prefix of its own.

    Args:
        app: ``module:attr``, as for ``towline worker --app``.
        data: Folder for data and logs; a part's output is in ``data/<part>/log``.
        backend: Where Kafka and Redis come from.
        environ: Addresses in it (`TOWLINE_KAFKA_BOOTSTRAP`, …) are used instead of starting those
            parts; `TOWLINE_TEST_KAFKA_IMAGE` and `TOWLINE_TEST_REDIS_IMAGE` choose other images.
        settings: More `TOWLINE_*` (and other) variables for bridge, worker and relay.

    Raises:
        TestKitError: No container engine answers.
        DevError: A part could not be started.
    """
    name = uuid4().hex[:8]
    with ExitStack() as exits:
        given = {variable: environ[variable] for variable in _ADDRESSES if environ.get(variable)}
        access: dict[str, str] = {}
        if backend == "containers":
            made = exits.enter_context(_containers(environ, given))
            given |= made
            if "TOWLINE_KAFKA_BOOTSTRAP" in made:  # whatever the shell says about another one
                access["TOWLINE_KAFKA_SECURITY_PROTOCOL"] = "PLAINTEXT"
        plan = StackPlan(
            data=data,
            app=app,
            given=given,
            settings={
                "TOWLINE_KAFKA_TOPIC_PREFIX": f"test-{name}.",
                "TOWLINE_SCHEDULER_TASKHUB": f"test-{name}",
                "TOWLINE_REDIS_KEY_PREFIX": f"towline-test-{name}:",
                **access,
                **(settings or {}),
            },
            partitions=_PARTITIONS,
            scheduler_options=("--test-clock",),
        )
        stack = TestStack(plan)
        exits.callback(stack.stop)
        stack.start()
        yield stack


_ADDRESSES: Final = ("TOWLINE_KAFKA_BOOTSTRAP", "TOWLINE_REDIS_URL", "TOWLINE_SCHEDULER_ADDRESS")


@contextmanager
def _containers(environ: Mapping[str, str], given: Mapping[str, str]) -> Generator[dict[str, str]]:
    """Kafka and Redis in containers, except what is given."""
    try:
        kafka_class: Any = importlib.import_module("testcontainers.community.kafka").KafkaContainer
        redis_class: Any = importlib.import_module("testcontainers.community.redis").RedisContainer
        docker_errors: Any = importlib.import_module("docker.errors")
    except ModuleNotFoundError as error:
        raise TestKitError(f"{error.name} is not installed: pip install 'towline[testing]'") from error
    made: dict[str, str] = {}
    with ExitStack() as exits:
        try:
            if "TOWLINE_KAFKA_BOOTSTRAP" not in given:
                image = environ.get("TOWLINE_TEST_KAFKA_IMAGE", KAFKA_IMAGE)
                kafka = kafka_class(image).with_kraft()
                exits.callback(kafka.stop)  # before the start: one that fails leaves a container
                kafka.start(timeout=_START_TIMEOUT_S)
                made["TOWLINE_KAFKA_BOOTSTRAP"] = kafka.get_bootstrap_server()
            if "TOWLINE_REDIS_URL" not in given:
                image = environ.get("TOWLINE_TEST_REDIS_IMAGE", REDIS_IMAGE)
                redis = redis_class(image)
                exits.callback(redis.stop)
                redis.start()
                host, port = redis.get_container_host_ip(), redis.get_exposed_port(6379)
                made["TOWLINE_REDIS_URL"] = f"redis://{host}:{port}/0"
        except (docker_errors.DockerException, RuntimeError, TimeoutError) as error:
            raise TestKitError(
                f"containers cannot be started: {error}. Start a Docker engine, set "
                "TOWLINE_TEST_KAFKA_IMAGE and TOWLINE_TEST_REDIS_IMAGE to images that are there, "
                "or use --towline-backend embedded"
            ) from error
        yield made
