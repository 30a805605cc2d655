"""The token writer against a real Valkey that is killed, paused, or comes back without its newest data."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from tests.integration.relay.reading import assemble, decoded
from tests.integration.relay.valkey import Valkey
from tests.waiting import eventually

from towline.contracts.settings import RedisSettings
from towline.contracts.stream import stream_key, turns_key, wake_channel
from towline.relay.feed import News, parse_news
from towline.worker.streams import StreamSettings, TokenWriter

RUN = "run-1"


@pytest.fixture
def new_writer(valkey: Valkey) -> Iterator[Callable[..., TokenWriter]]:
    writers: list[TokenWriter] = []

    def make(**settings: Any) -> TokenWriter:
        writer = TokenWriter(RedisSettings(url=valkey.url), StreamSettings(timeout_s=0.5, **settings))
        writer.start()
        writers.append(writer)
        return writer

    yield make
    for writer in writers:
        writer.stop(0.1)


def entries(valkey: Valkey, run_id: str = RUN) -> list[tuple[str, dict[str, Any]]]:
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        return decoded(client.xrange(stream_key(run_id)))


def test_a_turn_is_written_as_tokens_and_a_message(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    turn.write("Roses ")
    turn.tool_call("rhyme", '{"with":"red"}')
    turn.write("are red")
    turn.finish("Roses are red")
    assert writer.drain(5)
    got = entries(valkey)
    assert [kind for kind, _ in got if kind != "token"] == ["tool_call", "message"]
    assert assemble(got).turns == {"1": "Roses are red"}
    assert got[-1][1] == {"agent": "Poet", "turn": "1", "attempt": 1, "text": "Roses are red"}
    assert not assemble(got).wrong


def test_what_is_written_is_told_with_the_entry_before_it(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    with redis.Redis(port=valkey.port, decode_responses=True) as client, client.pubsub() as heard:
        heard.subscribe(wake_channel(RUN))
        eventually(lambda: heard.get_message(timeout=1))
        turn = writer.open(RUN, 1, "Poet")
        for text in ("Roses ", "are\nred", "x" * 20_000):
            turn.write(text)
            assert writer.drain(5)
        stored = client.xrange(stream_key(RUN))
        told = [eventually(lambda: heard.get_message(timeout=1))["data"] for _ in range(3)]
    ids = [entry_id for entry_id, _ in stored]
    assert [parse_news(message) for message in told] == [
        News("0-0", [stored[0]]),
        News(ids[0], [stored[1]]),
        None,  # too long: it has to be read
    ]
    assert told[2] == ids[2]


def test_half_a_surrogate_pair_is_replaced_and_disturbs_no_other_run(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    other = writer.open("run-2", 1, "Poet")
    other.write("Roses ")
    assert writer.drain(5)
    turn = writer.open(RUN, 1, "Poet")
    # Models that count in bytes or in UTF-16 cut an emoji in two.
    turn.write("smile \ud83d")
    turn.tool_call("smile", '"\ude00"')
    assert writer.drain(5)
    turn.finish("smile \ud83d\ude00")
    other.write("are red")
    other.finish("Roses are red")
    assert writer.drain(5)
    assert assemble(entries(valkey)).turns == {"1": "smile \ufffd\ufffd"}
    assert assemble(entries(valkey, "run-2")).turns == {"1": "Roses are red"}
    assert [kind for kind, _ in entries(valkey, "run-2")] == ["token", "token", "message"]


@pytest.mark.parametrize("written", [True, False], ids=["known", "new"])
def test_a_redis_that_is_busy_with_somebody_s_script_is_waited_for(
    valkey: Valkey, new_writer: Callable[..., TokenWriter], written: bool
) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    if written:
        turn.write("Roses ")
        assert writer.drain(5)
    with busy(valkey):
        turn.write("are ")
        # It is tried again meanwhile, and asked whether it is back.
        assert not writer.drain(1.0), "nothing is written, and nothing given up"
    turn.write("red")
    turn.finish("Roses are red")
    assert writer.drain(5)
    assert assemble(entries(valkey)).turns == {"1": "Roses are red"}
    assert not assemble(entries(valkey)).wrong


def test_a_redis_that_is_busy_while_nothing_is_said_ends_no_stream(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    turn.write("Roses ")
    assert writer.drain(5)
    with busy(valkey):
        eventually(lambda: writer.away, "it has looked", timeout_s=10)
    turn.write("are red")
    turn.finish("Roses are red")
    assert writer.drain(5)
    assert assemble(entries(valkey)).turns == {"1": "Roses are red"}


def test_a_full_redis_that_wraps_its_errors_is_waited_for(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    # Redis before 7 (Azure Cache has 6) tells an error of a command in a script so, with no code of its own.
    wrapped = (
        "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: "
        "-OOM command not allowed when used memory > 'maxmemory'."
    )
    refuses = f'if redis.call("EXISTS", "full") == 1 then return redis.error_reply("{wrapped}") end\n'
    writer = new_writer()
    writer._script = refuses + writer._script
    with redis.Redis(port=valkey.port) as client:
        client.set("full", 1)
        turn = writer.open(RUN, 1, "Poet")
        turn.write("Roses ")
        eventually(lambda: writer.away, "it has been refused")
        client.delete("full")
    turn.write("are red")
    turn.finish("Roses are red")
    assert writer.drain(5)
    assert assemble(entries(valkey)).turns == {"1": "Roses are red"}


def test_a_redis_without_the_database_of_the_url_is_away_and_the_log_says_how_to_mend_it(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    url = valkey.url.removesuffix("0") + "77"
    writer = TokenWriter(RedisSettings(url=url), StreamSettings(timeout_s=0.5))
    writer.start()
    writer.open(RUN, 1, "Poet").write("Roses ")
    eventually(lambda: writer.away)
    writer.stop(0.1)
    assert [record.message for record in caplog.records] == ["redis_away"]
    assert "TOWLINE_REDIS_URL" in caplog.records[0].__dict__["error"]


@contextmanager
def busy(valkey: Valkey) -> Generator[None]:
    """While the block runs, Valkey answers others that it is busy with a script."""

    def is_busy() -> bool:
        try:
            client.ping()
        except redis.ResponseError:
            return True
        return False

    with redis.Redis(port=valkey.port) as client, ThreadPoolExecutor(1) as thread:
        client.config_set("busy-reply-threshold", 50)
        script = thread.submit(lambda: redis.Redis(port=valkey.port).eval("while true do end", 0))
        try:
            eventually(is_busy, ignoring=(redis.ConnectionError,))
            yield
        finally:
            client.script_kill()
        assert isinstance(script.exception(), redis.RedisError)


def test_tokens_are_coalesced(valkey: Valkey, new_writer: Callable[..., TokenWriter]) -> None:
    writer = new_writer(flush_interval_ms=50)
    turn = writer.open(RUN, 1, "Poet")
    for number in range(5000):
        turn.write(f"{number} ")
    turn.finish("".join(f"{number} " for number in range(5000)))
    assert writer.drain(5)
    got = entries(valkey)
    assert len(got) < 100
    assert assemble(got[:-1]).turns["1"] == "".join(f"{number} " for number in range(5000))


def test_a_turn_that_is_over_within_a_span_is_one_entry_and_its_message(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer(flush_interval_ms=200)
    turn = writer.open(RUN, 1, "Poet")
    for word in ("slow ", "and ", "steady"):
        turn.write(word)
        time.sleep(0.01)
    turn.finish("slow and steady")
    assert writer.drain(5)
    got = entries(valkey)
    assert [kind for kind, _ in got] == ["token", "message"]
    assert got[0][1]["text"] == "slow and steady"


def test_streams_expire_and_are_trimmed(valkey: Valkey, new_writer: Callable[..., TokenWriter]) -> None:
    writer = new_writer(entries_max=100, ttl_s=60)
    for number in range(400):
        writer.open(RUN, number, "Poet").finish("text")
    assert writer.drain(5)
    with redis.Redis(port=valkey.port) as client:
        assert 100 <= client.xlen(stream_key(RUN)) <= 300
        assert 0 < client.ttl(stream_key(RUN)) <= 60
        assert 0 < client.ttl(turns_key(RUN)) <= 60


def test_a_second_execution_of_a_turn_voids_the_first(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    first = writer.open(RUN, 1, "Poet")
    first.write("half a ")
    assert writer.drain(5)
    second = writer.open(RUN, 1, "Poet")
    first.write("never seen")
    second.write("whole")
    second.finish("whole")
    assert writer.drain(5)
    got = entries(valkey)
    assert [kind for kind, _ in got] == ["token", "reset", "token", "message"]
    assert got[1][1]["attempt"] == 2
    assert assemble(got).turns == {"1": "whole"}


def test_a_zombie_worker_is_fenced(valkey: Valkey, new_writer: Callable[..., TokenWriter]) -> None:
    zombie, successor = new_writer(), new_writer()
    old = zombie.open(RUN, 1, "Poet")
    old.write("from the zombie")
    assert zombie.drain(5)
    new = successor.open(RUN, 1, "Poet")
    new.write("from the ")
    assert successor.drain(5)
    old.write(" which goes on")
    old.finish("from the zombie which goes on")
    assert zombie.drain(5)
    new.write("successor")
    new.finish("from the successor")
    assert successor.drain(5)
    got = entries(valkey)
    assert assemble(got).turns == {"1": "from the successor"}
    assert [data["attempt"] for _, data in got] == [1, 2, 2, 2, 2]


def test_a_failed_turn_says_so(valkey: Valkey, new_writer: Callable[..., TokenWriter]) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    turn.write("half a ")
    turn.fail(ValueError("no rhyme"))
    assert writer.drain(5)
    kind, data = entries(valkey)[-1]
    assert kind == "reset"
    assert data["reason"] == "failed"
    assert data["error"] == {"type": "ValueError", "message": "no rhyme"}


def test_parallel_agents_of_one_run_are_told_apart(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    physicist, chemist = writer.open(RUN, 1, "Physicist"), writer.open(RUN, 2, "Chemist")
    for number in range(50):
        physicist.write(f"p{number} ")
        chemist.write(f"c{number} ")
    physicist.finish("".join(f"p{number} " for number in range(50)))
    chemist.finish("".join(f"c{number} " for number in range(50)))
    assert writer.drain(5)
    got = entries(valkey)
    assembled = assemble(got)
    assert not assembled.wrong
    assert assembled.turns["1"].startswith("p0 p1 ")
    assert assembled.turns["2"].startswith("c0 c1 ")
    assert {data["agent"] for _, data in got if data["turn"] == "2"} == {"Chemist"}


def test_feeding_never_waits_for_a_redis_that_hangs(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    turn.write("before ")
    assert writer.drain(5)
    valkey.pause()
    try:
        slowest_s = 0.0
        text = ["before "]
        for number in range(2000):
            begun = time.perf_counter()
            turn.write(f"{number} ")
            slowest_s = max(slowest_s, time.perf_counter() - begun)
            text.append(f"{number} ")
        eventually(lambda: writer.away)
    finally:
        valkey.resume()
    turn.finish("".join(text))
    assert writer.drain(10)
    assert slowest_s < 0.2
    assembled = assemble(entries(valkey))
    assert not assembled.wrong
    assert assembled.final == {"1": "".join(text)}


def test_a_redis_killed_in_mid_stream_costs_no_word(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer(flush_interval_ms=1)
    turn = writer.open(RUN, 1, "Poet")
    text: list[str] = []
    for number in range(300):
        turn.write(f"{number} ")
        text.append(f"{number} ")
        if number in (100, 200):
            valkey.kill()
        if number in (150, 250):
            valkey.start()
        time.sleep(0.001)
    turn.finish("".join(text))
    assert writer.drain(10)
    assembled = assemble(entries(valkey))
    assert not assembled.wrong
    assert assembled.final == {"1": "".join(text)}


def test_a_stream_that_lost_its_tail_is_restored(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    """A crash before the append-only file was synced takes the newest entries, also of a finished turn."""
    writer = new_writer()
    done, open_ = writer.open(RUN, 1, "Poet"), writer.open(RUN, 2, "Critic")
    done.write("kept ")
    open_.write("kept ")
    assert writer.drain(5)
    size = eventually(valkey.append_size)
    done.write("lost")
    done.tool_call("publish")
    done.finish("kept lost")
    open_.write("lost ")
    assert writer.drain(5)
    valkey.kill()
    valkey.lose_tail(size)
    valkey.start()
    eventually(
        lambda: assemble(entries(valkey)).final == {"1": "kept lost"}, ignoring=(redis.ConnectionError,)
    )
    open_.write("and on")
    open_.finish("kept lost and on")
    assert writer.drain(5)
    assembled = assemble(entries(valkey))
    assert not assembled.wrong
    assert assembled.final == {"1": "kept lost", "2": "kept lost and on"}
    assert assembled.tool_calls["1"] == ["publish"]


def test_a_redis_that_lost_everything_gets_the_open_turns_again(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    turn = writer.open(RUN, 1, "Poet")
    turn.write("all of ")
    assert writer.drain(5)
    with redis.Redis(port=valkey.port) as client:
        client.flushall()
        client.script_flush()
    turn.write("it")
    turn.finish("all of it")
    assert writer.drain(5)
    assembled = assemble(entries(valkey))
    assert not assembled.wrong
    assert assembled.final == {"1": "all of it"}


def test_text_that_does_not_fit_while_redis_is_away_is_replaced_by_the_message(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer(turn_chars_max=1000)
    turn = writer.open(RUN, 1, "Poet")
    turn.write("before ")
    assert writer.drain(5)
    valkey.kill()
    for _ in range(300):
        turn.write("a word ")
    eventually(lambda: writer.away)
    assert writer.kept_chars <= 1000
    valkey.start()
    turn.finish("before " + "a word " * 300)
    assert writer.drain(10)
    got = entries(valkey)
    assert [kind for kind, _ in got][-2:] == ["reset", "message"]
    assert assemble(got).final == {"1": "before " + "a word " * 300}


def test_entries_that_redis_refuses_for_good_do_not_stop_other_runs(
    valkey: Valkey, new_writer: Callable[..., TokenWriter]
) -> None:
    writer = new_writer()
    with redis.Redis(port=valkey.port) as client:
        client.set(stream_key("spoiled"), "not a stream")
    writer.open("spoiled", 1, "Poet").finish("text")
    writer.open("spoiled", 1, "Poet").finish("text")
    writer.open(RUN, 1, "Poet").finish("text")
    assert writer.drain(5)
    assert assemble(entries(valkey)).final == {"1": "text"}
