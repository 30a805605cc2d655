"""The plugin's stack in the shell of somebody who works with another scheduler too."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import trustme
from tests.waiting import eventually

from towline.testing import TestKitError, record
from towline.testing.stack import running_stack

pytestmark = pytest.mark.slow
APP = "towline.cli.sample_app:setup_worker"


@pytest.mark.parametrize(
    "exported",
    [
        {"TOWLINE_SCHEDULER_TOKEN": "for another scheduler", "TOWLINE_SCHEDULER_CREDENTIAL": "token"},
        {"TOWLINE_SCHEDULER_CREDENTIAL": "azure"},
        {"TOWLINE_SCHEDULER_TLS_CERT": "tls.crt", "TOWLINE_SCHEDULER_TLS_KEY": "tls.key"},
        {"http_proxy": "http://127.0.0.1:9"},
    ],
    ids=["token", "azure", "tls", "proxy"],
)
def test_a_stack_starts_skips_time_and_is_recorded_whatever_another_scheduler_asks_for(
    exported: dict[str, str], kafka: str, valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    for name, value in exported.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value.startswith("tls.") else value)
    given = {"TOWLINE_KAFKA_BOOTSTRAP": kafka, "TOWLINE_REDIS_URL": valkey}

    with running_stack(APP, data=tmp_path / "stack", environ={**os.environ, **given}) as stack:
        stack.skip_time(timedelta(days=3))
        assert stack["scheduler"].is_running
        if "http_proxy" not in exported:  # the SDK's client goes by gRPC's own rules
            with pytest.raises(TestKitError, match="has no run no-such-run"):
                record(stack.scheduler, "no-such-run")


def test_each_session_has_keys_of_its_own_in_a_redis_that_it_is_given(
    kafka: str, valkey: str, tmp_path: Path
) -> None:
    environ = {"TOWLINE_KAFKA_BOOTSTRAP": kafka, "TOWLINE_REDIS_URL": valkey}
    run_id = f"r-{uuid4().hex}"
    with running_stack(APP, data=tmp_path / "first", environ=environ) as first:
        body = {"run_type": "greet", "input": "Ann", "run_id": run_id}
        assert httpx.post(f"{first.relay_url}/runs", json=body).status_code == 202
        eventually(lambda: httpx.get(f"{first.relay_url}/runs/{run_id}").status_code == 200, "it is listed")

    with running_stack(APP, data=tmp_path / "second", environ=environ) as second:
        assert httpx.get(f"{second.relay_url}/runs").json()["runs"] == []
        assert httpx.get(f"{second.relay_url}/runs/{run_id}").status_code == 404
