"""Which model the examples use, by environment.

OpenAI's client is imported where it is used: it takes a second, and every process of a run loads all tests.
"""

from __future__ import annotations

import pytest

from examples.models import ModelSetupError, chat_client
from towline.testing.scripted import ScriptedChatClient


def test_nothing_set_means_the_scripted_model() -> None:
    assert isinstance(chat_client({}), ScriptedChatClient)


def test_a_key_chooses_the_real_model() -> None:
    from agent_framework_openai import OpenAIChatClient

    client = chat_client({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "some-model"})

    assert isinstance(client, OpenAIChatClient)
    assert client.model == "some-model"


def test_an_azure_endpoint_chooses_azure() -> None:
    from agent_framework_openai import OpenAIChatClient

    client = chat_client(
        {
            "AZURE_OPENAI_ENDPOINT": "https://example.invalid/",
            "AZURE_OPENAI_MODEL": "some-deployment",
            "AZURE_OPENAI_API_KEY": "k",
        }
    )

    assert isinstance(client, OpenAIChatClient)
    assert client.model == "some-deployment"


def test_offline_can_be_forced() -> None:
    environ = {"OPENAI_API_KEY": "k", "OPENAI_MODEL": "m", "EXAMPLES_MODEL": "offline"}

    assert isinstance(chat_client(environ), ScriptedChatClient)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OPENAI_API_KEY": "k"}, "OPENAI_MODEL"),
        ({"EXAMPLES_MODEL": "openai", "OPENAI_MODEL": "m"}, "OPENAI_API_KEY"),
        ({"EXAMPLES_MODEL": "gpt"}, "none of offline, openai"),
        ({"OLLAMA_MODEL": "m"}, "pip install agent-framework-ollama"),
        (
            {"FOUNDRY_PROJECT_ENDPOINT": "https://x", "FOUNDRY_MODEL": "m"},
            "pip install agent-framework-foundry",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ModelSetupError, match=said) as caught:
        chat_client(environ)

    assert "\n" not in str(caught.value)
