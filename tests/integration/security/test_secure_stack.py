"""Every role and the client against neighbours that demand TLS and credentials; nothing of them comes out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.relay.reading import SseEvent, read_sse
from tests.integration.security.secured import (
    Secrets,
    SecureKafka,
    SecureScheduler,
    SecureValkey,
    client_settings,
    tls_in_front_of,
)
from tests.waiting import eventually_async

from towline.contracts import ApprovalRequested, KafkaSettings, TowlineClient
from towline.contracts.errors import KafkaUnavailableError
from towline.contracts.kafka import ensure_topics
from towline.dev.roles import TOWLINE
from towline.dev.stack import Stack, StackPlan
from towline.relay.auth.keys import new_key
from towline.relay.principals import parse_roles

APP = "tests.integration.security.apps:app"
INJECTED = 'Ann\r\n{"level": "critical", "event": "forged"}\u2028\x1b[31mred\x1b[0m'


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    return Secrets(tmp_path_factory.mktemp("security") / "secrets")


@pytest.fixture(scope="module")
def secure(secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    data = tmp_path_factory.mktemp("secure")
    with ExitStack() as exits:
        kafka = exits.enter_context(SecureKafka(data=data / "kafka", secrets=secrets))
        valkey = exits.enter_context(SecureValkey(data=data / "valkey", secrets=secrets))
        front = exits.enter_context(tls_in_front_of(valkey.port, secrets))
        scheduler = exits.enter_context(SecureScheduler(data=data / "scheduler", secrets=secrets))
        login = f"towline:{secrets.redis_password}@127.0.0.1:{front}/0?ssl_ca_certs={secrets.authority}"
        url_file = secrets.file("redis_url", f"rediss://{login}")
        key, line = new_key("Ann", parse_roles(["read", "start", "approve"]))
        secrets.file("relay_key", key)
        plan = StackPlan(
            data=data,
            app=APP,
            given={
                "TOWLINE_KAFKA_BOOTSTRAP": kafka.bootstrap,
                # Wrong on purpose: the file has the right one, and counts only while this is not set.
                "TOWLINE_REDIS_URL": "",
                "TOWLINE_SCHEDULER_ADDRESS": scheduler.address,
            },
            settings={
                **client_settings(secrets),
                "TOWLINE_REDIS_URL_FILE": str(url_file),
                "TOWLINE_RELAY_AUTH": "keys",
                "TOWLINE_RELAY_API_KEYS_FILE": str(secrets.file("relay_keys", line)),
                "TOWLINE_PAYLOADS_EVENT_BYTES": "20000",
            },
            partitions=3,
        )
        yield exits.enter_context(Stack(plan).running())


async def test_a_run_with_an_approval_goes_through_kafka_scheduler_and_redis(
    secure: Stack, secrets: Secrets
) -> None:
    async with TowlineClient(secure.kafka, payloads=secure.payloads) as client:
        run = await client.start("ask", {"text": "x" * 50_000}, requested_by=INJECTED, tags={"who": INJECTED})
        async for event in run.events():
            if isinstance(event.data, ApprovalRequested):
                await run.approve(event.data.approval_id, feedback=INJECTED, approver="Ann")
        assert await run.result(60) == {"approved": True, "length": 50_000}

    authorization = {"Authorization": f"Bearer {(secrets.folder / 'relay_key').read_text().strip()}"}
    async with httpx.AsyncClient(headers=authorization, timeout=30) as http:
        events = await asyncio.wait_for(read_sse(http, f"{secure.relay_url}/runs/{run.run_id}/stream"), 60)
        assert events[-1].event == "end"
        assert (await http.get(f"{secure.relay_url}/runs/{run.run_id}")).json()["status"] == "completed"

        async def tokens() -> list[SseEvent]:
            body = {"run_type": "agent.Echo", "input": {"message": "hello"}}
            streamed = await http.post(f"{secure.relay_url}/runs", json=body)
            url = f"{secure.relay_url}{streamed.json()['links']['stream']}"
            events = await asyncio.wait_for(read_sse(http, url), 60)
            return [event for event in events if event.event == "token"]

        # A run does not wait for its tokens: the first one may end before the worker has reached Redis.
        await eventually_async(tokens, "the worker's tokens reach Redis and the relay")
    async with httpx.AsyncClient(timeout=30) as stranger:
        assert (await stranger.get(f"{secure.relay_url}/runs")).status_code == 401


def test_the_command_line_reaches_the_same_kafka(secure: Stack, secrets: Secrets) -> None:
    environment = {**os.environ, **secure.environment(), "TOWLINE_RELAY_URL": "none"}

    def towline(*arguments: str) -> str:
        done = subprocess.run(
            [*TOWLINE, *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run_input = json.dumps({"message": "from the command line"})
    said = towline("publish", "agent.Echo", "--input", run_input, "--run-id", "by-cli", "--follow")
    said += towline("results", "--json") + towline("dead-letters", "list") + towline("settings")
    assert "by-cli" in said
    for secret in secrets.all:
        assert secret not in said


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_each_mechanism_lets_the_right_password_in_and_a_wrong_one_not(
    secure: Stack, mechanism: str
) -> None:
    fields = secure.kafka.model_dump() | {"sasl_mechanism": mechanism}
    await ensure_topics(KafkaSettings.model_validate(fields), timeout_s=20)
    wrong = KafkaSettings.model_validate(fields | {"sasl_password": "wrong", "sasl_password_file": None})
    with pytest.raises(KafkaUnavailableError) as refused:
        await ensure_topics(wrong, timeout_s=2)
    assert "wrong" not in str(refused.value)


async def test_without_a_client_certificate_or_with_another_authority_nobody_gets_in(
    secure: Stack, tmp_path: Path
) -> None:
    fields: dict[str, Any] = secure.kafka.model_dump()
    for changed in (
        {"ssl_cert_file": None, "ssl_key_file": None},
        {"ssl_ca_file": None},
        {"security_protocol": "SASL_PLAINTEXT"},
    ):
        with pytest.raises(KafkaUnavailableError):
            await ensure_topics(KafkaSettings.model_validate(fields | changed), timeout_s=2)


def test_no_secret_is_in_any_log_and_no_log_line_is_forged(secure: Stack, secrets: Secrets) -> None:
    """Runs last in this module: after everything that the others had logged."""
    key = (secrets.folder / "relay_key").read_text().strip()
    for role in ("bridge", "worker", "relay"):
        text = (secure[role].data / "log").read_text()
        assert text
        for secret in (*secrets.all, key):
            assert secret not in text, role
        for line in filter(None, text.splitlines()):
            assert json.loads(line).get("event") != "forged", line
    scheduler_log = (secure.plan.data / "scheduler" / "log").read_text()
    assert not [secret for secret in secrets.all if secret in scheduler_log]
