"""The two places that telemetry goes to in tests, with one face: a stand-in, and a real collector."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.integration.telemetry.collector import CollectorPart, attributes, collector_binary
from tests.integration.telemetry.receiver import Received, Receiver


class Backend(Protocol):
    """What a test asks."""

    @property
    def url(self) -> str: ...

    def spans(self) -> list[Received]:
        """All that came so far."""
        ...

    def metric_names(self) -> set[str]:
        """As they came: a collector has made Prometheus' names of them."""
        ...

    def text(self) -> str:
        """Everything that came, to be searched."""
        ...


class StandIn:
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.url = receiver.url

    def spans(self) -> list[Received]:
        return list(self.receiver.spans)

    def metric_names(self) -> set[str]:
        return set(self.receiver.points)

    def text(self) -> str:
        assert self.receiver.problems == []
        return self.receiver.raw.decode("latin-1")


class RealCollector:
    def __init__(self, part: CollectorPart) -> None:
        self.part = part
        self.url = f"http://127.0.0.1:{part.http}"

    def spans(self) -> list[Received]:
        return [_received(span) for span in self.part.spans()]

    def metric_names(self) -> set[str]:
        lines = self.part.metrics().splitlines()
        return {line.split()[2] for line in lines if line.startswith("# TYPE ")}

    def text(self) -> str:
        return self.part.traces_file.read_text() + self.part.metrics()


@contextmanager
def backend(name: str, data: Path) -> Generator[Backend]:
    """``stand-in`` or ``collector``.

    Raises:
        NoProgramError: There is no way to have one here.
    """
    if name == "stand-in":
        with Receiver() as receiver:
            yield StandIn(receiver)
        return
    with CollectorPart(collector_binary(), data=data) as part:
        yield RealCollector(part)


def _received(span: dict[str, Any]) -> Received:
    return Received(
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        name=span["name"],
        service=str(span["service"]),
        kind=span["kind"],
        start_ns=int(span["startTimeUnixNano"]),
        end_ns=int(span["endTimeUnixNano"]),
        attributes=attributes(span),
        links=tuple(link["traceId"] for link in span.get("links", ())),
    )
