"""Pages that the relay serves: plain files, no build, nothing secret in them."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_PAGES: Final = {
    "/follow": ("follow.html", "text/html"),
    "/follow.js": ("follow.js", "text/javascript"),
    "/follow.css": ("follow.css", "text/css"),
}
PAGE_PATHS: Final = frozenset(_PAGES)


def page_routes() -> list[Route]:
    """``/follow?run=…``: shows one run's stream."""
    return [Route(path, _serve(name, media_type)) for path, (name, media_type) in _PAGES.items()]


def _serve(name: str, media_type: str):
    content = (files("towline.relay.pages") / name).read_bytes()

    def endpoint(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return endpoint
