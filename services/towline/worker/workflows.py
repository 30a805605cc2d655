"""Workflows as runs: typed JSON in and out, pauses for people as asks of the run that was asked for.

The workflow engine moves typed objects as pickles between its own activities. None of that may come in
from a topic or go out on one: input is stripped of the engine's markers, and what goes out is plain JSON.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, cast

from agent_framework import AgentExecutorResponse, AgentResponse, Message
from durabletask import task
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from towline.worker import sdk
from towline.worker.ask_model import Deliver
from towline.worker.asks import Announcement, Asks, event_data
from towline.worker.context import RunContext
from towline.worker.run import Run

_EVENTS: Final = "events"
_PENDING: Final = "pending_requests"


class WorkflowContext(RunContext):
    """The context of a workflow's engine.

    The engine tells of its pauses in its custom status only, and sets that only when it does not replay;
    here it is made to set it always, so that the host sees the same in every replay.
    """

    def __init__(self, run: Run, asks: Asks) -> None:
        super().__init__(run, asks, replays_look_live=True)
        self._events_told = 0

    def set_custom_status(self, custom_status: Any) -> None:
        """Keep the engine's status as it is; announce it in plain JSON, with what is new in it."""
        self.custom_status = custom_status
        self._native.set_custom_status(custom_status)
        if not isinstance(custom_status, dict):
            self.run.progressed(custom_status)
            return
        status: dict[str, Any] = cast("dict[str, Any]", custom_status)
        events = cast("list[dict[str, Any]]", status.get(_EVENTS) or [])
        told: dict[str, Any] = {"state": status.get("state")}
        if new := events[self._events_told :]:
            told[_EVENTS] = [_announced(event) for event in new]
        self._events_told = len(events)
        if pending := status.get(_PENDING):
            told[_PENDING] = sorted(self.run.qualify(request_id) for request_id in pending)
        self.run.progressed(told)

    def child_input(self, value: Any) -> Any:
        """What the engine has marked itself."""
        return value

    def open_event_ask(self, name: str, data_type: type | None) -> task.CancellableTask[Any]:
        """A pause of the workflow: what it asks, and of which kind the answer must be."""
        status: dict[str, Any] = self.custom_status or {}
        pending: dict[str, dict[str, Any]] = status.get(_PENDING) or {}
        request = pending.get(name) or {}
        details = plain(sdk.workflow_value(request.get("data")))
        title = str(request.get("source_executor_id") or name)
        announcement = Announcement(title=title, details=details)
        response_type = sdk.workflow_type(request.get("response_type"))
        return self.asks.wait_for_event(
            name,
            data_type,
            announcement=announcement,
            shape=lambda delivered: response_data(delivered, response_type),
        )


def take_input(value: Any, run: Run) -> Any:
    """A run's input without the engine's reserved keys; a child's is the engine's own."""
    if run.is_root:
        return sdk.strip_workflow_markers(value)
    prefix = sdk.workflow_path_prefix(value)
    if prefix:
        run.child_prefix = prefix
    return value


def give_output(outputs: Any, run: Run) -> Any:
    """A run's outputs as plain JSON; a child's stay as the engine of its parent expects them."""
    return plain(sdk.workflow_value(outputs)) if run.is_root else outputs


def response_data(delivered: Deliver, response_type: Any) -> Any:
    """What a paused workflow gets, checked against the type that it asked for.

    The engine itself would end the workflow without output, and without an error, on a response that no
    handler takes.

    Raises:
        ValueError: The response does not fit (a pydantic ValidationError, for a model).
        TypeError: Fields are missing for a dataclass.
    """
    data = event_data(delivered)
    decided = delivered.command.kind == "decision"
    if response_type is bool and decided:
        return delivered.approved
    if response_type is str and decided:
        return delivered.command.feedback or ("approved" if delivered.approved else "rejected")
    if not isinstance(response_type, type):
        return data
    kind = cast("type[Any]", response_type)
    if issubclass(kind, BaseModel):
        kind.model_validate(data)
        return data
    if dataclasses.is_dataclass(kind) and isinstance(data, dict):
        given = cast("dict[str, Any]", data)
        names = {each.name for each in dataclasses.fields(kind)}
        # A decision brings fields of its own, which a dataclass would not take.
        fitting = {name: value for name, value in given.items() if name in names} if decided else given
        kind(**fitting)
        return fitting
    return data


def plain(value: Any) -> Any:
    """`value` as plain JSON; bytes as text if they are UTF-8, else in URL-safe base64.

    Raises:
        ValueError: It refers to itself.
        Exception: Whatever an object raises that is asked for its text.
    """
    try:
        return to_jsonable_python(value, fallback=_plain_object, serialize_unknown=False)
    except UnicodeDecodeError:
        return to_jsonable_python(value, fallback=_plain_object, serialize_unknown=False, bytes_mode="base64")


def _announced(event: dict[str, Any]) -> Any:
    """An event of the engine's in plain JSON; what executors hand on among themselves need be none."""
    try:
        return plain(sdk.workflow_value(event))
    except Exception:  # noqa: BLE001 — the user's types; to be announced is no reason to fail
        return {"type": event.get("type"), "executor_id": event.get("executor_id"), "not_json": True}


def _plain_object(value: Any) -> Any:
    match value:
        case AgentExecutorResponse():
            return {"executor_id": value.executor_id, **_plain_object(value.agent_response)}
        case AgentResponse():
            response = cast("AgentResponse[Any]", value)
            structured: Any = response.value
            return {"text": response.text, **({} if structured is None else {"value": structured})}
        case Message():
            return {"role": str(value.role), "text": value.text}
        case _:
            return str(value)
