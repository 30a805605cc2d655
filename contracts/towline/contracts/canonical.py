"""Canonical JSON and digests: equal content gives equal bytes, whatever the field order was."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no white space.

    After RFC 8785, but for numbers, which stay as Python writes them.
    """
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def approval_digest(*, title: str | None, details: Any) -> str:
    """The digest of what an approver is shown; a decision that carries another one is stale."""
    return digest({"details": details, "title": title})
