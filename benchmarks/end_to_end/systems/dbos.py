"""DBOS on PostgreSQL, with its Kafka consumer."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, ClassVar

from benchmarks.end_to_end import installed
from benchmarks.end_to_end.systems.peer import Peer

from towline.dev import ports

_UNPRIVILEGED = "postgres"
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


class Dbos(Peer):
    """Two processes: PostgreSQL (with its backends), the app."""

    name = "dbos"
    about = (
        "DBOS workflows behind its own Kafka consumer; agent call and publish are steps, approvals messages "
        "to the workflow (`recv`). Its queues are polled once a second, its default."
    )
    durable = "every step (PostgreSQL, fsynced at each commit)"
    config: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def missing(cls) -> str | None:
        if installed.postgres_programs() is None:
            return installed.POSTGRES_HINT
        if not installed.has_package("dbos"):
            return f"dbos is not installed: {installed.INSTALL_HINT}"
        if os.getuid() == 0 and _UNPRIVILEGED not in {user.pw_name for user in pwd.getpwall()}:
            return f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED}"
        return None

    def launch(self) -> None:
        programs = installed.postgres_programs()
        assert programs is not None
        user = _UNPRIVILEGED if os.getuid() == 0 else None
        folder, port = self.data / "postgres", ports.lease(None)
        folder.mkdir(mode=0o700)
        if user is not None:
            self.data.chmod(0o755)
            shutil.chown(folder, user)
        subprocess.run(
            [programs / "initdb", "-D", folder, "-U", "postgres", "--auth=trust", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            user=user,
            cwd=self.data,
        )
        self.spawn(
            "postgres",
            [
                *(programs / "postgres", "-D", folder, "-p", str(port), "-k", str(folder)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"),
            ],
            ready=lambda: _is_ready(programs / "pg_isready", port),
            user=user,
        )
        for app in self.app_names:
            self.spawn_app(
                app,
                "dbos_app",
                python=installed.python(),
                env={
                    "BENCH_DATABASE": f"postgresql://postgres@127.0.0.1:{port}/bench",
                    # By its guide to recovery: each executor finishes what is tagged with its own id.
                    "BENCH_DBOS": json.dumps({**self.config, "executor_id": app}),
                },
            )


class DbosTuned(Dbos):
    """By its configuration reference: queues polled often, a larger pool of connections."""

    name = "dbos-tuned"
    about = "As dbos, with its Kafka queue polled every 10 ms and a pool of 50 connections."
    config: ClassVar = {"kafka_queue_polling_interval_sec": 0.01, "sys_db_pool_size": 50}


class DbosX2(DbosTuned):
    """Two executors."""

    name = "dbos-x2"
    about = (
        "As dbos-tuned, with two executors on the one database, each with an id of its own, in the same "
        "Kafka groups: what one has consumed either may dequeue."
    )
    apps = 2


def _is_ready(program: os.PathLike[str], port: int) -> bool:
    asked = subprocess.run(
        [program, "-q", "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False
    )
    return asked.returncode == 0
