"""For tests of apps: a model that answers by a script, a pytest plugin with the stack, and checks of runs.

`ScriptedChatClient` needs ``towline[worker]`` only,
the plugin (`towline.testing.plugin`) ``towline[testing]``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towline.testing.errors import ReplayError, TestKitError
    from towline.testing.histories import RecordedRun, record, replay
    from towline.testing.runs import approve_when_asked, assert_events, reject_when_asked
    from towline.testing.scripted import ModelCall, Reply, Rule, ScriptedChatClient, ToolCall

__all__ = [
    "ModelCall",
    "RecordedRun",
    "ReplayError",
    "Reply",
    "Rule",
    "ScriptedChatClient",
    "TestKitError",
    "ToolCall",
    "approve_when_asked",
    "assert_events",
    "record",
    "reject_when_asked",
    "replay",
]
_HOMES = {
    "towline.testing.errors": ("ReplayError", "TestKitError"),
    "towline.testing.scripted": ("ModelCall", "Reply", "Rule", "ScriptedChatClient", "ToolCall"),
    "towline.testing.runs": ("approve_when_asked", "assert_events", "reject_when_asked"),
    "towline.testing.histories": ("RecordedRun", "record", "replay"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
