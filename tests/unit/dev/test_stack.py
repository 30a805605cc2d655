"""Starting the parts of a stack side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from towline.dev.errors import PartFailedError
from towline.dev.part import Part
from towline.dev.stack import Stack, StackPlan


class Program(Part):
    """A Python program that is never ready."""

    ready_timeout_s = 600.0

    def __init__(self, name: str, data: Path, source: str) -> None:
        super().__init__(name, data=data / name)
        self.source = source

    @property
    def addresses(self) -> Mapping[str, str]:
        return {}

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self.source]

    def probe(self) -> bool:
        return False


def test_a_part_that_cannot_be_started_is_named_at_once_and_the_others_are_stopped(tmp_path: Path) -> None:
    slow = Program("slow", tmp_path, "import time; time.sleep(600)")
    broken = Program("broken", tmp_path, "raise SystemExit('there is no module')")
    stack = Stack(StackPlan(data=tmp_path, app="none:none", roles=()))
    stack.infrastructure = [slow, broken]

    with pytest.raises(PartFailedError, match=r"broken ended with status 1.*\n.*there is no module"):
        stack.start()

    assert not slow.is_running
