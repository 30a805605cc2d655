"""CPU and memory as /proc tells them, children included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from benchmarks.end_to_end.processes import PeakMemory, cpu_ms, family, memory_mb, processor

_PARENT = """
import subprocess, sys
big = "b = bytearray(40_000_000); print('up', flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", big])
child.wait()
"""
_BUSY = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
print("done", flush=True)
input()
"""


@pytest.fixture
def parent() -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.communicate("\n")


def test_a_family_is_the_process_and_its_descendants(parent: subprocess.Popen[str]) -> None:
    assert parent.pid in family(os.getpid())
    assert len(list(family(parent.pid))) == 2


def test_the_memory_of_children_counts(parent: subprocess.Popen[str]) -> None:
    assert memory_mb(parent.pid) > 40
    with PeakMemory(lambda: {"parent": parent.pid}) as memory:
        pass
    assert memory.peak_mb["parent"] > 40
    assert memory.together_mb == pytest.approx(memory.peak_mb["parent"])


def test_the_time_of_children_that_have_ended_counts() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert cpu_ms(process.pid) >= 300
        process.communicate("\n")


def test_the_processor_is_told_apart_from_others_of_its_name() -> None:
    """A cloud's machines all say `AMD EPYC`, whatever their generation."""
    lines = {re.sub(r"\s*:", ":", line) for line in Path("/proc/cpuinfo").read_text().splitlines()}
    name, *numbers = processor().split(", ")
    assert f"model name: {name}" in lines
    assert all(": ".join(number.rsplit(" ", 1)) in lines for number in numbers)
