"""Towline as `towline dev` starts it, with a quiet log."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.job import MODEL_MS_VARIABLE
from benchmarks.end_to_end.systems.base import Kind, Message, Said, System

from towline.contracts.cloudevents import encode
from towline.contracts.events import ApprovalDecided, Event, EventData, RunRequested
from towline.dev.stack import Stack, StackPlan


class Towline(System):
    """All roles, one process each."""

    name = "towline"
    about = (
        "`towline dev`'s stack: bridge, worker, relay, scheduler, one process each, log level WARNING. "
        "Durable: every step (SQLite, fsynced by group commit), commands and outcomes (Kafka, acks=all)."
    )

    def __init__(self, model_ms: int) -> None:
        super().__init__(model_ms)
        self._folder = tempfile.TemporaryDirectory(prefix="towline-bench-")
        self._stack = Stack(
            StackPlan(
                data=Path(self._folder.name),
                app="benchmarks.end_to_end.towline_app:setup_worker",
                settings={"TOWLINE_LOG_LEVEL": "WARNING"},
            )
        )

    @property
    def bootstrap(self) -> str:
        return self._stack.kafka.bootstrap

    @property
    def listens(self) -> Sequence[str]:
        topics = self._stack.kafka.topics
        return (topics.events, topics.results)

    @property
    def processes(self) -> Mapping[str, int]:
        return {part.name: part.pid for part in self._stack.parts if part.pid is not None}

    @property
    def own(self) -> Sequence[str]:
        return ("scheduler", "bridge", "worker", "relay")

    def request(self, run_id: str, kind: Kind, message: str) -> Message:
        return self._message(RunRequested(run_id=run_id, run_type=kind, input=message), run_id)

    def decide(self, run_id: str, approval: str) -> Message:
        data = ApprovalDecided(run_id=run_id, approval_id=approval, approved=True)
        return self._message(data, f"{run_id}-decision")

    def read(self, record: Any) -> Said | None:
        kind = dict(record.headers)["ce_type"]
        if kind == b"towline.approval.requested.v1":
            data = json.loads(record.value)
            return Said(data["run_id"], asks=data["approval_id"])
        if record.topic == self._stack.kafka.topics.results:
            data = json.loads(record.value)
            return Said(data["run_id"], output=data.get("output", data.get("error")))
        return None

    def start(self) -> None:
        os.environ[MODEL_MS_VARIABLE] = str(self.model_ms)
        self._stack.start()

    def stop(self) -> None:
        self._stack.stop()
        self._folder.cleanup()

    def _message(self, data: EventData, event_id: str) -> Message:
        record = encode(Event(id=event_id, source="bench", data=data))
        assert record.key is not None
        assert record.value is not None
        return Message(self._stack.kafka.topics.name(data.topic), record.key, record.value, record.headers)
