"""Errors of the test kit.

```
TowlineError
└── TestKitError        the stack for tests cannot be had; the message names the fix
    └── ReplayError     code does not do what a recorded run did (carries run id and the difference)
```
"""

from __future__ import annotations

from typing import ClassVar

from towline.contracts.errors import TowlineError


class TestKitError(TowlineError):
    """The stack for tests cannot be had as things are."""

    __test__: ClassVar[bool] = False  # pytest would collect it by its name


class ReplayError(TestKitError):
    """The code does not do what a recorded run did: deployed, it would break such a run."""

    def __init__(self, run_id: str, run_type: str, difference: str) -> None:
        super().__init__(f"{run_type} does not replay {run_id}: {difference}")
        self.run_id = run_id
        self.run_type = run_type
        self.difference = difference
