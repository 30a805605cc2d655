import json
import logging

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


def test_hostile_text_cannot_forge_a_line_or_move_the_cursor() -> None:
    hostile = "ok\n12:00:00 info forged\x1b[2J"
    for formatter in (JsonFormatter("s"), HumanFormatter()):
        text = formatter.format(_record(hostile, run_id=hostile))
        assert "\n" not in text
        assert "\x1b" not in text
