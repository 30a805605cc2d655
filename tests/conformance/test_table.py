"""The table in README.md tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_acceptance_point_of_the_table_is_the_test_that_carries_its_number() -> None:
    table = re.findall(
        r"^\| (\d+) .*\| `(\w+\.py)::(\w+)` \|$", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
    marked = {
        (number, path.name, name)
        for path in FOLDER.glob("test_*.py")
        for number, name in re.findall(
            r"@pytest\.mark\.acceptance\((\d+)\)\n(?:@pytest\.mark\..*\n)*def (\w+)\(", path.read_text()
        )
    }

    assert {(number, file, name) for number, file, name in table} == marked
    assert sorted(int(number) for number, *_ in table) == list(range(1, 28))
