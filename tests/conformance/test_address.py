"""Who can reach the server."""

from __future__ import annotations

import ipaddress
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import empty_pb2
from tests.conformance.processes import ServerProcess, loopback_port


def listening_addresses(pid: int) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """What the kernel says the process listens on."""
    inodes: set[str] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(_address(fields[1].partition(":")[0]))
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel prints each 32-bit word in host order."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


@pytest.mark.acceptance(26)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc/net/tcp")
def test_the_server_listens_on_loopback_only(server: ServerProcess) -> None:
    addresses = listening_addresses(server.pid)

    assert addresses
    assert [address for address in addresses if not address.is_loopback] == []


def test_a_wider_address_without_tls_and_token_is_refused(tmp_path: Path, server: ServerProcess) -> None:
    refused = subprocess.run(
        [*server.command, "--data", str(tmp_path / "data"), "--listen", "0.0.0.0:0"],
        capture_output=True,
        timeout=15,
        check=False,
        text=True,
    )

    assert refused.returncode != 0
    said = (refused.stdout + refused.stderr).lower()
    assert "tls" in said
    assert "token" in said
    assert "traceback" not in said


def hello(channel: grpc.Channel, *metadata: tuple[str, str], timeout_s: float = 5.0) -> None:
    with channel:
        stub = TaskHubSidecarServiceStub(channel)
        stub.Hello(empty_pb2.Empty(), metadata=metadata, timeout=timeout_s, wait_for_ready=True)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_file, key_file


def test_with_a_certificate_and_a_token_it_listens_everywhere_and_lets_in_who_has_both(
    tmp_path: Path,
) -> None:
    cert_file, key_file = self_signed(tmp_path)
    port = loopback_port()
    process = ServerProcess(tmp_path / "data")
    process.options = (
        *("--listen", f"0.0.0.0:{port}"),  # the later of two flags counts
        *("--tls-cert", str(cert_file), "--tls-key", str(key_file), "--token", "let me in"),
    )
    process.launch()
    try:
        credentials = grpc.ssl_channel_credentials(cert_file.read_bytes())
        address = f"localhost:{port}"
        channel = grpc.secure_channel(address, credentials)
        hello(channel, ("authorization", "Bearer let me in"), timeout_s=20.0)
        refused: list[grpc.StatusCode] = []
        for metadata in ((), (("authorization", "Bearer let me out"),)):
            with pytest.raises(grpc.RpcError) as error:
                hello(grpc.secure_channel(address, credentials), *metadata)
            refused.append(error.value.code())  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError):
            hello(grpc.insecure_channel(address), ("authorization", "Bearer let me in"))
    finally:
        process.stop()

    assert refused == [grpc.StatusCode.UNAUTHENTICATED] * 2
