"""`towline init-secrets`: what a deployment of one machine needs, so that nothing is open even inside it.

```
DIR/scheduler-server/   tls.key  tls.crt  token     for the scheduler alone
DIR/scheduler-client/   ca.crt   token              for bridge and worker
DIR/relay-server/       keys.jsonl                  for the relay: hashes only
DIR/relay-client/       key                         for whoever calls the relay
```
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from towline.cli.output import Printer, warn

VALID: Final = timedelta(days=730)
RENEWED_BEFORE: Final = timedelta(days=60)
_TOKEN_BYTES: Final = 32


@dataclass(slots=True)
class _Report:
    made: list[Path] = field(default_factory=list[Path])
    kept: list[str] = field(default_factory=list[str])
    """What does not fit and was left as it is, and why."""
    is_whole: bool = True
    """Whether what is there now is what was asked for."""

    def keep(self, path: Path, why: str, *, is_whole: bool = False) -> None:
        """`path` is left as it is."""
        self.kept.append(f"{path}: {why}")
        self.is_whole = self.is_whole and is_whole


def init_secrets(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put them; made if need be.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the scheduler; may be given often.")
    ] = None,
    key_name: Annotated[str, typer.Option(help="Who the relay's key stands for.")] = "admin",
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Make a certificate of ours anew that ends soon or lacks a --host."),
    ] = False,
) -> None:
    """Make the scheduler's certificate and token and an API key of the relay; what is there is kept.

    With --renew a certificate that this command made, and that ends within 60 days or lacks a --host, is made
    anew, for the names that it had too. Nothing else is ever overwritten. Contents are never printed.
    """
    report = _Report()
    try:
        _certificate(folder, host or [], report, renew=renew)
        _token(folder, report)
        _relay_key(folder, key_name, report)
    except OSError as error:
        warn(f"towline init-secrets: {error}")
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        warn(f"towline init-secrets needs {error.name}: pip install 'towline[relay]'")
        raise typer.Exit(1) from None
    for path in report.made:
        Printer.line(f"made {path}")
    for text in report.kept:
        Printer.line(f"kept {text}")
    if not report.is_whole:
        raise typer.Exit(1)


def _certificate(folder: Path, hosts: list[str], report: _Report, *, renew: bool) -> None:
    key_file, own, trusted = (
        folder / "scheduler-server" / "tls.key",
        folder / "scheduler-server" / "tls.crt",
        folder / "scheduler-client" / "ca.crt",
    )
    there = [path for path in (key_file, own, trusted) if path.exists()]
    if 0 < len(there) < 3:
        [missing, *_] = [path for path in (key_file, own, trusted) if path not in there]
        report.keep(there[0], f"{missing} is missing: put it there, or remove the rest to have all made")
        return
    if there and not _is_ours(own, trusted):
        report.keep(own, "not of this command's make", is_whole=True)
        return
    known = _hosts(own) if there else []
    lacks = [host for host in hosts if _name(host) not in {_name(each) for each in known}]
    ends = _ends(own) if there else datetime.now(UTC)
    is_ending = ends - datetime.now(UTC) <= RENEWED_BEFORE
    if there and not (lacks or is_ending):
        return
    if there and not renew:
        why = f"it is not for {', '.join(lacks)}" if lacks else f"it ends on {ends:%Y-%m-%d}"
        report.keep(own, f"{why}: --renew makes it anew", is_whole=not lacks)
        return
    wanted = [*(hosts or ([] if known else ["scheduler"])), *known, "localhost", "127.0.0.1"]
    private, certificate = _self_signed(list(dict.fromkeys(wanted)))
    for path, content in ((key_file, private), (own, certificate), (trusted, certificate)):
        _write(path, content)
        report.made.append(path)


def _self_signed(hosts: list[str]) -> tuple[bytes, bytes]:
    """Key and certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def _is_ours(own: Path, trusted: Path) -> bool:
    """Whether `own` is trusted by itself, as what this command makes is."""
    from cryptography import x509

    if own.read_bytes() != trusted.read_bytes():
        return False
    try:
        certificate = x509.load_pem_x509_certificate(own.read_bytes())
    except ValueError:
        return False
    return certificate.issuer == certificate.subject


def _ends(certificate: Path) -> datetime:
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _hosts(certificate: Path) -> list[str]:
    """The names and addresses that a certificate is for."""
    from cryptography import x509

    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _name(host: str):
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _token(folder: Path, report: _Report) -> None:
    server, client = folder / "scheduler-server" / "token", folder / "scheduler-client" / "token"
    known = [path.read_bytes() for path in (server, client) if path.exists()]
    if len(known) == 2 and known[0] != known[1]:
        report.keep(server, f"it differs from {client}: remove the one that is wrong")
        return
    token = known[0] if known else secrets.token_urlsafe(_TOKEN_BYTES).encode()
    for path in (server, client):
        if not path.exists():
            _write(path, token)
            report.made.append(path)


def _relay_key(folder: Path, name: str, report: _Report) -> None:
    # The relay's own code: imported here, so that other commands start without its dependencies.
    from towline.relay.auth.keys import key_line, new_key
    from towline.relay.principals import parse_roles

    keys, key_file = folder / "relay-server" / "keys.jsonl", folder / "relay-client" / "key"
    if keys.exists():
        if not key_file.exists():
            why = "which can't be had from it: `towline relay new-key` makes another"
            report.keep(keys, f"{key_file} is missing, {why}", is_whole=True)
        return
    roles = parse_roles(["read", "start", "approve"])
    if key_file.exists():
        line = key_line(key_file.read_text(encoding="utf-8").strip(), name, roles)
    else:
        key, line = new_key(name, roles)
        _write(key_file, key.encode())
        report.made.append(key_file)
    _write(keys, f"{line}\n".encode())
    report.made.append(keys)


def _write(path: Path, content: bytes) -> None:
    """For its owner alone, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(content)
    partial.replace(path)
