"""The scheduler as a process: what an operator sees and what stock clients may rely on."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus, TaskHubGrpcClient
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from durabletask.worker import TaskHubGrpcWorker
from tests.waiting import eventually

COMMAND = (sys.executable, "-m", "towline.scheduler")
QUIET = logging.getLogger("tests.scheduler.sdk")
QUIET.setLevel(logging.CRITICAL)


class Process:
    """A server on a port of its own choice."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.folder = folder
        self.options = options
        self.variables = variables
        self.port_file = folder / "port"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.address = "127.0.0.1:0"

    def start(self) -> None:
        self.port_file.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOWLINE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*COMMAND, "--data", str(self.folder / "data"), "--listen", self.address),
                    *("--port-file", str(self.port_file), *self.options),
                ],
                stderr=log,
                env=environment | self.variables,
            )
        deadline = time.monotonic() + 30
        while not self.port_file.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)  # a file appears: nothing to await
        self.address = self.port_file.read_text().strip()

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ready(self) -> dict[str, Any]:
        return next(line for line in reversed(self.lines()) if line["event"] == "server.ready")

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.ready()['metrics']}/metrics", timeout=5) as response:
            return response.read().decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, "--test-clock", "--metrics-listen", "127.0.0.1:0")
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.end(signal.SIGKILL)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)


def greet(_: task.ActivityContext, name: str) -> str:
    return f"hello {name}"


def gret(_: task.ActivityContext, name: str) -> str:
    return f"hello {name}"


def greeting(ctx: task.OrchestrationContext, name: str) -> Any:
    return (yield ctx.call_activity(greet, input=name))


def approval(ctx: task.OrchestrationContext, hours: int) -> Any:
    answer = ctx.wait_for_external_event("Approval")
    timeout = ctx.create_timer(ctx.current_utc_datetime.replace(microsecond=0) + _hours(hours))
    winner = yield task.when_any([answer, timeout])
    return "answered" if winner is answer else "timed out"


def _hours(count: int) -> Any:
    from datetime import timedelta

    return timedelta(hours=count)


def worker(address: str) -> TaskHubGrpcWorker:
    made = TaskHubGrpcWorker(host_address=address, logger=QUIET)
    made.add_activity(greet)
    made.add_orchestrator(greeting)
    made.add_orchestrator(approval)
    return made


def test_a_run_ends_and_is_in_metrics_stats_and_backup(server: Process, tmp_path: Path) -> None:
    with worker(server.address) as hands:
        hands.start()
        sdk = TaskHubGrpcClient(host_address=server.address, logger=QUIET)
        state = sdk.wait_for_orchestration_completion(sdk.schedule_new_orchestration(greeting, input="you"))
    assert state is not None
    assert state.serialized_output == '"hello you"'

    figures = json.loads(run("stats", "--address", server.address).stdout)
    assert figures["hubs"]["default"]["finished"] == 1
    assert "towline_scheduler_commits_total" in server.metrics()
    copy = tmp_path / "copy"
    copy.mkdir()
    assert run("backup", str(copy / "scheduler.db"), "--data", str(tmp_path / "data")).returncode == 0
    assert (copy / "scheduler.db").stat().st_size > 0


def mistyped(ctx: task.OrchestrationContext, name: str) -> Any:
    return (yield ctx.call_activity("gret", input=name))


def test_an_activity_that_no_worker_knows_is_named_in_the_log_with_its_run(tmp_path: Path) -> None:
    """With filters no worker is given it, so none can fail it."""
    server = Process(tmp_path, "--metrics-listen", "127.0.0.1:0", TOWLINE_SCHEDULER_UNCLAIMED_AFTER_S="0.2")
    server.start()
    with worker(server.address) as hands:
        hands.add_orchestrator(mistyped)
        hands.use_work_item_filters()
        hands.start()
        sdk = TaskHubGrpcClient(host_address=server.address, logger=QUIET)
        run_id = sdk.schedule_new_orchestration(mistyped, input="you")
        said = eventually(
            lambda: next((line for line in server.lines() if line["event"] == "work.unclaimed"), None)
        )
        unclaimed = 'towline_scheduler_work_items_unclaimed{kind="activity"} '
        assert unclaimed + "1\n" in server.metrics()

        hands.stop()  # the deployment that mends it
        with worker(server.address) as mended:
            mended.add_orchestrator(mistyped)
            mended.add_activity(gret)
            mended.use_work_item_filters()
            mended.start()
            state = sdk.wait_for_orchestration_completion(run_id, timeout=30)
        assert unclaimed + "0\n" in server.metrics()
    assert server.end(signal.SIGTERM) == 0

    assert state is not None
    assert state.serialized_output == '"hello you"'
    assert (said["level"], said["kind"], said["work"], said["id"]) == ("warning", "activity", "gret", run_id)
    assert said["error"] == (
        f"no connected worker takes activity 'gret', for which {run_id} waits: "
        "start one that registers it, or correct the name"
    )


def test_seventy_two_hours_pass_at_once(server: Process) -> None:
    with worker(server.address) as hands:
        hands.start()
        sdk = TaskHubGrpcClient(host_address=server.address, logger=QUIET)
        waiting = sdk.schedule_new_orchestration(approval, input=72)
        sdk.wait_for_orchestration_start(waiting)
        # The timer counts once the first turn is committed: that is what "started" says.
        assert run("skip-time", "73h", "--address", server.address).returncode == 0
        state = sdk.wait_for_orchestration_completion(waiting, timeout=10)

    assert state is not None
    assert state.serialized_output == '"timed out"'


def test_sigterm_ends_within_two_seconds_with_waiters_and_workers_and_keeps_everything(
    server: Process,
) -> None:
    with worker(server.address) as hands:
        hands.start()
        sdk = TaskHubGrpcClient(host_address=server.address, logger=QUIET)
        waiting = sdk.schedule_new_orchestration(approval, input=72)
        sdk.wait_for_orchestration_start(waiting)
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 3
    server.start()
    with worker(server.address) as hands:
        hands.start()
        sdk = TaskHubGrpcClient(host_address=server.address, logger=QUIET)
        sdk.raise_orchestration_event(waiting, "approval")
        state = sdk.wait_for_orchestration_completion(waiting, timeout=10)

    assert state is not None
    assert state.runtime_status == OrchestrationStatus.COMPLETED
    assert state.serialized_output == '"answered"'


def test_the_health_service_answers(server: Process) -> None:
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=5) == b"\x08\x01"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "0.0.0.0:0"), "--tls-cert, --tls-key, --token"),
        (("--listen", "nowhere"), "HOST:PORT"),
        (("--grace-s", "-1"), "--grace-s"),
        (("--grace-s", "inf"), "--grace-s"),
        (("--tls-cert", "nowhere.pem", "--tls-key", "nowhere.key"), "--tls-cert nowhere.pem"),
        (("--tls-cert", "pyproject.toml", "--tls-key", "nowhere.key"), "--tls-key nowhere.key"),
        (("--tls-cert", "pyproject.toml", "--tls-key", "pyproject.toml"), "--tls-cert pyproject.toml"),
        (("--port-file", "/nowhere/port"), "--port-file /nowhere/port"),
    ],
)
def test_unsafe_or_senseless_settings_are_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ended = run("--data", str(tmp_path / "data"), *arguments)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_the_log_level_is_a_variable_too_as_every_flag_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWLINE_SCHEDULER_LOG_LEVEL", "loud")

    ended = run("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0")

    assert ended.returncode == 2
    assert ended.stderr.startswith("towline scheduler: TOWLINE_SCHEDULER_LOG_LEVEL 'loud' is none of")


def test_its_commands_take_the_address_as_the_other_roles_do(
    server: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`towline dev` writes ``TOWLINE_SCHEDULER_ADDRESS=http://…`` into its file, and all read that."""
    monkeypatch.setenv("TOWLINE_SCHEDULER_ADDRESS", f"http://{server.address}")

    assert "hubs" in json.loads(run("stats").stdout)


def test_a_certificate_that_is_not_there_is_told_in_one_line() -> None:
    ended = run("stats", "--ca", "nowhere.pem")

    assert ended.returncode == 2
    assert ended.stderr == "towline scheduler: --ca nowhere.pem: No such file or directory\n"


def test_a_port_for_metrics_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run(
            *("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--metrics-listen", address)
        )

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"towline scheduler: cannot listen for metrics on {address}")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_second_server_on_the_folder_is_refused(server: Process, tmp_path: Path) -> None:
    ended = run("--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0")

    assert ended.returncode == 2
    assert "in use by another scheduler" in ended.stderr


def test_a_caller_may_compress(server: Process) -> None:
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        stub = TaskHubSidecarServiceStub(channel)
        request = pb.CreateInstanceRequest(instanceId="run", name="x", input={"value": "a" * 20_000})
        stub.StartInstance(request, timeout=10)
        answer = stub.GetInstance(
            pb.GetInstanceRequest(instanceId="run", getInputsAndOutputs=True), timeout=10
        )
    assert answer.orchestrationState.input.value == "a" * 20_000
