"""References to data that is kept in a payload store: their text form, parsed strictly.

``towline-payload:sha256:<64 hexadecimal digits>:<bytes>``: digest and size of the data as it was before it
was compressed. The name says nothing of where the store is, so a reference can lead to no other place than
the store that the reader has configured: no path, no host and no scheme of the writer's choice is followed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "towline-payload"
DATAREF: Final = "dataref"
"""CloudEvents extension attribute (Dataref, the claim check pattern) that carries a reference."""
_REFERENCE: Final = re.compile(rf"{SCHEME}:sha256:([0-9a-f]{{64}}):(0|[1-9][0-9]{{0,11}})", re.ASCII)
REFERENCE_MAX_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class PayloadReference:
    """Names data by its content."""

    digest: str
    """SHA-256, 64 lower-case hexadecimal digits."""
    size_bytes: int

    def __str__(self) -> str:
        return f"{SCHEME}:sha256:{self.digest}:{self.size_bytes}"

    @classmethod
    def of(cls, data: bytes) -> PayloadReference:
        """The reference of `data`."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def parse(cls, text: str) -> PayloadReference | None:
        """The reference that `text` is, as a whole; None for any other text."""
        if len(text) > REFERENCE_MAX_LENGTH or (found := _REFERENCE.fullmatch(text)) is None:
            return None
        return cls(found[1], int(found[2]))

    def matches(self, data: bytes) -> bool:
        """Whether `data` is what this names."""
        return len(data) == self.size_bytes and hashlib.sha256(data).hexdigest() == self.digest


def is_reference(text: str) -> bool:
    """Whether `text`, as a whole, is a reference."""
    return PayloadReference.parse(text) is not None
