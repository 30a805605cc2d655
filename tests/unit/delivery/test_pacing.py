"""A consumer's reads: at once while there are cores to spare, further apart while there are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from towline.delivery.pacing import CoreWaits, ReadPace


class Machine:
    """A clock, and the kernel's account of how long the process waited for a core."""

    def __init__(self, folder: Path) -> None:
        self.schedstat = folder / "schedstat"
        self.now = 1_000.0
        self._waited_ns = 0
        self._write()

    def pass_time(self, seconds: float, *, waiting: float) -> None:
        self.now += seconds
        self._waited_ns += int(seconds * waiting * 1e9)
        self._write()

    def _write(self) -> None:
        self.schedstat.write_text(f"123456789 {self._waited_ns} 42\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def settled(machine: Machine, pace: ReadPace, *, waiting: float) -> float:
    """The wait after a read, once the process has waited for a core for that share of ten seconds."""
    for _ in range(20):
        pace.wait_s(now=machine.now)
        machine.pass_time(0.5, waiting=waiting)
    pace.note(now=machine.now)
    return pace.wait_s(now=machine.now)


@pytest.mark.parametrize(
    ("waiting", "wait_s"), [(0.0, 0.0), (0.09, 0.0), (0.125, 0.025), (0.15, 0.05), (0.9, 0.05)]
)
def test_the_shorter_cores_are_the_further_apart_are_reads(
    machine: Machine, waiting: float, wait_s: float
) -> None:
    pace = ReadPace(CoreWaits(machine.schedstat))
    assert settled(machine, pace, waiting=waiting) == pytest.approx(wait_s, abs=0.001)


def test_a_read_that_comes_late_anyway_does_not_wait(machine: Machine) -> None:
    pace = ReadPace(CoreWaits(machine.schedstat))
    assert settled(machine, pace, waiting=0.5) > 0
    machine.pass_time(0.06, waiting=0.5)
    assert pace.wait_s(now=machine.now) == 0


def test_reads_are_quick_again_when_there_are_cores_again(machine: Machine) -> None:
    pace = ReadPace(CoreWaits(machine.schedstat))
    assert settled(machine, pace, waiting=0.5) > 0
    assert settled(machine, pace, waiting=0.0) == 0


@pytest.mark.parametrize("content", [None, "", "0 0", "nonsense 1 x"])
def test_a_system_that_does_not_tell_is_taken_for_one_with_cores_to_spare(
    tmp_path: Path, content: str | None
) -> None:
    schedstat = tmp_path / "schedstat"
    if content is not None:
        schedstat.write_text(content)
    waits = CoreWaits(schedstat)
    assert [waits.share(now=float(second)) for second in range(5)] == [0.0] * 5


def test_an_account_that_can_t_be_read_for_a_moment_tells_no_more_than_always(machine: Machine) -> None:
    waits = CoreWaits(machine.schedstat)
    machine.pass_time(1e6, waiting=0.02)
    waits.share(now=machine.now)
    account = machine.schedstat.read_text()
    for content in ("", account):
        machine.schedstat.write_text(content)
        machine.now += 0.5
        assert 0.0 <= waits.share(now=machine.now) <= 1.0


def test_this_system_s_own_account_is_read() -> None:
    waits = CoreWaits()
    assert 0.0 <= waits.share(now=0.0) <= waits.share(now=1e9) <= 1.0
