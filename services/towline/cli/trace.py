"""`towline trace`: a run's spans as a tree, from what the local stack keeps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from towline.cli import inputs
from towline.cli.commands import Json, RunIdArgument
from towline.cli.errors import CliError
from towline.cli.output import Printer, printable, short
from towline.cli.run import execute

_SUBFOLDER: Final = "traces"


def trace(
    run_id: RunIdArgument,
    data: Annotated[
        Path | None, typer.Option(help="The --data folder of towline dev. Default: the stack that runs here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run as a tree of spans with their times, from those that towline dev keeps."""
    execute(_trace(run_id, data, as_json=as_json))


async def _trace(run_id: str, data: Path | None, *, as_json: bool) -> int:
    inputs.run_id(run_id)
    try:
        from towline.telemetry import local, tree
        from towline.telemetry.setup import TraceSettings
    except ModuleNotFoundError as error:
        raise CliError(f"towline trace needs {error.name}: pip install 'towline[dev]'") from None
    folder = data / _SUBFOLDER if data is not None else TraceSettings().dir or _running_here()
    if folder is None or not folder.is_dir():
        where = f" in {folder}" if folder else ""
        raise CliError(
            f"no spans are kept{where}: name the --data folder of towline dev, or "
            "set TOWLINE_TRACES_DIR as the roles have it; elsewhere look into your trace backend"
        )
    traces = local.traces_of(folder, run_id)
    if not traces:
        raise CliError(
            f"no span of run {run_id} is kept in {folder}: is that its id? Spans come half a second late"
        )
    printer = Printer(as_json=as_json)
    for trace_id in sorted(traces, key=lambda trace_id: traces[trace_id][0].start_ns):
        spans = traces[trace_id]
        if as_json:
            for span in spans:
                printer.value(_json(span), "")
            continue
        printer.line(f"trace {trace_id}")
        for line in tree.lines(spans):
            printer.line(short(line, 240) if line.isprintable() else printable(line))
    return 0


def _running_here() -> Path | None:
    """Where the newest `towline dev` without --data keeps its spans."""
    found = [
        path for path in Path(tempfile.gettempdir()).glob(f"towline-dev-*/{_SUBFOLDER}") if path.is_dir()
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _json(span: Any) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": span.name,
        "service": span.service,
        "kind": span.kind,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "error": span.error,
        "attributes": span.attributes,
        "links": list(span.links),
    }
