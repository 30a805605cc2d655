"""`towline health URL`: for health checks of containers, which may have no curl.

Loads nothing but the standard library.
"""

from __future__ import annotations

import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

TIMEOUT_S: Final = 3.0
USAGE: Final = "usage: towline health URL, for example http://127.0.0.1:8081/readyz"
_SHOWN_BYTES: Final = 2000


def health(arguments: Sequence[str]) -> int:
    """Ask a URL once: 0 if it answers 2xx within `TIMEOUT_S`, 1 if not, 2 if the command line is wrong."""
    if len(arguments) != 1 or not arguments[0].startswith(("http://", "https://")):
        sys.stderr.write(f"{USAGE}\n")
        return 0 if list(arguments) in (["--help"], ["-h"]) else 2
    # Without proxies: it asks its own container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(arguments[0], timeout=TIMEOUT_S) as answer:
            answer.read(_SHOWN_BYTES)
            return 0
    except urllib.error.HTTPError as error:
        body = error.read(_SHOWN_BYTES).decode("utf-8", "replace").strip()
        sys.stderr.write(f"{arguments[0]}: {error.code} {body}\n")
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: it speaks no HTTP
        sys.stderr.write(f"{arguments[0]}: {str(error).strip() or type(error).__name__}\n")
    return 1
