"""The model behind the examples: a real one when its environment variables are set, else a scripted one.

| model | variables |
|---|---|
| OpenAI | `OPENAI_API_KEY`, `OPENAI_MODEL` |
| Azure OpenAI | `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_MODEL`, `AZURE_OPENAI_API_KEY` |
| Microsoft Foundry | `FOUNDRY_PROJECT_ENDPOINT`, `FOUNDRY_MODEL` |
| Ollama | `OLLAMA_MODEL`, and `OLLAMA_HOST` if it is elsewhere |

The first row whose first variable is set wins; `EXAMPLES_MODEL` (`offline`, `openai`, `azure`, `foundry`,
`ollama`) chooses by name. Azure OpenAI without a key, and Foundry, use the Azure identity that is signed in.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from agent_framework import BaseChatClient

ChatClient = BaseChatClient[Any]


class ModelSetupError(RuntimeError):
    """The model asked for cannot be used as things are; the message says what to install or set."""


def chat_client(environ: Mapping[str, str] = os.environ) -> ChatClient:
    """The model that the environment asks for.

    Raises:
        ModelSetupError: Its package is not installed, a variable is missing, or its name is unknown.
    """
    name = environ.get("EXAMPLES_MODEL") or next(
        (n for n, key in _KEYS.items() if environ.get(key)), "offline"
    )
    if name not in _MAKERS:
        raise ModelSetupError(f"EXAMPLES_MODEL={name!r} is none of {', '.join(_MAKERS)}")
    return _MAKERS[name](environ)


def _offline(_: Mapping[str, str]) -> ChatClient:
    from examples.offline import offline_client

    return offline_client()


def _openai(environ: Mapping[str, str]) -> ChatClient:
    model = _first(environ, "OPENAI_CHAT_MODEL", "OPENAI_MODEL")
    key = _first(environ, "OPENAI_API_KEY")
    return _load("agent_framework_openai", "OpenAIChatClient", "openai")(model=model, api_key=key)


def _azure(environ: Mapping[str, str]) -> ChatClient:
    client = _load("agent_framework_openai", "OpenAIChatClient", "openai")
    model = _first(environ, "AZURE_OPENAI_CHAT_MODEL", "AZURE_OPENAI_MODEL")
    key = environ.get("AZURE_OPENAI_API_KEY")
    identity = {"api_key": key} if key else {"credential": _azure_token()}
    return client(model=model, azure_endpoint=_first(environ, "AZURE_OPENAI_ENDPOINT"), **identity)


def _foundry(environ: Mapping[str, str]) -> ChatClient:
    return _load("agent_framework_foundry", "FoundryChatClient", "agent-framework")(
        project_endpoint=_first(environ, "FOUNDRY_PROJECT_ENDPOINT"),
        model=_first(environ, "FOUNDRY_MODEL"),
        credential=_foundry_identity(),
    )


def _ollama(environ: Mapping[str, str]) -> ChatClient:
    model = _first(environ, "OLLAMA_MODEL")
    return _load("agent_framework_ollama", "OllamaChatClient", "agent-framework")(
        model=model, host=environ.get("OLLAMA_HOST")
    )


_KEYS: Final = {
    "openai": "OPENAI_API_KEY",
    "azure": "AZURE_OPENAI_ENDPOINT",
    "foundry": "FOUNDRY_PROJECT_ENDPOINT",
    "ollama": "OLLAMA_MODEL",
}
_MAKERS: Final[Mapping[str, Callable[[Mapping[str, str]], ChatClient]]] = {
    "offline": _offline,
    "openai": _openai,
    "azure": _azure,
    "foundry": _foundry,
    "ollama": _ollama,
}


def _load(module: str, name: str, extra: str) -> Callable[..., ChatClient]:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = module.replace("_", "-")
        raise ModelSetupError(
            f"{package} is not installed: pip install {package}, or 'towline[{extra}]'"
        ) from error


def _first(environ: Mapping[str, str], *names: str) -> str:
    for name in names:
        if value := environ.get(name):
            return value
    raise ModelSetupError(f"set {' or '.join(names)} for this model, or EXAMPLES_MODEL=offline")


def _azure_token() -> Callable[[], Awaitable[str]]:
    """Gives a token of the identity that is signed in. Not by azure-identity's aio, which needs aiohttp."""
    from azure.identity import DefaultAzureCredential, get_bearer_token_provider

    token = get_bearer_token_provider(
        DefaultAzureCredential(), "https://cognitiveservices.azure.com/.default"
    )
    return partial(asyncio.to_thread, token)  # it may take seconds, in which no other agent should wait


def _foundry_identity() -> Any:
    from azure.identity.aio import DefaultAzureCredential

    return DefaultAzureCredential()
