"""The AsyncAPI 3.0 document of the wire contract, from the models and topics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from towline.contracts.attributes import MAX_ATTRIBUTE_LENGTH
from towline.contracts.events import EVENT_MODELS, AppRegistered, EventData
from towline.contracts.topics import TOPICS, Topics, TopicSpec

_BINDING_VERSION: Final = "0.5.0"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"
_TRACEPARENT: Final = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_PLAIN: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$./-]*")
_YAML_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_RECEIVED: Final = frozenset({"runs", "approvals"})

_DEAD_LETTER_HEADERS: Final = {
    "towline_dead_letter_reason": "A stable word, for example invalid_json or run_id_conflict.",
    "towline_dead_letter_error": "What is wrong and how to mend it, for people.",
    "towline_dead_letter_topic": "The topic the record came from.",
    "towline_dead_letter_partition": "Its partition, in decimal.",
    "towline_dead_letter_offset": "Its offset, in decimal.",
    "towline_dead_letter_time": "When it was put here, RFC 3339.",
}
_VALUE_LEFT_OUT: Final = {
    "towline_dead_letter_value_left_out": "Size in bytes of a value that was too large for this topic.",
}
_MARK_HEADERS: Final = {
    "towline_dead_letter_mark": "replayed or discarded.",
    "towline_dead_letter_mark_of": "The dead letter: topic/partition/offset of its record, as in the key.",
    "towline_dead_letter_mark_note": "Why, if somebody said so.",
}


def document(version: str, examples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document.

    Args:
        version: Version of the contract's implementation.
        examples: For each event type one golden example (`key`, `headers`, `data`).
    """
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Towline wire contract",
            "version": version,
            "description": (
                "CloudEvents 1.0 over Kafka. Towline receives commands and decisions, and sends lifecycle "
                "events and outcomes. The prefix of the topics' names can be set; the default is shown."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {spec.name: _channel(spec) for spec in TOPICS},
        "operations": {_operation_name(spec): _operation(spec) for spec in TOPICS},
        "components": {
            "messages": {
                **{
                    _message_name(model): _message(model, examples[model.event_type])
                    for model in EVENT_MODELS
                },
                "DeadLetter": _dead_letter(),
                "DeadLetterMark": _dead_letter_mark(),
            },
            "schemas": {"CloudEventHeaders": _headers()},
        },
    }


def to_yaml(value: Any) -> str:
    """`value` (JSON) as YAML in block style, always the same for the same value.

    Strings are written as in JSON, which is how YAML reads double-quoted ones too.
    """
    return "\n".join(_block(value, 0)) + "\n"


def _message_name(model: type[EventData]) -> str:
    return model.__name__


def _messages_of(spec: TopicSpec) -> list[str]:
    if spec.name == "dead-letters":
        return ["DeadLetter", "DeadLetterMark"]
    return [_message_name(model) for model in EVENT_MODELS if model.topic == spec.name]


def _channel(spec: TopicSpec) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if "cleanup.policy" in spec.settings:
        settings["cleanup.policy"] = [spec.settings["cleanup.policy"]]
    for name in ("retention.ms", "max.message.bytes"):
        if name in spec.settings:
            settings[name] = int(spec.settings[name])
    return {
        "address": Topics().name(spec.name),
        "title": spec.name,
        "description": f"{spec.purpose[:1].upper()}{spec.purpose[1:]}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _messages_of(spec)},
        "bindings": {
            "kafka": {
                "topic": Topics().name(spec.name),
                "partitions": spec.partitions,
                "topicConfiguration": settings,
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _operation_name(spec: TopicSpec) -> str:
    verb = "receive" if spec.name in _RECEIVED else "send"
    return verb + "".join(part.capitalize() for part in spec.name.split("-"))


def _operation(spec: TopicSpec) -> dict[str, Any]:
    return {
        "action": "receive" if spec.name in _RECEIVED else "send",
        "channel": {"$ref": f"#/channels/{spec.name}"},
        "summary": f"{spec.purpose[:1].upper()}{spec.purpose[1:]}.",
        "messages": [{"$ref": f"#/channels/{spec.name}/messages/{name}"} for name in _messages_of(spec)],
    }


def _message(model: type[EventData], example: Mapping[str, Any]) -> dict[str, Any]:
    key = "the app's name" if model is AppRegistered else "the run's id"
    return {
        "name": model.event_type,
        "title": model.__name__,
        "summary": (model.__doc__ or "").strip(),
        "contentType": "application/json",
        "headers": {
            "allOf": [
                {"$ref": "#/components/schemas/CloudEventHeaders"},
                {"type": "object", "properties": {"ce_type": {"const": model.event_type}}},
            ]
        },
        "payload": {
            "schemaFormat": _SCHEMA_FORMAT,
            "schema": {"$ref": f"./schemas/{model.event_type}.json"},
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": f"UTF-8 text: {key}."},
                "bindingVersion": _BINDING_VERSION,
            }
        },
        "examples": [{"name": "golden", "headers": example["headers"], "payload": example["data"]}],
    }


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "dead-letter",
        "title": "DeadLetter",
        "summary": "A record that could not be trusted: its key, value and headers as they were, and why.",
        "headers": _texts(_DEAD_LETTER_HEADERS | _VALUE_LEFT_OUT, required=list(_DEAD_LETTER_HEADERS)),
        "payload": {"description": "The value of the record as it was: any bytes, or null."},
    }


def _dead_letter_mark() -> dict[str, Any]:
    return {
        "name": "dead-letter-mark",
        "title": "DeadLetterMark",
        "summary": "Takes a dead letter off the open ones.",
        "headers": _texts(
            _MARK_HEADERS, required=["towline_dead_letter_mark", "towline_dead_letter_mark_of"]
        ),
        "payload": {"description": "Empty."},
    }


def _texts(descriptions: Mapping[str, str], *, required: list[str]) -> dict[str, Any]:
    """Schema of headers that are texts."""
    properties = {name: {"type": "string", "description": text} for name, text in descriptions.items()}
    return {"type": "object", "properties": properties, "required": required}


def _headers() -> dict[str, Any]:
    def text(description: str, **more: Any) -> dict[str, Any]:
        return {"type": "string", "description": description, **more}

    attribute = {"minLength": 1, "maxLength": MAX_ATTRIBUTE_LENGTH}
    return {
        "type": "object",
        "description": "Kafka header values are UTF-8 text; names are read in any case.",
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": text("Unique per source; a known id is a repeat.", **attribute),
            "ce_source": text("Who published it.", **attribute),
            "ce_type": text("The event type.", **attribute),
            "ce_time": text("When, RFC 3339.", format="date-time"),
            "ce_subject": text("The run's id; in the catalog the app's name.", **attribute),
            "content-type": text("application/json, or application/cloudevents+json for a structured event."),
            "traceparent": text("W3C trace context.", pattern=_TRACEPARENT),
            "tracestate": text("W3C trace state."),
            "ce_traceparent": text("The same, as a CloudEvents extension.", pattern=_TRACEPARENT),
            "ce_tracestate": text("The same, as a CloudEvents extension."),
        },
        "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    }


def _block(value: Any, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if isinstance(value, dict) and value:
        for key, item in cast("dict[str, Any]", value).items():
            yield from _entry(f"{pad}{_key(key)}:", item, depth)
    elif isinstance(value, list) and value:
        for item in cast("list[Any]", value):
            lines = list(_block(item, depth + 1))
            yield f"{pad}- {lines[0].lstrip()}"
            yield from lines[1:]
    else:
        yield pad + json.dumps(value, ensure_ascii=False)


def _entry(head: str, item: Any, depth: int) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from _block(item, depth + 1)
    else:
        yield f"{head} {json.dumps(item, ensure_ascii=False)}"


def _key(name: str) -> str:
    plain = _PLAIN.fullmatch(name) is not None and name.lower() not in _YAML_WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)
