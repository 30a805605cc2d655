"""The life of a supervised part, walked through at random and by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from towline.dev.lifecycle import Life, Phase, Policy, Seen, step

POLICY = Policy(ready_timeout_s=10, stop_timeout_s=5, backoff_first_s=0.1, backoff_max_s=2, stable_after_s=30)
HAS_PROCESS = {Phase.STARTING, Phase.READY, Phase.STOPPING}


@dataclass
class World:
    """A process that does what it is told, or dies, or hangs."""

    life: Life = field(default_factory=Life)
    alive: bool = False
    ready: bool = False
    now: float = 0.0
    spawned: int = 0
    terminated: bool = False

    def tick(self, *, wanted: bool, may_start: bool = True, after_s: float = 0.1) -> list[str]:
        self.now += after_s
        seen = Seen(wanted=wanted, may_start=may_start, ended=not self.alive, ready=self.ready)
        self.life, actions = step(self.life, seen, self.now, POLICY)
        for action in actions:
            if action == "spawn":
                assert not self.alive, "a second process for one part"
                self.alive, self.ready, self.terminated = True, False, False
                self.spawned += 1
            elif action == "kill":
                self.alive = False
            else:
                self.terminated = True
        return list(actions)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["nothing", "dies", "ready", "obeys"]),
        st.booleans(),
        st.floats(min_value=0.01, max_value=40),
    ),
    max_size=60,
)


@given(EVENTS)
def test_there_is_never_a_second_process_nor_one_that_nobody_watches(
    events: list[tuple[str, bool, float]],
) -> None:
    world = World()
    for event, may_start, after_s in events:
        if event == "dies":
            world.alive = False
        elif event == "ready":
            world.ready = world.alive
        world.tick(wanted=True, may_start=may_start, after_s=after_s)
        assert not world.alive or world.life.phase in HAS_PROCESS


@given(EVENTS, st.sampled_from(["obeys", "hangs"]))
def test_a_stop_ends_within_its_bound_from_any_state(
    events: list[tuple[str, bool, float]], at_stop: str
) -> None:
    world = World()
    for event, may_start, after_s in events:
        if event == "dies":
            world.alive = False
        elif event == "ready":
            world.ready = world.alive
        world.tick(wanted=True, may_start=may_start, after_s=after_s)
    stopping_since = world.now
    while not world.life.is_over:
        world.tick(wanted=False)
        if at_stop == "obeys" and world.terminated:
            world.alive = False
        assert world.now - stopping_since <= POLICY.stop_timeout_s + 1
    assert not world.alive


def test_a_part_that_dies_is_started_again_with_growing_pauses() -> None:
    world = World()
    world.tick(wanted=True)
    pauses: list[float] = []
    for _ in range(7):
        world.ready = True
        world.tick(wanted=True)
        assert world.life.phase is Phase.READY
        world.alive, died_at, spawned = False, world.now, world.spawned
        while world.spawned == spawned:
            world.tick(wanted=True, after_s=0.01)
        pauses.append(round(world.now - died_at, 1))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_a_long_stable_time_starts_the_backoff_anew() -> None:
    life = Life(phase=Phase.READY, since=0, failures=6, was_ready=True)
    life, _ = step(life, Seen(), 31, POLICY)
    life, _ = step(life, Seen(ended=True), 31, POLICY)
    assert (life.phase, life.failures) == (Phase.BACKOFF, 1)


def test_one_that_never_was_ready_is_given_up_after_three_starts() -> None:
    world = World()
    while not world.life.is_over:
        world.tick(wanted=True)
        world.alive = False
    assert (world.life.phase, world.spawned) == (Phase.FAILED, 3)


def test_one_that_refuses_its_command_line_is_given_up_at_once() -> None:
    life = Life(phase=Phase.STARTING)
    life, _ = step(life, Seen(ended=True, refuses=True), 1, POLICY)
    assert life.phase is Phase.FAILED


def test_one_that_was_ready_once_is_never_given_up() -> None:
    world = World()
    world.tick(wanted=True)
    world.ready = True
    world.tick(wanted=True)
    for _ in range(500):
        world.alive = False
        world.tick(wanted=True, after_s=1)
    assert world.life.phase is not Phase.FAILED
    assert world.spawned > 100


def test_a_start_that_hangs_is_killed_once_and_counts_as_a_failure() -> None:
    world = World()
    world.tick(wanted=True)
    assert world.tick(wanted=True, after_s=11) == ["kill"]
    world.tick(wanted=True)
    assert (world.life.phase, world.life.failures) == (Phase.BACKOFF, 1)


@given(st.integers(min_value=1, max_value=10**9))
def test_the_backoff_is_bounded(failures: int) -> None:
    assert POLICY.backoff_first_s <= POLICY.backoff_s(failures) <= POLICY.backoff_max_s
