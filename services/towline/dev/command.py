"""``towline dev``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Annotated, Final

import typer

from towline.contracts.errors import TowlineError
from towline.dev.console import Console, LogLines
from towline.dev.errors import DevError, UnusablePathError
from towline.dev.stack import ADDRESS_VARIABLES, Stack, StackPlan
from towline.dev.supervisor import Supervisor
from towline.dev.workspace import Workspace, check_writable, env_lines, open_workspace, write_atomically

app = typer.Typer(help="The whole stack on this machine.", pretty_exceptions_enable=False)

USUAL_PORTS: Final = {"kafka": 9092, "valkey": 6379, "scheduler": 8080, "relay": 8090}
"""The settings' defaults, so that other commands need no addresses; free ones if these are taken."""
NO_RELAY: Final = "none"
"""As TOWLINE_RELAY_URL: there is none, and none is started."""
EXAMPLES: Final = "examples.all:setup_worker"
SAMPLE: Final = "towline.cli.sample_app:setup_worker"

_FIRST_STEPS: Final = {
    EXAMPLES: (
        'towline publish agent.TravelPlanner --input \'{"message": "Plan three days in Porto."}\' --follow',
        'towline publish write_article --input \'{"topic": "tides"}\' --run-id article-1',
        "towline approve article-1 HumanApproval",
    ),
    SAMPLE: (
        "towline publish greet --input '\"Ann\"' --run-id greet-1",
        "towline approve greet-1 HumanApproval",
    ),
}


@app.command()
def dev(
    app_path: Annotated[
        str | None,
        typer.Option("--app", metavar="MODULE:ATTR", help="App of the worker. Default: the examples."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps all data. Default: a temporary one, removed at the end."),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(help="Written with the addresses (NAME=value) once all is ready."),
    ] = None,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Any free ports, not the usual ones.")
    ] = False,
) -> None:
    """Start Kafka, Valkey, scheduler, bridge, worker and relay, and keep them up until Ctrl-C.

    A part whose address is in the environment (TOWLINE_KAFKA_BOOTSTRAP, TOWLINE_REDIS_URL,
    TOWLINE_SCHEDULER_ADDRESS, TOWLINE_RELAY_URL) is used instead of started.
    """
    console = Console(as_json=os.environ.get("TOWLINE_LOG_FORMAT") == "json")
    LogLines(lambda text: console.line("dev", text)).install()
    try:
        with open_workspace(data) as workspace:
            _serve(workspace, console, app_path or default_app(), env_file, free_ports=free_ports)
        status = 0
    except (DevError, TowlineError, OSError, ValueError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"towline dev: {error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may still be at a download that is of no use now; nothing else is left to do.
    os._exit(status)


def default_app() -> str:
    """The examples where they can be imported (in the repository), else a small app of Towline's own."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return EXAMPLES if find_spec("examples.all") is not None else SAMPLE
    except ModuleNotFoundError:
        return SAMPLE


def given_addresses(environment: Mapping[str, str]) -> dict[str, str]:
    """Addresses of parts that run already."""
    return {name: environment[name] for name in ADDRESS_VARIABLES if environment.get(name)}


def _serve(
    workspace: Workspace, console: Console, app_path: str, env_file: Path | None, *, free_ports: bool
) -> None:
    if env_file is not None:
        _clear_away(env_file)
    for name in workspace.stop_leftovers():
        console.line("dev", f"stopped {name}, left by a towline dev that was killed")
    plan = StackPlan(
        data=workspace.path,
        app=app_path,
        given=given_addresses(os.environ),
        settings={"TOWLINE_TRACES_DIR": os.environ.get("TOWLINE_TRACES_DIR", str(workspace.path / "traces"))},
        ports=({} if free_ports else USUAL_PORTS) | workspace.last_ports(),
    )
    stack = Stack(plan, sink=console.line)
    if env_file is not None:
        env_lines(stack.addresses)  # one that a file cannot carry is told before anything is started

    def on_ready() -> None:
        workspace.remember_ports(stack.ports())
        if env_file is not None:
            write_atomically(env_file, env_lines(stack.addresses))
        console.say(summary(stack, env_file))

    supervisor = Supervisor(stack, say=lambda text: console.line("dev", text), on_ready=on_ready)
    try:
        asyncio.run(_supervise(supervisor))
    finally:
        if env_file is not None:
            env_file.unlink(missing_ok=True)


def _clear_away(env_file: Path) -> None:
    """Remove what an earlier stack left, with its addresses; a file that cannot be written is told now."""
    try:
        env_file.unlink(missing_ok=True)
        check_writable(env_file.absolute().parent)
    except OSError as error:
        raise UnusablePathError("--env-file", env_file, error) from None


async def _supervise(supervisor: Supervisor) -> None:
    supervisor.stop_on_signals()
    await supervisor.run()


def _shown(name: str, stack: Stack) -> str:
    """An address; of a Redis that was given with a password or certificate, that there is one."""
    value = stack.addresses[name]
    is_secret = name == "TOWLINE_REDIS_URL" and name in stack.plan.given and ("@" in value or "?" in value)
    return "********" if is_secret else value


def summary(stack: Stack, env_file: Path | None) -> str:
    """What a person wants to know once all is ready."""
    addresses = "\n".join(f"  {name}={_shown(name, stack)}" for name in sorted(stack.addresses))
    relay = stack.addresses.get("TOWLINE_RELAY_URL")
    # Absolute: most shells look for a file without a folder on the PATH.
    first = [f"set -a; . {quote(str(env_file.absolute()))}; set +a"] if env_file is not None else []
    steps = [*first, *_FIRST_STEPS.get(stack.plan.app, ()), "towline results --follow"]
    if relay and relay != NO_RELAY:
        steps.append(f"open {relay}/docs   # the HTTP API")
    tries = "\n".join(f"  {step}" for step in steps)
    large = ""
    if stack.payloads_url.startswith("file:"):  # any other may hold a password
        large = f"For inputs and outputs over 1 MB: TOWLINE_PAYLOADS_URL={stack.payloads_url}\n\n"
    return (
        f"\nTowline is ready, serving {stack.plan.app}.\n{addresses}\n\n{large}"
        f"Try, in another terminal{'' if env_file else ' with these variables set'}:\n{tries}\n"
        "Ctrl-C stops all of it.\n"
    )
