"""Figures about a running scheduler: for ``stats``, and as Prometheus metrics."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from towline.scheduler.server.dispatch import Kind
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.unclaimed import unclaimed
from towline.scheduler.store.statements import SQL

_STATUS_NAMES: Final = {
    0: "running",
    1: "completed",
    3: "failed",
    4: "canceled",
    5: "terminated",
    6: "pending",
    7: "suspended",
}


def _counts(connection: sqlite3.Connection) -> dict[str, Any]:
    hubs: dict[str, dict[str, int]] = {}
    for hub, status, count in connection.execute(SQL["count_live"]):
        hubs.setdefault(hub or "(deleted)", {})[_STATUS_NAMES.get(status, str(status))] = count
    for hub, count in connection.execute(SQL["count_finished"]):
        hubs.setdefault(hub or "(deleted)", {})["finished"] = count
    stored = {kind: count for kind, count, _ in connection.execute(SQL["count_work"])}
    return {"hubs": hubs, "stored": stored}


async def collect(runtime: Runtime, readers: Readers) -> dict[str, Any]:
    """Everything, with counts from the file."""
    return {**(await readers.run(_counts)), **live(runtime)}


def live(runtime: Runtime) -> dict[str, Any]:
    """What is known without reading the file."""
    commits = runtime.journal.stats
    wal = runtime.path.with_name(runtime.path.name + "-wal")
    return {
        "work_items": runtime.dispatcher.counts() | _unclaimed(runtime),
        "memory": runtime.world.sizes(),
        "waiters": runtime.waiters.count,
        "timers_in_memory": runtime.timers.pending,
        "redeliveries": runtime.dispatcher.redeliveries,
        "stale_completions": runtime.answers.stale_count,
        "commits": {
            "count": commits.count,
            "rows": commits.rows,
            "seconds": round(commits.seconds, 6),
            "slowest_s": round(commits.slowest_s, 6),
            "failures": commits.failures,
        },
        "file_bytes": runtime.path.stat().st_size,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
    }


def _unclaimed(runtime: Runtime) -> dict[str, int]:
    counts = unclaimed(runtime.dispatcher)
    return {f"unclaimed_{kind.name.lower()}": counts[kind] for kind in Kind}


METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "towline_scheduler_work_items_waiting": (
        "gauge",
        "Work items that are ready and not with a worker, by kind",
    ),
    "towline_scheduler_work_items_unclaimed": (
        "gauge",
        "Work items that wait and that no connected worker takes, by kind",
    ),
    "towline_scheduler_work_items_leased": ("gauge", "Work items with a worker, by kind"),
    "towline_scheduler_worker_streams": ("gauge", "Connected worker streams"),
    "towline_scheduler_waiters": ("gauge", "Calls that wait for an instance"),
    "towline_scheduler_timers_soon": ("gauge", "Timers due within two minutes"),
    "towline_scheduler_redeliveries_total": ("counter", "Work items handed out again"),
    "towline_scheduler_stale_completions_total": (
        "counter",
        "Completions with a token that no longer counts",
    ),
    "towline_scheduler_commits_total": ("counter", "Commits"),
    "towline_scheduler_commit_rows_total": ("counter", "Rows written"),
    "towline_scheduler_commit_seconds_total": ("counter", "Seconds from the start of a batch to its commit"),
    "towline_scheduler_commit_failures_total": ("counter", "Commits that failed and were undone"),
    "towline_scheduler_cached_instances": ("gauge", "Instances in memory"),
    "towline_scheduler_cached_history_bytes": (
        "gauge",
        "Bytes of ready history, inputs and outputs in memory",
    ),
    "towline_scheduler_open_activities": ("gauge", "Activities without a result"),
    "towline_scheduler_file_bytes": ("gauge", "Size of the database file"),
    "towline_scheduler_wal_bytes": ("gauge", "Size of the write-ahead log"),
}
"""Every metric with its kind and meaning. Times are in seconds, sizes in bytes."""


def prometheus(runtime: Runtime) -> str:
    """The metrics in Prometheus' text format."""
    figures = live(runtime)
    work, memory, commits = figures["work_items"], figures["memory"], figures["commits"]
    kinds = ("orchestration", "activity", "entity")
    values: dict[str, dict[str, float]] = {
        "towline_scheduler_work_items_waiting": {f'kind="{kind}"': work[f"waiting_{kind}"] for kind in kinds},
        "towline_scheduler_work_items_unclaimed": {
            f'kind="{kind}"': work[f"unclaimed_{kind}"] for kind in kinds
        },
        "towline_scheduler_work_items_leased": {f'kind="{kind}"': work[f"leased_{kind}"] for kind in kinds},
        "towline_scheduler_worker_streams": {"": work["streams"]},
        "towline_scheduler_waiters": {"": figures["waiters"]},
        "towline_scheduler_timers_soon": {"": figures["timers_in_memory"]},
        "towline_scheduler_redeliveries_total": {"": figures["redeliveries"]},
        "towline_scheduler_stale_completions_total": {"": figures["stale_completions"]},
        "towline_scheduler_commits_total": {"": commits["count"]},
        "towline_scheduler_commit_rows_total": {"": commits["rows"]},
        "towline_scheduler_commit_seconds_total": {"": commits["seconds"]},
        "towline_scheduler_commit_failures_total": {"": commits["failures"]},
        "towline_scheduler_cached_instances": {"": memory["instances"]},
        "towline_scheduler_cached_history_bytes": {"": memory["history_bytes"]},
        "towline_scheduler_open_activities": {"": memory["activities"]},
        "towline_scheduler_file_bytes": {"": figures["file_bytes"]},
        "towline_scheduler_wal_bytes": {"": figures["wal_bytes"]},
    }
    lines: list[str] = []
    for name, (kind, meaning) in METRICS.items():
        lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
        lines += [
            f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
            for labels, value in values[name].items()
        ]
    return "\n".join(lines) + "\n"
