"""Commands that publish: a run, a decision, an event, a control command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from towline.cli import inputs
from towline.cli.answers import listening, verdict
from towline.cli.connection import CONNECT_TIMEOUT_S
from towline.cli.errors import UsageError
from towline.cli.following import follow as follow_run
from towline.cli.output import Printer, event_json, hint, printable, warn
from towline.cli.run import execute
from towline.contracts.client import Run, TowlineClient
from towline.contracts.settings import KafkaSettings

SOURCE: Final = "towline/cli"
ANSWER_WAIT_S: Final = 10.0
NO_ANSWER: Final = 3
"""Exit status: published, and neither done nor refused in time."""

RunIdArgument: TypeAlias = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]
ApprovalArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="APPROVAL_ID", help="The ask, as approval.requested names it.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Feedback: TypeAlias = Annotated[str | None, typer.Option(help="Text for the run.")]
Data: TypeAlias = Annotated[
    str | None, typer.Option(metavar="JSON|@FILE|-", help="A JSON object merged into what the run receives.")
]
Approver: TypeAlias = Annotated[str | None, typer.Option(help="Who decides.")]
Digest: TypeAlias = Annotated[
    str | None, typer.Option(help="Digest of what was seen; the decision is refused if it has changed.")
]
SigningKey: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Private key (JWK) that vouches for --approver, where the operator's rules say who may decide.",
    ),
]
Wait: TypeAlias = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for the answer; 0: only publish.")
]
Send: TypeAlias = Callable[[Run, Any], Awaitable[str]]
"""Publishes a command; given the run and what was parsed of the command line."""

Signing: TypeAlias = tuple[Path | None, str | None]
"""File with the key that signs, if it is to be signed; and whom it vouches for."""

Reason: TypeAlias = Annotated[str | None, typer.Option(help="For the record.")]


def publish(
    run_type: Annotated[str, typer.Argument(metavar="RUN_TYPE", help="A run type of a registered app.")],
    input_text: Annotated[
        str, typer.Option("--input", "-i", metavar="JSON|@FILE|-", help="The run's input.")
    ] = "null",
    run_id: Annotated[
        str | None, typer.Option(help="Names the run; the same id starts one run only.")
    ] = None,
    session_id: Annotated[
        str | None, typer.Option(help="Runs of one session continue a conversation.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be given often.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what it does until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Start a run. Prints its id; with --follow exits 0 only if it completed."""
    execute(_publish(run_type, input_text, run_id, session_id, tag or [], follow=follow, as_json=as_json))


async def _publish(
    run_type: str,
    input_text: str,
    run_id: str | None,
    session_id: str | None,
    tag: list[str],
    *,
    follow: bool,
    as_json: bool,
) -> int:

    options: dict[str, Any] = {"tags": inputs.tags(tag)}
    if run_id is not None:
        options["run_id"] = inputs.run_id(run_id)
    if session_id is not None:
        options["session_id"] = inputs.run_id(session_id, "session id")
    run_input = inputs.read_json(input_text, "--input")
    settings, printer = KafkaSettings(), Printer(as_json=as_json)
    async with TowlineClient(settings, source=SOURCE, connect_timeout_s=CONNECT_TIMEOUT_S) as client:
        run = await client.start(run_type, run_input, **options)
    printer.value({"run_id": run.run_id, "run_type": run_type}, run.run_id)
    if follow:
        return await follow_run(run.run_id, settings, printer)
    hint(f"follow it: towline tail {run.run_id}")
    return 0


def approve(
    run_id: RunIdArgument,
    approval_id: ApprovalArgument,
    feedback: Feedback = None,
    data: Data = None,
    approver: Approver = None,
    digest: Digest = None,
    signing_key_file: SigningKey = None,
    wait: Wait = ANSWER_WAIT_S,
    as_json: Json = False,
) -> None:
    """Approve what a run asks for."""
    said = {"feedback": feedback, "approver": approver, "digest": digest}
    _decide(run_id, approval_id, True, said, data, signing_key_file, wait=wait, as_json=as_json)


def reject(
    run_id: RunIdArgument,
    approval_id: ApprovalArgument,
    feedback: Feedback = None,
    data: Data = None,
    approver: Approver = None,
    digest: Digest = None,
    signing_key_file: SigningKey = None,
    wait: Wait = ANSWER_WAIT_S,
    as_json: Json = False,
) -> None:
    """Reject what a run asks for."""
    said = {"feedback": feedback, "approver": approver, "digest": digest}
    _decide(run_id, approval_id, False, said, data, signing_key_file, wait=wait, as_json=as_json)


def raise_event(
    run_id: RunIdArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The event's name.")],
    data: Annotated[str, typer.Option(metavar="JSON|@FILE|-", help="Delivered as it is.")] = "null",
    approver: Annotated[
        str | None, typer.Option(help="Who says so. Counts with --signing-key-file only.")
    ] = None,
    signing_key_file: SigningKey = None,
    wait: Wait = ANSWER_WAIT_S,
    as_json: Json = False,
) -> None:
    """Raise an external event in a run."""

    def parse() -> Any:
        if approver is not None and signing_key_file is None:
            raise UsageError("--approver: says nothing without --signing-key-file")
        return inputs.read_json(data, "--data")

    _command(
        run_id,
        lambda run, parsed: run.raise_event(name, parsed, approver=approver),
        {"name": name},
        parse=parse,
        signing=(signing_key_file, approver),
        wait=wait,
        as_json=as_json,
    )


def cancel(
    run_id: RunIdArgument, reason: Reason = None, wait: Wait = ANSWER_WAIT_S, as_json: Json = False
) -> None:
    """Cancel a run: it may compensate first."""
    _command(
        run_id, lambda run, _: run.cancel(reason=reason), {"action": "cancel"}, wait=wait, as_json=as_json
    )


def suspend(
    run_id: RunIdArgument, reason: Reason = None, wait: Wait = ANSWER_WAIT_S, as_json: Json = False
) -> None:
    """Suspend a run: it takes no further step until it is resumed."""
    _command(
        run_id, lambda run, _: run.suspend(reason=reason), {"action": "suspend"}, wait=wait, as_json=as_json
    )


def resume(
    run_id: RunIdArgument, reason: Reason = None, wait: Wait = ANSWER_WAIT_S, as_json: Json = False
) -> None:
    """Resume a suspended run."""
    _command(
        run_id, lambda run, _: run.resume(reason=reason), {"action": "resume"}, wait=wait, as_json=as_json
    )


def _decide(
    run_id: str,
    approval_id: str,
    approved: bool,
    said: dict[str, str | None],
    data: str | None,
    signing_key_file: Path | None,
    *,
    wait: float,
    as_json: bool,
) -> None:
    def send(run: Run, parsed: Any) -> Awaitable[str]:
        decide = run.approve if approved else run.reject
        return decide(approval_id, data=parsed, **said)

    _command(
        run_id,
        send,
        {"approval_id": approval_id, "approved": approved},
        parse=lambda: inputs.json_object(data, "--data"),
        signing=(signing_key_file, said["approver"]),
        wait=wait,
        as_json=as_json,
    )


def _command(
    run_id: str,
    send: Send,
    said: dict[str, Any],
    *,
    wait: float,
    as_json: bool,
    parse: Callable[[], Any] = lambda: None,
    signing: Signing = (None, None),
) -> None:
    execute(
        _send(
            run_id,
            send,
            said,
            parse=parse,
            signing=signing,
            wait_s=wait,
            as_json=as_json,
        )
    )


async def _send(
    run_id: str,
    send: Send,
    said: dict[str, Any],
    *,
    parse: Callable[[], Any],
    signing: Signing,
    wait_s: float,
    as_json: bool,
) -> int:
    """Publish and show the answer. 1 if the command was refused, `NO_ANSWER` if no answer came in time."""
    inputs.run_id(run_id)
    parsed, settings = parse(), KafkaSettings()
    signer = inputs.signer(*signing, settings)
    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(
            TowlineClient(settings, source=SOURCE, connect_timeout_s=CONNECT_TIMEOUT_S, signer=signer)
        )
        listen = listening(settings, run_id, ends_run=said.get("action") == "cancel")
        answered = await opened.enter_async_context(listen) if wait_s else None
        event_id = await send(client.run(run_id), parsed)
        answer = None if answered is None else await answered(event_id, wait_s)
    words = " ".join(str(value) for value in said.values() if not isinstance(value, bool))
    fields = {"run_id": run_id, **said, "event_id": event_id}
    if answer is None:
        text = f"{run_id}  {words}  published: see `towline events`"
        Printer(as_json=as_json).value({**fields, "answer": None}, text)
        if not wait_s:
            return 0
        warn(f"towline: no answer within {wait_s:g} s: {_why_none(run_id, said)}, or give a longer --wait")
        return NO_ANSWER
    text, worked = verdict(answer)
    Printer(as_json=as_json).value({**fields, "answer": event_json(answer)}, f"{run_id}  {words}  {text}")
    return 0 if worked else 1


def _why_none(run_id: str, said: dict[str, Any]) -> str:
    """What may be the matter, and what to do about it."""
    if (ask := said.get("approval_id") or said.get("name")) is None:
        return "check that a bridge and a worker run"
    return (
        f"as long as run {run_id} does not ask for {printable(ask)}, this waits with it; "
        f"check what it asks for (towline tail {run_id}) and that a bridge and a worker run"
    )
