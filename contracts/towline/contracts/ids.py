"""Deterministic event ids: the same fact published again carries the same id.

A consumer that drops ids it knows sees each fact once, whatever crashed in between. An answer to a
command ends in that command's event id.
"""

from __future__ import annotations


def outcome_id(run_id: str) -> str:
    """Id of a run's one terminal event, whichever kind it is."""
    return f"{run_id}/outcome"


def started_id(run_id: str) -> str:
    """Id of ``run.started``."""
    return f"{run_id}/started"


def progress_id(run_id: str, number: int) -> str:
    """Id of a ``run.progressed``; `number` rises over all generations of the run, with gaps."""
    return f"{run_id}/progress/{number}"


def approval_requested_id(run_id: str, approval_id: str) -> str:
    """Id of ``approval.requested``."""
    return f"{run_id}/approval/{approval_id}/requested"


def approval_resolved_id(run_id: str, approval_id: str, command_id: str | None = None) -> str:
    """Id of ``approval.resolved``; `command_id` is the decision that resolved it, if one did."""
    base = f"{run_id}/approval/{approval_id}/resolved"
    return base if command_id is None else f"{base}/{command_id}"


def approval_refused_id(run_id: str, approval_id: str, command_id: str) -> str:
    """Id of ``approval.refused``, the answer to the command `command_id`."""
    return f"{run_id}/approval/{approval_id}/refused/{command_id}"


def control_refused_id(run_id: str, action: str, command_id: str) -> str:
    """Id of ``control.refused``, the answer to the command `command_id`."""
    return f"{run_id}/control/{action}/refused/{command_id}"


def control_done_id(run_id: str, action: str, command_id: str) -> str:
    """Id of the ``run.progressed`` that answers a suspend or resume that took effect."""
    return f"{run_id}/control/{action}/done/{command_id}"
