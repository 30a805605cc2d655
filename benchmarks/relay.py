"""What a delivered event costs: the relay beside the naive design, in the same run.

The naive design is what one would write first: sse-starlette, and for every client an XREAD of its own. Both
serve the same streams to the same clients over HTTP on uvicorn; the clients are a process of their own. The
floor is a server that does nothing but take each event from Redis and write it to its client.

    .venv/bin/python benchmarks/relay.py [--clients 1000] [--rate 50] [--seconds 10] [--json]
    .venv/bin/python benchmarks/relay.py --runs 1000 --rate 2 --rounds 3   # one load, the designs by turns
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from towline.contracts.settings import RedisSettings
from towline.contracts.stream import stream_key, wake_channel
from towline.dev import ValkeyPart
from towline.dev.ports import lease
from towline.worker.streams import StreamSettings, TokenWriter


@dataclass(frozen=True)
class Result:
    design: str
    load: str
    delivered: int
    cpu_us_per_event: float
    cpu_percent: float
    delay_p50_ms: float
    delay_p99_ms: float
    kib_per_client: float


# The naive server -----------------------------------------------------------------------------------


def naive_app(redis_url: str) -> Any:
    from redis.asyncio import Redis
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    client = Redis.from_url(redis_url, decode_responses=True, socket_timeout=None, max_connections=100_000)

    async def stream(request: Request) -> EventSourceResponse:
        key = stream_key(request.path_params["run_id"])
        cursor = request.headers.get("last-event-id", "0-0")

        async def events() -> Any:
            last = cursor
            while True:
                answer = await client.xread({key: last}, block=5000, count=500)
                for _, entries in answer or ():
                    for last, fields in entries:
                        yield {"id": last, "event": fields["type"], "data": fields["data"]}
                        if fields["type"] in ("end", "error"):
                            return

        return EventSourceResponse(events())

    return Starlette(
        routes=[
            Route("/runs/{run_id}/stream", stream),
            Route("/healthz", lambda _request: PlainTextResponse("ok")),
        ]
    )


def serve_naive(redis_url: str, port: int) -> None:
    import uvicorn

    uvicorn.run(naive_app(redis_url), host="127.0.0.1", port=port, log_level="warning", access_log=False)


# The floor: what no server on this loop can do without ------------------------------------------------


def serve_floor(redis_url: str, port: int) -> None:
    """One subscription, and for each message a write to its client. Neither HTTP, catch-up nor limits."""
    from urllib.parse import urlsplit

    import hiredis
    import uvloop

    clients: dict[str, set[asyncio.Transport]] = {}

    class Door(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            path = data.split(b" ", 2)[1].decode()
            if path == "/healthz":
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self.transport.close()
                return
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            clients.setdefault(wake_channel(path.split("/")[2]), set()).add(self.transport)

    class News(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.parser = hiredis.Reader(encoding="utf-8", notEnoughData=...)
            self.transport.write(b"PSUBSCRIBE *\r\n")

        def data_received(self, data: bytes) -> None:
            self.parser.feed(data)
            while (reply := self.parser.gets()) is not ...:
                if reply[0] == "pmessage":
                    self.say(clients.get(reply[2], ()), reply[3])
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.01, self.transport.resume_reading)

        def say(self, to: Any, message: str) -> None:
            _, *fields = message.split("\n")
            body = "".join(
                f"id: {fields[at]}\nevent: {fields[at + 1]}\ndata: {fields[at + 2]}\n\n"
                for at in range(0, len(fields), 3)
            )
            chunk = (body or "event: end\ndata: {}\n\n").encode()
            for client in to:
                client.write(chunk)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(Door, "127.0.0.1", port)
        redis_port = urlsplit(redis_url).port
        await loop.create_connection(News, "127.0.0.1", redis_port)
        await asyncio.Event().wait()

    uvloop.run(serve())


SENT_AT = re.compile(rb"@(\d+\.\d{6})@")


# The clients ------------------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """One client, as cheap as it can be: the cores that it takes are the server's too."""

    def __init__(self, path: str, delays: list[float] | None) -> None:
        self.path, self.delays = path, delays
        self.marks = 0
        loop = asyncio.get_running_loop()
        self.ready, self.over = loop.create_future(), loop.create_future()
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            assert data.startswith(b"HTTP/1.1 200"), data
            self.ready.set_result(None)
        self.marks += data.count(b"@")
        data, seen = self.rest + data, 0
        if self.delays is not None:
            now = time.time()
            for match in SENT_AT.finditer(data):
                self.delays.append((now - float(match[1])) * 1000)
                seen = match.end()
        # A mark or the end may be cut in two.
        self.rest = data[max(seen, len(data) - 20) :]
        if b"event: end" in data:
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        for future in (self.ready, self.over):
            if not future.done():
                future.set_result(None)


async def run_clients(port: int, runs: int, clients: int) -> None:
    """Read until each stream's end; then print how many events each client had, and their delays in ms."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    readers: list[Reader] = []
    for begin in range(0, clients, 50):
        numbers = range(begin, min(begin + 50, clients))
        some = [Reader(f"/runs/run-{n % runs}/stream", delays if n % 20 == 0 else None) for n in numbers]
        await asyncio.gather(
            *(loop.create_connection(lambda r=reader: r, "127.0.0.1", port) for reader in some)
        )
        await asyncio.gather(*(reader.ready for reader in some))
        readers += some
    print("ready", flush=True)
    await asyncio.gather(*(reader.over for reader in readers))
    delays.sort()
    print(json.dumps({"had": [reader.marks // 2 for reader in readers], "delays": delays}), flush=True)


# One measurement ----------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def start_server(design: str, valkey: ValkeyPart, port: int, log: Any) -> subprocess.Popen[bytes]:
    if design in ("naive", "floor"):
        command = [sys.executable, __file__, f"--serve-{design}", valkey.url, str(port)]
    else:
        command = [sys.executable, "-m", "towline.relay", "--listen", f"127.0.0.1:{port}"]
    environment = {
        **os.environ,
        "TOWLINE_REDIS_URL": valkey.url,
        # No Kafka: what is measured is the way from Redis to the clients.
        "TOWLINE_KAFKA_BOOTSTRAP": f"127.0.0.1:{lease()}",
        "TOWLINE_RELAY_RATE_BURST": "100000",
    }
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def measure(
    design: str, valkey: ValkeyPart, *, runs: int, clients: int, rate: float, seconds: float, log: Any
) -> Result:
    with redis.Redis.from_url(valkey.url) as store:
        store.flushall()
        for number in range(runs):
            store.xadd(stream_key(f"run-{number}"), {"type": "status", "data": "{}"})
    port = lease()
    server = start_server(design, valkey, port, log)
    writer = TokenWriter(RedisSettings(url=valkey.url), StreamSettings())
    writer.start()
    readers: subprocess.Popen[str] | None = None
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz")
        time.sleep(1)
        before_kib = rss_kib(server.pid)
        readers = subprocess.Popen(
            [sys.executable, __file__, "--run-clients", str(port), str(runs), str(clients)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert readers.stdout is not None
        assert readers.stdout.readline() == "ready\n"
        time.sleep(1)
        idle_kib = (rss_kib(server.pid) - before_kib) / clients
        used_s, began = cpu_s(server.pid), time.monotonic()
        said = say(writer, runs, rate, seconds)
        if not writer.drain(10):
            raise RuntimeError("the writer did not bring its last tokens to Redis within 10 s")
        end(valkey, runs)
        answer = json.loads(readers.stdout.readline())
        elapsed_s = time.monotonic() - began
        used_s = cpu_s(server.pid) - used_s
        check(valkey, design, runs, said, answer["had"])
    finally:
        writer.stop(1)
        for process in (readers, server):
            if process is not None:
                process.terminate()
                process.wait(15)
    delays, delivered = answer["delays"] or [0.0], sum(answer["had"])
    return Result(
        design,
        f"{clients} clients, {runs} runs, {rate:g}/s each",
        delivered,
        used_s / max(delivered, 1) * 1e6,
        used_s / elapsed_s * 100,
        delays[len(delays) // 2],
        delays[int(len(delays) * 0.99)],
        idle_kib,
    )


def say(writer: TokenWriter, runs: int, rate: float, seconds: float) -> int:
    """Every run says `rate` words a second, each with its time; how many in all."""
    turns = [writer.open(f"run-{number}", 1, "Poet") for number in range(runs)]
    began, said = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * rate * runs)
        while said < due:
            turns[said % runs].write(f"@{time.time():.6f}@ ")
            said += 1
        time.sleep(0.002)
    return said


def check(valkey: ValkeyPart, design: str, runs: int, said: int, had: list[int]) -> None:
    """Every client has had each word of its run, and Redis holds all that was said.

    Raises:
        RuntimeError: It is not so.
    """
    with redis.Redis.from_url(valkey.url, decode_responses=True) as store:
        pipeline = store.pipeline(transaction=False)
        for number in range(runs):
            pipeline.xrange(stream_key(f"run-{number}"))
        held = [
            sum(fields["data"].count("@") for _, fields in entries) // 2 for entries in pipeline.execute()
        ]
    short = [
        f"client {number} had {count} of {held[number % runs]}"
        for number, count in enumerate(had)
        if count != held[number % runs]
    ]
    if sum(held) != said or short:
        raise RuntimeError(f"{design}: Redis holds {sum(held)} of {said} words; {'; '.join(short[:10])}")


def end(valkey: ValkeyPart, runs: int) -> None:
    """Every run ends: an entry, and the same told in the channel, as the relay's consumer does it."""
    with redis.Redis.from_url(valkey.url, decode_responses=True) as store:
        for number in range(runs):
            key = stream_key(f"run-{number}")
            [(before, _)] = store.xrevrange(key, count=1)
            entry_id = store.xadd(key, {"type": "end", "data": "{}"})
            store.publish(wake_channel(f"run-{number}"), f"{before}\n{entry_id}\nend\n{{}}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, metavar="N", help="one load only: --clients spread over N runs")
    parser.add_argument("--rounds", type=int, default=1, help="how often each design has its turn")
    parser.add_argument("--designs", default="naive,relay,floor", help="which, by comma")
    parser.add_argument("--short", action="store_true", help="200 clients for 4 s")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-naive", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve-floor", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--run-clients", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_naive:
        serve_naive(options.serve_naive[0], int(options.serve_naive[1]))
        return
    if options.serve_floor:
        serve_floor(options.serve_floor[0], int(options.serve_floor[1]))
        return
    if options.run_clients:
        import uvloop

        uvloop.run(run_clients(*map(int, options.run_clients)))
        return
    # As by Ctrl-C: servers and clients are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    clients = 200 if options.short else options.clients
    seconds = 4 if options.short else options.seconds
    loads = [(1, clients, options.rate), (1, clients, options.rate / 2), (clients, clients, 2)]
    if options.runs:
        loads = [(options.runs, clients, options.rate)]
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("wb") as log,
        ValkeyPart(data=Path(folder) / "valkey") as valkey,
    ):
        for runs, readers, rate in loads:
            for design in options.designs.split(",") * options.rounds:
                result = measure(
                    design, valkey, runs=runs, clients=readers, rate=rate, seconds=seconds, log=log
                )
                results.append(result)
                if not options.json:
                    show(result)
    if options.json:
        print(json.dumps([asdict(result) for result in results]))


def show(result: Result) -> None:
    print(
        f"{result.design:6} {result.load:38} {result.delivered:>7} events "
        f"{result.cpu_us_per_event:6.1f} us CPU an event ({result.cpu_percent:3.0f} %)  "
        f"delay p50 {result.delay_p50_ms:7.1f} ms p99 {result.delay_p99_ms:7.1f} ms  "
        f"{result.kib_per_client:5.1f} KiB an idle client",
        flush=True,
    )


if __name__ == "__main__":
    main()
