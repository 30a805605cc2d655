"""The relay's HTTP, as far as the command line needs it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

import httpx

from towline.cli.errors import CliError
from towline.cli.sse import Message, Parser
from towline.contracts.stream import TERMINAL_ENTRY_TYPES

DEFAULT_URL: Final = "http://127.0.0.1:8090"
CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_S: Final = 60.0
"""The relay sends a heartbeat well within this time; a longer silence is a dead connection."""
_NO_CONTENT: Final = 204
_AWAY: Final = frozenset({429, 502, 503, 504})
"""Said by a relay without its stores, by one that is full, and by what stands before one that is away."""
RESUME_FOR_S: Final = 60.0
"""How long a lost relay is waited for."""


def configured_url() -> str | None:
    """``TOWLINE_RELAY_URL``."""
    return os.environ.get("TOWLINE_RELAY_URL") or None


async def find() -> str | None:
    """The configured relay ("none": none), else one at the usual local address, if it answers."""
    if url := configured_url():
        return None if url == "none" else url
    try:
        async with httpx.AsyncClient(timeout=0.5, trust_env=False) as client:
            answer = await client.get(f"{DEFAULT_URL}/healthz")
    except httpx.HTTPError:
        return None
    return DEFAULT_URL if answer.is_success else None


def open_client(url: str) -> httpx.AsyncClient:
    """A client with the caller's key, from ``TOWLINE_RELAY_TOKEN`` (API key or OIDC token).

    Raises:
        CliError: The URL is none.
    """
    token = os.environ.get("TOWLINE_RELAY_TOKEN", "").strip()  # files of secrets tend to end in a line break
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S),
            # Past a proxy of the environment, which has a loopback of its own.
            mounts=dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]")),
        )
    except httpx.InvalidURL as error:
        raise CliError(f"TOWLINE_RELAY_URL {url!r} is no address: {error}") from error


async def get_json(url: str, path: str, *, params: Mapping[str, str | int] | None = None) -> Any:
    """GET `path`.

    Raises:
        CliError: The relay is away, or refuses, or it is something else that answers.
    """
    async with open_client(url) as client:
        try:
            answer = await client.get(path, params=params)
        except httpx.HTTPError as error:
            raise _away(url, error) from error
        check(answer, url)
        try:
            return answer.json()
        except ValueError:
            raise _no_relay(url, answer) from None


async def stream(url: str, run_id: str) -> AsyncGenerator[Message]:
    """A run's stream from its start to its end; resumed where it was when the connection is lost.

    Raises:
        CliError: The run is not known, or the relay refuses, or is away for `RESUME_FOR_S`, or it is
            something else that answers.
    """
    last_id, lost_at, reached = "", None, False
    loop = asyncio.get_running_loop()
    async with open_client(url) as client:
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            try:
                async with client.stream("GET", f"/runs/{run_id}/stream", headers=headers) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    is_away = reached and answer.status_code in _AWAY
                    if not is_away:
                        check(answer, url)
                    if answer.status_code == _NO_CONTENT:  # resumed at the end
                        return
                    if not is_away and not _is_stream(answer):
                        raise _no_relay(url, answer)
                    reached, parser = True, Parser()
                    async for line in _lines(answer):
                        lost_at = None
                        message = parser.feed(line)
                        last_id = parser.last_id or last_id
                        if message is not None:
                            yield message
                            if message.event in TERMINAL_ENTRY_TYPES:
                                return
            except httpx.TransportError as error:
                if not reached:
                    raise _away(url, error) from error
            lost_at = loop.time() if lost_at is None else lost_at
            if loop.time() - lost_at > RESUME_FOR_S:
                raise CliError(f"the relay at {url} has been away for {RESUME_FOR_S:g} s: see its log")
            await asyncio.sleep(0.5)


def check(answer: httpx.Response, url: str) -> None:
    """Raise what the relay refused as one line.

    Raises:
        CliError: The answer is an error.
    """
    if answer.is_success:
        return
    said = _problem(answer)
    if answer.status_code in {401, 403}:
        raise CliError(
            f"the relay at {url} refuses ({said}): set TOWLINE_RELAY_TOKEN to a key or token that may do this"
        )
    raise CliError(f"the relay at {url} answered {answer.status_code}: {said}")


def _problem(answer: httpx.Response) -> str:
    try:
        body: Any = json.loads(answer.text)
    except ValueError:
        body = None
    if isinstance(body, dict):
        fields = cast("dict[str, Any]", body)
        for name in ("detail", "message", "error", "title"):
            if isinstance(fields.get(name), str):
                return fields[name]
    return answer.text.strip()[:200] or answer.reason_phrase


def _is_stream(answer: httpx.Response) -> bool:
    return str(answer.headers.get("content-type", "")).startswith("text/event-stream")


async def _lines(answer: httpx.Response) -> AsyncGenerator[str]:
    """The lines of a stream; none of an error."""
    if answer.is_success:
        async for line in answer.aiter_lines():
            yield line


def _no_relay(url: str, answer: httpx.Response) -> CliError:
    kind = answer.headers.get("content-type", "nothing")
    return CliError(
        f"what answers at {url} is no relay (it sent {kind}): "
        "set TOWLINE_RELAY_URL to where one is, or to none"
    )


def _away(url: str, error: httpx.HTTPError) -> CliError:
    return CliError(
        f"no relay answers at {url} ({str(error) or type(error).__name__}): "
        "start it, or set TOWLINE_RELAY_URL to where it is"
    )
