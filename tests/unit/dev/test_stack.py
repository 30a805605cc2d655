"""Starting the parts of a stack side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from towline.dev.errors import PartFailedError, WrongSettingError
from towline.dev.part import Part
from towline.dev.stack import Stack, StackPlan


class Program(Part):
    """A Python program that is never ready."""

    ready_timeout_s = 600.0

    def __init__(self, name: str, data: Path, source: str) -> None:
        super().__init__(name, data=data / name)
        self.source = source

    @property
    def addresses(self) -> Mapping[str, str]:
        return {}

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self.source]

    def probe(self) -> bool:
        return False


def test_a_part_that_cannot_be_started_is_named_at_once_and_the_others_are_stopped(tmp_path: Path) -> None:
    slow = Program("slow", tmp_path, "import time; time.sleep(600)")
    broken = Program("broken", tmp_path, "raise SystemExit('there is no module')")
    stack = Stack(StackPlan(data=tmp_path, app="none:none", roles=()))
    stack.infrastructure = [slow, broken]

    with pytest.raises(PartFailedError, match=r"broken ended with status 1.*\n.*there is no module"):
        stack.start()

    assert not slow.is_running


@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_how_to_reach_a_kafka_elsewhere_is_for_that_kafka_only(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    access = {
        "TOWLINE_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "TOWLINE_KAFKA_SASL_USERNAME": "ann",
        "TOWLINE_KAFKA_SASL_PASSWORD_FILE": str(password),
    }
    for name, value in (access | {"TOWLINE_KAFKA_TOPIC_PREFIX": "mine."}).items():
        monkeypatch.setenv(name, value)
    addresses = {"TOWLINE_KAFKA_BOOTSTRAP": "127.0.0.1:1"} if given else {}

    stack = Stack(StackPlan(data=tmp_path, app="none:none", given=addresses))

    for role in stack.roles:
        environment = role.environment() or {}
        assert {name: environment[name] for name in access if name in environment} == (
            access if given else {}
        )
        assert environment["TOWLINE_KAFKA_BOOTSTRAP"] == stack.addresses["TOWLINE_KAFKA_BOOTSTRAP"]
        assert environment["TOWLINE_KAFKA_TOPIC_PREFIX"] == "mine."


@pytest.mark.parametrize(
    ("variables", "credential"),
    [
        ({"TOWLINE_SCHEDULER_CREDENTIAL": "azure"}, "none"),
        ({"TOWLINE_SCHEDULER_TOKEN": "secret"}, "token"),
        ({"TOWLINE_SCHEDULER_TOKEN_FILE": "/run/token"}, "token"),
    ],
)
def test_roles_show_the_stacks_own_scheduler_what_it_asks_for(
    variables: dict[str, str], credential: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    stack = Stack(StackPlan(data=tmp_path, app="none:none"))

    for role in stack.roles:
        assert (role.environment() or {})["TOWLINE_SCHEDULER_CREDENTIAL"] == credential
    given = StackPlan(data=tmp_path, app="none:none", given={"TOWLINE_SCHEDULER_ADDRESS": "http://h:1"})
    own = variables.get("TOWLINE_SCHEDULER_CREDENTIAL")
    for role in Stack(given).roles:
        assert (role.environment() or {}).get("TOWLINE_SCHEDULER_CREDENTIAL") == own


def test_a_payload_store_that_is_named_in_a_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    file.write_text("s3://bucket/prefix\n")
    monkeypatch.setenv("TOWLINE_PAYLOADS_URL_FILE", str(file))

    stack = Stack(StackPlan(data=tmp_path, app="none:none"))

    for role in stack.roles:
        assert (role.environment() or {})["TOWLINE_PAYLOADS_URL"] == "s3://bucket/prefix"
    monkeypatch.setenv("TOWLINE_PAYLOADS_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(WrongSettingError, match="url_file"):
        Stack(StackPlan(data=tmp_path, app="none:none"))
