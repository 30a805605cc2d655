"""A setting that is of no use is refused by its name, before anything is started."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from towline.bridge.settings import BridgeSettings
from towline.contracts.settings import KafkaSettings, SchedulerSettings


def problem(make: type[Any], **settings: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make(**settings)
    first = caught.value.errors(include_url=False, include_input=False)[0]
    return ".".join([*(str(part) for part in first["loc"]), first["msg"]])


@pytest.mark.parametrize("bootstrap", ["", " , ", "kafka:abc", "a:9092,b:", "kafka:99999", "[::1]:x"])
def test_brokers_that_cannot_be_reached_by_any_network_are_refused(bootstrap: str) -> None:
    assert "bootstrap" in problem(KafkaSettings, bootstrap=bootstrap)
    assert "host:port" in problem(KafkaSettings, bootstrap=bootstrap)


@pytest.mark.parametrize(
    "bootstrap", ["kafka", "kafka:9092", "a:1, b:2,", "[::1]:9092", "[::1]", "SSL://a:1"]
)
def test_brokers_in_any_form_of_the_client_are_taken(bootstrap: str) -> None:
    assert KafkaSettings(bootstrap=bootstrap).bootstrap == bootstrap


def test_a_prefix_that_kafka_takes_in_no_topic_is_refused() -> None:
    assert "topic_prefix" in problem(KafkaSettings, topic_prefix="a topic/")


def test_files_without_certificates_are_refused(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    assert f"ssl_ca_file {rubbish}" in problem(KafkaSettings, ssl_ca_file=rubbish)
    assert f"ssl_cert_file {rubbish}" in problem(KafkaSettings, ssl_cert_file=rubbish, ssl_key_file=rubbish)


def test_a_key_with_a_password_is_refused_rather_than_asked_for(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=x", "-passout", "pass:secret"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    assert "without a password" in problem(KafkaSettings, ssl_cert_file=certificate, ssl_key_file=key)
    plain = tmp_path / "plain.pem"
    command = ["openssl", "pkey", "-in", str(key), "-passin", "pass:secret", "-out", str(plain)]
    subprocess.run(command, check=True, capture_output=True)
    settings = KafkaSettings(ssl_ca_file=certificate, ssl_cert_file=certificate, ssl_key_file=plain)
    assert settings.ssl_key_file == plain


def test_a_token_that_is_not_given_is_asked_for() -> None:
    assert "token_file" in problem(SchedulerSettings, credential="token")


def test_an_address_to_listen_on_has_a_port() -> None:
    assert "http_listen" in problem(BridgeSettings, http_listen="nonsense")
