"""Orchestrations that wait for a person, for `test_signed_decisions`; nothing else, so they are quick."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from durabletask.task import OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker

Steps = Generator[Task[Any], Any, Any]


def article(context: OrchestrationContext, _: Any) -> Steps:
    decision = yield context.wait_for_external_event("HumanApproval")
    return decision["approved"]


def note(context: OrchestrationContext, _: Any) -> Steps:
    decision = yield context.wait_for_external_event("HumanApproval")
    return decision["approved"]


def article_by_child(context: OrchestrationContext, _: Any) -> Steps:
    return (yield context.call_sub_orchestrator(note, instance_id=f"{context.instance_id}.note"))


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    for orchestrator in (article, note, article_by_child):
        worker.add_orchestrator(orchestrator)
