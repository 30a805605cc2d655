"""The SDK's clients of the scheduler as the bridge uses them, and the credential that they show."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Self, cast

import grpc.aio
from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from durabletask.azuremanaged.internal.durabletask_grpc_interceptor import (
    DTSAsyncDefaultClientInterceptorImpl,
)
from durabletask.grpc_options import GrpcChannelOptions

from towline.bridge.errors import SchedulerAwayError, SchedulerRefusedError
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.contracts.settings import SchedulerSettings
from towline.http2 import Calls, DirectChannel, plain_address

_MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
_FAR_FUTURE: Final = 4102444800
_SOONER: Final = 0.9
"""The part of its bound that a direct call has: it must find out itself that nobody answers any more."""


class Clients:
    """One client for calls that are answered soon, and one for the others; the same unless `direct` can be.

    A direct call takes silence for a connection that is gone: waits are not made that way, nor are streams.

    Args:
        settings: Where the scheduler is.
        call_timeout_s: Longest that a short call may take.
        payloads: Store for large data.
        direct: Make short calls without gRPC's core, if the scheduler speaks plain text and the credential
            stays what it is.

    Raises:
        SchedulerRefusedError: The credential is of no use.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        call_timeout_s: float,
        payloads: SharedPayloadStore | None,
        direct: bool,
    ) -> None:
        self._settings = settings
        self._call_timeout_s = call_timeout_s
        self._payloads = payloads
        self._credential = _credential(settings)
        self._secure = not settings.address.lower().startswith("http://")
        can_be = direct and settings.credential != "azure"
        self._address = plain_address(settings.address, secure=self._secure) if can_be else None
        self._calls: Calls | None = None
        self.long = self._client()
        """Waits and histories."""
        self.short = self.long
        """All else."""

    async def open(self) -> None:
        """Make `short` a client of its own, if it can be."""
        if self._address is None:
            return
        self._calls = Calls(*self._address, answer_bytes_max=_MESSAGE_MAX_BYTES)
        metadata = await _metadata(self._credential, self._settings.taskhub)
        channel = DirectChannel(self._calls, timeout_s=self._call_timeout_s * _SOONER, metadata=metadata)
        self.short = self._client(channel)

    async def close(self) -> None:
        """Close the connections; calls that are open fail."""
        if self._calls is not None:
            self._calls.close()
        await self.long.close()

    def _client(self, channel: grpc.aio.Channel | None = None) -> AsyncDurableTaskSchedulerClient:
        settings = self._settings
        return AsyncDurableTaskSchedulerClient(
            host_address=settings.address,
            taskhub=settings.taskhub,
            token_credential=self._credential,
            channel=channel,
            interceptors=[cast("Any", _StreamMetadata(self._credential, settings.taskhub))],
            secure_channel=self._secure,
            channel_options=GrpcChannelOptions(
                max_receive_message_length=_MESSAGE_MAX_BYTES, max_send_message_length=_MESSAGE_MAX_BYTES
            ),
            # The client logs each call at INFO, with the ids pasted into the text.
            logger=logging.getLogger("durabletask.client"),
            payload_store=self._payloads,
        )


class _StreamMetadata(grpc.aio.UnaryStreamClientInterceptor):
    """Task hub and token for calls that answer with a stream.

    grpc.aio takes an interceptor for one kind of call only, the first that it can do. The SDK's own can do
    all, so it is taken for unary calls, and streams (the history) would go out without a task hub.
    """

    def __init__(self, credential: AsyncTokenCredential | None, taskhub: str) -> None:
        self._inner: Any = DTSAsyncDefaultClientInterceptorImpl(credential, taskhub)

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._inner.intercept_unary_stream(continuation, client_call_details, request)


async def _metadata(credential: AsyncTokenCredential | None, taskhub: str) -> tuple[tuple[str, str], ...]:
    """What the SDK adds to each call. With a credential that never changes, it doesn't either."""
    added: list[tuple[str, str]] = []

    async def keep(details: Any, _request: object) -> None:
        added.extend(details.metadata)

    nothing = grpc.aio.ClientCallDetails("", None, None, None, None)
    await DTSAsyncDefaultClientInterceptorImpl(credential, taskhub).intercept_unary_unary(keep, nothing, None)
    return tuple(added)


class _StaticToken(AsyncTokenCredential):
    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken(self._token, _FAR_FUTURE)

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        pass


class _EntraToken(_StaticToken):
    """azure-identity's default chain, asked in a thread: its own asynchronous one needs aiohttp."""

    def __init__(self) -> None:
        super().__init__("")
        from azure.identity import DefaultAzureCredential

        self._chain = DefaultAzureCredential()

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        try:
            return await asyncio.to_thread(self._chain.get_token, *scopes, **options)
        except AzureError as error:
            raise SchedulerAwayError(f"Entra ID gives no token for the scheduler: {error}") from error


def _credential(settings: SchedulerSettings) -> AsyncTokenCredential | None:
    if settings.credential == "azure":
        return _EntraToken()
    if settings.credential == "token":
        if settings.token is None:
            raise SchedulerRefusedError(
                "TOWLINE_SCHEDULER_CREDENTIAL is token: set TOWLINE_SCHEDULER_TOKEN to the bearer token"
            )
        return _StaticToken(settings.token.get_secret_value())
    return None
