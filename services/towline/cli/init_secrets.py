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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from towline.cli.output import Printer, warn

VALID: Final = timedelta(days=730)
RENEWED_BEFORE: Final = timedelta(days=60)
_TOKEN_BYTES: Final = 32


def init_secrets(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put them; made if need be.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the scheduler; may be given often.")
    ] = None,
    key_name: Annotated[str, typer.Option(help="Who the relay's key stands for.")] = "admin",
) -> None:
    """Make the scheduler's certificate and token and an API key of the relay; what is there is kept.

    A certificate that ends within 60 days, or lacks a --host, is made anew, for the names that it had too.
    Contents are never printed.
    """
    try:
        made = [
            *_certificate(folder, host or []),
            *_token(folder),
            *_relay_key(folder, key_name),
        ]
    except OSError as error:
        warn(f"towline init-secrets: {error}")
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        warn(f"towline init-secrets needs {error.name}: pip install 'towline[relay]'")
        raise typer.Exit(1) from None
    for path in made:
        Printer.line(f"made {path}")


def _certificate(folder: Path, hosts: list[str]) -> list[Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key_file, own, trusted = (
        folder / "scheduler-server" / "tls.key",
        folder / "scheduler-server" / "tls.crt",
        folder / "scheduler-client" / "ca.crt",
    )
    now = datetime.now(UTC)
    is_whole = key_file.exists() and own.exists() and trusted.exists()
    known = _hosts(own) if own.exists() else []
    is_good = is_whole and own.read_bytes() == trusted.read_bytes() and _ends(own) - now > RENEWED_BEFORE
    if is_good and {_name(host) for host in hosts} <= {_name(host) for host in known}:
        return []
    wanted = [*(hosts or ([] if known else ["scheduler"])), *known, "localhost", "127.0.0.1"]
    hosts = list(dict.fromkeys(wanted))
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
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content in ((key_file, private), (own, pem), (trusted, pem)):
        _write(path, content)
    return [key_file, own, trusted]


def _ends(certificate: Path) -> datetime:
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _hosts(certificate: Path) -> list[str]:
    """The names and addresses that a certificate is for; none of one that is of somebody else's make."""
    from cryptography import x509

    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _name(host: str):
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _token(folder: Path) -> list[Path]:
    server, client = folder / "scheduler-server" / "token", folder / "scheduler-client" / "token"
    if server.exists() and client.exists() and server.read_bytes() == client.read_bytes():
        return []
    token = secrets.token_urlsafe(_TOKEN_BYTES).encode()
    _write(server, token)
    _write(client, token)
    return [server, client]


def _relay_key(folder: Path, name: str) -> list[Path]:
    # The relay's own code: imported here, so that other commands start without its dependencies.
    from towline.relay.auth.keys import new_key
    from towline.relay.principals import parse_roles

    keys, key_file = folder / "relay-server" / "keys.jsonl", folder / "relay-client" / "key"
    if keys.exists() and key_file.exists():
        return []
    key, line = new_key(name, parse_roles(["read", "start", "approve"]))
    _write(keys, f"{line}\n".encode())
    _write(key_file, key.encode())
    return [keys, key_file]


def _write(path: Path, content: bytes) -> None:
    """For its owner alone, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(content)
    partial.replace(path)
