"""Completion tokens: what a worker has to show to have its answer counted.

``o:<nonce>`` for turns, known only to the process that handed it out. ``a:<row>:<attempt>:<mac>`` for
activities and ``e:<row>:<turn>:<attempt>:<mac>:<operations>`` for entity batches say enough to be judged
after a restart: an answer counts as long as its work has no result and was not handed out again.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActivityToken:
    """A token of an activity."""

    row: int
    attempt: int


@dataclass(frozen=True, slots=True)
class EntityToken:
    """A token of an entity batch."""

    row: int
    turn: int
    attempt: int
    operations: str


class Tokens:
    """Makes and reads tokens. The secret is kept with the data, so that it outlives the process."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hashlib.blake2b(key=secret, digest_size=8)
        self._nonce = secrets.token_hex(8)
        self._numbers = itertools.count()

    def _mac(self, text: str) -> str:
        made = self._keyed.copy()  # cheaper than setting the key again
        made.update(text.encode())
        return made.hexdigest()

    def turn(self) -> str:
        """Token of an orchestrator turn."""
        return f"o:{self._nonce}:{next(self._numbers):x}"

    def activity(self, row: int, attempt: int) -> str:
        """Token of an activity."""
        text = f"a:{row:x}:{attempt:x}"
        return f"{text}:{self._mac(text)}"

    def entity(self, row: int, turn: int, attempt: int) -> str:
        """Token of an entity batch; the operations are added by the engine."""
        text = f"e:{row:x}:{turn:x}:{attempt:x}"
        return f"{text}:{self._mac(text)}"

    def read_activity(self, token: str) -> ActivityToken | None:
        """The content of an activity's token; None if it is not one of ours."""
        parts = token.split(":")
        if len(parts) != 4 or parts[0] != "a" or self._mac(":".join(parts[:3])) != parts[3]:
            return None
        return ActivityToken(int(parts[1], 16), int(parts[2], 16))

    def read_entity(self, token: str) -> EntityToken | None:
        """The content of an entity batch's token; None if it is not one of ours."""
        parts = token.split(":")
        if len(parts) != 6 or parts[0] != "e" or self._mac(":".join(parts[:4])) != parts[4]:
            return None
        return EntityToken(int(parts[1], 16), int(parts[2], 16), int(parts[3], 16), parts[5])
