"""The typed client: start runs, wait for their outcomes, answer their questions, consume their events."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast
from uuid import uuid4

from pydantic import JsonValue, ValidationError

from towline.contracts.consumers import Since
from towline.contracts.errors import (
    ClientError,
    EncodeError,
    ResultTimeoutError,
    RunCancelledError,
    RunFailedError,
    RunRejectedError,
)
from towline.contracts.events import (
    ApprovalDecided,
    ControlAction,
    Event,
    EventData,
    EventRaised,
    RunCancelled,
    RunCompleted,
    RunControl,
    RunFailed,
    RunOutcome,
    RunRequested,
    is_run_id,
)
from towline.contracts.outcomes import OutcomeWatch, Watched
from towline.contracts.payloads.opening import open_payload_store
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, PayloadSettings
from towline.contracts.streams import EventStream, Start, run_events
from towline.contracts.tracing import current_trace, note_processed

if TYPE_CHECKING:
    from towline.contracts.signing import DecisionSigner

_REMEMBERED: Final = 50_000
_UNSURE_MAX_COUNT: Final = 10_000
_DataT = TypeVar("_DataT", bound=EventData)
_DecisionT = TypeVar("_DecisionT", ApprovalDecided, EventRaised)


class Run:
    """One run, by its id. Made by `TowlineClient.start` and `TowlineClient.run`; holds no connection."""

    def __init__(self, client: TowlineClient, run_id: str, watched: Watched, since: Since) -> None:
        self.run_id = run_id
        self._client = client
        self._watched = watched
        self._since = since
        self._noted = False
        """The outcome's arrival has its span."""

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  # names its own error
        """The run's output.

        Args:
            timeout: Longest wait in seconds; None waits for ever.

        Raises:
            RunFailedError: The run raised; `error.event.data.error` says what.
            RunCancelledError: The run was cancelled.
            RunRejectedError: The run was never started.
            ResultTimeoutError: No outcome within `timeout`. The run itself goes on: wait again.
            DecodeError: The output is in a payload store, and none is configured here, or it is gone.
            KafkaUnavailableError: No broker answered when the wait began.
        """
        outcome = await self.outcome(timeout)
        data = outcome.data
        if isinstance(data, RunCompleted):
            return data.output
        if isinstance(data, RunFailed):
            raise RunFailedError(cast("Event[RunFailed]", outcome))
        if isinstance(data, RunCancelled):
            raise RunCancelledError(cast("Event[RunCancelled]", outcome))
        raise RunRejectedError(cast("Any", outcome))

    async def outcome(self, timeout: float | None = None) -> Event[RunOutcome]:  # noqa: ASYNC109  # as above
        """The run's terminal event, whichever kind it is: the first one, should there be repeats.

        Cancellation-safe and repeatable: any number of tasks may wait, before or after the run's end.

        Raises:
            ResultTimeoutError: No outcome within `timeout` seconds.
            KafkaUnavailableError: No broker answered when the wait began.
        """
        # The client's public surface for users ends here; a Run is a part of it.
        watch = self._client._watch  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        try:
            async with asyncio.timeout(timeout):
                outcome = await watch.wait(self._watched, self._since)
        except TimeoutError as error:
            raise ResultTimeoutError(self.run_id, timeout or 0.0) from error
        if not self._noted:
            self._noted = True
            note_processed(self._client.results_topic, outcome)
        return outcome

    def events(self) -> AsyncGenerator[Event]:
        """All of the run's events from its start, each once, its outcome last; then the iterator ends.

        Each call reads with a consumer of its own until the iterator ends or is closed. Who leaves the loop
        before its end closes it: ``async with contextlib.aclosing(run.events()) as events``.
        """
        return self._client._run_events(self.run_id, self._since)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    async def approve(
        self,
        approval_id: str,
        *,
        feedback: str | None = None,
        data: dict[str, JsonValue] | None = None,
        approver: str | None = None,
        digest: str | None = None,
        event_id: str | None = None,
    ) -> str:
        """Approve what `approval.requested` with this `approval_id` asks.

        Args:
            approval_id: As in the request's event.
            feedback: For the run.
            data: More fields for the run.
            approver: Who decides; needed by a client with a signer, which vouches for it.
            digest: The request's digest: a decision about something else is refused as stale.
            event_id: Default: a new one. Sent again under the same id, a decision counts once.

        Returns:
            The decision's event id; the answer, `approval.resolved` or `approval.refused`, ends in it.

        Raises:
            EncodeError: A value is not of the contract; the message names it.
            PublishError: Not acknowledged in time. Send it again under the same `event_id`.
        """
        return await self._decide(True, approval_id, feedback, data, approver, digest, event_id)

    async def reject(
        self,
        approval_id: str,
        *,
        feedback: str | None = None,
        data: dict[str, JsonValue] | None = None,
        approver: str | None = None,
        digest: str | None = None,
        event_id: str | None = None,
    ) -> str:
        """Reject what `approval.requested` with this `approval_id` asks; otherwise like `approve`."""
        return await self._decide(False, approval_id, feedback, data, approver, digest, event_id)

    async def raise_event(
        self, name: str, data: JsonValue = None, *, approver: str | None = None, event_id: str | None = None
    ) -> str:
        """Give `data` to the run's wait for an external event called `name`; returns the event id.

        Args:
            name: As the run waits for it.
            data: Any JSON.
            approver: Who says so. Only for a client with a signer, which needs it and vouches for it.
            event_id: Default: a new one. Sent again under the same id, the event counts once.

        Raises:
            EncodeError: A value is not of the contract; the message names it.
            PublishError: Not acknowledged in time. Send it again under the same `event_id`.
        """
        return await self._client._decide(  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            EventRaised, event_id, approver, run_id=self.run_id, name=name, data=data
        )

    async def cancel(self, reason: str | None = None, *, event_id: str | None = None) -> str:
        """Ask the run to end; it may compensate first. Answered by its outcome or `control.refused`."""
        return await self._control("cancel", reason, event_id)

    async def suspend(self, reason: str | None = None, *, event_id: str | None = None) -> str:
        """Ask the run to pause. Answered by `run.progressed` or `control.refused`."""
        return await self._control("suspend", reason, event_id)

    async def resume(self, reason: str | None = None, *, event_id: str | None = None) -> str:
        """Let a paused run go on. Answered by `run.progressed` or `control.refused`."""
        return await self._control("resume", reason, event_id)

    async def _control(self, action: ControlAction, reason: str | None, event_id: str | None) -> str:
        return await self._client.publish(
            RunControl, event_id, run_id=self.run_id, action=action, reason=reason
        )

    async def _decide(
        self,
        approved: bool,
        approval_id: str,
        feedback: str | None,
        data: dict[str, JsonValue] | None,
        approver: str | None,
        digest: str | None,
        event_id: str | None,
    ) -> str:
        return await self._client._decide(  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            ApprovalDecided,
            event_id,
            approver,
            run_id=self.run_id,
            approval_id=approval_id,
            approved=approved,
            feedback=feedback,
            data=data,
            approver=approver,
            digest=digest,
        )


class TowlineClient:
    """Runs, as events over Kafka: ``async with TowlineClient() as client: …``.

    Example:
        ```python
        async with TowlineClient() as client:
            run = await client.start("agent.Writer", {"message": "A haiku about rain"})
            print(await run.result(timeout=60))
        ```

    One client serves any number of runs and tasks of one event loop: all its waiting shares one consumer.
    """

    def __init__(
        self,
        settings: KafkaSettings | None = None,
        *,
        source: str = "towline/client",
        client_id: str = "towline-client",
        connect_timeout_s: float | None = 30.0,
        delivery_timeout_s: float = 30.0,
        payloads: PayloadSettings | None = None,
        signer: DecisionSigner | None = None,
    ) -> None:
        """Make a client; ``async with`` connects it.

        Args:
            settings: Where Kafka is, and the topics' prefix; default: the `TOWLINE_KAFKA_*` variables.
            source: CloudEvents source of what it publishes: name your service.
            client_id: Shown in the broker's logs and quotas.
            connect_timeout_s: Longest wait for a broker, in seconds; None waits for ever.
            delivery_timeout_s: Longest wait for a publish to be acknowledged, in seconds.
            payloads: The store for inputs and outputs too large for Kafka; default: the
                `TOWLINE_PAYLOADS_*` variables.
            signer: Signs what is decided and raised here, for runs whose approvers the operator lays down
                (docs/guide/approvals.md). Whoever uses it vouches for the `approver` that each call names.

        Raises:
            PayloadSettingsError: `payloads` names no store that can be used here.
        """
        self._settings = settings or KafkaSettings()
        self._source = source
        self._client_id = client_id
        self._timeout_s = connect_timeout_s
        self._signer = signer
        payloads = payloads or PayloadSettings()
        self._payloads = open_payload_store(payloads)
        self._producer = EventProducer(
            self._settings,
            client_id=client_id,
            delivery_timeout_s=delivery_timeout_s,
            start_timeout_s=connect_timeout_s,
            payloads=self._payloads,
            event_bytes=payloads.event_bytes,
        )
        self._watch = OutcomeWatch(
            self._settings, client_id=client_id, timeout_s=connect_timeout_s, payloads=self._payloads
        )
        self._unsure: OrderedDict[str, tuple[Watched, Since]] = OrderedDict()
        """Runs whose request may be on Kafka unacknowledged: started again, they may have ended already."""
        self._streams: set[EventStream[Any]] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            KafkaUnavailableError: No broker answered within `connect_timeout_s`.
        """
        async with AsyncExitStack() as opening:
            if self._payloads is not None:
                await opening.enter_async_context(self._payloads)
            await opening.enter_async_context(self._producer)
            await self._watch.open()
            opening.push_async_callback(self._watch.close)
            opening.push_async_callback(self._close_streams)
            self._stack = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close streams, stop waiting, send what is on its way for at most 5 s."""
        await self._stack.aclose()

    @property
    def results_topic(self) -> str:
        """Full name of the topic that outcomes come on."""
        return self._settings.topics.results

    @property
    def undecodable_count(self) -> int:
        """Records met on `results`, while waiting for runs, that are no events of the contract."""
        return self._watch.undecodable_count

    async def start(
        self,
        run_type: str,
        input: JsonValue = None,  # noqa: A002  # the contract's word
        *,
        run_id: str | None = None,
        session_id: str | None = None,
        requested_by: str | None = None,
        start_at: datetime | None = None,
        expires_at: datetime | None = None,
        tags: Mapping[str, str] | None = None,
        event_id: str | None = None,
    ) -> Run:
        """Publish a run request and wait until Kafka has it.

        Starting the same `run_id` with the same content again starts nothing new: use it for retries. An
        outcome that was there before this client began to start it is found by `TowlineClient.run` alone.
        The current OpenTelemetry trace goes with it.

        Args:
            run_type: An orchestration, workflow or ``agent.<Name>`` of a registered app.
            input: Any JSON; the run type's schema is in the catalog.
            run_id: 1 to 128 of ``A-Z a-z 0-9 . _ : -``; default: a new UUID.
            session_id: Runs of one session continue one conversation.
            requested_by: Who asks, for the record.
            start_at: Not to start before this time (aware).
            expires_at: Rejected when it could not be started by then (aware).
            tags: For filters and dashboards.
            event_id: CloudEvents id of the request; default: a new UUID.

        Returns:
            The run, to wait for or to command. That it exists says nothing of whether the request is
            valid: one that is not is answered by `run.rejected`.

        Raises:
            EncodeError: A value is not of the contract; the message names it.
            PublishError: Not acknowledged in time. Start it again with the same `run_id`.
            KafkaUnavailableError: The broker did not answer.
        """
        run_id = str(uuid4()) if run_id is None else _checked_run_id(run_id)
        watched = self._watch.watched(run_id)
        _, since = self._unsure.get(run_id) or (watched, await self._watch.before_start(watched))
        self._unsure[run_id] = watched, since
        if len(self._unsure) > _UNSURE_MAX_COUNT:
            self._unsure.popitem(last=False)
        await self.publish(
            RunRequested,
            event_id,
            run_id=run_id,
            run_type=run_type,
            input=input,
            session_id=session_id,
            requested_by=requested_by,
            start_at=start_at,
            expires_at=expires_at,
            tags=None if tags is None else dict(tags),
        )
        self._unsure.pop(run_id, None)
        return Run(self, run_id, watched, since)

    def run(self, run_id: str, *, since: datetime | None = None) -> Run:
        """A run that was started elsewhere or earlier.

        Args:
            run_id: Its id.
            since: A time (aware) before its start: spares searching all that the topics retain.

        Raises:
            EncodeError: `run_id` is no valid run id.
            ClientError: `since` has no offset.
        """
        return Run(self, _checked_run_id(run_id), self._watch.watched(run_id), _checked_since(since))

    def results(
        self,
        group_id: str | None = None,
        *,
        start: Start = "earliest",
        since: datetime | None = None,
        remember: int = _REMEMBERED,
    ) -> EventStream[RunOutcome]:
        """The outcomes of all runs, for a downstream consumer; see `EventStream` for what is promised.

        Args:
            group_id: A consumer group: its members share the events, and go on where they stopped. None:
                this stream alone reads all, and remembers nothing.
            start: Where a new group, or a stream without group, begins.
            since: Without group: begin at this time (aware) instead.
            remember: Drops repeats among this many last ids, about 150 bytes each.
        """
        return self._stream((self._settings.topics.results,), group_id, start, since, remember)

    def events(
        self,
        group_id: str | None = None,
        *,
        start: Start = "earliest",
        since: datetime | None = None,
        remember: int = _REMEMBERED,
    ) -> EventStream:
        """The lifecycle events of all runs, without their outcomes; arguments as for `results`."""
        return self._stream((self._settings.topics.events,), group_id, start, since, remember)

    async def publish(self, model: type[EventData], event_id: str | None = None, /, **fields: Any) -> str:
        """Publish any event of the contract, in the current trace; returns its id.

        Raises:
            EncodeError: A field is not of the contract; the message names it.
            PublishError: Not acknowledged in time.
        """
        event = self._event(model, event_id, fields)
        await self._producer.send(event)
        return event.id

    async def _decide(
        self, model: type[_DecisionT], event_id: str | None, approver: str | None, /, **fields: Any
    ) -> str:
        """As `publish`, signed if this client signs."""
        event = self._event(model, event_id, fields)
        if self._signer is not None:
            if not approver:
                raise EncodeError("approver: is missing: this client signs decisions, so name who decides")
            event = self._signer.sign(event, approver)
        elif approver is not None and model is EventRaised:
            raise EncodeError("approver: means nothing without a signature: give TowlineClient a signer")
        await self._producer.send(event)
        return event.id

    def _event(self, model: type[_DataT], event_id: str | None, fields: dict[str, Any]) -> Event[_DataT]:
        try:
            data = model(**fields)
        except ValidationError as error:
            raise EncodeError(_problem(error, fields)) from error
        traceparent, tracestate = current_trace()
        return Event(
            id=event_id or str(uuid4()),
            source=self._source,
            time=datetime.now(UTC),
            data=data,
            traceparent=traceparent,
            tracestate=tracestate,
        )

    def _stream(
        self,
        topics: tuple[str, ...],
        group_id: str | None,
        start: Start,
        since: datetime | None,
        remember: int,
    ) -> EventStream[Any]:
        if since is not None and group_id is not None:
            raise ClientError("since: a group goes on where it stopped: leave out group_id or since")
        _checked_since(since)
        stream: EventStream[Any] = EventStream(
            self._settings,
            topics,
            client_id=self._client_id,
            group_id=group_id,
            start=start,
            since=since,
            remember=remember,
            timeout_s=self._timeout_s,
            payloads=self._payloads,
            # A client may live for long, and each stream remembers its last ids.
            on_close=self._streams.discard,
        )
        self._streams.add(stream)
        return stream

    def _run_events(self, run_id: str, since: Since) -> AsyncGenerator[Event]:
        return run_events(
            self._settings,
            run_id,
            since,
            client_id=f"{self._client_id}-run",
            timeout_s=self._timeout_s,
            payloads=self._payloads,
        )

    async def _close_streams(self) -> None:
        streams = list(self._streams)
        for stream in streams:
            # Here: in the tasks below it would not be seen by whoever closes the client.
            stream.end_processing()
        # At once: while Kafka is away each takes its whole time.
        await asyncio.gather(*(stream.aclose() for stream in streams))


def _problem(error: ValidationError, fields: dict[str, Any]) -> str:
    """The first thing that is wrong with `fields`: where, and what to do."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "recursion_depth_exceeded":
        return f"{first['loc'][0]}: is nested too deep: flatten it to fewer than 200 levels"
    path: list[str] = []
    value: Any = fields
    for part in first["loc"]:
        # Others are pydantic's names for the kinds of JSON.
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(str(part))
            value = cast("Any", value)[part]
    if first["type"] == "missing":
        path.append(str(first["loc"][-1]))
    where = ".".join(path) or str(first["loc"][0])
    if first["loc"][-1] == "[key]":
        return f"{where}: keys must be strings"
    if first["type"] == "invalid-json-value":
        kind = type(first["input"]).__name__
        return f"{where}: {kind} is no JSON: give None, bool, int, float, str, list or dict"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _checked_run_id(run_id: str) -> str:
    if not is_run_id(run_id):
        raise EncodeError(
            f"run_id: {run_id[:140]!r} is no run id: use 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )
    return run_id


def _checked_since(since: datetime | None) -> datetime | None:
    if since is not None and since.utcoffset() is None:
        raise ClientError("since: has no offset: use an aware datetime, like datetime.now(UTC)")
    return since
