"""The API's description, from the contract's models, and a page that shows it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from towline.contracts.events import ApprovalDecided, RunRequested
from towline.relay.projection import RUN_STATUSES

_TEXT: Final = {"type": "string"}
_RUN_ID: Final = {"name": "run_id", "in": "path", "required": True, "schema": _TEXT}
_ACCEPTED: Final = {
    "type": "object",
    "required": ["run_id", "event_id", "links"],
    "properties": {
        "run_id": _TEXT,
        "event_id": {
            **_TEXT,
            "description": "Id of the event that was published; its answer's id ends in it.",
        },
        "links": {"type": "object", "additionalProperties": _TEXT},
    },
}
_APPROVAL: Final = {
    "type": "object",
    "properties": {
        "run_id": _TEXT,
        "approval_id": _TEXT,
        "status": {"enum": ["open", "resolved", "closed"]},
        "title": _TEXT,
        "details": {},
        "digest": _TEXT,
        "expires_at": {**_TEXT, "format": "date-time"},
        "approvers": {"type": "array", "items": _TEXT},
        "requested_ms": {"type": "integer", "description": "Unix time in ms."},
        "outcome": _TEXT,
        "approver": _TEXT,
        "feedback": _TEXT,
    },
}
_RUN: Final = {
    "type": "object",
    "required": ["run_id"],
    "properties": {
        "run_id": _TEXT,
        "run_type": _TEXT,
        "status": {"enum": list(RUN_STATUSES)},
        "session_id": _TEXT,
        "requested_by": _TEXT,
        "tags": {"type": "object", "additionalProperties": _TEXT},
        "custom_status": {},
        "output": {},
        "dataref": {**_TEXT, "description": "Of an output too large for Kafka: its reference."},
        "output_missing": {**_TEXT, "description": "Why the output that dataref names can't be had."},
        "error": {"type": "object"},
        "reason": _TEXT,
        "usage": {"type": "object"},
        "created_ms": {"type": "integer", "description": "Time of its first event, Unix time in ms."},
        "updated_ms": {"type": "integer", "description": "Time of its newest event, Unix time in ms."},
        "started_at": {**_TEXT, "format": "date-time"},
        "finished_at": {**_TEXT, "format": "date-time"},
        "trace_id": {**_TEXT, "description": "W3C trace id, of 32 hexadecimal digits."},
        "links": {"type": "object", "additionalProperties": _TEXT},
        "approvals": {"type": "array", "items": {"$ref": "#/components/schemas/Approval"}},
    },
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"field": _TEXT, "message": _TEXT}},
        },
    },
}


def _query(name: str, about: str, schema: Mapping[str, Any] = _TEXT) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": dict(schema)}


_CURSOR: Final = _query("cursor", "`next_cursor` of the page before.")
_LIMIT: Final = _query("limit", "Most to list.", {"type": "integer", "minimum": 1, "maximum": 1000})
_FILTERS: Final = [
    _query("status", "Status of the run.", {"enum": list(RUN_STATUSES)}),
    _query("run_type", "Run type."),
    _query("tag", "name=value; may be repeated, all must hold.", {"type": "array", "items": _TEXT}),
]
_RESUME: Final = [
    {"name": "Last-Event-ID", "in": "header", "description": "Id of the last event seen.", "schema": _TEXT},
    _query("cursor", "The same, for clients that cannot set headers."),
]


def _operation(
    name: str,
    summary: str,
    answers: dict[str, Any],
    *,
    role: str,
    parameters: list[Any] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "description": f"Needs the role `{role}`.",
        "parameters": parameters or [],
        "responses": {
            **answers,
            "4XX": {
                "description": "What is wrong and how to mend it.",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return operation


def _json(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _listing(name: str, item: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            name: {"type": "array", "items": _ref(item)},
            "next_cursor": {"type": ["string", "null"]},
        },
    }


def _body_of(schema: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """An event's data without what the path or the credentials say.

    Without the defaults too, which are all null: what has one, generators of clients take for always there.
    """
    properties = {
        name: {key: what for key, what in value.items() if key != "default"}
        for name, value in schema["properties"].items()
        if name not in left_out
    }
    required = [name for name in schema.get("required", []) if name not in left_out]
    return {**schema, "properties": properties, "required": required}


def _paths() -> dict[str, Any]:
    accepted = {"202": _json("Published; what comes of it is in the run's stream.", _ref("Accepted"))}
    stream = {
        "200": {
            "description": "Server-sent events; `id` is the cursor to resume at. Ends with `end` or `error`.",
            "content": {"text/event-stream": {"schema": _TEXT}},
        },
        "204": {"description": "The caller has all of it."},
    }
    reason = {"type": "object", "properties": {"reason": _TEXT}}
    wait = _query("wait", "Seconds to wait for a run that is not known yet.", {"type": "number"})
    key = {
        "name": "Idempotency-Key", "in": "header", "schema": _TEXT,
        "description": "The same key names the same command, however often it is sent; 422 for another one.",
    }  # fmt: skip
    return {
        "/runs": {
            "post": _operation(
                "startRun",
                "Start a run",
                accepted,
                role="start",
                parameters=[key],
                body=_ref("RunRequested"),
            ),
            "get": _operation(
                "listRuns",
                "List runs, newest first",
                {"200": _json("A page.", _listing("runs", "Run"))},
                role="read",
                parameters=[*_FILTERS, _LIMIT, _CURSOR],
            ),
        },
        "/runs/{run_id}": {
            "get": _operation(
                "getRun",
                "One run",
                {"200": _json("The run.", _ref("Run"))},
                role="read",
                parameters=[_RUN_ID],
            )
        },
        "/runs/{run_id}/stream": {
            "get": _operation(
                "streamRun",
                "Tokens and events of one run",
                stream,
                role="read",
                parameters=[_RUN_ID, *_RESUME, wait],
            )
        },
        "/runs/{run_id}/agui": {
            "get": _operation(
                "streamRunAsAgUi",
                "The same as AG-UI events",
                stream,
                role="read",
                parameters=[_RUN_ID, *_RESUME, wait],
            )
        },
        **{
            f"/runs/{{run_id}}/{action}": {
                "post": _operation(
                    f"{action}Run",
                    f"{action.capitalize()} a run",
                    accepted,
                    role="start",
                    parameters=[_RUN_ID],
                    body=reason,
                )
            }
            for action in ("cancel", "suspend", "resume")
        },
        "/runs/{run_id}/approvals/{approval_id}": {
            "post": _operation(
                "decideApproval",
                "Decide an approval; the approver is the caller",
                accepted,
                role="approve",
                parameters=[
                    _RUN_ID,
                    {"name": "approval_id", "in": "path", "required": True, "schema": _TEXT},
                ],
                body=_ref("ApprovalDecided"),
            )
        },
        "/runs/{run_id}/events/{name}": {
            "post": _operation(
                "raiseEvent",
                "Raise another external event",
                accepted,
                role="approve",
                parameters=[_RUN_ID, {"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                body={"type": "object", "properties": {"data": {}}},
            )
        },
        "/approvals": {
            "get": _operation(
                "listApprovals",
                "Open approvals, newest first",
                {"200": _json("A page.", _listing("approvals", "Approval"))},
                role="read",
                parameters=[*_FILTERS, _LIMIT, _CURSOR],
            )
        },
        "/events": {
            "get": _operation(
                "streamEvents",
                "Events of all runs, from now on or from a cursor",
                stream,
                role="read",
                parameters=[*_RESUME, _query("type", "CloudEvents type; may be repeated."), *_FILTERS[1:]],
            )
        },
    }


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models: list[type[BaseModel]] = [RunRequested, ApprovalDecided]
    _, made = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = made["$defs"]
    schemas["RunRequested"] = _body_of(schemas["RunRequested"], "requested_by")
    schemas["ApprovalDecided"] = _body_of(schemas["ApprovalDecided"], "run_id", "approval_id", "approver")
    schemas.update({"Accepted": _ACCEPTED, "Run": _RUN, "Approval": _APPROVAL, "Problem": _PROBLEM})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Towline relay",
            "version": version("towline"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The relay that this document is from."}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _page(described: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td></tr>"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Towline relay: HTTP API</title>"
        "<h1>Towline relay: HTTP API</h1><p>Schemas: <a href=/openapi.json>openapi.json</a></p>"
        f"<table><tr><th>Method<th>Path<th>What it does</tr>{rows}</table></html>"
    )


def description_routes() -> list[Route]:
    """``/openapi.json`` and ``/docs``."""
    described = document()
    page = _page(described)

    def as_json(_request: Request) -> Response:
        return JSONResponse(described)

    def as_page(_request: Request) -> Response:
        return HTMLResponse(page)

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]
