"""The generated files are up to date, the golden examples hold, and breaking changes are noticed."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from towline.contracts import EVENT_MODEL_BY_TYPE, EVENT_MODELS, TOPICS, Event, decode, encode
from towline.contracts.canonical import approval_digest
from towline.contracts.compatibility import breaking_changes
from towline.contracts.events import ApprovalRequested, EventData
from towline.contracts.schemas import broken_promises, differences, main, schema_of, write

ROOT = Path(__file__).parents[3] / "contracts"
EXAMPLES = sorted((ROOT / "examples").glob("*/*.json"))
Schema = dict[str, Any]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def decoded(example: Any) -> Event:
    return decode(
        key=example["key"].encode(),
        value=json.dumps(example["data"]).encode(),
        headers=[(name, value.encode()) for name, value in example["headers"].items()],
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "contracts"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("towline"))
    return root


# --- generated files ---


def test_checked_in_files_are_what_the_models_say() -> None:
    assert differences(ROOT) == []


def test_the_released_contract_is_kept() -> None:
    assert broken_promises(ROOT) == []
    assert {path.stem for path in (ROOT / "schemas/baseline/v1").glob("*.json")} <= EVENT_MODEL_BY_TYPE.keys()


def test_check_shows_what_is_stale_and_mends_nothing(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkout / "schemas/towline.run.control.v1.json"
    file.write_text(file.read_text().replace('"cancel"', '"stop"'))
    (checkout / "schemas/towline.run.paused.v1.json").write_text("{}")
    (checkout / "asyncapi.yaml").unlink()
    assert main(["--check", "--root", str(checkout)]) == 1
    output = capsys.readouterr().out
    assert '+        "cancel"' in output
    assert "towline.run.paused.v1.json: belongs to no event type" in output
    assert "asyncapi.yaml" in output
    assert '"stop"' in file.read_text()


def test_writing_mends_and_is_then_idle(checkout: Path) -> None:
    shutil.rmtree(checkout / "schemas")
    assert main(["--root", str(checkout)]) == 0
    assert differences(checkout) == []
    assert write(checkout) == []


def test_check_fails_when_a_promise_is_broken(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkout / "schemas/baseline/v1/towline.run.started.v1.json"
    schema = load(file)
    schema["properties"]["attempt"] = {"type": "integer"}
    file.write_text(json.dumps(schema))
    shutil.copy(file, file.with_name("towline.run.paused.v1.json"))
    assert main(["--check", "--root", str(checkout)]) == 1
    output = capsys.readouterr().out
    assert "towline.run.started.v1: data.attempt: was removed or renamed" in output
    assert "towline.run.paused.v1: the event type was removed" in output
    # A broken contract cannot be made the released one by accident.
    assert main(["--release", "--root", str(checkout)]) == 1
    assert load(file) == schema


def test_a_checkout_without_examples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--root", str(tmp_path)])


@pytest.mark.parametrize("model", EVENT_MODELS)
def test_schemas_are_valid_and_open(model: type[EventData]) -> None:
    schema = schema_of(model)
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is True
    assert schema["$id"] == f"urn:towline:event:{model.event_type}"


# --- the AsyncAPI document ---


def test_the_asyncapi_document_is_complete_and_its_references_lead_somewhere() -> None:
    document = yaml.safe_load((ROOT / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert document["asyncapi"] == "3.0.0"
    assert set(document["channels"]) == {spec.name for spec in TOPICS}
    messages = document["components"]["messages"]
    assert {message["name"] for message in messages.values()} == {
        *EVENT_MODEL_BY_TYPE,
        "dead-letter",
        "dead-letter-mark",
    }
    for reference in _references(document):
        if reference.startswith("./"):
            assert (ROOT / reference).is_file(), reference
            continue
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [reference for item in node for reference in _references(item)]
    if not isinstance(node, dict):
        return []
    here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return here + [reference for item in node.values() for reference in _references(item)]


# --- golden examples ---


def test_every_event_type_has_an_example() -> None:
    assert {path.parent.name for path in EXAMPLES} == EVENT_MODEL_BY_TYPE.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_examples_are_valid_and_read(path: Path) -> None:
    example = load(path)
    released = load(ROOT / "schemas/baseline/v1" / f"{path.parent.name}.json")
    for schema in (released, schema_of(EVENT_MODEL_BY_TYPE[path.parent.name])):
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            example["data"]
        )
    event = decoded(example)
    assert event.type == path.parent.name
    if isinstance(event.data, ApprovalRequested) and event.data.digest:
        assert event.data.digest == approval_digest(title=event.data.title, details=event.data.details)


@pytest.mark.parametrize(
    # What publishers may leave out, we write.
    "path",
    [path for path in EXAMPLES if path.stem != "minimal"],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_golden_examples_are_written_as_they_stand(path: Path) -> None:
    example = load(path)
    record = encode(decoded(example))
    assert record.key == example["key"].encode()
    assert {name: value.decode() for name, value in record.headers} == example["headers"]
    assert record.value is not None
    written = json.loads(record.value)
    assert _times_alike(written) == _times_alike(example["data"])


def _times_alike(data: Any) -> Any:
    return {
        name: value.replace(".250Z", ".250000Z") if isinstance(value, str) else value
        for name, value in data.items()
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_schema_and_model_agree_on_what_is_missing(path: Path) -> None:
    """Leaving out any field: the schema refuses it exactly when the codec does."""
    example = load(path)
    validator = Draft202012Validator(schema_of(EVENT_MODEL_BY_TYPE[path.parent.name]))
    for name in example["data"]:
        data = {key: value for key, value in example["data"].items() if key != name}
        try:
            decoded({**example, "data": data})
            readable = True
        except Exception:  # noqa: BLE001
            readable = False
        assert validator.is_valid(data) == readable, name


# --- what is noticed as breaking ---

OLD: Schema = {
    "type": "object",
    "$defs": {"Error": {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}},
    "properties": {
        "run_id": {"type": "string", "pattern": "^[a-z]+$"},
        "action": {"enum": ["cancel", "suspend"], "type": "string"},
        "error": {"$ref": "#/$defs/Error"},
        "reason": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "title": {"type": "string"},
        "count": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["run_id", "action"],
}


def _rename(schema: Schema) -> None:
    schema["properties"]["explanation"] = schema["properties"].pop("reason")


def _put(*path: str, value: Any) -> Callable[[Schema], None]:
    def change(schema: Schema) -> None:
        node: Any = schema
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


def _drop(*path: str) -> Callable[[Schema], None]:
    def change(schema: Schema) -> None:
        node: Any = schema
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_drop("properties", "title"), "data.title: was removed"),
        (_rename, "data.reason: was removed or renamed"),
        (_put("properties", "count", "type", value="string"), "data.count.type: was 'integer', is 'string'"),
        (_put("properties", "count", "type", value="number"), "data.count.type"),
        (_put("properties", "reason", "anyOf", value=[{"type": "string"}]), "data.reason.anyOf"),
        (
            _put("properties", "reason", "anyOf", value=[{"type": "integer"}, {"type": "null"}]),
            "data.reason|0",
        ),
        (_put("properties", "tags", "items", value={"type": "integer"}), "data.tags.items.type"),
        (_put("properties", "run_id", "pattern", value="^[a-f]+$"), "data.run_id.pattern"),
        (_put("properties", "run_id", "maxLength", value=5), "data.run_id: gained maxLength 5"),
        (_put("properties", "count", value={"type": "integer"}), "data.count: lost minimum 0"),
        (_put("properties", "action", "enum", value=["cancel"]), "'suspend' is refused now"),
        (_put("properties", "action", "enum", value=["cancel", "suspend", "resume"]), "'resume' is new"),
        (_put("required", value=["run_id"]), "data.action: is no longer required"),
        (_put("required", value=["run_id", "action", "title"]), "data.title: is required now"),
        (_put("$defs", "Error", "properties", value={}), "data.error.type: was removed"),
        (_put("additionalProperties", value=False), "data: gained additionalProperties False"),
    ],
)
def test_breaking_changes_are_noticed(change: Callable[[Schema], None], says: str) -> None:
    new = copy.deepcopy(OLD)
    change(new)
    assert any(says in line for line in breaking_changes(OLD, new)), breaking_changes(OLD, new)


def test_a_new_required_field_is_noticed() -> None:
    new = copy.deepcopy(OLD)
    new["properties"]["shard"] = {"type": "integer"}
    new["required"].append("shard")
    assert breaking_changes(OLD, new) == ["data.shard: is new and required: make it optional"]


def test_optional_fields_and_words_may_be_added() -> None:
    new = copy.deepcopy(OLD)
    new["properties"]["added"] = {"type": "string"}
    new["$defs"]["Error"]["properties"]["details"] = {}
    new["properties"]["title"]["description"] = "What it says."
    new["title"] = "Renamed"
    new["$defs"]["Other"] = {}
    assert breaking_changes(OLD, new) == []
