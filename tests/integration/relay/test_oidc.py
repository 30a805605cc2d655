"""Tokens of a real issuer: one that publishes keys over HTTP and signs with them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from tests.integration.relay.conftest import StartRelay
from tests.integration.relay.test_http import Commands, commands
from tests.waiting import eventually_async

from towline.relay.auth.oidc import SigningKeys
from towline.relay.problems import ProblemError

__all__ = ["commands"]


class Issuer:
    def __init__(self) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.set()
                issuer.may_answer.wait(10)
                body = issuer.answer(self.path)
                self.send_response(200 if body else 404)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.add_key("one")

    def answer(self, path: str) -> bytes:
        if path == "/.well-known/openid-configuration":
            return json.dumps({"jwks_uri": f"{self.url}/keys"}).encode()
        if path == "/keys":
            return json.dumps({"keys": [self._public(key_id) for key_id in self.keys]}).encode()
        return b""

    def _public(self, key_id: str) -> dict[str, Any]:
        jwk = RSAAlgorithm.to_jwk(self.keys[key_id].public_key(), as_dict=True)
        return {**jwk, "kid": key_id, "use": "sig", "alg": "RS256"}

    def add_key(self, key_id: str) -> None:
        self.keys[key_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, *, key_id: str = "one", key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        body = {
            "iss": self.url,
            "aud": "towline",
            "sub": "ann@example",
            "exp": time.time() + 60,
            "roles": ["read", "approve"],
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, key or self.keys[key_id], algorithm=algorithm, headers={"kid": key_id})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


async def test_the_tokens_subject_approves(
    start_relay: StartRelay, issuer: Issuer, commands: Commands, http: httpx.AsyncClient
) -> None:
    url = start_relay(auth="oidc", oidc_issuer=issuer.url, oidc_audience="towline").url

    async def decide(token: str) -> int:
        answer = await http.post(
            f"{url}/runs/r1/approvals/ok",
            json={"approved": True, "approver": "mallory"},
            headers={"Authorization": f"Bearer {token}"},
        )
        return answer.status_code

    assert await decide(issuer.token()) == 202
    assert (await commands.next()).data.approver == "ann@example"
    assert await decide(issuer.token(roles=["read"])) == 403
    assert await decide(issuer.token(roles=None)) == 403
    assert await decide(issuer.token(exp=time.time() - 60)) == 401
    assert await decide(issuer.token(exp=None)) == 401
    assert await decide(issuer.token(sub=None)) == 401
    assert await decide(issuer.token(aud="another")) == 401
    assert await decide(issuer.token(iss="https://another")) == 401
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await decide(issuer.token(key=other)) == 401
    shared_secret = issuer.token(key="s" * 32, algorithm="HS256")
    assert await decide(shared_secret) == 401
    head, body, _ = issuer.token().split(".")
    assert await decide(f"{head}.{body}.") == 401


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("/.well-known/openid-configuration", b"[]"),
        ("/.well-known/openid-configuration", b'{"jwks_uri": "http://127.0.0.1:99999/keys"}'),
        ("/.well-known/openid-configuration", b'{"jwks_uri": "https://\\ud800/keys"}'),
        ("/keys", b"[]"),
        ("/keys", b"null"),
        ("/keys", b'{"keys": {}}'),
        ("/keys", b"[" * 100_000),
        ("/keys", b"\xff"),
    ],
)
async def test_nonsense_from_the_issuer_is_a_503_that_says_so(
    issuer: Issuer, asked: str, said: bytes
) -> None:
    answer = issuer.answer
    issuer.answer = lambda path: said if path == asked else answer(path)
    with pytest.raises(ProblemError) as caught:
        await SigningKeys(issuer.url, None).get("one")
    assert (caught.value.status, caught.value.code) == (503, "issuer_away")


async def test_keys_are_not_fetched_from_where_they_could_be_replaced_on_the_way(issuer: Issuer) -> None:
    port = issuer.server.server_port
    assert await SigningKeys(issuer.url, f"http://127.0.0.1:{port}/keys").get("one") is not None
    # As another host of the network would be: it is the same one by a name that is not known to be local.
    document = json.dumps({"jwks_uri": f"http://127.1:{port}/keys"}).encode()
    answer = issuer.answer
    issuer.answer = lambda path: document if "openid" in path else answer(path)
    with pytest.raises(ProblemError) as caught:
        await SigningKeys(issuer.url, None).get("one")
    assert caught.value.status == 503


async def test_callers_who_come_while_the_first_keys_are_fetched_wait_for_them_too(
    start_relay: StartRelay, issuer: Issuer, http: httpx.AsyncClient
) -> None:
    url = start_relay(auth="oidc", oidc_issuer=issuer.url, oidc_audience="towline").url

    async def listed() -> int:
        token = {"Authorization": f"Bearer {issuer.token()}"}
        return (await http.get(f"{url}/runs", headers=token)).status_code

    issuer.may_answer.clear()
    first = asyncio.create_task(listed())
    await eventually_async(issuer.asked.is_set)
    others = [asyncio.create_task(listed()) for _ in range(5)]
    await asyncio.wait(others, timeout=0.5)
    issuer.may_answer.set()
    assert await asyncio.gather(first, *others) == [200] * 6


async def test_a_stream_ends_when_its_token_does(
    start_relay: StartRelay, issuer: Issuer, publisher: Any, http: httpx.AsyncClient
) -> None:
    url = start_relay(auth="oidc", oidc_issuer=issuer.url, oidc_audience="towline", heartbeat_s=0.2).url
    await publisher.started("r1")
    token = issuer.token(exp=time.time() - 27)  # 30 s of leeway for clocks
    async with http.stream(
        "GET", f"{url}/runs/r1/stream", headers={"Authorization": f"Bearer {token}"}
    ) as response:
        assert response.status_code == 200
        text = "".join([chunk async for chunk in response.aiter_text()])
    assert "event: status" in text


async def test_who_waits_for_a_run_is_shown_nothing_of_it_once_the_token_has_ended(
    start_relay: StartRelay, issuer: Issuer, publisher: Any, http: httpx.AsyncClient
) -> None:
    url = start_relay(auth="oidc", oidc_issuer=issuer.url, oidc_audience="towline", heartbeat_s=0.2).url
    ends_at = time.time() + 2
    headers = {"Authorization": f"Bearer {issuer.token(exp=ends_at - 30)}"}  # 30 s of leeway for clocks
    waiting = asyncio.create_task(http.get(f"{url}/runs/r1/stream?wait=30", headers=headers))
    await eventually_async(lambda: time.time() > ends_at)
    await publisher.started("r1")
    answer = await waiting
    assert (answer.status_code, answer.text) == (200, "retry: 1000\n\n")
