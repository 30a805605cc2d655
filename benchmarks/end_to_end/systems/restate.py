"""Restate: its server with its Kafka subscriptions, and a Python service behind Hypercorn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from benchmarks.end_to_end import installed
from benchmarks.end_to_end.systems.peer import Peer, http_ok, post_json

from towline.dev import ports

_CLUSTER = "bench"


class Restate(Peer):
    """Two processes: the server (one binary), the service."""

    name = "restate"
    about = (
        "Restate's server as installed, its Kafka subscriptions, its Python SDK behind Hypercorn with one "
        "worker; agent call and publish are steps (`ctx.run_typed`), approvals a workflow's durable promise."
    )
    durable = "every step (its log in RocksDB, fsynced), Kafka offsets with the invocation"
    settings: ClassVar[str] = ""
    """More of the server's configuration, TOML."""
    hypercorn: ClassVar[Mapping[str, str | int]] = {}
    """Hypercorn's configuration."""

    @classmethod
    def missing(cls) -> str | None:
        if installed.restate_server() is None:
            return f"Restate's server is not installed: {installed.INSTALL_HINT}"
        if not installed.has_package("restate"):
            return f"restate-sdk is not installed: {installed.INSTALL_HINT}"
        return None

    def launch(self) -> None:
        binary = installed.restate_server()
        assert binary is not None
        node, admin, ingress, service = (ports.lease(None) for _ in range(4))
        configuration = self.data / "restate.toml"
        configuration.write_text(
            "\n".join(
                (
                    f"base-dir = {json.dumps(str(self.data / 'data'))}",
                    'bind-ip = "127.0.0.1"',
                    f"bind-port = {node}",
                    'listen-mode = "tcp"',
                    'log-filter = "warn"',
                    "disable-telemetry = true",
                    self.settings,
                    "[admin]",
                    f"bind-port = {admin}",
                    "[ingress]",
                    f"bind-port = {ingress}",
                    "[[ingress.kafka-clusters]]",
                    f'name = "{_CLUSTER}"',
                    f"brokers = {json.dumps([self.bootstrap])}",
                )
            )
        )
        self.spawn(
            "server",
            [binary, "--no-logo", "--config-file", configuration],
            ready=lambda: http_ok(f"http://127.0.0.1:{admin}/health"),
        )
        hypercorn = self.data / "hypercorn.toml"
        # What JSON makes of a number or a short string is TOML too.
        hypercorn.write_text(
            "\n".join(f"{name} = {json.dumps(value)}" for name, value in self.hypercorn.items())
        )
        url = f"http://127.0.0.1:{service}"
        self.spawn(
            "service",
            [
                installed.python(),
                *("-m", "hypercorn", "--config", hypercorn, "--bind", f"127.0.0.1:{service}"),
                "benchmarks.end_to_end.peers.restate_app:app",
            ],
            ready=lambda: http_ok(f"{url}/health"),
            env=installed.python_environment(),
        )
        base = f"http://127.0.0.1:{admin}"
        post_json(f"{base}/deployments", {"uri": url})
        for topic, handler in (
            ("answer", "answers/answer"),
            ("approved_answer", "approved/run"),
            ("decisions", "approved/decide"),
        ):
            post_json(
                f"{base}/subscriptions",
                {
                    "source": f"kafka://{_CLUSTER}/{self.topics}.{topic}",
                    "sink": f"service://{handler}",
                    "options": {"auto.offset.reset": "earliest"},
                },
            )


class RestateTuned(Restate):
    """By its documentation's advice for small machines: fewer partitions; Hypercorn as in production."""

    name = "restate-tuned"
    about = (
        "As restate, with four partitions in place of 24, Hypercorn on uvloop and with what Restate's guide "
        "sets for it in production: no limits of streams or requests for a connection."
    )
    settings = "default-num-partitions = 4"
    hypercorn: ClassVar = {
        "worker_class": "uvloop",
        "h2_max_concurrent_streams": 2**31 - 1,
        "keep_alive_max_requests": 2**31 - 1,
        "keep_alive_timeout": 2**31 - 1,
    }


class RestateX2(RestateTuned):
    """Two workers of Hypercorn behind its one port."""

    name = "restate-x2"
    about = "As restate-tuned, with two worker processes of Hypercorn."
    hypercorn: ClassVar = {**RestateTuned.hypercorn, "workers": 2}
