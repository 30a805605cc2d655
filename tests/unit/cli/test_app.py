"""The command line as a whole: lazy roles, errors of one line, settings that are documented."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console
from typer.testing import CliRunner

from towline.cli import reading, roles, settings_table
from towline.cli.app import app

ROOT = Path(__file__).parents[3]
runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["publish", "t", "--input", "hello"], "--input: is not JSON"),
        (["publish", "t", "--run-id", "a b"], "run id 'a b': must be 1 to 128"),
        (["publish", "t", "--session-id", "a b"], "session id 'a b': must be 1 to 128"),
        (["publish", "t", "--tag", "x"], "--tag 'x': must be key=value"),
        (["approve", "a b", "x"], "run id 'a b': must be"),
        (["approve", "r", "x", "--data", "[1]"], "--data: must be a JSON object"),
        (["approve", "r", "x", "--signing-key-file", "key"], "--approver: is missing"),
        (["raise-event", "r", "x", "--signing-key-file", "key"], "--approver: is missing"),
        (["raise-event", "r", "x", "--approver", "ann"], "--approver: says nothing without"),
        (["tail", "a/b"], "run id 'a/b': must be"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWLINE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    done = runner.invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"towline: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_KAFKA_SECURITY_PROTOCOL", "magic")
    done = runner.invoke(app, ["results"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "security_protocol" in done.stderr


@pytest.mark.parametrize(
    ("role", "variable", "value"),
    [
        ("bridge", "TOWLINE_BRIDGE_HTTP_LISTEN", "abc"),
        ("bridge", "TOWLINE_BRIDGE_HTTP_LISTEN", "127.0.0.1:99999"),
        ("worker", "TOWLINE_WORKER_HTTP_LISTEN", "127.0.0.1:abc"),
        ("relay", "TOWLINE_RELAY_HTTP_LISTEN", "127.0.0.1:²"),
        ("scheduler", "TOWLINE_SCHEDULER_LISTEN", "127.0.0.1:²"),
    ],
)
def test_an_address_that_is_none_is_one_line_and_status_2(
    role: str, variable: str, value: str, tmp_path: Path
) -> None:
    done = _role(role, {variable: value}, tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "host:port" in done.stderr.lower()


@pytest.mark.parametrize("role", ["bridge", "worker"])
def test_an_address_that_another_process_has_is_one_line_that_names_it(role: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = _role(role, {f"TOWLINE_{role.upper()}_HTTP_LISTEN": address}, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"towline {role}: cannot serve health checks on {address}: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_log_level_of_the_scheduler_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    done = _role("scheduler", {}, tmp_path, "--log-level", "loud")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("towline scheduler: --log-level 'loud' is none of")


@pytest.mark.parametrize(
    ("role", "variable", "value"),
    [
        ("bridge", "TOWLINE_KAFKA_BOOTSTRAP", ""),
        ("worker", "TOWLINE_KAFKA_BOOTSTRAP", ""),
        ("relay", "TOWLINE_KAFKA_BOOTSTRAP", ""),
        ("bridge", "TOWLINE_BRIDGE_CALL_TIMEOUT_S", "abc"),
        ("worker", "TOWLINE_WORKER_PROCESSES", "abc"),
        ("relay", "TOWLINE_RELAY_RATE_BURST", "abc"),
        ("relay", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc"),
    ],
)
def test_a_wrong_setting_of_a_role_is_one_line_and_status_2_however_it_is_started(
    role: str, variable: str, value: str, tmp_path: Path
) -> None:
    done = _role(role, {variable: value}, tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"towline {role}: ")
    as_module = _role(role, {variable: value}, tmp_path, program=(f"towline.{role}",))
    assert (as_module.returncode, as_module.stderr) == (done.returncode, done.stderr)


def _role(
    role: str,
    variables: dict[str, str],
    folder: Path,
    *arguments: str,
    program: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    app_path = {"TOWLINE_WORKER_APP": "examples.all:setup_worker", "TOWLINE_SCHEDULER_DATA": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *(program or ("towline.cli", role)), *arguments],
        env={**os.environ, **app_path, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_output_costs_what_would_be_written_there_only(closed: str, tmp_path: Path) -> None:
    """As some supervisors start their processes."""
    lines = tmp_path / "lines"
    command = f"{sys.executable} -m towline.cli dev --app none:none {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={**os.environ, "PATH": str(tmp_path), "JAVA_HOME": "", "TOWLINE_CACHE_DIR": str(lines)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    expected = "" if "2>" in closed else "towline dev: Java is missing"
    assert done.stderr[: len("towline dev: Java is missing")] == expected


def test_a_relay_that_is_away_is_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_RELAY_URL", "http://127.0.0.1:1")
    done = runner.invoke(app, ["runs"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "set TOWLINE_RELAY_URL" in done.stderr


def test_a_relay_that_there_is_none_of_by_setting_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_RELAY_URL", "none")
    done = runner.invoke(app, ["runs"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "TOWLINE_RELAY_URL is none" in done.stderr


def test_help_lists_every_role_without_loading_it() -> None:
    code = (
        "import sys; from towline.cli.app import app\n"
        "from typer.testing import CliRunner\n"
        "print(CliRunner().invoke(app, ['--help']).stdout)\n"
        "others = ('agent_framework', 'durabletask', 'faststream', 'httpx', 'redis')\n"
        "print('loaded', [name for name in others if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "loaded []" in shown
    assert all(role in shown for role in roles.ROLES)


def test_a_role_loads_only_what_is_its_own() -> None:
    code = (
        "import sys; sys.argv = ['towline', 'scheduler', '--help']\n"
        "from towline.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "others = ('agent_framework', 'aiokafka', 'redis', 'towline.cli.app')\n"
        "print('loaded', [name for name in others if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "loaded []" in shown


def test_text_that_standard_output_cannot_show_is_escaped_and_stays_json() -> None:
    environment = {
        **os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "TOWLINE_KAFKA_TOPIC_PREFIX": "zoë.",
    }  # fmt: skip
    shown: list[str] = []
    for option in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "towline.cli", "settings", *option],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    assert "TOWLINE_KAFKA_TOPIC_PREFIX=zo\\xeb." in shown[0]
    values = {line["name"]: line["value"] for line in map(json.loads, shown[1].splitlines())}
    assert values["TOWLINE_KAFKA_TOPIC_PREFIX"] == "zoë."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here is always full")
@pytest.mark.parametrize("command", ["settings", "settings --json", "--help", "dead-letters --help"])
def test_a_full_disk_under_the_output_is_one_line(command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m towline.cli {command} > /dev/full"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("towline: the output cannot be written: No space left")


def test_an_ask_is_shown_whole_in_a_narrow_window() -> None:
    run_id, width = str(UUID(int=1)), 80
    run = {"run_id": run_id, "run_type": "greet", "status": "running", "updated_ms": 0}
    shown = io.StringIO()
    Console(width=width, file=shown).print(reading.table([run], {run_id: ["HumanApproval~2"]}))
    columns = [line.split() for line in shown.getvalue().splitlines()[1:]]
    assert "".join(line[-1] for line in columns) == "HumanApproval~2"


def test_an_interrupt_while_modules_are_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", "towline.cli", "dev"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'agent_framework'", name="agent_framework")

    monkeypatch.setattr("towline.cli.roles.importlib.import_module", absent)
    with pytest.raises(SystemExit) as caught:
        roles.run_role("worker", [])
    assert caught.value.code == "towline worker needs agent_framework: pip install 'towline[worker]'"


def test_every_setting_says_what_it_means() -> None:
    settings = settings_table.collect()
    assert len({(setting.role, setting.name) for setting in settings}) == len(settings)
    assert [setting.name for setting in settings if not setting.description] == []


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == settings_table.markdown(settings_table.collect()), (
        "write it anew: .venv/bin/towline settings --markdown > docs/settings.md"
    )


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_KAFKA_SASL_PASSWORD", "hunter2")
    for option in ([], ["--json"], ["--markdown"]):
        done = runner.invoke(app, ["settings", *option])
        assert done.exit_code == 0
        assert "hunter2" not in done.output
