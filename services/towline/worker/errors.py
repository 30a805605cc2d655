"""Errors of the worker host.

```
TowlineError
├── WorkerError
│   ├── AppLoadError           --app names nothing that can be hosted
│   ├── UnsupportedSdkError    an SDK of another version than the one this host is built for is installed
│   ├── CredentialError        the scheduler's credential is not set
│   ├── TurnAbandonedError     a turn was replaced by a newer delivery, or the host is stopping
│   ├── AgentStoppedError      an agent's own code ended its task
│   └── ApprovalExpired        nobody decided in time (raised into the run)
├── AgentRunError              an agent's turn failed (raised into the run; also a TaskFailedError)
└── RunCancelledError          how the orchestration of a cancelled run ends
RunCancelled (BaseException)   raised into the run where it waits, so that it can compensate
```
"""

from __future__ import annotations

from durabletask.task import TaskFailedError

from towline.contracts.errors import TowlineError


class WorkerError(TowlineError):
    """Base of the host's own errors."""


class AppLoadError(WorkerError):
    """`--app` names nothing that can be hosted; the message says what is wrong and what is expected."""


class UnsupportedSdkError(WorkerError):
    """The installed SDKs are not those that this host is built for."""


class CredentialError(WorkerError):
    """The settings name a credential for the scheduler and don't give it."""


class TurnAbandonedError(WorkerError):
    """A turn's results are not wanted any more: it was delivered again, or the host is stopping."""


class HistoryMissingError(WorkerError):
    """A turn came without its history, which can't be had just now: it goes out again."""


class AgentTurnCancelledError(WorkerError):
    """The run was cancelled while this agent's model call was in flight."""


class AgentStoppedError(WorkerError):
    """An agent's own code ended its task: by SystemExit, or by a CancelledError that nobody asked for."""


class ApprovalExpired(WorkerError):  # noqa: N818 — users catch it as a condition of their run
    """Nobody decided on an approval in time.

    Attributes:
        approval_id: The ask that expired.
    """

    def __init__(self, approval_id: str, message: str | None = None) -> None:
        super().__init__(message or f"nobody decided on {approval_id} in time")
        self.approval_id = approval_id


class AgentRunError(TowlineError, TaskFailedError):
    """An agent's turn failed: the model, a tool or the agent itself raised.

    Durable agents answer an error as data; the host turns it into this error where the run waits for the
    agent. It is a `TaskFailedError`, so that code which guards activities guards agents too.

    Attributes:
        agent: The agent's name.
        code: Name of the error that the agent met, for example an exception class.
        error: Its message.
    """

    def __init__(self, agent: str, code: str, error: str) -> None:
        cause = RuntimeError(error)
        TaskFailedError.__init__(self, f"agent {agent} failed: {code}: {error}", cause)
        self.agent = agent
        self.code = code
        self.error = error


class RunCancelledError(TowlineError):
    """How a cancelled run's orchestration ends; its text is the reason given."""


class RunCancelled(BaseException):
    """Raised into a run at the point where it waits, when somebody cancels it.

    Like `asyncio.CancelledError` it is no `Exception`, so that a handler of errors doesn't swallow it. A
    run may catch it to compensate; what it yields from then on is carried out as usual, and the run ends
    as cancelled.

    Attributes:
        reason: What the canceller gave as the reason, if anything.
    """

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "cancelled")
        self.reason = reason
