"""Half a surrogate pair (an emoji cut in two, as models and tools make them), which UTF-8 can't carry."""

from __future__ import annotations

import re
from typing import Any, Final, cast

_HALF_A_PAIR: Final = re.compile("[\ud800-\udfff]")


def mended_text(text: str) -> str:
    """`text` with one character in the place of each half, so that pieces and the whole are told alike."""
    return text if text.isascii() else _HALF_A_PAIR.sub("\ufffd", text)


def mended(value: Any) -> Any:
    """JSON, or what models are dumped to, with all of its texts mended."""
    match value:
        case str():
            return mended_text(value)
        case dict():
            return {mended(name): mended(item) for name, item in cast("dict[Any, Any]", value).items()}
        case list():
            return [mended(item) for item in cast("list[Any]", value)]
        case _:
            return value
