"""Spans kept in files on one machine, for `towline trace`: a line of JSON each.

Every process of the local stack appends to a file of its own, so nothing is shared and nothing is lost but
the last half second when a process is killed. Files are bounded: a full one is kept beside its successor,
and of old processes' files the newest few stay.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from towline.telemetry import conventions
from towline.telemetry.export import dropped

_log = logging.getLogger(__name__)

FILE_MAX_BYTES: Final = 16 * 1024 * 1024
FILES_MAX_COUNT: Final = 40
_SUFFIX: Final = ".spans"
Attribute: TypeAlias = "str | int | float | bool | list[Any] | None"


@dataclass(frozen=True, slots=True)
class KeptSpan:
    """One span as it was kept."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    service: str
    start_ns: int
    end_ns: int
    kind: str = "internal"
    error: str | None = None
    """Description of a failed span's status; empty if it gave none."""
    attributes: dict[str, Attribute] = field(default_factory=dict[str, "Attribute"])
    links: tuple[str, ...] = ()
    """Trace ids that it is linked with."""


class FileSpanExporter(SpanExporter):
    """Appends spans to ``<service>-<pid>.spans`` in `folder`, which is made if it is not there.

    A folder that cannot be made is logged and costs spans, nothing else.
    """

    def __init__(self, folder: Path, service: str, *, file_max_bytes: int = FILE_MAX_BYTES) -> None:
        self._path = folder / f"{service}-{os.getpid()}{_SUFFIX}"
        self._service = service
        self._file_max_bytes = file_max_bytes
        self._lock = threading.Lock()
        self._failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_oldest(folder)
        except OSError as error:
            self._tell(error)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append `spans`. A full disk is logged once and costs spans, nothing else."""
        lines = "".join(self._line(span) for span in spans)
        try:
            with self._lock:
                # Half a surrogate pair in somebody's text becomes its JSON escape, and costs no batch.
                with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(lines)
                    full = file.tell() > self._file_max_bytes
                if full:
                    self._path.replace(self._path.with_suffix(f".1{_SUFFIX}"))
        except OSError as error:
            self._tell(error)
            return SpanExportResult.FAILURE
        self._failed = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is open between exports."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        del timeout_millis
        return True

    def _tell(self, error: OSError) -> None:
        if not self._failed:
            _log.warning("spans_not_kept", extra={"path": str(self._path), "error": str(error)})
        self._failed = True

    def _line(self, span: ReadableSpan) -> str:
        try:
            return f"{self._encoded(span)}\n"
        except Exception as error:  # noqa: BLE001 - whatever it is: the batch's others do not suffer for it
            dropped.add(1, {"reason": "not_encodable"})
            _log.warning("span_not_encodable", extra={"span_name": repr(span.name), "error": repr(error)})
            return ""

    def _encoded(self, span: ReadableSpan) -> str:
        context = span.context
        assert context is not None
        line: dict[str, Any] = {
            "trace": f"{context.trace_id:032x}",
            "span": f"{context.span_id:016x}",
            "name": span.name,
            "service": self._service,
            "start": span.start_time,
            "end": span.end_time,
            "kind": span.kind.name.lower(),
            "attributes": dict(span.attributes or {}),
        }
        if span.parent is not None:
            line["parent"] = f"{span.parent.span_id:016x}"
        if span.status.status_code is StatusCode.ERROR:
            line["error"] = span.status.description or ""
        if span.links:
            line["links"] = [f"{link.context.trace_id:032x}" for link in span.links]
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


def _remove_oldest(folder: Path) -> None:
    changed: list[tuple[float, Path]] = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):  # removed by another role that starts just now
            changed.append((path.stat().st_mtime, path))
    for _, path in sorted(changed, reverse=True)[FILES_MAX_COUNT:]:
        path.unlink(missing_ok=True)


def traces_of(folder: Path, run_id: str) -> dict[str, list[KeptSpan]]:
    """All traces in which a span names the run, by trace id; each span once, in order of their starts."""
    wanted = {span.trace_id for span in _read(folder, f'"{run_id}"') if names_run(span, run_id)}
    traces: dict[str, dict[str, KeptSpan]] = {trace_id: {} for trace_id in wanted}
    for trace_id in wanted:
        for span in _read(folder, trace_id):
            if span.trace_id == trace_id:
                # What a turn that ran again told a second time has the same id.
                traces[trace_id][span.span_id] = span
    return {
        trace_id: sorted(spans.values(), key=lambda span: (span.start_ns, span.span_id))
        for trace_id, spans in traces.items()
    }


def names_run(span: KeptSpan, run_id: str) -> bool:
    """Whether the span was told for that run."""
    return span.attributes.get(conventions.RUN_ID) == run_id


def _read(folder: Path, text: str) -> Iterator[KeptSpan]:
    """Spans of all files whose line contains `text`; what a killed process left half written is left out."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    if text in line and (span := _span(line)) is not None:
                        yield span
        except FileNotFoundError:  # replaced by its successor just now
            continue


def _span(line: str) -> KeptSpan | None:
    try:
        value: Any = json.loads(line)
        fields = cast("dict[str, Any]", value)
        return KeptSpan(
            trace_id=fields["trace"],
            span_id=fields["span"],
            parent_id=fields.get("parent"),
            name=fields["name"],
            service=fields["service"],
            start_ns=fields["start"],
            end_ns=fields["end"],
            kind=fields["kind"],
            error=fields.get("error"),
            attributes=fields["attributes"],
            links=tuple(fields.get("links", ())),
        )
    except (ValueError, KeyError, TypeError):
        return None
