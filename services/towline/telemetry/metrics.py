"""The one registry of Towline's metrics: name, kind, unit, labels and meaning.

Instruments are made here and nowhere else, so a misspelt name is a type error and every metric is in
docs/guide/telemetry.md (a test compares). No label has a value per run: what is open-ended goes through
`bounded`. The scheduler stands alone and keeps its own list, `towline.scheduler.server.stats.METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
CounterName: TypeAlias = Literal[
    "towline.bridge.runs_accepted",
    "towline.bridge.answers",
    "towline.runs.started",
    "towline.runs.ended",
    "towline.agent.tool_calls",
    "towline.agent.retries",
    "towline.approvals.requested",
    "towline.approvals.resolved",
    "towline.approvals.refused",
    "towline.worker.publish_failures",
    "towline.telemetry.spans_dropped",
]
HistogramName: TypeAlias = Literal[
    "towline.bridge.queue_delay",
    "towline.run.queue_delay",
    "towline.run.duration",
    "towline.agent.turn.duration",
    "towline.agent.time_to_first_token",
    "towline.approval.wait",
    "towline.stream.flush_delay",
]
ObservedName: TypeAlias = Literal[
    "towline.consumer.records",
    "towline.consumer.retries",
    "towline.consumer.dead_letters",
    "towline.consumer.held",
    "towline.consumer.running",
    "towline.consumer.waiting_lanes",
    "towline.consumer.lag",
    "towline.consumer.on_hold",
    "towline.worker.work_items",
    "towline.worker.turns",
    "towline.worker.in_hand",
    "towline.worker.turns_waiting",
    "towline.stream.kept_chars",
    "towline.stream.redis_away",
    "towline.relay.clients",
    "towline.relay.feeds",
    "towline.relay.outcomes.held",
    "towline.relay.lag",
    "towline.relay.events.applied",
    "towline.relay.events.undecodable",
    "towline.relay.clients.dropped",
    "towline.approvals.open",
    "towline.approvals.oldest_age",
]
"""Read off the state of their part when metrics are collected: what they count costs nothing more."""
MetricName: TypeAlias = CounterName | HistogramName | ObservedName

_SHORT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_MODEL_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_LONG_S: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400, 604_800)
_LABEL_VALUES_MAX: Final = 200
_OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Metric:
    """What there is to know of one metric."""

    kind: Kind
    unit: str
    """UCUM; braces annotate what is counted."""
    role: str
    """Which roles report it."""
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] | None = None


METRICS: Final[Mapping[MetricName, Metric]] = {
    "towline.bridge.runs_accepted": Metric(
        "counter", "{run}", "bridge", ("run_type", "starts"),
        "Runs handed to the scheduler, to start now or (start_at) later.",
    ),
    "towline.bridge.answers": Metric(
        "counter", "{event}", "bridge", ("type", "reason"), "Events that the bridge published itself."
    ),
    "towline.bridge.queue_delay": Metric(
        "histogram", "s", "bridge", ("type",),
        "From a command's own time to the end of its handling by the bridge.", _SHORT_S,
    ),
    "towline.runs.started": Metric(
        "counter", "{run}", "worker", ("run_type",), "Runs whose code has begun."
    ),
    "towline.runs.ended": Metric(
        "counter", "{run}", "worker, bridge", ("run_type", "outcome"),
        "Outcomes published: completed, failed, cancelled, rejected. A repeat after a crash counts again.",
    ),
    "towline.run.queue_delay": Metric(
        "histogram", "s", "worker", ("run_type",),
        "From the request's time (or its start_at, if later) to the beginning of the run's code.", _LONG_S,
    ),
    "towline.run.duration": Metric(
        "histogram", "s", "worker", ("run_type", "outcome"),
        "From the beginning of the run's code to its outcome, waits for people included.", _LONG_S,
    ),
    "towline.agent.turn.duration": Metric(
        "histogram", "s", "worker", ("agent", "outcome"),
        "One execution of an agent turn, model and tool calls included: ok, error or cancelled.", _MODEL_S,
    ),
    "towline.agent.time_to_first_token": Metric(
        "histogram", "s", "worker", ("agent",),
        "From the beginning of a streamed turn to its first text. None without streams.", _MODEL_S,
    ),
    "towline.agent.tool_calls": Metric(
        "counter", "{call}", "worker", ("agent", "tool"), "Tools that agents called."
    ),
    "towline.agent.retries": Metric(
        "counter", "{retry}", "worker", ("run_type",), "Agent calls that are tried again by their policy."
    ),
    "towline.approvals.requested": Metric(
        "counter", "{approval}", "worker", ("run_type",), "Asks announced."
    ),
    "towline.approvals.resolved": Metric(
        "counter", "{approval}", "worker", ("run_type", "outcome"),
        "Asks that ended: approved, rejected, expired, cancelled.",
    ),
    "towline.approvals.refused": Metric(
        "counter", "{decision}", "worker", ("reason",), "Decisions that changed nothing."
    ),
    "towline.approval.wait": Metric(
        "histogram", "s", "worker", ("run_type", "outcome"), "From an ask's announcement to its end.", _LONG_S
    ),
    "towline.approvals.open": Metric(
        "gauge", "{approval}", "relay", (),
        "Asks that wait for a person, of all runs. Every replica reports the same: take the maximum.",
    ),
    "towline.approvals.oldest_age": Metric(
        "gauge", "s", "relay", (), "Age of the oldest open ask; 0 without one. Take the maximum."
    ),
    "towline.worker.work_items": Metric(
        "counter", "{item}", "worker", ("kind",),
        "Work items taken from the scheduler: turn, activity, entity batch (an agent's turn).",
    ),
    "towline.worker.turns": Metric(
        "counter", "{turn}", "worker", ("how",),
        "Orchestration turns: kept (gone on with), replayed; stale of these: kept, but of another history.",
    ),
    "towline.worker.in_hand": Metric(
        "gauge", "{item}", "worker", (), "Work items being carried out or reported."
    ),
    "towline.worker.turns_waiting": Metric(
        "gauge", "{turn}", "worker", (), "Orchestration turns that wait until Kafka takes their events."
    ),
    "towline.worker.publish_failures": Metric(
        "counter", "{failure}", "worker", (), "Publishes that Kafka did not acknowledge; tried again."
    ),
    "towline.stream.flush_delay": Metric(
        "histogram", "s", "worker", (), "From an agent's text to its acknowledgement by Redis.",
        (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    "towline.stream.kept_chars": Metric(
        "gauge", "{character}", "worker", (), "Text of open turns kept in memory."
    ),
    "towline.stream.redis_away": Metric("gauge", "{flag}", "worker", (), "1 while Redis does not answer."),
    "towline.consumer.records": Metric(
        "counter", "{record}", "bridge", ("group", "outcome"), "Records that left their lane."
    ),
    "towline.consumer.retries": Metric(
        "counter", "{retry}", "bridge", ("group", "reason"), "Attempts that are to be repeated."
    ),
    "towline.consumer.dead_letters": Metric(
        "counter", "{record}", "bridge", ("group", "reason"), "Records put aside."
    ),
    "towline.consumer.held": Metric(
        "gauge", "{record}", "bridge", ("group",), "Records taken on and not finished."
    ),
    "towline.consumer.running": Metric(
        "gauge", "{lane}", "bridge", ("group",), "Lanes in use: records being handled."
    ),
    "towline.consumer.waiting_lanes": Metric(
        "gauge", "{lane}", "bridge", ("group",), "Lanes that wait for a retry."
    ),
    "towline.consumer.lag": Metric(
        "gauge", "{record}", "bridge", ("group",), "Records of this replica's partitions not finished yet."
    ),
    "towline.consumer.on_hold": Metric(
        "gauge", "{flag}", "bridge", ("group",), "1 while consumption is held because a neighbour is away."
    ),
    "towline.telemetry.spans_dropped": Metric(
        "counter", "{span}", "all", ("reason",),
        "Spans lost before a collector had them: queue_full, export_failed, not_encodable.",
    ),
    "towline.relay.clients": Metric("gauge", "{client}", "relay", (), "SSE clients now."),
    "towline.relay.feeds": Metric("gauge", "{stream}", "relay", (), "Streams read for clients now."),
    "towline.relay.outcomes.held": Metric(
        "gauge", "{run}", "relay", (), "Outcomes that wait for their run's last tokens."
    ),
    "towline.relay.lag": Metric(
        "gauge", "{event}", "relay", (), "Lifecycle events of this replica's partitions not applied yet."
    ),
    "towline.relay.events.applied": Metric(
        "counter", "{event}", "relay", (), "Lifecycle events and outcomes applied."
    ),
    "towline.relay.events.undecodable": Metric(
        "counter", "{event}", "relay", (), "Records that are no event of the contract."
    ),
    "towline.relay.clients.dropped": Metric(
        "counter", "{client}", "relay", (), "SSE clients that took nothing for too long."
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Foreign:
    """A metric that a library reports."""

    prometheus: str
    labels: tuple[str, ...]
    meaning: str


FOREIGN: Final[Mapping[str, Foreign]] = {
    "gen_ai.client.token.usage": Foreign(
        "gen_ai_client_token_usage_tokens", ("gen_ai_token_type", "gen_ai_request_model"),
        "Tokens that a model call took in and gave out, by type and model.",
    ),
    "gen_ai.client.operation.duration": Foreign(
        "gen_ai_client_operation_duration_seconds", ("gen_ai_request_model",), "Duration of model calls."
    ),
}  # fmt: skip
"""Metrics that Agent Framework reports by the gen_ai conventions, and that dashboards build on."""

Read: TypeAlias = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]
"""Values now, each with its labels. Called from the thread that collects: must not block."""

_meter: Final = metrics.get_meter("towline")


def counter(name: CounterName) -> Counter:
    """The counter of that name."""
    about = METRICS[name]
    return _meter.create_counter(name, about.unit, about.meaning)


def histogram(name: HistogramName) -> Histogram:
    """The histogram of that name."""
    about = METRICS[name]
    return _meter.create_histogram(
        name, about.unit, about.meaning, explicit_bucket_boundaries_advisory=about.buckets
    )


def observe(name: ObservedName, read: Read) -> None:
    """Report what `read` gives whenever metrics are collected. Once per process and name."""
    about = METRICS[name]

    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        for value, labels in read():
            yield Observation(value, cast("dict[str, str]", labels))

    create = _meter.create_observable_counter if about.kind == "counter" else _meter.create_observable_gauge
    create(name, [callback], about.unit, about.meaning)


def observe_value(name: ObservedName, value: Callable[[], float]) -> None:
    """`observe`, for a metric without labels."""
    observe(name, lambda: ((value(), {}),))


class Bounded:
    """A label whose values are not ours: the first so many keep their names, the rest is "other"."""

    def __init__(self, limit: int = _LABEL_VALUES_MAX) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """`value`, or "other"."""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return _OTHER
        self._known.add(value)
        return value


def prometheus_name(name: str) -> str:
    """How a metric is called at ``/metrics``, without the suffixes of a histogram's series.

    Raises:
        KeyError: There is no such metric.
    """
    if name in FOREIGN:
        return FOREIGN[name].prometheus
    about = METRICS[cast("MetricName", name)]
    base = name.replace(".", "_") + ("_seconds" if about.unit == "s" else "")
    return f"{base}_total" if about.kind == "counter" else base
