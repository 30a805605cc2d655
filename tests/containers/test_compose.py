"""docker-compose.yml: a run through it from outside, a restart, a crash, and nothing left."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.containers import images
from tests.containers.compose import Project
from tests.waiting import eventually

from towline.contracts import TowlineClient
from towline.contracts.settings import KafkaSettings
from towline.dev import ports
from towline.testing import approve_when_asked, reject_when_asked

pytestmark = [pytest.mark.docker, pytest.mark.slow]
ARTICLE = {"topic": "tides", "max_review_attempts": 3, "approval_timeout_seconds": 3600}
OURS = ("scheduler", "bridge", "worker", "relay")
PATIENCE_S = 300.0
RESULT_S = 300.0


def status_of(url: str, key: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def read(url: str) -> str:
    """What is there; nothing if there is no answer yet."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def running(project: Project) -> Project:
    project.variables |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector:4318",
        "OTELCOL_DECISION_WAIT": "1s",
        "OTELCOL_METRICS_FLUSH": "1s",
        **{name: str(ports.lease()) for name in ("OTLP_PORT", "OTEL_METRICS_PORT", "JAEGER_PORT")},
    }
    project.up(profiles=("observability",))
    return project


@pytest.fixture
async def client(running: Project) -> AsyncGenerator[TowlineClient]:
    """A bare Kafka client on the host."""
    settings = KafkaSettings(bootstrap=f"127.0.0.1:{running.variables['KAFKA_PORT']}")
    async with TowlineClient(settings, source="tests/containers") as connected:
        yield connected


@pytest.mark.parametrize("profile", ["", "observability", "scale", "dts", "*"])
def test_the_file_is_valid_with_every_profile(project: Project, profile: str) -> None:
    services = project.compose("config", "--services", profiles=(profile,) if profile else ()).split()

    assert {"init", "topics", "kafka", "redis", *OURS} <= set(services)
    added = {"observability": {"otel-collector", "jaeger"}, "scale": {"bridge-2", "worker-2"}, "dts": {"dts"}}
    assert added.get(profile, set()) <= set(services)


def test_every_service_of_ours_is_healthy_and_locked_up(running: Project) -> None:
    states = running.services()
    assert {name: states[name]["Health"] for name in OURS} == dict.fromkeys(OURS, "healthy")
    assert {name: states[name]["ExitCode"] for name in ("init", "topics")} == {"init": 0, "topics": 0}
    for name in OURS:
        about = running.inspect(name)
        host = about["HostConfig"]
        assert host["ReadonlyRootfs"] is True, name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert 0 < host["Memory"] <= 2**30, name
        assert about["Config"]["User"] == "10001:10001", name
        published = about["NetworkSettings"]["Ports"].values()
        assert {bind["HostIp"] for binds in published for bind in binds or ()} <= {"127.0.0.1"}, name


def test_no_secret_is_in_an_environment_and_each_service_sees_its_own_only(running: Project) -> None:
    for name in OURS:
        about = running.inspect(name)
        for variable in about["Config"]["Env"]:
            key, _, value = variable.partition("=")
            assert not (re.search(r"TOKEN$|KEY$|KEYS$|PASSWORD$", key) and value[:1] not in ("", "/")), key
    targets = {name: [mount["Destination"] for mount in running.inspect(name)["Mounts"]] for name in OURS}
    mounts = {name: {path for path in paths if "/secrets" in path} for name, paths in targets.items()}
    assert mounts == {
        "scheduler": {"/secrets/scheduler-server"},
        "bridge": {"/secrets/scheduler-client"},
        "worker": {"/secrets/scheduler-client"},
        "relay": {"/secrets/relay-server"},
    }


async def test_publish_reject_approve_consume(client: TowlineClient) -> None:
    run = await client.start("write_article", ARTICLE)
    await reject_when_asked(run, feedback="say less", timeout_s=RESULT_S)
    await approve_when_asked(run, "HumanApproval~2", approver="ann", timeout_s=RESULT_S)

    output = await run.result(timeout=RESULT_S)

    assert output["title"]
    assert output["content"]


def test_the_relay_takes_the_key_that_init_made_and_no_other(running: Project) -> None:
    url = f"http://127.0.0.1:{running.variables['RELAY_PORT']}/runs"
    printed = running.compose(
        "run", "--rm", "--no-deps", "--entrypoint", "cat", "init", "/secrets/relay-client/key", timeout_s=60
    )
    key = next(word for word in printed.split() if word.startswith("tlk_"))

    assert status_of(url) == 401
    assert status_of(url, "tlk_wrong") == 401
    assert status_of(url, key) == 200


async def test_a_run_that_waits_for_a_human_survives_restarts_of_worker_and_scheduler(
    running: Project, client: TowlineClient
) -> None:
    run = await client.start("write_article", ARTICLE, run_id=f"restarted-{uuid4().hex[:8]}")
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            break

    running.compose("restart", "scheduler", "worker", timeout_s=180)
    await approve_when_asked(run, approver="ann", timeout_s=RESULT_S)

    assert (await run.result(timeout=RESULT_S))["title"]


@pytest.mark.parametrize("service", ["worker", "bridge", "kafka"])
async def test_a_crash_is_mended_by_the_engine_and_loses_nothing(
    running: Project, client: TowlineClient, service: str
) -> None:
    run = await client.start("write_article", ARTICLE, run_id=f"crashed-{uuid4().hex[:8]}")
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            break

    before = crash(running, service)
    eventually(
        lambda: (
            (now := running.inspect(service)["State"])["StartedAt"] != before
            and now.get("Health", {}).get("Status") == "healthy"
        ),
        f"{service} is back",
        timeout_s=PATIENCE_S,
        every_s=0.5,
    )
    await approve_when_asked(run, approver="ann", timeout_s=RESULT_S)

    assert (await run.result(timeout=RESULT_S))["title"]


def crash(project: Project, service: str) -> str:
    """kill -9 of a service's process, as a crash, not as a stop; returns when the killed one had started."""
    state = project.inspect(service)["State"]
    pid = int(state["Pid"])
    if project.engine.is_own and Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)
    else:  # the engine may be in a virtual machine; it takes this for a stop and does not start it again
        project.engine.docker("kill", project.services()[service]["ID"])
        project.compose("start", service)
    return state["StartedAt"]


async def test_a_run_is_seen_in_the_trace_backend(running: Project, client: TowlineClient) -> None:
    run = await client.start("write_slogan", "a lamp")
    await run.result(timeout=RESULT_S)

    if images.is_stand_in(running.engine, images.JAEGER):
        eventually(
            lambda: run.run_id in running.logs("jaeger", lines=3000),
            "the run's spans have arrived",
            timeout_s=PATIENCE_S,
        )
    else:
        asked = f"http://127.0.0.1:{running.variables['JAEGER_PORT']}/api/services"
        eventually(lambda: "towline-worker" in read(asked), "Jaeger knows the worker", timeout_s=PATIENCE_S)
    metrics = f"http://127.0.0.1:{running.variables['OTEL_METRICS_PORT']}/metrics"
    eventually(
        lambda: 'service_name="towline-worker"' in read(metrics),
        "the worker's metrics have arrived",
        timeout_s=PATIENCE_S,
    )


async def test_a_module_of_ones_own_is_mounted_and_another_bridge_and_worker_carry_on(
    running: Project, client: TowlineClient
) -> None:
    running.variables |= {"TOWLINE_APP": "newsroom:setup_worker", "TOWLINE_APP_DIR": "examples/downstream"}
    running.up("worker", "bridge-2", "worker-2", profiles=("scale",))
    run = await client.start("headline", "rain", run_id=f"scaled-{uuid4().hex[:8]}")
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            break

    running.compose("stop", "bridge", "worker", timeout_s=60)
    await approve_when_asked(run, "EditorDecision", approver="ann", timeout_s=RESULT_S)

    assert await run.result(timeout=RESULT_S) == "Printed: RAIN!"


def test_down_leaves_nothing(running: Project) -> None:
    assert running.left()

    running.down()

    assert running.left() == []
