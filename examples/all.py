"""All seven patterns in one worker: `towline worker --app examples.all:setup_worker`."""

from __future__ import annotations

from durabletask.worker import TaskHubGrpcWorker

from examples.chaining import app as chaining
from examples.concurrency import app as concurrency
from examples.conditionals import app as conditionals
from examples.human_in_the_loop import app as human_in_the_loop
from examples.multi_agent import app as multi_agent
from examples.single_agent import app as single_agent
from examples.streaming import app as streaming


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register every agent, orchestration and activity of the examples."""
    for app in (
        single_agent,
        multi_agent,
        streaming,
        chaining,
        concurrency,
        conditionals,
        human_in_the_loop,
    ):
        app.setup_worker(worker)
