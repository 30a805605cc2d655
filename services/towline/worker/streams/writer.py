"""The thread that writes the ledger to Redis.

Whoever runs agents calls `TokenWriter.open` and the `TurnStream`'s methods from any thread or event loop:
they take a lock for microseconds and never wait for Redis. Redis being slow or away is this thread's
trouble alone: it tries again with backoff while the ledger keeps (bounded) what there is to say.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from towline.contracts.redis_errors import is_redis_away, redis_problem
from towline.contracts.settings import RedisSettings
from towline.contracts.stream import stream_key, turns_key, wake_channel
from towline.telemetry import metrics
from towline.worker.streams.ledger import Answer, AnswerStatus, Batch, Ledger, ToolCall, Turn
from towline.worker.streams.settings import StreamSettings

_log = logging.getLogger(__name__)

_flush_delay: Final = metrics.histogram("towline.stream.flush_delay")

_PIPELINE_BATCHES_MAX: Final = 200
_PIPELINE_CHARS_MAX: Final = 1_000_000
_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MAX_S: Final = 2.0
_HOUSEKEEPING_S: Final = 1.0


class TurnStream:
    """One execution of one agent turn, as its feeder sees it. Safe from any thread; never blocks on Redis."""

    __slots__ = ("_turn", "_writer")

    def __init__(self, writer: TokenWriter, turn: Turn) -> None:
        self._writer = writer
        self._turn = turn

    def write(self, text: str) -> None:
        """The agent produced `text`."""
        if text:
            self._writer.say(self._turn, text)

    def tool_call(self, name: str, arguments: str | None = None) -> None:
        """The agent called the tool `name`."""
        self._writer.say(self._turn, ToolCall(name, arguments))

    def finish(self, text: str) -> None:
        """The turn is done; `text` is the whole of it."""
        self._writer.finish(self._turn, text)

    def fail(self, error: BaseException, *, cancelled: bool = False) -> None:
        """The turn failed or was cancelled: readers are told that what they have of it is void."""
        self._writer.fail(self._turn, error, cancelled=cancelled)


class TokenWriter:
    """Writes agent turns to the runs' streams from a thread of its own.

    Args:
        redis_settings: Where Redis is.
        settings: Limits and intervals.
    """

    def __init__(self, redis_settings: RedisSettings, settings: StreamSettings) -> None:
        self._settings = settings
        self._prefix = redis_settings.key_prefix
        self._redis = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            redis_settings.url.get_secret_value(),
            decode_responses=True,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            # The client's own retry cannot tell a repeat from a first attempt; ours carries a sequence.
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._note_connected,
        )
        self._script = (files("towline.worker.streams") / "append.lua").read_text(encoding="utf-8")
        self._sha: str | None = None
        self._ledger = Ledger(
            uuid.uuid4().hex[:12],
            turn_chars_max=settings.turn_chars_max,
            total_chars_max=settings.total_chars_max,
            remember_s=settings.remember_s,
        )
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="towline-token-writer", daemon=True)
        self._away = False
        self._connected_anew = False
        self._said_at: float | None = None
        """Since when something is to be written, monotonic."""

    def start(self) -> None:
        """Start the thread. Redis need not be there yet."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write what is left, for at most `timeout_s`, and end the thread. Idempotent."""
        self.drain(timeout_s)
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was said is in Redis; False when it is not after `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: self._ledger.idle, timeout_s)

    @property
    def away(self) -> bool:
        """Redis did not answer the last time it was tried."""
        return self._away

    @property
    def kept_chars(self) -> int:
        """Text kept in memory now, for metrics."""
        return self._ledger.chars

    def open(self, run_id: str, turn: str | int, agent: str) -> TurnStream:
        """Begin an execution of `turn` of `run_id`; a second one of the same turn voids the first."""
        with self._lock:
            opened = self._ledger.open(
                run_id, str(turn), agent, now=time.monotonic(), wall_ms=time.time_ns() // 1_000_000
            )
        self._wake.set()
        return TurnStream(self, opened)

    def say(self, turn: Turn, item: str | ToolCall) -> None:
        """See `TurnStream.write` and `TurnStream.tool_call`."""
        with self._lock:
            self._ledger.say(turn, item, now=self._note_said())
        if not self._wake.is_set():
            self._wake.set()

    def finish(self, turn: Turn, text: str) -> None:
        """See `TurnStream.finish`."""
        with self._lock:
            self._ledger.finish(turn, text, now=self._note_said())
        self._wake.set()

    def fail(self, turn: Turn, error: BaseException, *, cancelled: bool) -> None:
        """See `TurnStream.fail`."""
        reason = "cancelled" if cancelled else "failed"
        with self._lock:
            self._ledger.fail(turn, reason, type(error).__name__, str(error), now=time.monotonic())
        self._wake.set()

    def _note_said(self) -> float:
        now = time.monotonic()
        if self._said_at is None:
            self._said_at = now
        return now

    # The thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        interval_s = self._settings.flush_interval_ms / 1000
        backoff_s = _BACKOFF_FIRST_S
        housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        while not self._stopping.is_set():
            if self._wake.wait(_HOUSEKEEPING_S):
                # A span first, then all that was said in it: most short turns are one write then, made when
                # the run's own work, which this thread would hold up, is done.
                self._stopping.wait(interval_s)
            self._wake.clear()
            now = time.monotonic()
            if now >= housekeeping_at:
                self._keep_house(now)
                housekeeping_at = now + _HOUSEKEEPING_S
            try:
                self._flush()
            except Exception as error:  # noqa: BLE001 - the root of this thread
                if is_redis_away(error):
                    self._note_away(error)
                    self._stopping.wait(backoff_s)
                    backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
                    self._wake.set()
                    continue
                # A bug here must not fill the worker's memory, nor end all streams for good.
                _log.exception("token_writer_failed")
                with self._lock:
                    self._ledger.clear()
            backoff_s = _BACKOFF_FIRST_S
        self._redis.close()

    def _keep_house(self, now: float) -> None:
        with self._lock:
            self._ledger.expire(now=now)
            probe = self._ledger.idle and self._ledger.remembered
        if probe:
            # A restart of Redis is noticed also while nobody speaks, as long as there is something to mend.
            try:
                self._redis.ping()  # pyright: ignore[reportUnknownMemberType]
            except (redis.RedisError, OSError) as error:
                self._note_away(error)

    def _note_connected(self, connection: Any) -> None:
        """Every new connection may lead to a Redis that lost its newest data, or to another one."""
        connection.on_connect()
        self._connected_anew = True
        self._wake.set()

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            _log.warning("redis_away", extra={"error": redis_problem(error)})
        self._away = True
        self._wake.set()

    def _flush(self) -> None:
        if self._away:
            self._redis.ping()  # pyright: ignore[reportUnknownMemberType]
            self._away = False
            _log.info("redis_back")
        if self._connected_anew:
            self._connected_anew = False
            with self._lock:
                self._ledger.verify()
        with self._lock:
            said_at, self._said_at = self._said_at, None
            batches = self._ledger.due()
            if not batches:
                self._idle.notify_all()
                return
        try:
            for some in _pipelines(batches):
                self._write(some)
        except BaseException:
            self._said_at = said_at
            raise
        if said_at is not None:
            _flush_delay.record(time.monotonic() - said_at)
        with self._lock:
            if self._ledger.idle:
                self._idle.notify_all()
            else:
                self._wake.set()

    def _write(self, batches: list[Batch]) -> None:
        if self._sha is None:
            self._sha = self._redis.script_load(self._script)
        pipeline = self._redis.pipeline(transaction=False)  # pyright: ignore[reportUnknownMemberType]
        for batch in batches:
            run_id, prefix = batch.run_id, self._prefix
            pipeline.evalsha(
                self._sha, 2, stream_key(run_id, prefix), turns_key(run_id, prefix), *self._argv(batch)
            )
        answers = pipeline.execute(raise_on_error=False)
        away: Exception | None = None
        with self._lock:
            for batch, answer in zip(batches, answers, strict=True):
                if isinstance(answer, NoScriptError):
                    self._sha = None
                elif is_redis_away(answer):
                    away = answer
                elif isinstance(answer, Exception):
                    _log.error("stream_refused", extra={"run_id": batch.run_id, "error": repr(answer)})
                    self._ledger.abandon(batch)
                else:
                    self._ledger.acknowledge(batch, _answer(answer))
        if away is not None:
            raise redis.ConnectionError(str(away)) from away

    def _argv(self, batch: Batch) -> Iterator[str]:
        yield batch.writer
        yield str(batch.sequence)
        yield str(self._settings.ttl_s)
        yield str(self._settings.entries_max)
        yield wake_channel(batch.run_id, self._prefix)
        for operation in batch.operations:
            yield from operation.arguments()


def _answer(raw: list[Any]) -> Answer:
    pairs = [(str(owner), int(attempt)) for owner, attempt in zip(raw[1::2], raw[2::2], strict=True)]
    return Answer(cast("AnswerStatus", raw[0]), pairs)


def _pipelines(batches: list[Batch]) -> Iterator[list[Batch]]:
    """`batches` in groups that a Redis under load answers well within the timeout."""
    group: list[Batch] = []
    chars = 0
    for batch in batches:
        if group and (len(group) >= _PIPELINE_BATCHES_MAX or chars + batch.chars > _PIPELINE_CHARS_MAX):
            yield group
            group, chars = [], 0
        group.append(batch)
        chars += batch.chars
    if group:
        yield group
