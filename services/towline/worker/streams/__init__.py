"""The worker's side of the token stream: every agent turn, to Redis, off the run's path.

``observer`` reads what an agent says, ``ledger`` decides what has to be written (pure), ``writer`` is the
thread that writes it, ``append.lua`` fences and deduplicates it. See docs/guide/streams.md.
"""

from towline.worker.streams.observer import StreamObserver, TurnObserver, TurnRecorder
from towline.worker.streams.settings import StreamSettings
from towline.worker.streams.writer import TokenWriter, TurnStream

__all__ = ["StreamObserver", "StreamSettings", "TokenWriter", "TurnObserver", "TurnRecorder", "TurnStream"]
