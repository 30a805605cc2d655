"""What the agents of the examples say when no model is set up: a script, told apart by their instructions."""

from __future__ import annotations

import re

from towline.testing.scripted import ModelCall, Reply, Rule, ScriptedChatClient, ToolCall

_TOKEN_DELAY_S = 0.005


def offline_client() -> ScriptedChatClient:
    """One client for all agents of the examples."""
    return ScriptedChatClient(*RULES, token_delay_s=_TOKEN_DELAY_S)


def _joke(call: ModelCall) -> str:
    if call.turn > 1:
        return f"That was joke number {call.turn}. I never repeat one: my offsets are committed."
    return "A consumer walks into a bar and orders everything since the last time it was there."


def _city(call: ModelCall) -> str:
    found = re.search(r"\b(?:in|to|for)\s+([A-Z][\w-]+)", call.text)
    return found.group(1) if found else "Lisbon"


def _weather(call: ModelCall) -> Reply:
    return Reply(tool_calls=(ToolCall("get_weather", {"city": _city(call)}),))


def _tip(call: ModelCall) -> Reply:
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", call.text)] or [50.0]
    percent = numbers[1] if len(numbers) > 1 else 15.0
    return Reply(tool_calls=(ToolCall("calculate_tip", {"bill": numbers[0], "percent": percent}),))


def _journey(call: ModelCall) -> Reply:
    city = _city(call)

    def plan(after: ModelCall) -> str:
        weather, events = after.tool_results
        return (
            f"Day 1 in {city}: arrive, walk the old town ({weather}). "
            f"Day 2: {events}, and dinner by the water. "
            "Day 3: a slow breakfast, one museum, the night train home."
        )

    return Reply(
        tool_calls=(ToolCall("get_forecast", {"city": city}), ToolCall("get_events", {"city": city})),
        after_tools=plan,
    )


def _slogan(call: ModelCall) -> str:
    if call.turn == 1:
        product = call.text.partition(":")[2].strip()
        return f"{product}: made to keep going, whatever happens on the way."
    return "Keeps going."


def _verdict(call: ModelCall) -> dict[str, object]:
    spam = re.search(r"won|prize|lottery|click here|bank details", call.text, re.IGNORECASE)
    if spam:
        return {"is_spam": True, "reason": f"it says {spam.group(0)!r}, as such mails do"}
    return {"is_spam": False, "reason": "a person asks a plain question"}


def _article(call: ModelCall) -> dict[str, object]:
    asked = next(message.text for message in call.messages if message.role == "user")
    topic = re.search(r"about '(.+)'", asked, re.DOTALL)
    subject = topic.group(1) if topic else "this"
    if call.turn == 1:
        return {"title": f"On {subject}", "content": f"Much can be said about {subject}, and most of it was."}
    feedback = call.text.partition("Feedback:")[2].strip()
    return {
        "title": f"On {subject}, take {call.turn}",
        "content": f"About {subject}, written anew after a reviewer said: {feedback}",
    }


RULES = (
    Rule(_joke, instructions="comedian"),
    Rule(_weather, instructions="weather"),
    Rule(_tip, instructions="arithmetic"),
    Rule(_journey, instructions="travel planner"),
    Rule(_slogan, instructions="copywriter"),
    Rule(
        "Heat is the motion of particles: the faster they move, the hotter it is.", instructions="physicist"
    ),
    Rule("Heat is what a reaction gives off or takes in as bonds break and form.", instructions="chemist"),
    Rule(_verdict, instructions="spam"),
    Rule(
        {"response": "Thank you for your mail. Tuesday at ten suits us well; see you then."},
        instructions="answer mails",
    ),
    Rule(_article, instructions="article"),
)
