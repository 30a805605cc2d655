"""The worker: hosts a user's app and publishes what its runs do. See docs/guide/apps.md."""

from towline.worker.app import AgentRetry, App, ApprovalDecision, RunHandle, Steps
from towline.worker.errors import AgentRunError, ApprovalExpired, RunCancelled

__all__ = [
    "AgentRetry",
    "AgentRunError",
    "App",
    "ApprovalDecision",
    "ApprovalExpired",
    "RunCancelled",
    "RunHandle",
    "Steps",
]
