"""The codec: what it writes it reads; what it refuses, it refuses by name."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from towline.contracts import (
    EVENT_MODELS,
    ApprovalDecided,
    DecodeError,
    EncodeError,
    Event,
    RunCompleted,
    RunRequested,
    decode,
    encode,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER_TRACE = "00-11111111111111111111111111111111-2222222222222222-00"
STRUCTURED = (("content-type", b"application/cloudevents+json"),)


def headers(**changes: bytes | None) -> list[tuple[str, bytes | None]]:
    """Headers of a valid run request; a change to None leaves one out."""
    base: dict[str, bytes | None] = {
        "ce_specversion": b"1.0",
        "ce_id": b"e-1",
        "ce_source": b"tests",
        "ce_type": b"towline.run.requested.v1",
        "content-type": b"application/json",
    }
    base |= {name.replace("__", "-"): value for name, value in changes.items()}
    return [(name, value) for name, value in base.items() if value is not None]


def structured(**changes: object) -> bytes:
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "tests",
        "type": "towline.run.requested.v1",
        "data": {"run_id": "r-1", "run_type": "a"},
    }
    event |= changes
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


GOOD = b'{"run_id": "r-1", "run_type": "a", "input": [1, null]}'


def refusal(value: bytes | None, with_headers: list[tuple[str, bytes | None]] | None = None) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(value=value, headers=headers() if with_headers is None else with_headers)
    assert str(caught.value).startswith((f"{caught.value.field}:", "data.", "ce_", "value:", "content-type:"))
    return caught.value


# --- round trips ---

run_ids = st.from_regex(r"[A-Za-z0-9._:\-]{1,128}", fullmatch=True)
printable = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
times = st.datetimes(
    datetime(2000, 1, 1),
    datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5.5))]),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
requests = st.builds(
    RunRequested,
    run_id=run_ids,
    run_type=printable,
    input=json_values,
    session_id=st.none() | run_ids,
    start_at=st.none() | times,
    tags=st.none() | st.dictionaries(printable, printable, max_size=3),
)
completions = st.builds(
    RunCompleted,
    run_id=run_ids,
    run_type=printable,
    output=json_values,
    usage=st.none(),
    started_at=times,
    finished_at=times,
)
decisions = st.builds(
    ApprovalDecided,
    run_id=run_ids,
    approval_id=printable,
    approved=st.booleans(),
    data=st.none() | st.dictionaries(printable, json_values, max_size=3),
)
events = st.builds(
    Event,
    id=printable,
    source=printable,
    data=requests | completions | decisions,
    time=st.none() | times,
    traceparent=st.none() | st.just(TRACE),
    extensions=st.dictionaries(st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True), printable, max_size=2),
).map(lambda event: replace(event, subject=event.data.run_id))  # pyright: ignore[reportAttributeAccessIssue]


@settings(deadline=None)
@given(events)
def test_binary_mode_reads_what_it_writes(event: Event) -> None:
    record = encode(event)
    assert decode(key=record.key, value=record.value, headers=record.headers) == event
    assert record.key == event.subject.encode()  # pyright: ignore[reportOptionalMemberAccess]


@settings(deadline=None)
@given(events, st.booleans())
def test_structured_mode_reads_the_same_event(event: Event, as_base64: bool) -> None:
    record = encode(event)
    assert record.value is not None
    members: dict[str, object] = {
        name.removeprefix("ce_"): value.decode() for name, value in record.headers if name.startswith("ce_")
    }
    if as_base64:
        members["data_base64"] = base64.b64encode(record.value).decode()
    else:
        members["data"] = json.loads(record.value)
    value = json.dumps(members).encode()
    assert decode(value=value, headers=STRUCTURED) == event


def test_headers_are_those_of_the_contract() -> None:
    event = Event(
        id="r-1/outcome",
        source="towline/worker/a",
        time=datetime(2026, 11, 24, 21, 0, tzinfo=timezone(timedelta(hours=1))),
        data=RunRequested(run_id="r-1", run_type="a", input={"kept": None}),
        traceparent=TRACE,
        tracestate="k=v",
    )
    record = encode(event)
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"r-1/outcome",
        "ce_source": b"towline/worker/a",
        "ce_type": b"towline.run.requested.v1",
        "ce_time": b"2026-11-24T20:00:00Z",
        "ce_subject": b"r-1",
        "content-type": b"application/json",
        "traceparent": TRACE.encode(),
        "ce_traceparent": TRACE.encode(),
        "tracestate": b"k=v",
        "ce_tracestate": b"k=v",
    }
    # Absent optional fields are left out; null inside any JSON stays.
    assert record.value == b'{"run_id":"r-1","run_type":"a","input":{"kept":null}}'


# --- what is read leniently ---


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON; charset=UTF-8",
        b'application/json;charset="utf-8"',
        b"text/json",
        b"application/vnd.acme+json",
        None,
    ],
)
def test_every_json_content_type_in_utf8_is_read(content_type: bytes | None) -> None:
    event = decode(value=GOOD, headers=headers(content__type=content_type))
    assert event.data == RunRequested(run_id="r-1", run_type="a", input=[1, None])


def test_header_names_are_read_in_any_case() -> None:
    upper = [(name.upper(), value) for name, value in headers()]
    assert decode(value=GOOD, headers=upper).id == "e-1"
    mixed = (("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8"),)
    assert decode(value=structured(), headers=mixed).id == "e-1"


def test_unknown_fields_and_foreign_headers_are_ignored() -> None:
    value = b'{"run_id": "r-1", "run_type": "a", "added_later": {"x": 1}}'
    foreign: list[tuple[str, bytes | None]] = [
        *headers(),
        ("trace", b"\xff"),
        ("null", None),
        ("ce_null", None),
    ]
    assert decode(value=value, headers=foreign).data == RunRequested(run_id="r-1", run_type="a")


def test_a_header_given_twice_with_one_value_is_read() -> None:
    assert decode(value=GOOD, headers=[*headers(), ("CE_ID", b"e-1")]).id == "e-1"


def test_a_request_without_run_id_takes_the_event_id() -> None:
    event = decode(value=b'{"run_type": "a"}', headers=headers(ce_id=b"my-run"))
    assert isinstance(event.data, RunRequested)
    assert event.data.run_id == "my-run"


def test_key_is_not_looked_at() -> None:
    assert decode(key=b"\xff other", value=GOOD, headers=headers()).id == "e-1"


def test_extension_attributes_are_kept() -> None:
    event = decode(value=GOOD, headers=[*headers(), ("ce_tenant", b"acme"), ("ce_bad-name", b"x")])
    assert event.extensions == {"tenant": "acme"}
    event = decode(value=structured(tenant="acme", count=3, flag=True, odd={"x": 1}), headers=STRUCTURED)
    assert event.extensions == {"tenant": "acme", "count": "3", "flag": "true"}


@pytest.mark.parametrize(
    ("plain", "attribute", "expected"),
    [
        (TRACE, OTHER_TRACE, TRACE),
        (None, OTHER_TRACE, OTHER_TRACE),
        ("nonsense", OTHER_TRACE, OTHER_TRACE),
        ("nonsense", None, None),
        (None, "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
        (None, "00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
        (None, "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
        (None, TRACE + "-more", None),
        (None, TRACE.replace("00-", "cc-", 1) + "-more", TRACE.replace("00-", "cc-", 1) + "-more"),
        (None, TRACE.upper(), None),
        (None, TRACE + "\n", None),
        (None, "0" * 100_000, None),
    ],
)
def test_the_plain_trace_header_wins_and_an_invalid_one_is_dropped(
    plain: str | None, attribute: str | None, expected: str | None
) -> None:
    trace = headers(
        traceparent=plain.encode() if plain else None,
        ce_traceparent=attribute.encode() if attribute else None,
    )
    assert decode(value=GOOD, headers=trace).traceparent == expected


def test_trace_bytes_that_are_no_text_are_dropped() -> None:
    assert (
        decode(value=GOOD, headers=headers(traceparent=b"\xff", ce_traceparent=b"\xfe")).traceparent is None
    )


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2017-01-01t01:59:60.5+02:00", datetime(2017, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_leap_second_is_read_as_the_one_after_it(text: str, time: datetime) -> None:
    event = decode(value=GOOD, headers=headers(ce_time=text.encode()))
    assert event.time == time


# --- what is refused, and how ---


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (None, "null_value", "value"),
        (b"", "empty_value", "value"),
        (b"{", "invalid_json", "value"),
        (b"\xff\xfe", "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "\xff"}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": NaN}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": -Infinity}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "unknown": NaN}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": [1e999]}', "invalid_data", "input"),
        (b'{"run_id": "r", "run_type": "a", "input": "\\ud800"}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": {"\\udfff": 1}}', "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": ' + b"9" * 5000 + b"}", "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "input": ' + b"[" * 100_000, "invalid_json", "value"),
        (b'{"x":' * 100_000, "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a", "x": ' + b"[" * 250 + b"]" * 250 + b"}", "invalid_json", "value"),
        (b'{"run_id": "r", "run_type": "a"} x', "invalid_json", "value"),
        (b"[]", "invalid_data", "data"),
        (b"null", "invalid_data", "data"),
        (b'"text"', "invalid_data", "data"),
        (b'{"run_id": "r"}', "invalid_data", "run_type"),
        (b'{"run_id": "r", "run_type": 1}', "invalid_data", "run_type"),
        (b'{"run_id": "r", "run_type": ""}', "invalid_data", "run_type"),
        (b'{"run_id": "r", "run_type": "a\\nb"}', "invalid_data", "run_type"),
        (b'{"run_id": "r", "run_type": "a", "tags": {"x": 1}}', "invalid_data", "tags.x"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "tomorrow"}', "invalid_data", "start_at"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "2026-11-24T20:00:00"}', "invalid_data", "start_at"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "2026-02-30T20:00:00Z"}', "invalid_data", "start_at"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "2026-02-20T20:00:60Z"}', "invalid_data", "start_at"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "9999-12-31T23:59:60Z"}', "invalid_data", "start_at"),
        (
            b'{"run_id": "r", "run_type": "a", "start_at": "0001-01-01T00:00:00+23:00"}',
            "invalid_data",
            "start_at",
        ),
        (b'{"run_id": "r", "run_type": "a", "start_at": 1700000000}', "invalid_data", "start_at"),
        (b'{"run_id": "r", "run_type": "a", "start_at": "1700000000"}', "invalid_data", "start_at"),
    ],
)
def test_bad_values_are_refused_with_reason_and_field(value: bytes | None, reason: str, field: str) -> None:
    error = refusal(value)
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        "../../etc/passwd",
        "a b",
        "a\nb",
        "r\n",
        "x" * 129,
        "٣",
        "\uff52",
        "a/b",
        "a\x00b",
        "é",
        7,
        None,
        ["r"],
        True,
    ],
)
def test_hostile_run_ids_are_refused(run_id: object) -> None:
    value = json.dumps({"run_id": run_id, "action": "cancel"}).encode()
    error = refusal(value, headers(ce_type=b"towline.run.control.v1"))
    assert (error.reason, error.field) == ("invalid_run_id", "run_id")
    assert "1 to 128 characters" in str(error)


def test_a_missing_run_id_is_refused() -> None:
    error = refusal(b'{"action": "cancel"}', headers(ce_type=b"towline.run.control.v1"))
    assert (error.reason, error.field) == ("invalid_run_id", "run_id")
    assert "is required" in str(error)


def test_the_longest_run_id_is_read() -> None:
    assert decode(value=json.dumps({"run_id": "x" * 128, "run_type": "a"}).encode(), headers=headers())


def test_a_request_whose_event_id_is_no_run_id_needs_a_run_id() -> None:
    error = refusal(b'{"run_type": "a"}', headers(ce_id=b"no run id"))
    assert (error.reason, error.field) == ("invalid_run_id", "run_id")
    assert "ce_id" in str(error)


def test_a_bad_run_id_is_named_before_other_problems() -> None:
    error = refusal(b'{"run_id": "a b", "action": 1}', headers(ce_type=b"towline.run.control.v1"))
    assert error.field == "run_id"


def test_a_string_is_never_taken_for_a_boolean() -> None:
    value = b'{"run_id": "r", "approval_id": "a", "approved": "true"}'
    error = refusal(value, headers(ce_type=b"towline.approval.decided.v1"))
    assert (error.reason, error.field) == ("invalid_data", "approved")
    assert "a string" in str(error)
    assert "true" not in str(error)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"ce_id": None}, "missing_attribute", "id"),
        ({"ce_source": None}, "missing_attribute", "source"),
        ({"ce_type": None}, "missing_attribute", "type"),
        ({"ce_specversion": None}, "missing_attribute", "specversion"),
        ({"ce_id": b""}, "invalid_attribute", "id"),
        ({"ce_id": b"a\nb"}, "invalid_attribute", "id"),
        ({"ce_id": b"\xff"}, "invalid_attribute", "id"),
        ({"ce_id": b"x" * 513}, "invalid_attribute", "id"),
        ({"ce_source": b"x" * 2049}, "invalid_attribute", "source"),
        ({"ce_specversion": b"0.3"}, "unsupported_version", "specversion"),
        ({"ce_specversion": b"1.00"}, "unsupported_version", "specversion"),
        ({"ce_type": b"towline.run.requested.v2"}, "unknown_type", "type"),
        ({"ce_type": b"com.example.other"}, "unknown_type", "type"),
        ({"ce_time": b"yesterday"}, "invalid_attribute", "time"),
        ({"ce_time": b"2026-11-24T20:00:00"}, "invalid_attribute", "time"),
        ({"ce_subject": b"\x07"}, "invalid_attribute", "subject"),
        ({"content__type": b"text/plain"}, "wrong_content_type", "content-type"),
        ({"content__type": b"application/json; charset=latin1"}, "wrong_content_type", "content-type"),
        ({"content__type": b"\xff"}, "wrong_content_type", "content-type"),
        ({"content__type": b"application/cloudevents+avro"}, "wrong_content_type", "content-type"),
        ({"content__type": b"application/cloudevents-batch+json"}, "wrong_content_type", "content-type"),
    ],
)
def test_bad_attributes_are_refused_with_reason_and_field(
    changes: dict[str, bytes | None], reason: str, field: str
) -> None:
    error = refusal(GOOD, headers(**changes))
    assert (error.reason, error.field) == (reason, field)


def test_a_header_given_twice_with_two_values_is_refused() -> None:
    error = refusal(GOOD, [*headers(), ("CE_ID", b"e-2")])
    assert (error.reason, error.field) == ("invalid_attribute", "id")
    error = refusal(GOOD, [*headers(), ("Content-Type", b"text/json")])
    assert error.field == "content-type"


def test_a_record_without_cloudevents_headers_is_refused() -> None:
    for foreign in ([], [("content-type", b"application/json")], [("x", b"y")]):
        error = refusal(GOOD, foreign)  # pyright: ignore[reportArgumentType]
        assert error.reason == "no_headers"
        assert "ce_specversion" in str(error)


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (b"[]", "invalid_json", "value"),
        (None, "null_value", "value"),
        (b"", "empty_value", "value"),
        (structured(data=...), "invalid_data", "data"),
        (structured(data="{}"), "invalid_data", "data"),
        (structured(id=...), "missing_attribute", "id"),
        (structured(id=7), "invalid_attribute", "id"),
        (structured(time=1), "invalid_attribute", "time"),
        (structured(specversion="0.3"), "unsupported_version", "specversion"),
        (structured(data_base64="e30="), "invalid_attribute", "data_base64"),
        (structured(data=..., data_base64="%%%"), "invalid_attribute", "data_base64"),
        (structured(data=..., data_base64="é"), "invalid_attribute", "data_base64"),
        (structured(data=..., data_base64=7), "invalid_attribute", "data_base64"),
        (structured(data=..., data_base64="ew=="), "invalid_json", "data_base64"),
        (structured(datacontenttype="text/xml"), "wrong_content_type", "datacontenttype"),
        (structured(datacontenttype=7), "wrong_content_type", "datacontenttype"),
    ],
)
def test_bad_structured_events_are_refused(value: bytes | None, reason: str, field: str) -> None:
    error = refusal(value, list(STRUCTURED))
    assert (error.reason, error.field) == (reason, field)


def test_messages_quote_no_values_of_any_length() -> None:
    secret = "s3cret" * 10_000
    for value in (
        json.dumps({"run_id": secret, "run_type": "a"}),
        json.dumps({"run_id": "r", "run_type": "a", "tags": {"x": [secret]}}),
    ):
        assert "s3cret" not in str(refusal(value.encode()))
    assert len(str(refusal(GOOD, headers(ce_type=b"x" * 2000)))) < 400


header_names = st.sampled_from(
    ["ce_id", "ce_type", "ce_source", "ce_specversion", "ce_time", "content-type", "traceparent", "CE_x", ""]
) | st.text(max_size=10)
header_values = (
    st.none()
    | st.binary(max_size=40)
    | st.sampled_from(
        [
            b"1.0",
            b"application/json",
            b"application/cloudevents+json",
            *(m.event_type.encode() for m in EVENT_MODELS),
        ]
    )
)
fragments = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"run_id"',
        b":",
        b'"r"',
        b",",
        b"1e999",
        b"NaN",
        b'"\\ud800"',
        b'"data"',
        b"\xff",
        b"0",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.none() | st.binary(max_size=200) | st.lists(fragments, max_size=30).map(b"".join),
    st.lists(st.tuples(header_names, header_values), max_size=10),
    st.booleans(),
)
@example(b'{"a":' * 50_000, [], True)
@example(b'{"data":' * 50_000, [("content-type", b"application/cloudevents+json")], False)
def test_decoding_any_bytes_never_raises_anything_else(
    value: bytes | None, some_headers: list[tuple[str, bytes | None]], with_good_ones: bool
) -> None:
    with contextlib.suppress(DecodeError):
        event = decode(value=value, headers=[*headers(), *some_headers] if with_good_ones else some_headers)
        assert encode(event), "what was read can be written again"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([m.event_type for m in EVENT_MODELS]),
    st.dictionaries(
        st.sampled_from(sorted({name for model in EVENT_MODELS for name in model.model_fields})), json_values
    ),
    st.booleans(),
)
def test_decoding_any_data_of_any_type_never_raises_anything_else(
    event_type: str, data: dict[str, object], in_structured_mode: bool
) -> None:
    with contextlib.suppress(DecodeError):
        if in_structured_mode:
            event = decode(value=structured(type=event_type, data=data), headers=STRUCTURED)
        else:
            event = decode(value=json.dumps(data).encode(), headers=headers(ce_type=event_type.encode()))
        assert event.type == event_type


# --- what cannot be written ---


def request(**changes: object) -> Event:
    fields: dict[str, object] = {
        "id": "e-1",
        "source": "tests",
        "data": RunRequested(run_id="r", run_type="a"),
    }
    return Event(**(fields | changes))  # pyright: ignore[reportArgumentType]


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "event",
    [
        request(id=""),
        request(id="a\nb"),
        request(id="x" * 2049),
        request(id="\ud800"),
        request(source="\x00"),
        request(time=datetime(2026, 1, 1)),
        request(extensions={"Upper": "x"}),
        request(extensions={"id": "x"}),
        request(extensions={"empty": ""}),
        request(data=RunRequested(run_id="r", run_type="a", input="\ud800")),
        request(data=RunRequested(run_id="r", run_type="a", input=nested(230))),
        request(data=RunRequested(run_id="r", run_type="a", input=10**5000)),
        request(id="x" * 513),
        request(id="orders/17", data=RunRequested(run_type="a")),
        request(id="x" * 513, data=ApprovalDecided(run_id="r", approval_id="a", approved=True)),
    ],
)
def test_what_could_not_be_read_is_not_written(event: Event) -> None:
    with pytest.raises(EncodeError):
        encode(event)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_cannot_carry_are_refused_by_the_models(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        RunRequested(run_id="r", run_type="a", input={"x": number})


def test_an_invalid_trace_context_is_left_out() -> None:
    assert "traceparent" not in dict(encode(request(traceparent="nonsense", tracestate="x=y")).headers)
