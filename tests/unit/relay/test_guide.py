"""docs/guide/streams.md shows what the relay serves."""

from __future__ import annotations

from pathlib import Path

from towline.relay.openapi import document

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs/guide/streams.md").read_text()


def test_the_guide_shows_the_page_that_is_served_and_tried_in_a_browser() -> None:
    script = (ROOT / "services/towline/relay/pages/follow.js").read_text()
    assert f"```javascript\n{script}```" in GUIDE
    assert len(script.splitlines()) <= 30


def test_every_path_of_the_api_is_in_the_guide() -> None:
    for path in document()["paths"]:
        if not path.endswith(("/suspend", "/resume")):
            assert path in GUIDE, path
