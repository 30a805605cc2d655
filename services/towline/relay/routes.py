"""The HTTP door: commands in, lookups and streams out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from towline.contracts.errors import PayloadMissingError
from towline.contracts.events import ApprovalDecided, ControlAction, Event, EventRaised
from towline.contracts.payloads import DATAREF, PayloadReference, PayloadStore
from towline.relay import commands, sse
from towline.relay.errors import RedisAwayError
from towline.relay.feed import Piece, Source
from towline.relay.guard import require
from towline.relay.hub import Hub
from towline.relay.index import RunFilter, RunIndex
from towline.relay.keys import Keys
from towline.relay.paths import NAME
from towline.relay.principals import Principal
from towline.relay.problems import ProblemError
from towline.relay.projection import RUN_STATUSES, dumps
from towline.relay.settings import RelaySettings
from towline.relay.store import RunStore
from towline.relay.streaming import EventStreamResponse, Translate

if TYPE_CHECKING:
    from towline.contracts.signing import DecisionSigner
    from towline.relay.agui import AguiTranslator

_DecisionT = TypeVar("_DecisionT", ApprovalDecided, EventRaised)

_KNOWN_POLL_S: Final = 1.0
_WAIT_MAX_S: Final = 3600.0
_LIMIT_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Door:
    """The routes' neighbours."""

    settings: RelaySettings
    keys: Keys
    hub: Hub
    index: RunIndex
    store: RunStore
    publisher: commands.Publisher
    payloads: PayloadStore | None = None
    signer: DecisionSigner | None = None

    # Commands -------------------------------------------------------------------------------------

    async def start_run(self, request: Request) -> Response:
        """POST /runs."""
        principal = require(request, "start")
        body = commands.parse_body(await self._body(request))
        event = commands.run_requested(body, principal, _idempotency_key(request))
        await self._claim(request, event)
        await commands.publish(self.publisher, event)
        run = event.data
        run_id = run.run_id or event.id
        fields = {"run_id": run_id, "run_type": run.run_type}
        fields.update({n: v for n in ("session_id", "requested_by") if (v := getattr(run, n)) is not None})
        if run.tags is not None:
            fields["tags"] = dumps(run.tags)
        # Without Redis the run is on its way all the same; its own events will make it known.
        with suppress(RedisAwayError):
            await self.store.note_requested(run_id, fields, now=datetime.now(UTC))
        links = _links(run_id)
        answer = {"run_id": run_id, "event_id": event.id, "links": links}
        return JSONResponse(answer, 202, headers={"Location": links["run"]})

    def control(self, action: ControlAction) -> Callable[[Request], Any]:
        """POST /runs/{run_id}/cancel, suspend, resume."""

        async def endpoint(request: Request) -> Response:
            principal = require(request, "start")
            run_id = commands.checked_run_id(request.path_params["run_id"])
            body = commands.parse_body(await self._body(request))
            event = commands.run_control(run_id, action, body, _event_id(request, principal))
            return await self._command(request, event, run_id)

        return endpoint

    async def decide(self, request: Request) -> Response:
        """POST /runs/{run_id}/approvals/{approval_id}."""
        principal = require(request, "approve")
        run_id = commands.checked_run_id(request.path_params["run_id"])
        body = commands.parse_body(await self._body(request))
        approval_id = request.path_params["approval_id"]
        event_id = _event_id(request, principal)
        event = commands.approval_decided(run_id, approval_id, body, principal, event_id)
        return await self._command(request, self._signed(event, principal), run_id)

    async def raise_event(self, request: Request) -> Response:
        """POST /runs/{run_id}/events/{name}."""
        principal = require(request, "approve")
        run_id = commands.checked_run_id(request.path_params["run_id"])
        body = commands.parse_body(await self._body(request))
        name, event_id = request.path_params["name"], _event_id(request, principal)
        event = commands.event_raised(run_id, name, body, event_id)
        return await self._command(request, self._signed(event, principal), run_id)

    def _signed(self, event: Event[_DecisionT], principal: Principal) -> Event[_DecisionT]:
        """The event, with the relay's word for who the caller is. A caller without a name gets none."""
        if self.signer is None or principal.subject is None:
            return event
        return self.signer.sign(event, principal.subject)

    async def _claim(self, request: Request, event: Any) -> None:
        """See that the request's idempotency key, if it has one, was not used for another request.

        Raises:
            ProblemError: It was (422).
        """
        if _idempotency_key(request) is None:
            return
        # Without Redis, the same run_id with other content is still refused by the bridge.
        with suppress(RedisAwayError):
            if not await self.store.claim(event.id, commands.content_digest(event)):
                raise ProblemError(
                    422,
                    "idempotency_key_reused",
                    "Idempotency-Key: was sent before with another request; use a new key for this one",
                )

    async def _command(self, request: Request, event: Any, run_id: str) -> Response:
        await self._claim(request, event)
        await commands.publish(self.publisher, event)
        return JSONResponse({"run_id": run_id, "event_id": event.id, "links": _links(run_id)}, 202)

    async def _body(self, request: Request) -> bytes:
        limit = self.settings.body_bytes_max
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise ProblemError(
                    413,
                    "too_large",
                    f"body: at most {limit} bytes; make it smaller, or raise TOWLINE_RELAY_BODY_BYTES_MAX",
                )
            chunks.append(chunk)
        return b"".join(chunks)

    # Lookups --------------------------------------------------------------------------------------

    async def get_run(self, request: Request) -> Response:
        """GET /runs/{run_id}."""
        require(request, "read")
        run_id = commands.checked_run_id(request.path_params["run_id"])
        run = await self.index.run(run_id)
        if run is None:
            raise _unknown(run_id)
        if DATAREF in run:
            run |= await self._large_outcome(run[DATAREF])
        links = _links(run_id)
        if self.settings.trace_url and "trace_id" in run:
            links["trace"] = self.settings.trace_url.replace("{trace_id}", run["trace_id"])
        return JSONResponse({**run, "links": links})

    async def _large_outcome(self, dataref: str) -> dict[str, Any]:
        """What is in the payload store of an outcome: output and usage, or why they can't be had.

        Raises:
            PayloadStoreAwayError: The store does not answer (503).
        """
        reference = PayloadReference.parse(dataref)
        if self.payloads is None or reference is None:
            return {
                "output_missing": "the output is in a payload store: set TOWLINE_PAYLOADS_URL of the relay"
            }
        try:
            outcome = from_json(await self.payloads.get(reference), allow_inf_nan=False)
        except (PayloadMissingError, ValueError) as error:
            return {"output_missing": str(error)}
        return {name: outcome[name] for name in ("output", "usage") if name in outcome}

    async def list_runs(self, request: Request) -> Response:
        """GET /runs."""
        require(request, "read")
        runs, cursor = await self.index.runs(_filter(request), limit=_limit(request), cursor=_cursor(request))
        return JSONResponse({"runs": runs, "next_cursor": cursor})

    async def list_approvals(self, request: Request) -> Response:
        """GET /approvals."""
        require(request, "read")
        approvals, cursor = await self.index.open_approvals(
            _filter(request), limit=_limit(request), cursor=_cursor(request)
        )
        return JSONResponse({"approvals": approvals, "next_cursor": cursor})

    # Streams --------------------------------------------------------------------------------------

    async def run_stream(self, request: Request) -> Any:
        """GET /runs/{run_id}/stream."""
        return await self._run_stream(request, _resume_at(request), None)

    async def run_agui(self, request: Request) -> Any:
        """GET /runs/{run_id}/agui."""
        # The models of AG-UI are a seventh of a relay's start, and few relays are asked for them.
        from towline.relay.agui import AguiTranslator

        cursor = _resume_at(request)
        translator = AguiTranslator(request.path_params["run_id"], cursor)
        return await self._run_stream(request, cursor, translator)

    async def _run_stream(self, request: Request, cursor: str, translator: AguiTranslator | None) -> Any:
        principal = require(request, "read")
        run_id = commands.checked_run_id(request.path_params["run_id"])
        waited = request.query_params.get("wait")
        wait_s = self.settings.unknown_run_grace_s if waited is None else _seconds("wait", waited)
        source = Source(
            self.keys.stream(run_id),
            self.keys.wake(run_id),
            ending=functools.partial(self.index.ending, run_id),
        )
        client = self._client(source, cursor)
        try:
            first = await self._await_run(request, client, run_id, wait_s)
            if translator is not None:
                translator.session_id = await self.index.session(run_id)
        except BaseException:
            client.close()
            raise
        if first is not None and first.over and not first.body and not self.hub.closed:
            # The reader has all of it: 204 keeps a browser's EventSource from coming back.
            client.close()
            return Response(status_code=204)
        if translator is not None and sse.START_ID not in (cursor, client.cursor):
            # What came before the cursor says which messages are open.
            client.close()
            client, first = self.hub.client(source, sse.START_ID), None
        return self._respond(client, principal, translator and translator.translate, first)

    async def _await_run(self, request: Request, client: Any, run_id: str, wait_s: float) -> Piece | None:
        """Wait until something is known of the run.

        Raises:
            ProblemError: Nothing is after `wait_s` (404).
        """
        deadline = time.monotonic() + wait_s
        # What is there already is read however short the wait.
        piece = await client.look()
        while True:
            remaining_s = deadline - time.monotonic()
            if piece is None:
                piece = await client.next_within(min(_KNOWN_POLL_S, max(remaining_s, 0.001)))
            if piece is not None and (piece.body or piece.over):
                return piece
            if await self.index.known(run_id):
                return None
            if self.hub.closed:
                # The stream ends before anything comes: the reader asks another relay.
                return None
            if remaining_s <= 0 or await request.is_disconnected():
                raise _unknown(run_id)
            piece = None

    async def all_events(self, request: Request) -> Any:
        """GET /events."""
        principal = require(request, "read")
        wanted = _EventFilter(
            frozenset(request.query_params.getlist("type")),
            frozenset(request.query_params.getlist("run_type")),
            tuple(request.query_params.getlist("tag")),
        )
        cursor = _resume_at(request, default="")
        if not cursor:
            cursor = await self.index.newest_event()
        # Clients with the same filter share a feed.
        source = Source(self.keys.events, self.keys.events_channel, wanted.encode, variant=repr(wanted))
        return self._respond(self._client(source, cursor), principal, None, None)

    def _client(self, source: Source, cursor: str) -> Any:
        if self.hub.client_count >= self.settings.clients_max:
            raise ProblemError(
                503, "too_many_clients", "this relay serves as many streams as it may; try again",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        return self.hub.client(source, cursor)

    def _respond(
        self, client: Any, principal: Principal, translate: Translate | None, first: Piece | None
    ) -> EventStreamResponse:
        return EventStreamResponse(
            client,
            translate=translate,
            first=first,
            ends_at=principal.expires_at,
        )

    def routes(self) -> list[Route]:
        """All of them."""
        run = "/runs/{run_id}"
        return [
            Route("/runs", self.start_run, methods=["POST"]),
            Route("/runs", self.list_runs, methods=["GET"]),
            Route(run, self.get_run, methods=["GET"]),
            Route(f"{run}/stream", self.run_stream, methods=["GET"]),
            Route(f"{run}/agui", self.run_agui, methods=["GET"]),
            *(
                Route(f"{run}/{action}", self.control(action), methods=["POST"])
                for action in ("cancel", "suspend", "resume")
            ),
            Route(f"{run}/approvals/{{approval_id:{NAME}}}", self.decide, methods=["POST"]),
            Route(f"{run}/events/{{name:{NAME}}}", self.raise_event, methods=["POST"]),
            Route("/approvals", self.list_approvals, methods=["GET"]),
            Route("/events", self.all_events, methods=["GET"]),
        ]


@dataclass(frozen=True, slots=True)
class _EventFilter:
    """Which events of all runs are wanted; no `types` are all types."""

    types: frozenset[str]
    run_types: frozenset[str]
    tags: tuple[str, ...]

    def encode(self, entry_id: str, fields: dict[str, str]) -> bytes:
        """The event as SSE; empty if it is not wanted."""
        event_type = fields.get("type", "")
        if self.types and event_type not in self.types:
            return b""
        if self.run_types and fields.get("run_type") not in self.run_types:
            return b""
        if self.tags:
            have: dict[str, str] = commands.parse_body(fields.get("tags", "").encode())
            if any(have.get(name) != value for name, _, value in (tag.partition("=") for tag in self.tags)):
                return b""
        return sse.encode(entry_id, event_type, fields.get("data", "{}"))


def _idempotency_key(request: Request) -> str | None:
    return request.headers.get("idempotency-key")


def _event_id(request: Request, principal: Principal) -> str:
    return commands.event_id_of(principal, _idempotency_key(request), request.url.path)


def _links(run_id: str) -> dict[str, str]:
    run = f"/runs/{run_id}"
    return {"run": run, "stream": f"{run}/stream", "agui": f"{run}/agui", "cancel": f"{run}/cancel"}


def _unknown(run_id: str) -> ProblemError:
    return ProblemError(404, "unknown_run", f"run_id: nothing is known of a run {run_id!r}")


def _resume_at(request: Request, default: str = sse.START_ID) -> str:
    # A browser that connects again repeats the first URL; its header is newer than the URL's cursor.
    cursor = request.headers.get("last-event-id") or request.query_params.get("cursor") or default
    if cursor and not sse.is_cursor(cursor):
        raise ProblemError(400, "invalid_cursor", "Last-Event-ID, cursor: must be an id of this stream")
    return cursor


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _WAIT_MAX_S:
        raise ProblemError(422, "invalid_input", f"{name}: seconds from 0 to {_WAIT_MAX_S:g}")
    return seconds


def _limit(request: Request) -> int:
    value = request.query_params.get("limit", "50")
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and 1 <= int(value) <= _LIMIT_MAX):
        raise ProblemError(422, "invalid_input", f"limit: a number from 1 to {_LIMIT_MAX}")
    return int(value)


def _cursor(request: Request) -> str | None:
    return request.query_params.get("cursor")


def _filter(request: Request) -> RunFilter:
    status = request.query_params.get("status")
    if status is not None and status not in RUN_STATUSES:
        raise ProblemError(422, "invalid_input", f"status: one of {', '.join(RUN_STATUSES)}")
    tags = tuple(request.query_params.getlist("tag"))
    if any("=" not in tag for tag in tags):
        raise ProblemError(422, "invalid_input", "tag: must be name=value")
    return RunFilter(status, request.query_params.get("run_type"), tags)
