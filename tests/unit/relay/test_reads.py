"""How often Kafka is read, by who listens."""

from __future__ import annotations

import asyncio
import time

from towline.relay.audience import Audience
from towline.relay.reads import RECORDS_MAX, Reads


class _Clients:
    count = 0


def _reads() -> tuple[Reads, Audience, _Clients]:
    clients = _Clients()
    audience = Audience(lambda: clients.count)
    return Reads(audience), audience, clients


async def _turns(reads: Reads, seconds: float) -> int:
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        await reads.turn()
        reads.brought([9], now=time.monotonic())
        count += 1
    return count


async def test_while_nobody_listens_a_burst_of_four_and_four_reads_a_second_follow() -> None:
    reads, _, _ = _reads()
    assert 7 <= await _turns(reads, 1.2) <= 10


async def test_while_somebody_listens_a_burst_of_eight_and_ten_reads_a_second_follow() -> None:
    reads, _, clients = _reads()
    clients.count = 1
    assert 14 <= await _turns(reads, 1.2) <= 21


async def test_a_read_is_as_quick_for_who_listens_to_another_relay() -> None:
    reads, audience, _ = _reads()
    audience.elsewhere = True
    assert 14 <= await _turns(reads, 1.2) <= 21


async def test_who_comes_ends_the_wait_for_the_next_read() -> None:
    reads, audience, _ = _reads()
    await _turns(reads, 0.1)
    waiting = asyncio.create_task(reads.turn())
    await asyncio.sleep(0)
    began = time.monotonic()
    audience.asked(now=began)
    await waiting
    assert time.monotonic() - began < 0.15


async def test_behind_a_full_read_the_next_one_follows_at_once_while_nobody_listens() -> None:
    reads, _, _ = _reads()
    began = time.monotonic()
    for full in (*[[9] * RECORDS_MAX] * 25, *[[300_000] * 3] * 25):
        await reads.turn()
        reads.brought(full, now=time.monotonic())
    assert time.monotonic() - began < 0.4


async def test_a_read_that_brings_nothing_does_not_count() -> None:
    reads, audience, _ = _reads()
    for elsewhere in (False, True):
        audience.elsewhere = elsewhere
        began = time.monotonic()
        for _ in range(50):
            await reads.turn()
            reads.brought([], now=time.monotonic())
        assert time.monotonic() - began < 0.4


async def test_what_one_pace_has_used_up_is_no_debt_of_the_other() -> None:
    reads, _, clients = _reads()
    clients.count = 1
    await _turns(reads, 1.0)
    clients.count = 0
    began = time.monotonic()
    for _ in range(4):
        await reads.turn()
        reads.brought([9], now=time.monotonic())
    assert time.monotonic() - began < 0.4


def _use_up(reads: Reads) -> None:
    for _ in range(3):
        reads.brought([9], now=100)


def test_brokers_answer_a_run_at_rest_at_once_and_gather_under_load_while_nobody_listens() -> None:
    reads, audience, _ = _reads()
    assert reads.min_bytes(now=100) == 1
    _use_up(reads)
    assert reads.min_bytes(now=100) == 1024 * 1024
    assert reads.min_bytes(now=101) == 1
    _use_up(reads)
    audience.asked(now=100)
    assert reads.min_bytes(now=100) == 1


async def test_a_steady_load_has_brokers_gather_for_each_read_beyond_the_burst() -> None:
    reads, _, _ = _reads()
    gathered: list[bool] = []
    for _ in range(6):
        await reads.turn()
        gathered.append(reads.min_bytes(now=time.monotonic()) > 1)
        reads.brought([9], now=time.monotonic())
    assert gathered == [False, False, False, True, True, True]


def test_outcomes_held_are_looked_at_less_often_under_load_while_nobody_listens() -> None:
    reads, audience, _ = _reads()
    assert reads.timeout_ms(0.0, now=100) == 20
    assert reads.timeout_ms(0.04, now=100) == 40
    assert reads.timeout_ms(None, now=100) == 300
    _use_up(reads)
    assert reads.timeout_ms(0.04, now=100) == 100
    assert reads.timeout_ms(None, now=100) == 300
    audience.asked(now=100)
    assert reads.timeout_ms(0.04, now=100) == 40
