"""`towline health`, `init-secrets`, and tokens from files: what containers are started with."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import ValidationError
from typer.testing import CliRunner

from towline.cli.app import app
from towline.cli.health import health
from towline.contracts.settings import SchedulerSettings as ClientSettings
from towline.relay.auth.keys import parse_keys
from towline.scheduler.settings import ConfigurationError
from towline.scheduler.settings import SchedulerSettings as ServerSettings


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        code = int(self.path.strip("/"))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"kafka: away")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def server() -> Generator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def test_health_is_what_the_service_answers(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert health([f"{server}/200"]) == 0
    assert health([f"{server}/503"]) == 1
    assert "503 kafka: away" in capsys.readouterr().err


def test_health_without_a_server_or_with_a_wrong_address_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert health(["http://127.0.0.1:1/readyz"]) == 1
    assert "refused" in capsys.readouterr().err
    assert health(["file:///etc/passwd"]) == 2
    assert health([]) == 2
    assert "usage" in capsys.readouterr().err


def test_health_of_what_speaks_no_http_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as connection:
                connection.recv(1024)
                connection.sendall(b"-ERR unknown command\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/readyz"
        assert health([url]) == 1
        thread.join()
    assert capsys.readouterr().err == f"{url}: -ERR unknown command\n"
    assert health(["http://127.0.0.1:80 81/"]) == 1


def test_health_loads_no_library(server: str) -> None:
    code = (
        "import sys; sys.argv = ['towline', 'health', sys.argv[1]]\n"
        "import towline.cli\n"
        "try: towline.cli.main()\n"
        "except SystemExit as end: print(end.code, sorted({'typer', 'pydantic'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{server}/200"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0 []"


def test_secrets_fit_together_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["init-secrets", str(tmp_path), "--host", "scheduler", "--key-name", "ann"]
    )

    assert done.exit_code == 0, done.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o400}
    assert len(files) == 7
    token = (tmp_path / "scheduler-server" / "token").read_text()
    assert token == (tmp_path / "scheduler-client" / "token").read_text()
    assert token not in done.output
    certificate = x509.load_pem_x509_certificate((tmp_path / "scheduler-client" / "ca.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["scheduler", "localhost"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        tmp_path / "scheduler-server" / "tls.crt", tmp_path / "scheduler-server" / "tls.key"
    )
    principals = parse_keys((tmp_path / "relay-server" / "keys.jsonl").read_text(), where="keys")
    assert [(who.subject, sorted(who.roles)) for who in principals.values()] == [
        ("ann", ["approve", "read", "start"])
    ]
    assert (tmp_path / "relay-client" / "key").read_text() not in (
        tmp_path / "relay-server" / "keys.jsonl"
    ).read_text()


def test_secrets_that_are_there_are_kept_and_missing_ones_made(tmp_path: Path) -> None:
    runner = CliRunner()
    runner.invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = runner.invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)
    assert again.output == ""
    (tmp_path / "scheduler-client" / "token").unlink()

    (tmp_path / "relay-server" / "keys.jsonl").unlink()

    made = runner.invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)

    assert len(made.output.splitlines()) == 2, made.output
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before, "what is missing is made from what is there"
    ends = x509.load_pem_x509_certificate(
        after[tmp_path / "scheduler-server" / "tls.crt"]
    ).not_valid_after_utc
    assert (ends - datetime.now(UTC)).days > 700


def read_client_token() -> str:
    settings = ClientSettings()
    assert settings.token is not None
    assert "secret" not in json.dumps(repr(settings))
    return settings.token.get_secret_value()


def read_server_token() -> str:
    settings = ServerSettings.read({})
    assert "secret" not in repr(settings)
    return settings.token or ""


@pytest.mark.parametrize(
    ("read", "error"),
    [(read_client_token, ValidationError), (read_server_token, ConfigurationError)],
)
def test_a_token_may_be_in_a_file(
    read: Callable[[], str], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("TOWLINE_SCHEDULER_TOKEN_FILE", str(file))
    with pytest.raises(error, match="No such file"):
        read()
    file.write_text("\n")
    with pytest.raises(error, match="is empty"):
        read()
    file.write_text("secret\n")
    assert read() == "secret"
    monkeypatch.setenv("TOWLINE_SCHEDULER_TOKEN", "given")
    assert read() == "given"


def test_a_certificate_that_lacks_a_host_is_made_anew_with_the_hosts_that_it_had(tmp_path: Path) -> None:
    def names(*hosts: str) -> tuple[int, set[str]]:
        options = ["--renew", *(word for host in hosts for word in ("--host", host))]
        done = CliRunner().invoke(app, ["init-secrets", str(tmp_path), *options], catch_exceptions=False)
        certificate = x509.load_pem_x509_certificate((tmp_path / "scheduler-client" / "ca.crt").read_bytes())
        made = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = map(str, made.get_values_for_type(x509.IPAddress))
        return len(done.output.splitlines()), {*made.get_values_for_type(x509.DNSName), *addresses}

    local = {"localhost", "127.0.0.1"}
    assert names() == (7, {"scheduler"} | local)
    assert names("towline-scheduler", "10.0.0.7") == (
        3,
        {"scheduler", "towline-scheduler", "10.0.0.7"} | local,
    )
    assert names("towline-scheduler") == (0, {"scheduler", "towline-scheduler", "10.0.0.7"} | local)
    assert names() == (0, {"scheduler", "towline-scheduler", "10.0.0.7"} | local)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_certificate_that_does_not_fit_is_kept_unless_it_is_to_be_renewed(tmp_path: Path) -> None:
    command = ["init-secrets", str(tmp_path), "--host", "other"]
    CliRunner().invoke(app, command[:2], catch_exceptions=False)
    before = contents(tmp_path)

    kept = CliRunner().invoke(app, command, catch_exceptions=False)

    assert contents(tmp_path) == before
    certificate = tmp_path / "scheduler-server" / "tls.crt"
    assert kept.output == f"kept {certificate}: it is not for other: --renew makes it anew\n"
    assert kept.exit_code == 1, "it is not what was asked for"
    renewed = CliRunner().invoke(app, [*command, "--renew"], catch_exceptions=False)
    assert (renewed.exit_code, len(renewed.output.splitlines())) == (0, 3)


@pytest.mark.parametrize("options", [[], ["--renew"], ["--renew", "--host", "other"]])
@pytest.mark.parametrize("certificate", ["of one's own authority", "which is none"])
def test_a_certificate_of_somebody_else_s_make_is_never_touched(
    certificate: str, options: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    CliRunner().invoke(app, ["init-secrets", str(other)], catch_exceptions=False)
    folder = tmp_path / "secrets"
    CliRunner().invoke(app, ["init-secrets", str(folder)], catch_exceptions=False)
    authority = folder / "scheduler-client" / "ca.crt"
    authority.chmod(0o600)
    if certificate == "which is none":
        authority.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    else:
        authority.write_bytes((other / "scheduler-client" / "ca.crt").read_bytes())
    before = contents(folder)

    done = CliRunner().invoke(app, ["init-secrets", str(folder), *options], catch_exceptions=False)

    assert contents(folder) == before
    own = folder / "scheduler-server" / "tls.crt"
    assert (done.exit_code, done.output) == (0, f"kept {own}: not of this command's make\n")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "scheduler-server/tls.key",
            "kept {}/scheduler-server/tls.crt: {}/scheduler-server/tls.key is missing",
        ),
        (
            "scheduler-client/ca.crt",
            "kept {}/scheduler-server/tls.key: {}/scheduler-client/ca.crt is missing",
        ),
        ("relay-client/key", "kept {}/relay-server/keys.jsonl: {}/relay-client/key is missing"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--renew"]])
def test_the_rest_of_something_is_kept_and_what_is_missing_is_named(
    missing: str, said: str, options: list[str], tmp_path: Path
) -> None:
    CliRunner().invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)
    (tmp_path / missing).unlink()
    before = contents(tmp_path)

    done = CliRunner().invoke(app, ["init-secrets", str(tmp_path), *options], catch_exceptions=False)

    assert contents(tmp_path) == before
    assert done.exit_code == (0 if missing == "relay-client/key" else 1), "a relay needs the hashes only"
    assert done.output.startswith(said.replace("{}", str(tmp_path)))


def test_tokens_that_differ_are_kept_and_said(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)
    token = tmp_path / "scheduler-client" / "token"
    token.chmod(0o600)
    token.write_text("of one's own")
    before = contents(tmp_path)

    done = CliRunner().invoke(app, ["init-secrets", str(tmp_path), "--renew"], catch_exceptions=False)

    assert contents(tmp_path) == before
    server = tmp_path / "scheduler-server" / "token"
    assert (done.exit_code, done.output) == (
        1,
        f"kept {server}: it differs from {token}: remove the one that is wrong\n",
    )


def test_secrets_without_what_makes_them_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)

    done = CliRunner().invoke(app, ["init-secrets", str(tmp_path)], catch_exceptions=False)

    assert done.exit_code == 1
    assert done.stderr == "towline init-secrets needs cryptography: pip install 'towline[relay]'\n"
