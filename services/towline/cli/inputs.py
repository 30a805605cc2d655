"""What people type, checked. Reads files and standard input, nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline.cli.errors import UsageError
from towline.contracts.errors import SigningKeyError
from towline.contracts.events import is_run_id
from towline.contracts.settings import KafkaSettings

if TYPE_CHECKING:
    from towline.contracts.signing import DecisionSigner


def read_json(text: str, option: str) -> Any:
    """The JSON value of `text`: itself, ``@file``, or ``-`` for standard input.

    Raises:
        UsageError: It is not JSON, or the file cannot be read.
    """
    source = option
    if text == "-":
        source = f"{option} -"
        try:
            # Its bytes, whatever the locale says; standard input may be closed, or a test's.
            text = sys.stdin.buffer.read().decode() if hasattr(sys.stdin, "buffer") else sys.stdin.read()
        except (AttributeError, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: cannot be read: {_why(error)}") from error
    elif text.startswith("@"):
        source = f"{option} {text}"
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: cannot be read: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = f": a string needs its quotes: '{json.dumps(text)}'" if _is_bare_word(text) else ""
        raise UsageError(
            f"{source}: is not JSON ({error.msg}, line {error.lineno} column {error.colno}){hint}"
        ) from error
    except RecursionError:
        raise UsageError(f"{source}: is nested too deep") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise UsageError(f"{source}: is not JSON that can be read: {str(error).partition(';')[0]}") from error


def _why(error: Exception) -> str:
    return "standard input is closed" if isinstance(error, AttributeError) else str(error)


def _is_bare_word(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and len(text) < 100 and text.strip()[0] not in "{[\"'"


def run_id(text: str, what: str = "run id") -> str:
    """A valid run id, or another id of the same form.

    Raises:
        UsageError: It is none.
    """
    if not is_run_id(text):
        raise UsageError(f"{what} {text!r}: must be 1 to 128 of A-Z a-z 0-9 . _ : -")
    return text


def tags(pairs: Sequence[str]) -> dict[str, str] | None:
    """``key=value`` pairs.

    Raises:
        UsageError: One has no ``=``, or no key.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--tag {pair!r}: must be key=value")
        found[key] = value
    return found or None


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """As `read_json`, for an object; None for no text.

    Raises:
        UsageError: It is no JSON object.
    """
    if text is None:
        return None
    value = read_json(text, option)
    if not isinstance(value, dict):
        raise UsageError(f"{option}: must be a JSON object, like '{{\"key\": 1}}'")
    return value  # pyright: ignore[reportUnknownVariableType] - parsed JSON


def signer(file: Path | None, approver: str | None, settings: KafkaSettings) -> DecisionSigner | None:
    """What signs decisions of `approver` with the private key in `file`; None without a file.

    Raises:
        UsageError: There is no key in it, nobody to sign for, or what is needed to sign is not installed.
    """
    if file is None:
        return None
    if not approver:
        raise UsageError("--approver: is missing: --signing-key-file vouches for it, so name who decides")
    option = f"--signing-key-file {file}"
    try:
        from towline.contracts.signing import DecisionSigner
    except ModuleNotFoundError:
        raise UsageError("--signing-key-file: needs PyJWT: pip install 'towline[signing]'") from None
    try:
        return DecisionSigner(file.read_text(encoding="utf-8"), topic=settings.topics.approvals)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: cannot be read: {error}") from error
    except SigningKeyError as error:
        raise UsageError(f"{option}: {error}") from None
