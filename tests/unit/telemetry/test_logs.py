import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from towline.telemetry.logs import HumanFormatter, JsonFormatter


def _record(message: str, **extra: object) -> logging.LogRecord:
    return logging.getLogger("towline.test").makeRecord(
        "towline.test", logging.INFO, __file__, 1, message, (), None, extra=extra
    )


def test_a_json_line_carries_the_extra_fields() -> None:
    line = json.loads(JsonFormatter("towline-bridge").format(_record("run_accepted", run_id="r1", offset=7)))
    assert (line["event"], line["run_id"], line["offset"], line["service"]) == (
        "run_accepted",
        "r1",
        7,
        "towline-bridge",
    )


def test_a_field_with_the_name_of_one_of_the_lines_own_is_kept_beside_it() -> None:
    record = _record("order_placed", event="click", service="shop", level=7)
    line = json.loads(JsonFormatter("towline-worker").format(record))
    assert (line["event"], line["service"], line["level"]) == ("order_placed", "towline-worker", "info")
    assert (line["event_"], line["service_"], line["level_"]) == ("click", "shop", 7)


def test_hostile_text_cannot_forge_a_line_or_move_the_cursor() -> None:
    hostile = "ok\n12:00:00 info forged\x1b[2J"
    for formatter in (JsonFormatter("s"), HumanFormatter()):
        text = formatter.format(_record(hostile, run_id=hostile))
        assert "\n" not in text
        assert "\x1b" not in text


class _Mute:
    def __repr__(self) -> str:
        raise RuntimeError


def _loop() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    return loop


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {"score": float("nan")}, {("topic", 0): 7}, _loop(), _Mute(), "\ud800"],
    ids=["nan", "inf", "nan within", "other keys", "loop", "mute", "half a surrogate pair"],
)
def test_a_line_is_json_whatever_is_logged(value: object) -> None:
    text = JsonFormatter("towline-worker").format(_record("scored", value=value, run_id="r1"))

    line = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))

    assert (line["event"], line["run_id"]) == ("scored", "r1")
    assert "value" in line
    assert "\n" not in text
    assert "value=" in HumanFormatter().format(_record("scored", value=value))


def test_an_exceptions_text_cannot_drive_the_terminal() -> None:
    error = ValueError("no such customer: \x1b]0;mine\x07\n12:00:00.000 info    forged")
    record = _record("failed")
    record.exc_info = (type(error), error, None)

    text = HumanFormatter().format(record)

    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("12:00:00.000") for line in text.split("\n"))


@pytest.mark.parametrize("level", ["verbose", "", "10"])
def test_a_level_that_is_none_is_named_in_one_line(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWLINE_LOG_LEVEL", level)
    done = subprocess.run(
        [sys.executable, "-m", "towline.cli", "bridge"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("towline bridge: LogSettings.level: ")
    assert "must be one of DEBUG, INFO" in line
