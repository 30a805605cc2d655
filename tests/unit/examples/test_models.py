"""Which model the examples use, by environment.

OpenAI's client is imported where it is used: it takes a second, and every process of a run loads all tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from examples.models import ModelSetupError, chat_client
from towline.testing.scripted import ScriptedChatClient

ROOT = Path(__file__).parents[3]


def passed_on(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """What a worker in compose, and one in Kubernetes, has of `variables`."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]["environment"]
    deployments = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "base" / "worker.yaml").read_text())
    pod = next(one for one in deployments if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    in_pod = {variable["name"] for variable in pod["containers"][0]["env"]}
    return [
        {name: value for name, value in variables.items() if name in names} for names in (compose, in_pod)
    ]


def test_a_key_and_a_model_choose_the_real_one_in_containers_too() -> None:
    from agent_framework_openai import OpenAIChatClient

    for environ in passed_on({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "some-model"}):
        assert isinstance(chat_client(environ), OpenAIChatClient)


def test_compose_has_a_way_back_to_the_scripted_model_for_who_has_a_key_in_the_shell() -> None:
    environ = passed_on({"OPENAI_API_KEY": "k", "EXAMPLES_MODEL": "offline"})[0]

    assert isinstance(chat_client(environ), ScriptedChatClient)


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


async def test_an_azure_endpoint_without_a_key_asks_the_identity_that_is_signed_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agent_framework.exceptions import ChatClientException
    from agent_framework_openai import OpenAIChatClient

    environ = {"AZURE_OPENAI_ENDPOINT": "https://example.invalid/", "AZURE_OPENAI_MODEL": "some-deployment"}
    assert isinstance(chat_client(environ), OpenAIChatClient)

    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # the others take their time
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    client = chat_client(environ)
    with pytest.raises(ChatClientException, match="EnvironmentCredential"):  # nobody is, here
        await client.get_response("hello")


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
