"""Secrets in settings: from a file, from the environment, and never in a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from towline.cli.roles import run_role
from towline.contracts.settings import KafkaSettings, PayloadSettings, RedisSettings, SchedulerSettings
from towline.worker import App

FIELDS = [
    (KafkaSettings, "TOWLINE_KAFKA", "sasl_password"),
    (RedisSettings, "TOWLINE_REDIS", "url"),
    (PayloadSettings, "TOWLINE_PAYLOADS", "url"),
    (SchedulerSettings, "TOWLINE_SCHEDULER", "token"),
]


@pytest.mark.parametrize(("settings", "prefix", "name"), FIELDS)
def test_a_secret_comes_from_its_file_unless_it_is_set(
    settings: type[BaseSettings], prefix: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("from-file\n")
    monkeypatch.setenv(f"{prefix}_{name.upper()}_FILE", str(file))
    read: SecretStr = getattr(settings(), name)
    assert read.get_secret_value() == "from-file"
    monkeypatch.setenv(f"{prefix}_{name.upper()}", "from-environment")
    assert getattr(settings(), name).get_secret_value() == "from-environment"
    assert "from-" not in repr(settings())


@pytest.mark.parametrize(("settings", "prefix", "name"), FIELDS)
@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"\n", "is empty"), (b"\xff", "UTF-8")]
)
def test_a_file_of_no_use_is_named_and_no_setting_is_shown(
    settings: type[BaseSettings],
    prefix: str,
    name: str,
    content: bytes | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(f"{prefix}_{name.upper()}_FILE", str(file))
    monkeypatch.setenv(f"{prefix}_SASL_USERNAME", "marked-value")
    monkeypatch.setenv(f"{prefix}_ADDRESS", "marked-value")
    with pytest.raises(ValidationError, match=problem) as refused:
        settings()
    assert f"{name}_file {file}" in str(refused.value)
    assert "marked-value" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"security_protocol": "SASL_SSL", "sasl_password": "p"}, "sasl_username is needed"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_username": "u"}, "sasl_password is needed"),
        ({"security_protocol": "SSL", "ssl_ca_file": "/no/such/ca"}, "ssl_ca_file /no/such/ca: there is no"),
        ({"security_protocol": "SSL", "ssl_cert_file": __file__}, "go together"),
    ],
)
def test_security_settings_that_cannot_work_are_refused_at_once(fields: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        KafkaSettings.model_validate(fields)


@pytest.mark.parametrize("role", ["bridge", "worker", "relay"])
def test_a_role_says_in_one_line_which_setting_is_wrong_and_shows_no_secret(
    role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOWLINE_KAFKA_SASL_PASSWORD", "marked-secret")
    monkeypatch.setenv("TOWLINE_KAFKA_SSL_CA_FILE", "/no/such/ca")
    app = ["--app", "tests.unit.contracts.test_secrets_from_files:app"] if role == "worker" else []
    with pytest.raises(SystemExit) as ended:
        run_role(role, app)
    said = f"{ended.value} {capsys.readouterr()}"
    assert "/no/such/ca" in said
    assert "marked-secret" not in said
    assert "Traceback" not in said


app = App("nothing")
