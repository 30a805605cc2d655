"""An offline model: a chat client that answers by a script instead of calling a model.

A script is a list of rules, tried in order; the first one that fits the call answers it. A client keeps
nothing between calls (all that a rule can look at is in the call itself), so that one client serves any
number of agents and concurrent turns, and a turn that is executed again after a crash says the same.

```
ScriptedChatClient(
    Rule(Reply(tool_calls=(ToolCall("get_weather", {"city": "Paris"}),)), message="weather"),
    Rule(lambda call: f"You said: {call.text}"),
)
```

Errors: `NoRuleError` (a `LookupError`) when no rule fits; it names the call and the rules.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, TypeAlias, cast
from uuid import uuid4

from agent_framework import (
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatOptions,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    UsageDetails,
)
from agent_framework.observability import ChatTelemetryLayer
from pydantic import BaseModel

_WORD: Final = re.compile(r"\S+\s*|\s+")
_CALLS_KEPT_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """All that a rule can look at: one call of the model."""

    instructions: str
    """The agent's instructions; empty if it has none."""
    messages: tuple[Message, ...]
    """The conversation so far, the newest last."""
    text: str
    """Text of the newest user message."""
    turn: int
    """How many user messages there were, this one included: 1 in a new conversation."""
    tool_results: tuple[str, ...] = ()
    """What the tools answered since the newest user message, in order."""
    tool_rounds: int = 0
    """How often the model has asked for tools since the newest user message."""
    tools: tuple[str, ...] = ()
    """Names of the tools that may be called."""
    response_format: type[BaseModel] | Mapping[str, Any] | None = None
    """The structure asked for, if one was."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool that the model asks for."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says to one call, and how."""

    text: str = ""
    value: BaseModel | Mapping[str, Any] | None = None
    """Structured output; sent as JSON in place of `text`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tools to ask for. The agent runs them and calls the model again, which answers `after_tools`."""
    after_tools: Script | None = None
    """The answer once the tools have run; default: their results, one a line. May ask for tools again."""
    tokens: tuple[str, ...] | None = None
    """The pieces in which a stream brings the text; default: word by word."""
    delay_s: float | None = None
    """Before the first token; default: the client's."""
    token_delay_s: float | None = None
    """Before each further token; default: the client's."""
    error: Exception | None = None
    """Raised in place of an answer; in a stream after `error_after_tokens` tokens."""
    error_after_tokens: int = 0
    usage: UsageDetails | None = None
    """Default: words of the conversation in, words of the answer out."""


Answer: TypeAlias = "str | BaseModel | Mapping[str, Any] | Exception | Reply"
Script: TypeAlias = "Answer | Callable[[ModelCall], Answer | Awaitable[Answer]]"


@dataclass(frozen=True, slots=True)
class Rule:
    """An answer and the calls that it answers: all conditions given must hold."""

    answer: Script
    message: str | re.Pattern[str] | None = None
    """Pattern searched for in the newest user message; a string is one that ignores case."""
    instructions: str | re.Pattern[str] | None = None
    """Pattern searched for in the agent's instructions; this tells the agents of one client apart."""
    when: Callable[[ModelCall], bool] | None = None

    def fits(self, call: ModelCall) -> bool:
        """Whether this rule answers `call`."""
        return (
            _found(self.message, call.text)
            and _found(self.instructions, call.instructions)
            and (self.when is None or self.when(call))
        )


class NoRuleError(LookupError):
    """No rule of the script fits the call."""

    def __init__(self, call: ModelCall, rules: Sequence[Rule]) -> None:
        conditions = [
            {"message": _shown(rule.message), "instructions": _shown(rule.instructions)} for rule in rules
        ]
        super().__init__(
            f"no rule of the script fits message {call.text!r} with instructions {call.instructions[:80]!r}; "
            f"add one, or a last rule without conditions. Rules: {conditions}"
        )
        self.call = call


class ScriptedChatClient(
    FunctionInvocationLayer[ChatOptions[None]],
    ChatMiddlewareLayer[ChatOptions[None]],
    ChatTelemetryLayer[ChatOptions[None]],
    BaseChatClient[ChatOptions[None]],
):
    """A chat client that answers by rules. See the module's docstring.

    Args:
        rules: Tried in order. Anything that is no `Rule` is an answer to every call.
        model: Reported as the model's name.
        delay_s: Before the first token of each answer, in seconds.
        token_delay_s: Before each further token of a stream, in seconds. Without streaming both are
            waited for before the answer.

    Safe for concurrent calls, from several event loops too.
    """

    OTEL_PROVIDER_NAME: ClassVar[str] = "scripted"

    def __init__(
        self, *rules: Rule | Script, model: str = "scripted", delay_s: float = 0.0, token_delay_s: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.rules = tuple(rule if isinstance(rule, Rule) else Rule(rule) for rule in rules)
        self.delay_s = delay_s
        self.token_delay_s = token_delay_s
        self.calls: deque[ModelCall] = deque(maxlen=_CALLS_KEPT_MAX)
        """The latest calls, for assertions; nothing is decided by them."""

    def _inner_get_response(
        self,
        *,
        messages: Sequence[Message],
        stream: bool,
        options: Mapping[str, Any],
        **kwargs: Any,  # noqa: ARG002 - part of the interface
    ) -> Awaitable[ChatResponse[Any]] | ResponseStream[ChatResponseUpdate, ChatResponse[Any]]:
        call = read_call(messages, options)
        self.calls.append(call)
        if stream:
            return self._build_response_stream(self._stream(call), response_format=call.response_format)
        return self._respond(call)

    async def _respond(self, call: ModelCall) -> ChatResponse[Any]:
        reply = await self._reply(call)
        tokens = _tokens(reply)
        await asyncio.sleep(self._delay_s(reply) + self._token_delay_s(reply) * max(len(tokens) - 1, 0))
        if reply.error is not None:
            raise reply.error.with_traceback(None)
        return ChatResponse(
            messages=Message(role="assistant", contents=[*_text_contents(tokens), *_call_contents(reply)]),
            response_id=uuid4().hex,
            model=self.model,
            created_at=_now(),
            finish_reason="tool_calls" if reply.tool_calls else "stop",
            usage_details=_usage(call, reply),
            response_format=call.response_format,
        )

    async def _stream(self, call: ModelCall) -> AsyncIterator[ChatResponseUpdate]:
        reply = await self._reply(call)
        response_id, message_id, created_at = uuid4().hex, uuid4().hex, _now()

        def update(*contents: Content, last: bool = False) -> ChatResponseUpdate:
            return ChatResponseUpdate(
                contents=contents,
                role="assistant",
                response_id=response_id,
                message_id=message_id,
                model=self.model,
                created_at=created_at,
                finish_reason=("tool_calls" if reply.tool_calls else "stop") if last else None,
            )

        await asyncio.sleep(self._delay_s(reply))
        for number, token in enumerate(_tokens(reply)):
            if reply.error is not None and number >= reply.error_after_tokens:
                break
            if number:
                await asyncio.sleep(self._token_delay_s(reply))
            yield update(Content.from_text(token))
        if reply.error is not None:
            raise reply.error.with_traceback(None)
        yield update(*_call_contents(reply), Content.from_usage(_usage(call, reply)), last=True)

    async def _reply(self, call: ModelCall) -> Reply:
        for rule in self.rules:
            if rule.fits(call):
                reply = await _resolve(rule.answer, call)
                for _ in range(call.tool_rounds):
                    if not reply.tool_calls:
                        break
                    after = "\n".join(call.tool_results) if reply.after_tools is None else reply.after_tools
                    reply = await _resolve(after, call)
                return reply
        raise NoRuleError(call, self.rules)

    def _delay_s(self, reply: Reply) -> float:
        return self.delay_s if reply.delay_s is None else reply.delay_s

    def _token_delay_s(self, reply: Reply) -> float:
        return self.token_delay_s if reply.token_delay_s is None else reply.token_delay_s


def read_call(messages: Sequence[Message], options: Mapping[str, Any]) -> ModelCall:
    """What `messages` and `options`, as MAF hands them to a chat client, say to a script."""
    asked = [index for index, message in enumerate(messages) if message.role == "user"]
    since = messages[asked[-1] + 1 :] if asked else messages
    return ModelCall(
        instructions="\n".join(
            filter(
                None,
                [options.get("instructions"), *(m.text for m in messages if m.role == "system")],
            )
        ),
        messages=tuple(messages),
        text=messages[asked[-1]].text if asked else "",
        turn=len(asked),
        tool_results=tuple(
            _result_text(content)
            for message in since
            for content in message.contents
            if content.type == "function_result"
        ),
        tool_rounds=sum(any(c.type == "function_call" for c in message.contents) for message in since),
        tools=tuple(
            str(getattr(tool, "name", tool)) for tool in cast("list[Any]", options.get("tools") or [])
        ),
        response_format=options.get("response_format"),
    )


async def _resolve(script: Script, call: ModelCall) -> Reply:
    answer = script(call) if callable(script) else script
    if inspect.isawaitable(answer):
        answer = await answer
    match answer:
        case Reply():
            return answer
        case str():
            return Reply(text=answer)
        case Exception():
            return Reply(error=answer)
        case _:
            return Reply(value=answer)


def _tokens(reply: Reply) -> tuple[str, ...]:
    if reply.tokens is not None:
        return reply.tokens
    return tuple(_WORD.findall(_text(reply)))


def _text(reply: Reply) -> str:
    match reply.value:
        case None:
            return reply.text
        case BaseModel():
            return reply.value.model_dump_json()
        case _:
            return json.dumps(reply.value, ensure_ascii=False)


def _text_contents(tokens: tuple[str, ...]) -> list[Content]:
    return [Content.from_text("".join(tokens))] if tokens else []


def _call_contents(reply: Reply) -> list[Content]:
    return [
        Content.from_function_call(
            call_id=f"call_{uuid4().hex}", name=call.name, arguments=json.dumps(dict(call.arguments))
        )
        for call in reply.tool_calls
    ]


def _usage(call: ModelCall, reply: Reply) -> UsageDetails:
    if reply.usage is not None:
        return reply.usage
    words_in = sum(len(message.text.split()) for message in call.messages) + len(call.instructions.split())
    words_out = len(_text(reply).split())
    return UsageDetails(
        input_token_count=words_in, output_token_count=words_out, total_token_count=words_in + words_out
    )


def _result_text(content: Content) -> str:
    result: Any = content.result
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _found(pattern: str | re.Pattern[str] | None, text: str) -> bool:
    if pattern is None:
        return True
    return (re.compile(pattern, re.IGNORECASE) if isinstance(pattern, str) else pattern).search(
        text
    ) is not None


def _shown(pattern: str | re.Pattern[str] | None) -> str | None:
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern


def _now() -> str:
    return datetime.now(UTC).isoformat()
