"""Spans kept in files, and their tree."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Link, StatusCode

from towline.telemetry import local, tree
from towline.telemetry.local import FileSpanExporter, KeptSpan, traces_of
from towline.telemetry.runs import RunAttributes, RunRef, in_run

MS = 1_000_000


def tracer_to(folder: Path, service: str = "towline-worker", **options: int):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RunAttributes())
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(folder, service, **options)))
    return provider.get_tracer("test")


def kept(name: str, span_id: str, parent: str | None, start_ms: int, end_ms: int, **more: object) -> KeptSpan:
    return KeptSpan("t" * 32, span_id, parent, name, "towline-worker", start_ms * MS, end_ms * MS, **more)  # type: ignore[arg-type]


def test_a_runs_traces_are_found_with_all_their_spans_and_those_of_no_other(tmp_path: Path) -> None:
    tracer = tracer_to(tmp_path)
    outer, run = tracer.start_as_current_span("before the run is known"), in_run(RunRef("run-1", "review"))
    with outer, run, tracer.start_as_current_span("turn") as span:
        span.set_attribute("gen_ai.usage.input_tokens", 7)
    with in_run(RunRef("run-12")), tracer.start_as_current_span("other"):
        pass

    (spans,) = traces_of(tmp_path, "run-1").values()

    assert [span.name for span in spans] == ["before the run is known", "turn"]
    assert spans[1].parent_id == spans[0].span_id
    assert spans[1].attributes["towline.run_type"] == "review"
    assert spans[1].attributes["gen_ai.usage.input_tokens"] == 7


def test_status_and_links_are_kept(tmp_path: Path) -> None:
    tracer = tracer_to(tmp_path)
    with in_run(RunRef("run-1")):
        other = tracer.start_span("approver")
        span = tracer.start_span("approval", links=[Link(other.get_span_context())])
        span.set_status(StatusCode.ERROR, "expired")
        span.end()

    (spans,) = traces_of(tmp_path, "run-1").values()

    assert spans[0].error == "expired"
    assert spans[0].links == (f"{other.get_span_context().trace_id:032x}",)


def test_a_full_file_is_kept_beside_its_successor_and_no_more(tmp_path: Path) -> None:
    tracer = tracer_to(tmp_path, file_max_bytes=2_000)
    with in_run(RunRef("run-1")):
        for number in range(60):
            tracer.start_span(f"span {number}").end()

    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert all(path.stat().st_size < 3_000 for path in files)
    newest = [spans[0].name for spans in traces_of(tmp_path, "run-1").values()]
    assert "span 59" in newest
    assert "span 0" not in newest


def test_files_of_old_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FILES_MAX_COUNT", 3)
    for number in range(6):
        (tmp_path / f"towline-worker-{number}.spans").write_text("")
    FileSpanExporter(tmp_path, "towline-bridge")
    assert len(list(tmp_path.iterdir())) == 3


def test_half_a_line_of_a_killed_process_does_no_harm(tmp_path: Path) -> None:
    tracer = tracer_to(tmp_path)
    with in_run(RunRef("run-1")):
        tracer.start_span("whole").end()
    (file,) = tmp_path.iterdir()
    line = file.read_text()
    file.write_text(f"{line}{line[: len(line) // 2]}\n[1]\n")

    (spans,) = traces_of(tmp_path, "run-1").values()
    assert [span.name for span in spans] == ["whole"]


def test_a_disk_that_takes_nothing_costs_spans_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = tracer_to(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    for _ in range(3):
        tracer.start_span("lost").end()
    assert [record.message for record in caplog.records] == ["spans_not_kept"]


def test_a_folder_that_cannot_be_made_costs_spans_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    tracer = tracer_to(tmp_path / "file" / "traces")
    tracer.start_span("lost").end()
    assert [record.message for record in caplog.records] == ["spans_not_kept"]


def test_roles_that_start_at_once_remove_old_files_side_by_side(tmp_path: Path) -> None:
    for number in range(2_000):
        (tmp_path / f"towline-worker-{number}.spans").touch()
    with ThreadPoolExecutor(max_workers=8) as threads:
        starts = [threads.submit(FileSpanExporter, tmp_path, "towline-bridge") for _ in range(8)]
    assert [start.exception() for start in starts] == [None] * 8
    assert len(list(tmp_path.iterdir())) == local.FILES_MAX_COUNT


def test_half_a_surrogate_pair_in_one_span_does_not_cost_the_batch(tmp_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RunAttributes())
    batches = BatchSpanProcessor(FileSpanExporter(tmp_path, "towline-worker"))
    provider.add_span_processor(batches)
    tracer = provider.get_tracer("test")
    with in_run(RunRef("run-1")):
        tracer.start_span("before").end()
        tracer.start_span("odd \ud83d").end()
    batches.force_flush()

    names = {span.name for spans in traces_of(tmp_path, "run-1").values() for span in spans}
    assert names == {"before", "odd \ud83d"}


def test_a_span_of_no_kind_does_not_cost_the_batch(tmp_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RunAttributes())
    provider.add_span_processor(batches := BatchSpanProcessor(FileSpanExporter(tmp_path, "towline-worker")))
    kind: Any = "client"
    with in_run(RunRef("run-1")):
        provider.get_tracer("test").start_span("of no kind", kind=kind).end()
        provider.get_tracer("test").start_span("after").end()
    batches.force_flush()
    assert [span.name for spans in traces_of(tmp_path, "run-1").values() for span in spans] == ["after"]


def test_the_tree_shows_times_and_what_matters() -> None:
    spans = [
        kept("process runs", "a", None, 0, 5),
        kept("orchestration:review", "b", "a", 5, 3 * 86_400_000),
        kept("chat", "c", "b", 6, 1306, attributes={"gen_ai.usage.input_tokens": 7}),
        kept("approval", "d", "b", 1400, 90_061_400, attributes={"towline.outcome": "approved"}),
        kept("activity", "e", "b", 90_061_500, 90_061_501, error="ValueError: no"),
    ]

    lines = [" ".join(line.split()) for line in tree.lines(spans)]

    assert lines == [
        "process runs worker +0.00 ms 5.00 ms",
        "└─ orchestration:review worker +5.00 ms 2 d 23 h",
        "├─ chat worker +6.00 ms 1.3 s tokens in 7",
        "├─ approval worker +1.4 s 1 d 1 h outcome approved",
        "└─ activity worker +1 d 1 h 1.00 ms FAILED ValueError: no",
    ]


def test_children_of_a_span_that_has_not_ended_are_shown_below_a_stand_in() -> None:
    spans = [kept("one", "a", "x", 1, 2), kept("two", "b", "x", 3, 4)]
    lines = tree.lines(spans)
    assert lines[0].startswith("(not ended yet, or not kept)")
    assert [line.split()[1] for line in lines[1:]] == ["one", "two"]
    assert tree.lines([]) == []
