"""From settings to authenticators, and to the key by which decisions are signed."""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING

from towline.contracts.errors import SigningKeyError
from towline.contracts.settings import KafkaSettings
from towline.relay.auth.keys import KeyAuth, parse_keys
from towline.relay.errors import RelaySettingsError
from towline.relay.principals import Authenticator, NoAuth
from towline.relay.settings import RelaySettings
from towline.telemetry.listen import is_port

if TYPE_CHECKING:
    from towline.contracts.signing import DecisionSigner

_log = logging.getLogger(__name__)


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of "host:port".

    Raises:
        RelaySettingsError: It is not of that form.
    """
    host, _, port = listen.rpartition(":")
    if not host or not is_port(port):
        raise RelaySettingsError(
            f"TOWLINE_RELAY_HTTP_LISTEN: {listen!r} is not host:port, for example 127.0.0.1:8090"
        )
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def authenticators_for(settings: RelaySettings) -> list[Authenticator]:
    """What `settings` ask for.

    Raises:
        RelaySettingsError: A setting is missing, or the relay would be open to the network without auth.
    """
    host, _ = split_listen(settings.http_listen)
    kinds = [kind.strip() for kind in settings.auth.split(",") if kind.strip()]
    if kinds == ["none"]:
        if not is_loopback(host):
            raise RelaySettingsError(
                f"without auth the relay listens on loopback only, not on {host}: set "
                "TOWLINE_RELAY_AUTH=keys with TOWLINE_RELAY_API_KEYS_FILE, or "
                "TOWLINE_RELAY_AUTH=oidc with TOWLINE_RELAY_OIDC_ISSUER and TOWLINE_RELAY_OIDC_AUDIENCE; or "
                "listen on 127.0.0.1"
            )
        _log.warning("no_auth", extra={"listen": settings.http_listen, "open_to": "this machine only"})
        return [NoAuth()]
    if not kinds or not {"keys", "oidc"}.issuperset(kinds):
        raise RelaySettingsError(
            f"TOWLINE_RELAY_AUTH: {settings.auth!r} is not none, keys, oidc or keys,oidc"
        )
    found: list[Authenticator] = []
    if "keys" in kinds:
        found.append(_keys(settings))
    if "oidc" in kinds:
        found.append(_oidc(settings))
    return found


def signer_for(settings: RelaySettings, kafka: KafkaSettings) -> DecisionSigner | None:
    """What signs the callers' decisions, if `settings` name a key.

    Raises:
        RelaySettingsError: It is no private key.
    """
    if settings.signing_key is None:
        return None
    # Imported only when asked for: cryptography takes a good part of the start.
    from towline.contracts.signing import DecisionSigner

    try:
        return DecisionSigner(settings.signing_key.get_secret_value(), topic=kafka.topics.approvals)
    except SigningKeyError as error:
        raise RelaySettingsError(f"TOWLINE_RELAY_SIGNING_KEY: {error}") from error


def _keys(settings: RelaySettings) -> KeyAuth:
    if settings.api_keys is not None:
        return KeyAuth(parse_keys(settings.api_keys.get_secret_value(), where="TOWLINE_RELAY_API_KEYS"))
    if settings.api_keys_file is None:
        raise RelaySettingsError(
            "TOWLINE_RELAY_AUTH=keys needs TOWLINE_RELAY_API_KEYS_FILE (or TOWLINE_RELAY_API_KEYS); "
            "make one with: towline relay new-key NAME"
        )
    try:
        text = settings.api_keys_file.read_text(encoding="utf-8")
    except OSError as error:
        raise RelaySettingsError(f"TOWLINE_RELAY_API_KEYS_FILE: {error}") from error
    return KeyAuth(parse_keys(text, where=str(settings.api_keys_file)))


def _oidc(settings: RelaySettings) -> Authenticator:
    # Imported only when asked for: cryptography takes a good part of the start.
    from towline.relay.auth.oidc import OidcAuth, SigningKeys, check_url

    issuer, audience = settings.oidc_issuer, settings.oidc_audience
    if not issuer or not audience:
        raise RelaySettingsError(
            "TOWLINE_RELAY_AUTH=oidc needs TOWLINE_RELAY_OIDC_ISSUER and TOWLINE_RELAY_OIDC_AUDIENCE"
        )
    check_url("TOWLINE_RELAY_OIDC_ISSUER", issuer)
    if settings.oidc_jwks_url is not None:
        check_url("TOWLINE_RELAY_OIDC_JWKS_URL", settings.oidc_jwks_url)
    return OidcAuth(
        issuer=issuer,
        audience=audience,
        keys=SigningKeys(issuer, settings.oidc_jwks_url),
        roles_claim=settings.oidc_roles_claim,
    )
