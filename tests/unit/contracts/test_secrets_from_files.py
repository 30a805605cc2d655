"""Secrets in settings: from a file, from the environment, and never in a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from towline.contracts.settings import KafkaSettings, PayloadSettings, RedisSettings, SchedulerSettings

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
