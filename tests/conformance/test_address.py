"""Who can reach the server."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest
from tests.conformance.support import ServerProcess


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
