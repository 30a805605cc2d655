"""Our image by itself."""

from __future__ import annotations

import json

import pytest
from tests.containers.engine import Engine

pytestmark = [pytest.mark.docker, pytest.mark.slow]
HARDENED = (
    *("--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
)
ROLES = ("bridge", "worker", "relay", "scheduler", "topics", "init-secrets")


def test_the_image_runs_as_nobody_in_particular(engine: Engine, towline_image: str) -> None:
    config = json.loads(engine.docker("image", "inspect", towline_image))[0]["Config"]

    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["towline"]
    assert config["Labels"]["org.opencontainers.image.title"] == "towline"
    assert engine.docker("run", *HARDENED, "--entrypoint", "id", towline_image, "-u").strip() == "10001"


def test_every_role_starts_on_a_read_only_file_system_without_capabilities(
    engine: Engine, towline_image: str
) -> None:
    script = " && ".join(f"towline {role} --help >/dev/null && echo {role}" for role in ROLES)

    said = engine.docker(
        "run",
        *HARDENED,
        "--entrypoint",
        "sh",
        towline_image,
        "-c",
        script,
        timeout_s=240,
    )

    assert said.split() == list(ROLES)


def test_the_image_holds_no_tools_to_build_with_and_no_sources_of_ours(
    engine: Engine, towline_image: str
) -> None:
    script = "ls /build /app/tests /app/.git 2>/dev/null; ls /opt/towline/bin"

    listed = engine.docker("run", *HARDENED, "--entrypoint", "sh", towline_image, "-c", script).split()

    assert "towline" in listed
    assert {"uv", "pip", "pip3", "gcc"}.isdisjoint(listed)
    assert "contracts" not in listed


@pytest.mark.parametrize(
    ("role", "environment", "said"),
    [
        ("scheduler", "TOWLINE_SCHEDULER_LISTEN=0.0.0.0:8080", "give --tls-cert, --tls-key, --token as well"),
        (
            "relay",
            "TOWLINE_RELAY_HTTP_LISTEN=0.0.0.0:8090",
            "without auth the relay listens on loopback",
        ),
        ("scheduler", "TOWLINE_SCHEDULER_TOKEN_FILE=/secrets/none", "/secrets/none: No such file"),
    ],
)
def test_a_role_that_would_be_open_refuses_to_start(
    engine: Engine, towline_image: str, role: str, environment: str, said: str
) -> None:
    printed = engine.docker("run", *HARDENED, "--env", environment, towline_image, role, check=False)

    assert said in printed
