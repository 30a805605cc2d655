"""What a reader of a run's stream does with its entries: the assembling rule of docs/guide/streams.md."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Assembled:
    """The text of every turn as a reader has it now."""

    turns: dict[str, str] = field(default_factory=dict)
    final: dict[str, str] = field(default_factory=dict)
    tool_calls: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def take(self, kind: str, data: dict[str, Any]) -> None:
        turn = data.get("turn")
        if kind == "reset":
            for name in [turn] if turn is not None else list(self.turns):
                for part in (self.turns, self.final, self.tool_calls):
                    part.pop(name, None)
        elif kind == "token":
            assert turn is not None
            have = self.turns.get(turn, "")
            if len(have) != data["offset"]:
                self.wrong.append(f"turn {turn}: offset {data['offset']} after {len(have)} characters")
            self.turns[turn] = have + data["text"]
        elif kind == "message":
            assert turn is not None
            self.turns[turn] = self.final[turn] = data["text"]
        elif kind == "tool_call":
            assert turn is not None
            self.tool_calls.setdefault(turn, []).append(data["name"])


def assemble(entries: Iterable[tuple[str, dict[str, Any]]]) -> Assembled:
    assembled = Assembled()
    for kind, data in entries:
        assembled.take(kind, data)
    return assembled


def decoded(raw: list[tuple[str, dict[str, str]]]) -> list[tuple[str, dict[str, Any]]]:
    """XRANGE's answer as (type, data)."""
    return [(fields["type"], json.loads(fields["data"])) for _, fields in raw]


@dataclass(frozen=True)
class SseEvent:
    id: str
    event: str
    data: dict[str, Any]
    raw: bytes


async def read_sse(
    client: httpx.AsyncClient,
    url: str,
    *,
    cursor: str | None = None,
    count: int | None = None,
    headers: dict[str, str] | None = None,
) -> list[SseEvent]:
    """Events until the server ends the stream, or `count` have come."""
    events: list[SseEvent] = []
    async for event in iterate_sse(client, url, cursor=cursor, headers=headers):
        events.append(event)
        if len(events) == count:
            break
    return events


async def iterate_sse(
    client: httpx.AsyncClient, url: str, *, cursor: str | None = None, headers: dict[str, str] | None = None
) -> AsyncGenerator[SseEvent]:
    sent = dict(headers or {})
    if cursor is not None:
        sent["Last-Event-ID"] = cursor
    async with client.stream("GET", url, headers=sent) as response:
        if response.status_code == 204:
            return
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {(await response.aread()).decode()}")
        buffer = b""
        async for chunk in response.aiter_bytes():
            buffer += chunk
            while b"\n\n" in buffer:
                block, _, buffer = buffer.partition(b"\n\n")
                if (event := parse_block(block)) is not None:
                    yield event


def parse_block(block: bytes) -> SseEvent | None:
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        name, _, value = line.partition(": ")
        fields[name] = value
    if "data" not in fields:
        return None
    return SseEvent(fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"]), block)
