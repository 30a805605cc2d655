"""The order in which commits, answers and effects follow each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.store.database import FILE_NAME, connect, migrate
from towline.scheduler.store.journal import Journal

Seen = list[str]


class Recorder:
    """A journal on a real file. Each batch has one row, by whose key it goes in ``seen``.

    ``quick_s``: up to which duration commits are made on the loop.
    """

    def __init__(self, folder: Path, quick_s: float) -> None:
        self.path = folder / FILE_NAME
        connection = connect(self.path)
        migrate(connection, self.path)
        self.seen: Seen = []
        self.effects: Callable[[str], None] = lambda _: None
        self.ahead: Callable[[Changes], None] = lambda _: None
        self.journal = Journal(
            connection,
            on_commit=lambda changes: self.seen.append(f"committed {_key(changes)}"),
            effects=self._effects,
            on_failure=lambda _: self.seen.append("undone"),
            ahead=lambda changes: self.ahead(changes),
            quick_s=quick_s,
        )

    def _effects(self, changes: Changes) -> None:
        self.seen.append(f"effects of {_key(changes)}")
        self.effects(_key(changes))

    def write(self, key: str, *, bad: bool = False) -> None:
        """Make a change and have its end recorded."""
        self.journal.changes.rows.append(("set_meta", (key,) if bad else (key, "1")))

        def then(error: NotDurableError | None) -> None:
            self.seen.append(f"{'answered' if error is None else 'refused'} {key}")

        self.journal.when_durable(then)

    def stored(self) -> set[str]:
        """Keys that another connection finds in the file."""
        return {key for (key,) in connect(self.path, readonly=True).execute("SELECT key FROM meta")}


def _key(changes: Changes) -> str:
    return str(changes.rows[0][1][0])


SLOW_DISK = 0.0
QUICK_DISK = 60.0


def record(
    folder: Path, act: Callable[[Recorder], Awaitable[None]], *, quick_s: float = SLOW_DISK
) -> Recorder:
    async def run() -> Recorder:
        recorder = Recorder(folder, quick_s)
        await act(recorder)
        recorder.journal.close()
        return recorder

    return asyncio.run(run())


async def rest(recorder: Recorder) -> None:
    """Until nothing is under way."""
    async with asyncio.timeout(10):
        while not recorder.journal.settled or recorder.journal.changes:
            with contextlib.suppress(NotDurableError):
                await recorder.journal.commit()


async def after_the_first(recorder: Recorder, *, bad: bool = False) -> None:
    """Change ``b`` while the commit of ``a`` is under way."""
    recorder.write("a")
    await asyncio.sleep(0)  # its rows are written in the next turn of the loop
    assert not recorder.journal.settled
    recorder.write("b", bad=bad)
    await rest(recorder)


def test_the_next_commit_is_under_way_before_the_effects_of_the_last(tmp_path: Path) -> None:
    under_way: dict[str, bool] = {}

    async def act(recorder: Recorder) -> None:
        recorder.effects = lambda key: under_way.update({key: not recorder.journal.settled})
        await after_the_first(recorder)

    recorder = record(tmp_path, act)

    assert under_way == {"a": True, "b": False}
    assert recorder.seen == [
        *("committed a", "answered a", "effects of a"),
        *("committed b", "answered b", "effects of b"),
    ]
    assert {"a", "b"} <= recorder.stored()


def test_no_commit_is_under_way_when_somebody_wants_to_look_at_the_file(tmp_path: Path) -> None:
    under_way: dict[str, bool] = {}

    async def act(recorder: Recorder) -> None:
        recorder.journal.wants_rest = lambda: True
        recorder.effects = lambda key: under_way.update({key: not recorder.journal.settled})
        await after_the_first(recorder)

    recorder = record(tmp_path, act)

    assert under_way == {"a": False, "b": False}
    assert {"a", "b"} <= recorder.stored()


def test_a_commit_is_announced_whole_although_the_next_one_cannot_be_written(tmp_path: Path) -> None:
    recorder = record(tmp_path, lambda recorder: after_the_first(recorder, bad=True))

    assert recorder.seen == ["committed a", "answered a", "effects of a", "undone", "refused b"]
    assert "a" in recorder.stored()
    assert "b" not in recorder.stored()


def test_what_follows_from_a_commit_goes_with_the_batch_that_could_not_be_written(tmp_path: Path) -> None:
    async def act(recorder: Recorder) -> None:
        recorder.effects = lambda key: recorder.write("c") if key == "a" else None
        await after_the_first(recorder, bad=True)

    recorder = record(tmp_path, act)

    assert recorder.seen[-3:] == ["undone", "refused b", "refused c"]
    assert recorder.stored().isdisjoint({"b", "c"})


def test_a_quick_commit_is_made_on_the_spot(tmp_path: Path) -> None:
    async def act(recorder: Recorder) -> None:
        recorder.effects = lambda key: recorder.write("b") if key == "a" else None
        recorder.write("a")
        assert recorder.seen == []
        await asyncio.sleep(0)
        assert recorder.seen == ["committed a", "answered a", "effects of a"]
        assert "a" in recorder.stored()
        await rest(recorder)

    recorder = record(tmp_path, act, quick_s=QUICK_DISK)

    assert recorder.seen[3:] == ["committed b", "answered b", "effects of b"]
    assert {"a", "b"} <= recorder.stored()


def test_what_comes_together_shares_a_quick_commit(tmp_path: Path) -> None:
    async def act(recorder: Recorder) -> None:
        recorder.write("a")
        recorder.write("b")
        await rest(recorder)
        assert recorder.journal.stats.count == 1

    recorder = record(tmp_path, act, quick_s=QUICK_DISK)

    assert recorder.seen == ["committed a", "answered a", "answered b", "effects of a"]


def test_a_quick_commit_that_cannot_be_written_is_undone_and_the_next_goes_on(tmp_path: Path) -> None:
    async def act(recorder: Recorder) -> None:
        recorder.write("a", bad=True)
        await rest(recorder)
        recorder.write("b")
        await rest(recorder)

    recorder = record(tmp_path, act, quick_s=QUICK_DISK)

    assert recorder.seen == ["undone", "refused a", "committed b", "answered b", "effects of b"]
    assert "a" not in recorder.stored()


def test_commits_go_to_the_thread_once_the_disk_is_slow(tmp_path: Path) -> None:
    on_the_spot: list[bool] = []

    async def act(recorder: Recorder) -> None:
        for key in "abc":
            recorder.write(key)
            await asyncio.sleep(0)
            on_the_spot.append(recorder.journal.settled)
            await rest(recorder)

    # No disk is that quick: the first commit, of which nothing is known yet, shows it.
    record(tmp_path, act, quick_s=1e-9)

    assert on_the_spot == [True, False, False]


@pytest.mark.parametrize("quick_s", [SLOW_DISK, QUICK_DISK])
def test_a_batch_is_shown_before_it_is_written_and_takes_what_is_changed_then(
    tmp_path: Path, quick_s: float
) -> None:
    shown: dict[str, set[str]] = {}

    async def act(recorder: Recorder) -> None:
        def look(changes: Changes) -> None:
            key = _key(changes)
            shown[key] = recorder.stored()
            changes.rows.append(("set_meta", (f"{key}, seen", "1")))

        recorder.ahead = look
        await after_the_first(recorder) if quick_s == SLOW_DISK else recorder.write("a")
        await rest(recorder)

    recorder = record(tmp_path, act, quick_s=quick_s)

    assert "a" not in shown["a"]
    assert {"a", "a, seen"} <= recorder.stored()
    if quick_s == SLOW_DISK:
        assert "b" not in shown["b"]
        assert {"b", "b, seen"} <= recorder.stored()
