"""Limits, keys and addresses."""

from __future__ import annotations

import pytest

from towline.relay.auth.choose import authenticators_for, is_loopback, split_listen
from towline.relay.auth.keys import key_hash, new_key, parse_keys
from towline.relay.errors import RelaySettingsError
from towline.relay.limits import RateLimiter
from towline.relay.settings import RelaySettings


def test_a_burst_is_let_through_and_then_one_by_one() -> None:
    limiter = RateLimiter(rate_per_s=2, burst=3)
    assert [limiter.take("a", now=0) for _ in range(3)] == [0, 0, 0]
    assert limiter.take("a", now=0) == pytest.approx(0.5)
    assert limiter.take("b", now=0) == 0
    assert limiter.take("a", now=0.5) == 0
    assert limiter.take("a", now=0.5) > 0
    assert [limiter.take("a", now=100) for _ in range(4)][-1] > 0


def test_a_key_is_known_by_its_hash_only() -> None:
    key, line = new_key("ann", ["approve", "read"])
    assert key not in line
    principal = parse_keys(line, where="keys")[key_hash(key)]
    assert (principal.subject, principal.roles) == ("ann", {"approve", "read"})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no key"),
        ("nonsense", "line 1"),
        ('\n{"name": "a", "sha256": "x", "roles": []}', "line 2: sha256"),
        ('{"name": "a", "sha256": "' + "0" * 64 + '", "roles": ["admin"]}', "roles.0"),
    ],
)
def test_a_bad_key_file_is_refused_with_the_line(text: str, named: str) -> None:
    with pytest.raises(RelaySettingsError, match=named):
        parse_keys(text, where="keys")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"http_listen": "0.0.0.0:8090"}, "TOWLINE_RELAY_AUTH"),
        ({"http_listen": "relay.example:8090"}, "loopback only"),
        ({"http_listen": "8090"}, "TOWLINE_RELAY_HTTP_LISTEN"),
        ({"auth": "magic"}, "magic"),
        ({"auth": "keys"}, "TOWLINE_RELAY_API_KEYS_FILE"),
        ({"auth": "oidc", "oidc_issuer": "https://i"}, "TOWLINE_RELAY_OIDC_AUDIENCE"),
        ({"auth": "oidc", "oidc_issuer": "http://i", "oidc_audience": "a"}, "https"),
    ],
)
def test_unsafe_settings_are_refused_with_the_name(settings: dict[str, str], named: str) -> None:
    with pytest.raises(RelaySettingsError, match=named):
        authenticators_for(RelaySettings.model_validate(settings))


def test_loopback_is_told_from_the_network() -> None:
    assert split_listen("[::1]:80") == ("::1", 80)
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "evil.localhost.example", ""))
