"""Approval rules that the bridge enforces: what publishers claim counts for nothing, a signature counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.integration.wire.conftest import plan
from tests.integration.wire.raw import Seen, Wire
from typer.testing import CliRunner, Result

from towline.cli.app import app
from towline.contracts import encode
from towline.contracts.client import TowlineClient
from towline.contracts.errors import EncodeError
from towline.contracts.events import ApprovalDecided, Event
from towline.contracts.signing import DecisionSigner, new_signing_key
from towline.dev.stack import Stack
from towline.relay.auth.keys import new_key

ARTICLE = {"topic": "tides"}
ASK = "HumanApproval"
PEOPLE = ("ann", "eve")


@dataclass(frozen=True)
class Guarded:
    """A stack under a policy, and what its people hold."""

    stack: Stack
    wire: Wire
    http: httpx.AsyncClient
    api_keys: dict[str, str]
    former: DecisionSigner
    unknown: DecisionSigner

    async def asks(self, run_type: str = "article") -> str:
        """A run that waits for a decision."""
        run_id = await self.wire.start(run_type, ARTICLE)
        await self.wire.asked(run_id, ASK)
        return run_id

    async def posts(self, who: str, path: str, body: dict[str, Any]) -> str:
        """What somebody posts to the relay; the command's id."""
        answer = await self.http.post(
            f"{self.stack.relay_url}{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.api_keys[who]}"},
        )
        assert answer.status_code == 202, answer.text
        return answer.json()["event_id"]

    async def sends(self, event: Event[ApprovalDecided]) -> Seen:
        """Publish an event as it is; its answer."""
        record = encode(event)
        await self.wire.send("approvals", record.value, key=record.key, headers=[*record.headers])
        return await self.wire.answer(event.id)

    async def still_asks(self, run_id: str) -> None:
        """See that the ask is open: the right decision is taken, and the run ends."""
        command = await self.posts("ann", f"/runs/{run_id}/approvals/{ASK}", {"approved": True})
        answer = await self.wire.answer(command)
        assert (answer.type, answer.data["outcome"], answer.data["approver"]) == (
            "approval.resolved",
            "approved",
            "ann",
        )
        assert (await self.wire.outcome(run_id)).type == "run.completed"


@pytest.fixture(scope="module")
def people() -> dict[str, tuple[str, str]]:
    return {name: new_key(name, ["read", "start", "approve"]) for name in PEOPLE}


@pytest.fixture(scope="module")
def signing_keys() -> dict[str, tuple[str, str]]:
    """The relay's, the one that it had before, and one that nobody knows."""
    return {name: new_signing_key() for name in ("relay", "former", "unknown")}


@pytest.fixture(scope="module")
def guarded_stack(
    kafka: str,
    valkey: str,
    scheduler: str,
    tmp_path_factory: pytest.TempPathFactory,
    people: dict[str, tuple[str, str]],
    signing_keys: dict[str, tuple[str, str]],
) -> Generator[Stack]:
    folder = tmp_path_factory.mktemp("guarded")
    policy = {
        "rules": [{"run_types": ["art*"], "approvers": ["ann"], "open": ["Nothing*"]}],
        "keys": [json.loads(signing_keys[name][1]) for name in ("former", "relay")],
    }
    files = {
        "policy": json.dumps(policy),
        "signing": signing_keys["relay"][0],
        "keys": "\n".join(line for _, line in people.values()),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
    }
    planned = plan(folder / "stack", given)
    prefix = planned.settings["TOWLINE_KAFKA_TOPIC_PREFIX"]
    settings = {
        "TOWLINE_BRIDGE_APPROVAL_POLICY_FILE": str(folder / "policy"),
        "TOWLINE_RELAY_SIGNING_KEY_FILE": str(folder / "signing"),
        "TOWLINE_RELAY_AUTH": "keys",
        "TOWLINE_RELAY_API_KEYS_FILE": str(folder / "keys"),
        "TOWLINE_REDIS_KEY_PREFIX": f"{prefix.strip('.')}:",
    }
    planned = replace(
        planned,
        app="tests.integration.wire.guarded_app:setup_worker",
        settings={**planned.settings, **settings},
        roles=("bridge", "worker", "relay"),
    )
    with Stack(planned).running() as stack:
        yield stack


@pytest.fixture
async def guarded(
    guarded_stack: Stack,
    people: dict[str, tuple[str, str]],
    signing_keys: dict[str, tuple[str, str]],
) -> AsyncGenerator[Guarded]:
    kafka = guarded_stack.kafka
    former, unknown = (
        DecisionSigner(signing_keys[name][0], topic=kafka.topics.approvals) for name in ("former", "unknown")
    )
    async with Wire(kafka.bootstrap, kafka.topic_prefix) as wire, httpx.AsyncClient(timeout=20) as http:
        api_keys = {name: key for name, (key, _) in people.items()}
        yield Guarded(guarded_stack, wire, http, api_keys, former, unknown)


def decision(run_id: str, **fields: Any) -> Event[ApprovalDecided]:
    data = {"run_id": run_id, "approval_id": ASK, "approved": True, "approver": "ann", **fields}
    return Event(id=uuid4().hex, source="towline/relay", data=ApprovalDecided.model_validate(data))


def refused(answer: Seen, why: str) -> None:
    assert (answer.type, answer.data["reason"]) == ("approval.refused", "not_authorized")
    assert why in answer.data["message"]


async def test_an_approver_whom_a_publisher_claims_is_refused_and_the_ask_stays_open(
    guarded: Guarded,
) -> None:
    run_id = await guarded.asks()
    refused(await guarded.sends(decision(run_id)), "not signed")
    refused(await guarded.sends(guarded.unknown.sign(decision(run_id), "ann")), "not known")
    raised = await guarded.wire.raise_event(run_id, ASK, {"approved": True})
    refused(await guarded.wire.answer(raised), "not signed")
    assert guarded.wire.of(run_id, "approval.resolved") == []
    await guarded.still_asks(run_id)


async def test_a_signature_for_one_ask_is_refused_for_another_and_for_other_words(guarded: Guarded) -> None:
    first, second = await guarded.asks(), await guarded.asks()
    no = guarded.former.sign(decision(first, approved=False, feedback="no"), "ann")
    copies = (
        replace(decision(second), extensions=no.extensions),
        replace(no, data=decision(second).data),
        replace(no, id=uuid4().hex),
        replace(no, id=uuid4().hex, data=decision(first).data),
    )
    for copy in copies:
        refused(await guarded.sends(copy), "another decision")
    await guarded.still_asks(first)
    await guarded.still_asks(second)


async def test_the_key_before_the_relays_still_counts_while_both_are_listed(guarded: Guarded) -> None:
    run_id = await guarded.asks()
    answer = await guarded.sends(guarded.former.sign(decision(run_id), "ann"))
    assert (answer.type, answer.data["outcome"]) == ("approval.resolved", "approved")
    repeat = guarded.former.sign(decision(run_id), "ann")
    late = await guarded.sends(repeat)
    assert late.data["reason"] in ("already_resolved", "run_finished")


async def test_whom_the_relay_knows_is_refused_unless_the_rule_names_them(guarded: Guarded) -> None:
    run_id = await guarded.asks()
    path = f"/runs/{run_id}/approvals/{ASK}"
    by_eve = await guarded.posts("eve", path, {"approved": True, "approver": "ann"})
    refused(await guarded.wire.answer(by_eve), "eve may not decide")
    as_event = await guarded.posts("eve", f"/runs/{run_id}/events/{ASK}", {"data": {"approved": True}})
    refused(await guarded.wire.answer(as_event), "eve may not decide")
    await guarded.still_asks(run_id)


async def test_a_service_with_a_key_of_its_own_decides_by_the_client(
    guarded: Guarded, signing_keys: dict[str, tuple[str, str]]
) -> None:
    kafka = guarded.stack.kafka
    signer = DecisionSigner(signing_keys["former"][0], topic=kafka.topics.approvals)
    async with TowlineClient(kafka, signer=signer) as client:
        first, second = client.run(await guarded.asks()), client.run(await guarded.asks())
        with pytest.raises(EncodeError, match="approver: is missing"):
            await first.approve(ASK)
        refused(await guarded.wire.answer(await first.approve(ASK, approver="eve")), "eve may not decide")
        answer = await guarded.wire.answer(await first.approve(ASK, approver="ann"))
        assert (answer.data["outcome"], answer.data["approver"]) == ("approved", "ann")
        raised = await second.raise_event(ASK, {"approved": False}, approver="ann")
        assert (await guarded.wire.answer(raised)).data["outcome"] == "rejected"
    async with TowlineClient(kafka) as unsigned:
        with pytest.raises(EncodeError, match="approver: means nothing without a signature"):
            await unsigned.run(second.run_id).raise_event(ASK, approver="ann")


async def test_the_command_line_signs_with_the_key_in_a_file(
    guarded: Guarded, signing_keys: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    run_id, file = await guarded.asks(), tmp_path / "key.json"

    async def approve(*arguments: str) -> Result:
        command = ["approve", run_id, ASK, "--approver", "ann", "--wait", "60", "--json", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command, env=guarded.stack.environment())

    unsigned = await approve()
    assert unsigned.exit_code == 1
    assert "not signed" in unsigned.stdout
    file.write_text(signing_keys["former"][1])
    public = await approve("--signing-key-file", str(file))
    assert public.exit_code == 2
    assert f"--signing-key-file {file}: is a public key: give the private one" in public.stderr
    file.write_text(signing_keys["former"][0])
    signed = await approve("--signing-key-file", str(file))
    assert signed.exit_code == 0, signed.output
    assert json.loads(signed.stdout)["answer"]["data"]["approver"] == "ann"


async def test_an_event_that_the_relay_signed_for_an_approver_answers_the_ask(guarded: Guarded) -> None:
    run_id = await guarded.asks()
    command = await guarded.posts("ann", f"/runs/{run_id}/events/{ASK}", {"data": {"approved": True}})
    assert (await guarded.wire.answer(command)).data["outcome"] == "approved"


async def test_a_run_type_without_a_rule_is_decided_by_anyone(guarded: Guarded) -> None:
    run_id = await guarded.asks("note")
    answer = await guarded.sends(decision(run_id, approver="whoever"))
    assert (answer.type, answer.data["approver"]) == ("approval.resolved", "whoever")


async def test_a_child_is_not_reached_by_its_own_id(guarded: Guarded) -> None:
    """Its run type has no rule of its own; its run's has."""
    run_id = await guarded.wire.start("article_by_child", ARTICLE)
    [asked] = await guarded.wire.until(
        lambda: guarded.wire.of(run_id, "approval.requested"), f"{run_id} asks"
    )
    name = asked.data["approval_id"]
    stolen = await guarded.sends(decision(f"{run_id}.note", approval_id=ASK))
    assert stolen.data["reason"] == "unknown_run"
    refused(await guarded.sends(decision(run_id, approval_id=name)), "not signed")
    command = await guarded.posts("ann", f"/runs/{run_id}/approvals/{name}", {"approved": True})
    assert (await guarded.wire.answer(command)).data["outcome"] == "approved"


def test_no_key_is_in_what_the_roles_log(
    guarded_stack: Stack, signing_keys: dict[str, tuple[str, str]]
) -> None:
    secrets = [json.loads(private)["d"] for private, _ in signing_keys.values()]
    logs = list(guarded_stack.plan.data.rglob("log"))
    assert logs
    for path in logs:
        text = path.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), path
        assert "eyJ" not in text, f"{path}: a token"
