"""Redis and S3 as payload stores: the real protocols, a store that is away, what expires."""

from __future__ import annotations

import socket
from collections.abc import Generator
from uuid import uuid4

import boto3
import pytest
import redis
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from towline.contracts.errors import PayloadMissingError, PayloadStoreAwayError
from towline.contracts.payloads import PayloadReference, PayloadStore, object_store, open_payload_store
from towline.contracts.settings import PayloadSettings
from towline.dev import ports

DATA = uuid4().hex.encode() * 100_000


def opened(url: str, **settings: float) -> PayloadStore:
    store = open_payload_store(PayloadSettings(url=SecretStr(url), cache_bytes=0, **settings))  # pyright: ignore[reportArgumentType]
    assert store is not None
    return store


@pytest.fixture(scope="module")
def s3() -> Generator[str]:
    """Address of an S3 server, with the bucket ``towline``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=ports.lease(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="towline")
    try:
        yield address
    finally:
        server.stop()


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)


async def test_redis_keeps_a_payload_until_it_was_not_used_for_the_retention(valkey: str) -> None:
    raw = redis.Redis.from_url(valkey)
    async with opened(valkey, retention_s=1000) as store:
        reference = await store.put(DATA)
        key = f"towline:payload:{reference.digest}"
        assert 990 <= raw.ttl(key) <= 1000
        raw.expire(key, 5)
        assert await store.get(reference) == DATA
        assert raw.ttl(key) > 990, "what is read counts as new"
        raw.delete(key)
        with pytest.raises(PayloadMissingError, match="not in the payload store"):
            await store.get(reference)


async def test_redis_that_does_not_answer_is_away(valkey: str) -> None:
    async with opened(f"redis://user:hunter2@127.0.0.1:{ports.lease()}/0") as store:
        for attempt in (store.put(DATA), store.get(PayloadReference.of(DATA))):
            with pytest.raises(PayloadStoreAwayError, match="does not answer") as away:
                await attempt
            assert "hunter2" not in str(away.value)


@pytest.mark.usefixtures("s3_environment")
async def test_s3_keeps_a_payload_under_the_prefix_and_says_what_is_missing() -> None:
    async with opened("s3://towline/some/prefix") as store:
        reference = await store.put(DATA)
        assert await store.put(DATA) == reference
        assert await store.get(reference) == DATA
        with pytest.raises(PayloadMissingError):
            await store.get(PayloadReference.of(b"never put"))


@pytest.mark.usefixtures("s3_environment")
async def test_s3_without_its_bucket_or_without_a_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("s3://no-such-bucket/x") as store:
        with pytest.raises(PayloadStoreAwayError):
            await store.put(DATA)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports.lease()}")
    async with opened("s3://towline/x") as store:
        with pytest.raises(PayloadStoreAwayError):
            await store.get(PayloadReference.of(DATA))


@pytest.mark.usefixtures("s3_environment")
async def test_s3_that_takes_too_long_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with opened("s3://towline/x") as store:
            for attempt in (store.put(DATA), store.get(PayloadReference.of(DATA))):
                with pytest.raises(PayloadStoreAwayError, match="does not answer"):
                    await attempt
