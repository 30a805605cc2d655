"""The rules of the lanes, walked through at random and compared with a plain model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from towline.delivery.lanes import Lanes, Limits, OffsetTracker, Work

PARTITIONS = ("a", "b")
KEYS = st.sampled_from(["x", "y", "z"])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.randoms())
def test_the_offset_to_commit_is_the_highest_below_which_all_is_finished(steps, random):
    offsets, offset = [], 0
    for step in steps:
        offset += step
        offsets.append(offset)
    tracker = OffsetTracker()
    for offset in offsets:
        tracker.admit(offset)
    unfinished = set(offsets)
    for offset in random.sample(offsets, len(offsets)):
        tracker.finish(offset)
        unfinished.discard(offset)
        assert tracker.next_offset == (min(unfinished) if unfinished else offsets[-1] + 1)
    assert tracker.uncommitted_count == 0


def test_an_offset_that_goes_backwards_is_refused():
    tracker = OffsetTracker()
    tracker.admit(5)
    with pytest.raises(ValueError, match="offset 5 after 5"):
        tracker.admit(5)


class LanesMachine(RuleBasedStateMachine):
    """Random traffic; the model is one list of unfinished offsets per partition and lane."""

    def __init__(self):
        super().__init__()
        self.lanes: Lanes[str, str] = Lanes(Limits(max_running_count=3))
        self.now = 0.0
        self.next_offset = dict.fromkeys(PARTITIONS, 0)
        self.assigned: set[str] = set()
        self.queued: dict[tuple[str, str], list[int]] = {}
        self.unfinished: dict[str, set[int]] = {}
        self.running: list[Work[str, str]] = []
        self.deferred: list[Work[str, str]] = []
        self.gone: list[Work[str, str]] = []
        self.waiting: dict[tuple[str, str], float] = {}

    @initialize()
    def begin(self):
        self.assign("a")
        self.assign("b")

    def assign(self, partition):
        self.lanes.assign([partition])
        self.assigned.add(partition)
        self.unfinished[partition] = set()

    @rule(partition=st.sampled_from(PARTITIONS), key=KEYS, gap=st.integers(1, 2))
    def admit(self, partition, key, gap):
        if partition not in self.assigned:
            return
        offset = self.next_offset[partition] = self.next_offset[partition] + gap
        self.lanes.admit(partition, offset, lane=key, item=key, size_bytes=10)
        self.queued.setdefault((partition, key), []).append(offset)
        self.unfinished[partition].add(offset)

    @rule()
    def take(self):
        work = self.lanes.take()
        if work is None:
            busy = {(w.partition, w.item) for w in self.running}
            startable = [
                lane
                for lane, offsets in self.queued.items()
                if offsets and lane not in busy and lane not in self.waiting
            ]
            assert not startable or len(self.running) + len(self.gone) >= 3
            return
        lane = (work.partition, work.item)
        assert lane not in {(w.partition, w.item) for w in self.running}, "one at a time in a lane"
        assert lane not in self.waiting, "a waiting lane handles nothing"
        assert work.offset == self.queued[lane][0], "in order of the offsets"
        self.running.append(work)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), what=st.sampled_from(["finish", "defer", "retry", "release"]))
    def end(self, data, what):
        work = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        lane = (work.partition, work.item)
        if what == "retry":
            due = self.now + data.draw(st.floats(0.1, 5))
            self.lanes.retry(work, due=due)
            self.waiting[lane] = due
            return
        getattr(self.lanes, what)(work)
        if what == "release":
            return
        self.queued[lane].pop(0)
        if what == "finish":
            self.unfinished[work.partition].discard(work.offset)
        else:
            self.deferred.append(work)

    @precondition(lambda self: self.deferred)
    @rule(data=st.data())
    def settle(self, data):
        work = self.deferred.pop(data.draw(st.integers(0, len(self.deferred) - 1)))
        self.lanes.settle(work)
        self.unfinished[work.partition].discard(work.offset)

    @rule(seconds=st.floats(0, 4))
    def time_passes(self, seconds):
        self.now += seconds
        self.lanes.wake(self.now)
        self.waiting = {lane: due for lane, due in self.waiting.items() if due > self.now}

    @rule(partition=st.sampled_from(PARTITIONS))
    def rebalance(self, partition):
        """Taken away and given back: what was not finished comes again, from the committed offset."""
        if partition not in self.assigned:
            self.assign(partition)
            return
        self.lanes.close([partition])
        self.lanes.revoke([partition])
        self.assigned.discard(partition)
        self.gone += [w for w in self.running if w.partition == partition]
        self.running = [w for w in self.running if w.partition != partition]
        self.deferred = [w for w in self.deferred if w.partition != partition]
        self.queued = {lane: o for lane, o in self.queued.items() if lane[0] != partition}
        self.waiting = {lane: d for lane, d in self.waiting.items() if lane[0] != partition}
        self.unfinished.pop(partition)

    @precondition(lambda self: self.gone)
    @rule(what=st.sampled_from(["finish", "retry", "release"]))
    def end_of_what_was_taken_away(self, what):
        work = self.gone.pop()
        if what == "retry":
            self.lanes.retry(work, due=self.now + 1)
        else:
            getattr(self.lanes, what)(work)

    @invariant()
    def commits_never_pass_an_unfinished_record(self):
        for partition, offset in self.lanes.next_offsets().items():
            unfinished = self.unfinished[partition]
            assert offset == (min(unfinished) if unfinished else self.next_offset[partition] + 1)

    @invariant()
    def counts_are_those_of_the_model(self):
        assert self.lanes.held_count() == sum(len(offsets) for offsets in self.unfinished.values())
        assert self.lanes.running_count() == len(self.running) + len(self.gone)
        assert self.lanes.running_count() <= 3


LanesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestLanes = LanesMachine.TestCase


def lanes_with(**limits: int) -> Lanes[str, None]:
    lanes: Lanes[str, None] = Lanes(Limits(**limits))
    lanes.assign(PARTITIONS)
    return lanes


def test_a_partition_pauses_when_its_queue_is_full_and_resumes_at_half():
    lanes = lanes_with(max_queued_count=4)
    for offset in range(4):
        lanes.admit("a", offset, lane=offset, item=None, size_bytes=1)
    assert lanes.update_pauses() == (["a"], [])
    for expected in ([], ["a"]):
        work = lanes.take()
        assert work is not None
        lanes.finish(work)
        assert lanes.update_pauses() == ([], expected)


def test_lanes_that_wait_do_not_count_as_queued():
    lanes = lanes_with(max_queued_count=4)
    for offset in range(6):
        lanes.admit("a", offset, lane="x", item=None, size_bytes=1)
    work = lanes.take()
    assert work is not None
    lanes.retry(work, due=10.0)
    assert lanes.update_pauses() == ([], [])
    assert lanes.running_count() == 0
    assert lanes.next_due == 10.0


def test_what_is_uncommitted_is_bounded_even_when_only_one_record_is_open():
    lanes = lanes_with(max_uncommitted_count=10)
    lanes.admit("a", 0, lane="slow", item=None, size_bytes=1)
    slow = lanes.take()
    assert slow is not None
    lanes.defer(slow)
    for offset in range(1, 10):
        lanes.admit("a", offset, lane="x", item=None, size_bytes=1)
        work = lanes.take()
        assert work is not None
        lanes.finish(work)
    assert lanes.update_pauses() == (["a"], [])
    lanes.settle(slow)
    assert lanes.next_offsets() == {"a": 10}
    assert lanes.update_pauses() == ([], ["a"])


def test_large_records_pause_all_partitions():
    lanes = lanes_with(max_held_bytes=100)
    lanes.admit("a", 0, lane="x", item=None, size_bytes=150)
    assert sorted(lanes.update_pauses()[0]) == ["a", "b"]


def test_holding_pauses_everything_and_letting_go_resumes_it():
    lanes = lanes_with()
    assert sorted(lanes.update_pauses(hold=True)[0]) == ["a", "b"]
    assert lanes.update_pauses(hold=True) == ([], [])
    assert sorted(lanes.update_pauses()[1]) == ["a", "b"]


def test_a_closed_partition_starts_only_what_lies_before_a_started_record():
    lanes = lanes_with()
    for offset, lane in enumerate(["x", "x", "y", "x", "z"]):
        lanes.admit("a", offset, lane=lane, item=None, size_bytes=1)
    first, behind = lanes.take(), lanes.take()
    assert first is not None
    assert behind is not None
    assert (first.offset, behind.offset) == (0, 2)
    lanes.close(["a"])
    lanes.finish(behind)
    lanes.finish(first)
    assert lanes.closing_count(["a"]) == 1
    before = lanes.take()
    assert before is not None
    assert before.offset == 1
    lanes.finish(before)
    assert lanes.take() is None
    assert lanes.closing_count(["a"]) == 0
    assert lanes.next_offsets() == {"a": 3}
