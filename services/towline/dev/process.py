"""Child processes that leave nothing behind.

A child runs in a session of its own (a terminal's Ctrl-C reaches only the parent), is killed by the
kernel when its parent dies (Linux), has its output read line by line, and is recorded in a pid file
with its start time, so that what an earlier, killed parent left can be told from a stranger with
the same pid.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

LineSink: TypeAlias = Callable[[str, str], None]
"""Called with a child's name and one line of its output, from a thread of that child's own."""

LAST_LINES: Final = 30
"""How many lines of output are kept for error messages."""
LINE_BYTES_MAX: Final = 64 * 1024
"""A longer line is passed on in pieces."""
_POLL_S: Final = 0.01
_LAST_LINES_S: Final = 0.5
_LAUNCHER: Final = Path(__file__).with_name("_launch.py")

# The parent-death signal comes when the *thread* that made the child ends, not the process:
# all children are made by one thread that lives as long as the process.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="towline-spawner")


def start_time(pid: int) -> str | None:
    """When process `pid` was started, as an opaque word; None if there is no such process."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(  # noqa: S603 - a fixed command
        ["ps", "-o", "lstart=", "-p", str(pid)],  # noqa: S607 - part of every system without /proc
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None


class PidFile:
    """Records which process runs a part, across a crash of the parent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, pid: int) -> None:
        """Record `pid`, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"pid": pid, "start_time": start_time(pid)}))
        new.replace(self.path)

    def clear(self) -> None:
        """Forget the process."""
        self.path.unlink(missing_ok=True)

    def living(self) -> int | None:
        """The recorded process, if it is still that one and alive."""
        try:
            recorded: dict[str, Any] = json.loads(self.path.read_text())
            pid, started = int(recorded["pid"]), recorded["start_time"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if started is not None and start_time(pid) == started else None

    def stop_leftover(self, *, timeout_s: float = 10.0) -> int | None:
        """Stop what an earlier parent left: SIGTERM, then SIGKILL. The pid stopped, or None.

        Blocks up to `timeout_s` and a second.
        """
        pid = self.living()
        if pid is not None:
            for number, bound_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 1.0)):
                _signal(pid, number)
                if _until(lambda: self.living() is None, bound_s):
                    break
        self.clear()
        return pid


class Child:
    """One running child process. Its methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        sink: LineSink | None = None,
        pid_file: PidFile | None = None,
    ) -> None:
        """Start `command`.

        Raises:
            OSError: The working directory does not exist, the pid file cannot be written, or the system has
                no more processes or files to give. Nothing runs then.
        """
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._sink = sink
        self._pid_file = pid_file
        self._reap_lock = threading.Lock()
        launch = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command]
        self._process = _spawner.submit(
            lambda: subprocess.Popen(  # noqa: S603 - the stack's own commands
                launch,
                env=None if env is None else dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ).result()
        if pid_file is not None:
            try:
                pid_file.write(self.pid)
            except OSError:  # nobody would ever know of it
                _signal_group(self.pid, signal.SIGKILL)
                self._process.wait()
                raise
        self._pump = threading.Thread(target=self._read_lines, name=f"towline-log-{name}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        """Process id; also that of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        with self._reap_lock:
            if self._process.returncode is None and _has_ended(self.pid):
                # Before the pid is given back: whatever it left in its group would be ours to find.
                _signal_group(self.pid, signal.SIGKILL)
                self._process.wait()
                if self._pid_file is not None:
                    self._pid_file.clear()
                # Its last lines say why it ended: whoever is told of the end looks at them at once.
                self._pump.join(timeout=_LAST_LINES_S)
            return self._process.returncode

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; None if it still runs after `timeout_s`."""
        _until(lambda: self.poll() is not None, timeout_s)
        return self.poll()

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM). Does not wait."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of its group. Does not wait."""
        with self._reap_lock:
            if self._process.returncode is None:
                _signal_group(self.pid, signal.SIGKILL)

    def stop(self, *, timeout_s: float = 10.0) -> int:
        """SIGTERM, after `timeout_s` SIGKILL; returns the exit status once it is gone. Idempotent."""
        self.terminate()
        if self.wait(timeout_s) is None:
            self.kill()
            self.wait(math.inf)
        status = self.poll()
        self._pump.join(timeout=1.0)
        assert status is not None
        return status

    def _send(self, number: signal.Signals) -> None:
        with self._reap_lock:
            if self._process.returncode is None:
                _signal(self.pid, number)

    def _read_lines(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with stream:
            while raw := stream.readline(LINE_BYTES_MAX):
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self.last_lines.append(line)
                if self._sink is not None:
                    self._sink(self.name, line)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped by someone else
        return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS for a group of zombies
        return


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
