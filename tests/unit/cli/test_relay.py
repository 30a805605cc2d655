"""Following a run by a relay that goes away and comes back, and by what is no relay."""

from __future__ import annotations

import http.server
import threading
from collections import deque
from collections.abc import Callable, Generator

import pytest
from typer.testing import CliRunner

from towline.cli import relay
from towline.cli.app import app
from towline.cli.errors import CliError

Answer = tuple[int, str, str]
"""Status, content type, body; then the connection ends."""
Serve = Callable[..., str]
STREAM = "text/event-stream; charset=utf-8"
PROBLEM = "application/problem+json"


@pytest.fixture
def serve() -> Generator[Serve]:
    """A server that gives its answers in turn, the last one for ever; its URL."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(*answers: Answer, asked: list[str] | None = None) -> str:
        left = deque(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if asked is not None:
                    asked.append(self.headers.get("Last-Event-ID", ""))
                status, kind, body = left.popleft() if len(left) > 1 else left[0]
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_relay_on_this_machine_is_reached_past_a_proxy(
    serve: Serve, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    url = serve((200, "application/json", '{"runs": []}')).replace("127.0.0.1", name)

    assert await relay.get_json(url, "/runs") == {"runs": []}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_relay_that_answers_try_again_on_the_way_is_waited_for(serve: Serve, status: int) -> None:
    asked: list[str] = []
    url = serve(
        (200, STREAM, 'id: 1-0\nevent: token\ndata: {"text": "a"}\n\n'),
        (status, PROBLEM, '{"detail": "the stream store does not answer; try again"}'),
        (200, STREAM, 'id: 2-0\nevent: end\ndata: {"outcome": "completed"}\n\n'),
        asked=asked,
    )
    messages = [message async for message in relay.stream(url, "r1")]
    assert [message.event for message in messages] == ["token", "end"]
    assert asked == ["", "1-0", "1-0"]


async def test_a_relay_that_is_lost_before_the_run_said_anything_is_waited_for(serve: Serve) -> None:
    url = serve(
        (200, STREAM, ": heartbeat\n\n"),
        (503, PROBLEM, "{}"),
        (200, STREAM, 'id: 2-0\nevent: end\ndata: {"outcome": "completed"}\n\n'),
    )
    assert [message.event async for message in relay.stream(url, "r1")] == ["end"]


async def test_a_refusal_at_first_is_told_at_once(serve: Serve) -> None:
    url = serve((503, PROBLEM, '{"detail": "too many clients"}'))
    with pytest.raises(CliError, match="answered 503: too many clients"):
        _ = [message async for message in relay.stream(url, "r1")]


@pytest.mark.parametrize("arguments", [["tail", "r1"], ["runs"]])
@pytest.mark.parametrize("answer", [(200, "text/html", "<html>"), (200, "application/json", "[]")])
def test_what_answers_and_is_no_relay_is_one_line_with_the_fix(
    serve: Serve, arguments: list[str], answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWLINE_RELAY_URL", serve(answer))
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
    assert "is no relay" in done.stderr
    assert "set TOWLINE_RELAY_URL" in done.stderr


@pytest.mark.parametrize("url", ["http://localhost:abc", "http://[::1"])
def test_an_address_that_is_none_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_RELAY_URL", url)
    done = CliRunner().invoke(app, ["runs"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
    assert done.stderr.startswith("towline: TOWLINE_RELAY_URL")


def test_the_line_break_at_the_end_of_a_secrets_file_is_no_part_of_the_token(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWLINE_RELAY_URL", serve((401, PROBLEM, '{"detail": "no"}')))
    monkeypatch.setenv("TOWLINE_RELAY_TOKEN", "hunter2\n")
    done = CliRunner().invoke(app, ["runs"])
    assert "refuses (no)" in done.stderr
    assert "hunter2" not in done.stderr
