"""The processor with handlers made for the occasion; no Kafka."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.delivery.records import PARTITION, record
from tests.waiting import eventually_async

from towline.delivery import DONE, Backoff, DeadLetter, Deferred, Limits, Policy, Retry
from towline.delivery.processing import Processor

FAST = Policy(backoff=Backoff(first_s=0.001, longest_s=0.002), failures_max_count=3)


class Bench:
    """A processor whose handler follows a script, and what it did."""

    def __init__(self, handle, *, limits=None, dead_letter=None, read=None):
        self.letters = []
        self.processor = Processor(
            read=read or (lambda record: (record.key, record.offset)),
            handle=handle,
            dead_letter=dead_letter or self._dead_letter,
            limits=limits,
            policy=FAST,
        )
        self.processor.lanes.assign([PARTITION])

    async def _dead_letter(self, record, letter):
        self.letters.append((record.offset, letter.reason))

    def feed(self, *keys: bytes, first: int = 0):
        self.processor.admit(PARTITION, [record(first + n, key=key) for n, key in enumerate(keys)])
        self.processor.pump()

    async def until_committable(self, offset: int):
        await eventually_async(lambda: self.processor.lanes.next_offsets().get(PARTITION) == offset)

    @property
    def next_offset(self):
        return self.processor.lanes.next_offsets()[PARTITION]


async def test_a_lane_keeps_order_and_other_lanes_do_not_wait():
    handled, gate = [], asyncio.Event()

    async def handle(delivery):
        if delivery.record.key == b"slow":
            await gate.wait()
        handled.append(delivery.message)
        return DONE

    bench = Bench(handle)
    bench.feed(b"slow", b"a", b"slow", b"b", b"a")
    await eventually_async(lambda: len(handled) >= 3)
    assert handled == [1, 3, 4]
    assert bench.next_offset == 0
    gate.set()
    await bench.until_committable(5)
    assert handled[3:] == [0, 2]


async def test_no_more_run_at_once_than_allowed():
    running, most = 0, 0

    async def handle(_delivery):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return DONE

    bench = Bench(handle, limits=Limits(max_running_count=4))
    bench.feed(*(str(n).encode() for n in range(40)))
    await bench.until_committable(40)
    assert most == 4


async def test_lanes_that_wait_for_a_retry_take_no_place():
    tries = []

    async def handle(delivery):
        tries.append((delivery.message, delivery.attempt))
        if delivery.record.key != b"ok" and delivery.attempt < 3:
            return Retry("busy", 0.02)
        return DONE

    bench = Bench(handle, limits=Limits(max_running_count=1))
    bench.feed(b"a", b"b", b"c", b"ok")
    await bench.until_committable(4)
    assert tries[:4] == [(0, 1), (1, 1), (2, 1), (3, 1)], "the last one did not wait for the retries"
    assert bench.processor.counts.retried == {"busy": 6}


async def test_a_handler_that_keeps_raising_makes_a_dead_letter_and_the_lane_goes_on():
    async def handle(delivery):
        if delivery.message == 0:
            raise RuntimeError("poison")
        return DONE

    bench = Bench(handle)
    bench.feed(b"k", b"k")
    await bench.until_committable(2)
    assert bench.letters == [(0, "handler_failed")]
    assert bench.processor.counts.retried == {"handler_failed": 2}


async def test_a_record_that_read_chokes_on_is_a_dead_letter():
    def read(record):
        if record.offset == 0:
            raise ValueError("no")
        return record.key, record.offset

    async def handle(_delivery):
        return DONE

    bench = Bench(handle, read=read)
    bench.feed(b"k", b"k")
    await bench.until_committable(2)
    assert bench.letters == [(0, "unreadable")]


async def test_a_dead_letter_that_can_not_be_written_is_tried_again_before_the_lane_goes_on():
    attempts, handled = [], []

    async def dead_letter(record, _letter):
        attempts.append(record.offset)
        if len(attempts) < 3:
            raise ConnectionError

    async def handle(delivery):
        handled.append(delivery.message)
        return DeadLetter("bad", "bad") if delivery.message == 0 else DONE

    bench = Bench(handle, dead_letter=dead_letter)
    bench.feed(b"k", b"k")
    await bench.until_committable(2)
    assert attempts == [0, 0, 0]
    assert handled == [0, 0, 0, 1]


async def test_a_deferred_record_lets_its_lane_go_on_but_holds_the_offset():
    ending, handled = asyncio.Event(), []

    async def handle(delivery):
        handled.append(delivery.message)
        return Deferred(ending.wait()) if delivery.message == 0 else DONE

    bench = Bench(handle)
    bench.feed(b"k", b"k", b"k")
    await eventually_async(lambda: len(handled) >= 3)
    assert bench.next_offset == 0
    ending.set()
    await bench.until_committable(3)


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), asyncio.CancelledError()], ids=["bug", "cancelled by nobody"]
)
async def test_an_ending_that_raises_makes_a_dead_letter(error):
    async def ending():
        raise error

    async def handle(_delivery):
        return Deferred(ending())

    bench = Bench(handle)
    bench.feed(b"k")
    await bench.until_committable(1)
    assert bench.letters == [(0, "handler_failed")]


async def test_nothing_starts_while_held():
    handled = []

    async def handle(delivery):
        handled.append(delivery.message)
        return DONE

    bench = Bench(handle)
    bench.processor.held = True
    bench.feed(b"a")
    await asyncio.sleep(0.01)
    assert handled == []
    bench.processor.held = False
    bench.processor.pump()
    await bench.until_committable(1)


async def test_draining_lets_running_handlers_finish_and_starts_no_more():
    started, gate = [], asyncio.Event()

    async def handle(delivery):
        started.append(delivery.message)
        await gate.wait()
        return DONE

    bench = Bench(handle)
    bench.feed(b"k", b"k")
    await eventually_async(lambda: started)
    draining = asyncio.create_task(bench.processor.drain([PARTITION], within_s=2.0))
    await asyncio.sleep(0)
    gate.set()
    await draining
    assert started == [0]
    assert bench.next_offset == 1


async def test_draining_closes_the_gaps_so_that_nothing_finished_comes_again():
    handled, gate = [], asyncio.Event()

    async def handle(delivery):
        await gate.wait()
        handled.append(delivery.message)
        return DONE

    bench = Bench(handle, limits=Limits(max_running_count=2))
    bench.feed(b"a", b"a", b"a", b"b", b"c", b"b")
    await eventually_async(lambda: bench.processor.lanes.running_count() == 2)
    draining = asyncio.create_task(bench.processor.drain([PARTITION], within_s=2.0))
    await asyncio.sleep(0)
    gate.set()
    await draining
    assert sorted(handled) == [0, 1, 2, 3]
    assert bench.next_offset == 4


async def test_a_process_that_was_stopped_for_too_long_starts_nothing():
    handled = []

    async def handle(delivery):
        handled.append(delivery.message)
        return DONE

    bench = Bench(handle)
    now = asyncio.get_running_loop().time()
    bench.processor.ours_until = now - 1.0
    bench.feed(b"a", b"b")
    await bench.processor.drain([PARTITION], within_s=0.05)
    assert handled == []
    bench.processor.ours_until = now + 60.0
    bench.processor.pump()
    assert bench.next_offset == 0


async def test_records_below_the_fence_are_told_to_be_perhaps_handled_before():
    fenced = {}

    async def handle(delivery):
        fenced[delivery.message] = delivery.assigned_at
        return DONE

    bench = Bench(handle)
    bench.processor.admit(PARTITION, [record(n, key=b"k") for n in (3, 4, 5)], fence=(5, 17.0))
    bench.processor.pump()
    await bench.until_committable(6)
    assert fenced == {3: 17.0, 4: 17.0, 5: None}


async def test_draining_breaks_off_what_does_not_end_and_leaves_its_offset():
    cancelled = []

    async def handle(delivery):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(delivery.message)
            raise
        return DONE

    async def forever():
        await asyncio.sleep(60)

    bench = Bench(handle)
    bench.feed(b"k")
    await asyncio.sleep(0)
    await bench.processor.drain([PARTITION], within_s=0.05)
    assert cancelled == [0]
    assert bench.next_offset == 0
    assert bench.processor.lanes.running_count() == 0


async def test_what_draining_broke_off_is_not_started_again():
    started = []

    async def handle(delivery):
        started.append(delivery.message)
        await asyncio.sleep(60)
        return DONE

    bench = Bench(handle, limits=Limits(max_running_count=2))
    bench.feed(b"a", b"b", b"c")
    await eventually_async(lambda: len(started) == 2)
    await bench.processor.drain([PARTITION], within_s=0.05)
    assert started == [0, 1], "by now they may be in work at the next owner"
    assert bench.processor.lanes.running_count() == 0


async def test_endings_are_broken_off_at_once_when_their_partition_is_taken_away():
    ended = []

    async def ending():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def handle(_delivery):
        return Deferred(ending())

    bench = Bench(handle)
    bench.feed(b"k")
    await eventually_async(lambda: bench.processor.counts.deferred)
    await asyncio.sleep(0)
    await bench.processor.drain([PARTITION], within_s=5.0)
    assert ended == [True]
    assert bench.next_offset == 0


@pytest.mark.parametrize("attempt", range(1, 12))
def test_backoff_grows_to_its_bound_and_is_spread_by_half(attempt):
    backoff = Backoff(first_s=0.1, longest_s=5.0)
    whole = min(5.0, 0.1 * 2 ** (attempt - 1))
    assert backoff.delay_s(attempt, spread=0) == pytest.approx(whole / 2)
    assert backoff.delay_s(attempt, spread=1) == pytest.approx(whole)
    assert whole / 2 <= backoff.delay_s(attempt) <= whole
