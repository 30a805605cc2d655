"""Who may decide which runs' asks, as the operator says, whatever the runs say themselves. Pure.

The policy is a JSON file (`TOWLINE_BRIDGE_APPROVAL_POLICY_FILE`):

```json
{
  "rules": [
    {"run_types": ["payments.*"], "approvers": ["ann@example.org", "*@finance.example.org"],
     "open": ["goods_received"]},
    {"run_types": ["*"], "approvers": ["*"]}
  ],
  "keys": [{"kty": "OKP", "crv": "Ed25519", "x": "…", "kid": "…", "alg": "EdDSA"}],
  "trusted_sources": []
}
```

The first rule whose pattern fits the run's type counts; a run that none fits is decided by anyone, as without
a policy. What comes for a run under a rule must be signed (`towline.contracts.signing`) by one of `keys` for
one of the rule's `approvers`, or come from one of `trusted_sources`, whose claims are believed. Patterns know
``*``, ``?`` and ``[…]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from towline.bridge.core import Decision
from towline.bridge.errors import ApprovalPolicyError
from towline.contracts.errors import SignatureInvalidError, SigningKeyError
from towline.contracts.events import EventRaised
from towline.contracts.signing import DecisionVerifier, Vouched

_CLOCKS_APART: Final = timedelta(minutes=5)
"""A decision may be signed a little before its run is known: clocks differ, and it may come first."""

_Pattern: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ApprovalRule(_Strict):
    """Who may decide the asks of some run types."""

    run_types: list[_Pattern] = Field(min_length=1)
    approvers: list[_Pattern]
    """Empty: nobody, so that these runs can only be answered by `open` names."""
    open: list[_Pattern] = Field(default_factory=list[str])
    """Names of asks and events that anybody may answer, unsigned."""


class PolicyFile(_Strict):
    """The file as it is written."""

    rules: list[ApprovalRule]
    keys: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    """Public keys (JWK) of those who sign decisions."""
    trusted_sources: list[_Pattern] = Field(default_factory=list[str])
    """CloudEvents sources that are believed unsigned: any publisher can claim to be one of them."""


class ApprovalPolicy:
    """The rules and what is needed to apply them.

    Args:
        file: What the operator wrote.
        topic: Full name of the topic of decisions.

    Raises:
        SigningKeyError: One of the keys is of no use.
    """

    def __init__(self, file: PolicyFile, *, topic: str) -> None:
        self._file = file
        self._verifier = DecisionVerifier(file.keys, topic=topic)

    @classmethod
    def read(cls, path: Path, *, topic: str) -> ApprovalPolicy:
        """The policy of a file.

        Raises:
            ApprovalPolicyError: There is none, or it is not valid; the message names the field.
        """
        try:
            return cls(PolicyFile.model_validate_json(path.read_bytes()), topic=topic)
        except OSError as error:
            problem = error.strerror or "cannot be read"
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            problem = f"{field}: {first['msg']}" if field else first["msg"]
        except SigningKeyError as error:
            problem = str(error)
        raise ApprovalPolicyError(f"TOWLINE_BRIDGE_APPROVAL_POLICY_FILE {path}: {problem}")

    def refuses(self, event: Decision, *, run_type: str, run_created_at: datetime) -> str | None:
        """Why `event` does not count for a run, for people; None if it does.

        Args:
            event: What came.
            run_type: The run's.
            run_created_at: When the scheduler got to know the run. What was signed before that was for an
                earlier run of the same id.
        """
        rule = next((one for one in self._file.rules if _fits(run_type, one.run_types)), None)
        data = event.data
        name = data.name if isinstance(data, EventRaised) else data.approval_id
        if rule is None or _fits(name, rule.open):
            return None
        if _fits(event.source, self._file.trusted_sources):
            approver = None if isinstance(data, EventRaised) else data.approver
        else:
            try:
                vouched = self._verifier.verify(event)
            except SignatureInvalidError as error:
                return f"runs of type {run_type} are decided by signed decisions, and {error}"
            if _too_old(vouched, run_created_at):
                return "it was signed before this run began: decide again"
            approver = vouched.approver
        if approver is None or not _fits(approver, rule.approvers):
            return f"{approver or 'somebody without a name'} may not decide runs of type {run_type}"
        return None


def _fits(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _too_old(vouched: Vouched, run_created_at: datetime) -> bool:
    return vouched.signed_at + _CLOCKS_APART < run_created_at.astimezone(UTC)
