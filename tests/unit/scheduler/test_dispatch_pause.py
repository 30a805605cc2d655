"""While commits fail nothing is handed out; what was queued meanwhile goes out afterwards, in order."""

from __future__ import annotations

from towline.scheduler.server.dispatch import Dispatcher, Kind, Stream, Work


def work(name: str) -> Work:
    return Work(Kind.ORCHESTRATION, 1, "run", "", (1, name))


def stream() -> Stream:
    return Stream(hub=1, worker="w", capacity=(2, 2, 2), filters=(None, None, None))


def test_a_paused_dispatcher_queues_and_hands_out_when_it_resumes():
    dispatcher, first = Dispatcher(), stream()
    dispatcher.attach(first)
    dispatcher.pause()
    for name in ("a", "b", "c"):
        dispatcher.offer(work(name))
    late = stream()
    dispatcher.attach(late)
    assert not first.pending
    assert not late.pending
    dispatcher.resume()
    handed = [item.subject for one in (first, late) for item in one.pending if item is not None]
    assert sorted(handed) == [(1, "a"), (1, "b"), (1, "c")]
