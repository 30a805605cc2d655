"""How a run's stream looks on a terminal. Pure: entries in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from towline.cli.output import output_text, printable, short


def clean(text: str) -> str:
    """Tokens keep their line breaks; other control characters are escaped."""
    return "\n".join(printable(part) for part in text.split("\n"))


class StreamView:
    """Turns entries (`docs/streams.md`) into text to write as it is; keeps track of the open line."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._open_turn: tuple[str, str] | None = None
        """Agent and turn whose tokens are on the line that is not ended yet."""
        self._texts: dict[tuple[str, str], str] = {}
        """What was written of each turn, so that its message adds only what is missing."""

    def text(self, kind: str, data: Mapping[str, Any]) -> str:
        """What to write for one entry."""
        shows: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
            "token": self._token,
            "message": self._message,
            "tool_call": self._tool_call,
            "reset": self._reset,
            "status": self._status,
            "approval": self._approval,
            "end": self._end,
            "error": self._error,
        }
        show = shows.get(kind)
        # A later version's entry is shown as it is.
        return self._line(f"{printable(kind)} {short(dict(data))}") if show is None else show(data)

    def why(self, run: Mapping[str, Any]) -> str:
        """What to write after an end without output, from the run's description."""
        error: Mapping[str, Any] | None = run.get("error")
        if error:
            return self._line(f"  {printable(str(error.get('type')))}: {short(str(error.get('message')))}")
        return self._line(f"  {short(str(run['reason']))}") if run.get("reason") else ""

    def end(self) -> str:
        """What to write when nothing follows."""
        return self._close()

    def _token(self, data: Mapping[str, Any]) -> str:
        turn, text = _turn(data), str(data.get("text", ""))
        have = self._texts.get(turn, "")
        if data.get("offset", len(have)) != len(have):
            return ""  # not the next one: the message will have it
        self._texts[turn] = have + text
        if turn == self._open_turn:
            return clean(text)
        before = self._close()
        self._open_turn = turn
        return f"{before}{turn[0]}> {clean(text)}"

    def _message(self, data: Mapping[str, Any]) -> str:
        turn, text = _turn(data), str(data.get("text", ""))
        have = self._texts.get(turn)
        self._texts[turn] = text
        if turn == self._open_turn and have is not None and text.startswith(have):
            return f"{clean(text[len(have) :])}{self._close()}"
        return "" if have == text else self._line(f"{turn[0]}> {clean(text)}")

    def _tool_call(self, data: Mapping[str, Any]) -> str:
        arguments = data.get("arguments")
        shown = "" if arguments is None else short(arguments)
        return self._line(f"{_turn(data)[0]} calls {printable(str(data.get('name')))}({shown})")

    def _reset(self, data: Mapping[str, Any]) -> str:
        if "turn" in data:
            self._texts.pop(_turn(data), None)
            return self._line(f"({_turn(data)[0]} begins this turn again: what it said before is void)")
        self._texts.clear()
        return self._line("(the stream begins again: what was shown before is void)")

    def _status(self, data: Mapping[str, Any]) -> str:
        if "status" in data:
            return self._line(f"status {short(data['status'])}")
        return self._line(f"started  {printable(str(data.get('run_type')))}")

    def _approval(self, data: Mapping[str, Any]) -> str:
        name, phase = printable(str(data.get("approval_id"))), data.get("phase")
        if phase == "requested":
            title = short(data.get("title") or data.get("details") or "")
            asks = self._line(f"asks   {name}  {title}".rstrip())
            return f"{asks}       towline approve {self._run_id} {name}   (or reject … --feedback TEXT)\n"
        if phase == "refused":
            return self._line(f"refused  {name}  {data.get('reason')}")
        by = f" by {printable(str(data['approver']))}" if data.get("approver") else ""
        return self._line(f"{data.get('outcome')}  {name}{by}")

    def _end(self, data: Mapping[str, Any]) -> str:
        output = data.get("output")
        return self._line(f"{data.get('outcome')}  {'' if output is None else output_text(output)}".rstrip())

    def _error(self, data: Mapping[str, Any]) -> str:
        error: Mapping[str, Any] = data.get("error") or {}
        return self._line(f"failed  {printable(str(error.get('type')))}: {short(str(error.get('message')))}")

    def _line(self, text: str) -> str:
        return f"{self._close()}{text}\n"

    def _close(self) -> str:
        if self._open_turn is None:
            return ""
        self._open_turn = None
        return "\n"


def _turn(data: Mapping[str, Any]) -> tuple[str, str]:
    return printable(str(data.get("agent") or "agent")), str(data.get("turn"))
