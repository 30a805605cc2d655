"""Which spans a review must have and what each must be a child of: one row an edge, checked generically.

A row names parent and child by service and name. ``{runs}`` and the like stand for topics' full names.
Adding a part to the trace is adding a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.integration.telemetry.receiver import Received

GIVEN: Final = "(the given traceparent)"


@dataclass(frozen=True)
class Edge:
    parent: str
    child: str
    """``service name``"""

    def of(self, topics: Mapping[str, str]) -> Edge:
        return Edge(self.parent.format_map(topics), self.child.format_map(topics))


REVIEW: Final = (
    Edge(GIVEN, "caller send {runs}"),
    Edge("caller send {runs}", "towline-bridge process {runs}"),
    Edge("towline-bridge process {runs}", "towline-bridge create_orchestration:review"),
    Edge("towline-bridge create_orchestration:review", "towline-worker orchestration:review"),
    Edge("towline-worker orchestration:review", "towline-worker send {events}"),
    Edge("towline-worker send {events}", "towline-relay process {events}"),
    Edge("towline-worker send {events}", "caller process {events}"),
    Edge("towline-worker orchestration:review", "towline-worker activity:fetch"),
    Edge("towline-worker activity:fetch", "towline-worker activity:fetch"),
    Edge("towline-worker orchestration:review", "towline-worker entity:dafx-author:run"),
    Edge("towline-worker entity:dafx-author:run", "towline-worker invoke_agent Author"),
    Edge("towline-worker invoke_agent Author", "towline-worker chat scripted"),
    Edge("towline-worker invoke_agent Author", "towline-worker execute_tool look_up"),
    Edge("towline-worker orchestration:review", "towline-worker approval HumanApproval"),
    Edge("towline-worker orchestration:review", "towline-worker orchestration:archive"),
    Edge("towline-worker orchestration:archive", "towline-worker orchestration:archive"),
    Edge("towline-worker orchestration:archive", "towline-worker activity:store"),
    Edge("towline-worker activity:store", "towline-worker activity:store"),
    Edge("towline-worker orchestration:review", "towline-worker send {results}"),
    Edge("towline-worker send {results}", "towline-relay process {results}"),
    Edge("towline-worker send {results}", "caller process {results}"),
    Edge("caller process {results}", "caller downstream work"),
)


def edges_of(spans: Iterable[Received], given: str) -> set[Edge]:
    """Every edge that there is. A parent that nobody sent shows as a question mark."""
    named = {span.span_id: f"{span.service} {span.name}" for span in spans}
    named[given] = GIVEN
    return {
        Edge(named.get(span.parent_id, f"? {span.parent_id}"), f"{span.service} {span.name}")
        for span in spans
    }
