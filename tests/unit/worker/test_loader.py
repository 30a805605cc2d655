"""`--app`: what can be hosted, and what is said about what can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from tests.unit.worker.simulator import make_worker

from towline.testing.scripted import ScriptedChatClient
from towline.worker import App, sdk
from towline.worker.agents import no_instrumentation
from towline.worker.errors import AppLoadError, UnsupportedSdkError
from towline.worker.loader import LoadedApp, load, set_up
from towline.worker.sdk import pinned


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing", "package.module:attribute"),
        ("no_such_module:x", "no module 'no_such_module'"),
        ("loader_broken:x", "ZeroDivisionError"),
        ("loader_lacking:x", "no_such_dependency"),
        ("loader_exits:x", "importing it failed: SystemExit: 2"),
        ("loader_fine:other", "no 'other'"),
        ("loader_fine:number", "is a int"),
        ("loader_fine:later", "expected a towline.worker.App"),
    ],
)
def test_what_cannot_be_hosted_is_named_with_the_fix(here: Path, target: str, said: str) -> None:
    (here / "loader_broken.py").write_text("1 / 0")
    (here / "loader_lacking.py").write_text("import no_such_dependency")
    (here / "loader_exits.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args(['--app'])\n"
    )
    (here / "loader_fine.py").write_text("number = 1\nasync def later(worker): ...\n")
    with pytest.raises(AppLoadError, match=said):
        load(target)


def test_a_module_of_the_current_folder_is_found_with_its_version(here: Path) -> None:
    (here / "loader_versioned.py").write_text("__version__ = '3.1'\ndef setup_worker(worker): ...\n")
    found = load("loader_versioned:setup_worker")
    assert (found.name, found.version) == ("loader_versioned", "3.1")


def agent(name: str) -> Agent:
    return Agent(client=ScriptedChatClient("x"), name=name, description=f"{name}!")


def catalog_of(register: Any, **options: Any) -> Any:
    return set_up(LoadedApp(register, "app", "1"), make_worker(), no_instrumentation, **options)


def test_agents_and_orchestrations_are_listed_and_the_hosts_own_are_not() -> None:
    def register(worker: Any) -> None:
        DurableAIAgentWorker(worker).add_agent(agent("Writer"))

        def review(ctx: Any, value: Any) -> Any:
            """Reviews."""

        def internal(ctx: Any, value: Any) -> Any: ...

        internal.__name__ = "towline.internal"
        worker.add_orchestrator(review)
        worker.add_orchestrator(internal)

    catalog = catalog_of(register, name="mine", version="2")
    event = catalog.event("s")
    assert [(each.name, each.description) for each in event.data.run_types] == [
        ("agent.Writer", "Writer!"),
        ("review", "Reviews."),
    ]
    assert (event.data.app, event.data.version, event.data.agents) == ("mine", "2", ["Writer"])
    assert event.id == catalog_of(register, name="mine", version="2").event("s").id


def test_agents_are_instrumented_whichever_way_they_are_registered() -> None:
    seen: list[str] = []

    def instrument(each: Any, registered_name: str, *, heard: bool) -> Any:
        assert not heard
        seen.append(registered_name)
        return each

    app = App("a")
    app.agent(agent("Writer"))
    set_up(LoadedApp(app, "a", "1"), make_worker(), instrument)
    assert seen == ["Writer"]


@pytest.mark.parametrize("all_agents", [True, False])
def test_an_app_that_listens_to_its_agents_says_so(all_agents: bool) -> None:
    class Callback:
        async def on_streaming_response_update(self, update: Any, context: Any) -> None: ...

        async def on_agent_response(self, response: Any, context: Any) -> None: ...

    heard_by_name: dict[str, bool] = {}

    def instrument(each: Any, registered_name: str, *, heard: bool) -> Any:
        heard_by_name[registered_name] = heard
        return each

    def register(worker: Any) -> None:
        agents = DurableAIAgentWorker(worker, callback=Callback() if all_agents else None)
        agents.add_agent(agent("One"))
        agents.add_agent(agent("Two"), callback=None if all_agents else Callback())

    set_up(LoadedApp(register, "a", "1"), make_worker(), instrument)
    assert heard_by_name == {"One": all_agents, "Two": True}


def test_registrations_on_other_workers_are_left_alone() -> None:
    other = make_worker()

    def register(worker: Any) -> None:
        DurableAIAgentWorker(other).add_agent(agent("Elsewhere"))
        DurableAIAgentWorker(worker).add_agent(agent("Here"))

    assert catalog_of(register).agents == ["Here"]


@pytest.mark.parametrize(
    ("register", "said"),
    [
        (lambda worker: None, "registered no agent"),
        (lambda worker: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_set_up_that_fails_or_registers_nothing_is_an_error(register: Any, said: str) -> None:
    with pytest.raises(AppLoadError, match=said):
        catalog_of(register)


def test_two_run_types_of_one_name_are_an_error() -> None:
    def register(worker: Any) -> None:
        DurableAIAgentWorker(worker).add_agent(agent("Writer"))

        def code(ctx: Any, value: Any) -> Any: ...

        code.__name__ = "agent.Writer"
        worker.add_orchestrator(code)

    with pytest.raises(AppLoadError, match=r"agent\.Writer"):
        catalog_of(register)


def test_another_sdk_is_named_with_the_version_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk.check()
    monkeypatch.setattr(pinned, "version", lambda package: "9.9")
    with pytest.raises(UnsupportedSdkError, match=r"9\.9 is installed.*1\.12\.0.*SDK_VERSIONS=any"):
        sdk.check()


def test_another_sdk_is_taken_on_request_if_it_has_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sdk.check(any_version=True) is None
    monkeypatch.setattr(pinned, "version", lambda package: "9.9")
    differences = sdk.check(any_version=True)
    assert differences is not None
    assert "durabletask 9.9 instead of 1.12.0" in differences
    monkeypatch.setattr(pinned, "_EXPECTED", ((sdk, "no_such_name"),))
    with pytest.raises(UnsupportedSdkError, match="no_such_name"):
        sdk.check(any_version=True)


def lists_a_name_of_two_lines() -> App:
    app = App("broken")
    app.orchestration(lambda run: None, name="two\nlines")  # type: ignore[call-overload]
    return app


def lists_an_input_without_a_schema() -> App:
    app = App("broken")

    @app.orchestration
    def takes_code(run: Any, code: Callable[[], None]) -> None: ...

    return app


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lists_a_name_of_two_lines, r"'two\\nlines' can't be offered: name: String should match"),
        (lists_an_input_without_a_schema, "'takes_code' can't be offered: its input has no JSON Schema"),
    ],
)
def test_what_the_catalog_can_not_list_is_named(make: Callable[[], App], said: str) -> None:
    with pytest.raises(AppLoadError, match=f"run type {said}"):
        set_up(LoadedApp(make(), "broken", "1"), make_worker(), no_instrumentation)
