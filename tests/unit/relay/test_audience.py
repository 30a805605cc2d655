"""Who counts as somebody that would notice that the relay is late."""

from __future__ import annotations

from towline.relay.audience import Audience


class _Clients:
    count = 0


def _audience() -> tuple[Audience, _Clients]:
    clients = _Clients()
    return Audience(lambda: clients.count), clients


def test_nobody_listens_to_begin_with() -> None:
    audience, _ = _audience()
    assert not audience.here(now=0)
    assert not audience.anywhere(now=0)


def test_who_asked_listens_for_ten_seconds_more() -> None:
    audience, _ = _audience()
    audience.asked(now=100)
    assert audience.here(now=109.9)
    assert not audience.here(now=110)
    audience.asked(now=111)
    assert audience.here(now=120)


def test_a_client_of_a_stream_listens_for_as_long_as_it_is_there() -> None:
    audience, clients = _audience()
    clients.count = 2
    assert audience.here(now=0)
    assert audience.anywhere(now=1e6)
    clients.count = 0
    assert not audience.here(now=1e6)


def test_who_listens_to_another_relay_is_not_here() -> None:
    audience, _ = _audience()
    audience.elsewhere = True
    assert audience.anywhere(now=0)
    assert not audience.here(now=0)


def test_who_comes_where_nobody_was_arrives() -> None:
    audience, clients = _audience()
    first = audience.arrival
    audience.asked(now=0)
    assert first.is_set()
    second = audience.arrival
    audience.asked(now=5)
    clients.count = 1
    audience.asked(now=50)
    assert not second.is_set()
    clients.count = 0
    audience.asked(now=60)
    assert second.is_set()


def test_who_comes_here_while_another_relay_is_listened_to_arrives_too() -> None:
    audience, _ = _audience()
    audience.elsewhere = True
    arrival = audience.arrival
    audience.asked(now=0)
    assert arrival.is_set()
