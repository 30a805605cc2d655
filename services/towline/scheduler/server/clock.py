"""Time in microseconds since the epoch, which tests can move forward."""

import time


class Clock:
    """UTC wall time plus what was skipped."""

    def __init__(self, offset_us: int = 0) -> None:
        self.offset_us = offset_us

    def now(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1000 + self.offset_us

    def skip(self, us: int) -> None:
        """Move forward. Timers that become due fire, leases are not touched."""
        if us < 0:
            raise ValueError("time can only be skipped forward")
        self.offset_us += us
