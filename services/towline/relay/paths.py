"""Names in paths: any text, as it was sent."""

from __future__ import annotations

from typing import Final

from starlette.convertors import PathConvertor, register_url_convertor

NAME: Final = "towline_name"
"""Convertor of a path's last part, line breaks and all. Starlette's own drops one at the end."""


class _NameConvertor(PathConvertor):
    regex = r"(?s:.*)"


register_url_convertor(NAME, _NameConvertor())
