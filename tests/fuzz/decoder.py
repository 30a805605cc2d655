"""Coverage-guided fuzzing of the CloudEvents decoder: ``make fuzz MINUTES=5``, or

    python tests/fuzz/decoder.py --minutes 5 [--corpus DIR]

An input is a record's headers, a line each, an empty line, and its value. It begins with the contract's
golden examples, in binary and in structured mode. Whatever comes, `decode` gives an event that can be written
and read again, or raises `DecodeError`; anything else ends the run with status 1, and the input is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["towline.contracts"]):
    from towline.contracts.cloudevents import decode, encode
    from towline.contracts.errors import DecodeError

EXAMPLES: Final = Path(__file__).parents[2] / "contracts" / "examples"
_HEADER_END: Final = b"\n\n"
_LONGEST_BYTES: Final = 64 * 1024

Record = tuple[bytes | None, list[tuple[str, bytes | None]]]


def record_of(data: bytes) -> Record:
    """The record that an input stands for. A value of ``-`` is null."""
    head, _, value = data.partition(_HEADER_END)
    headers: list[tuple[str, bytes | None]] = []
    for line in head.split(b"\n"):
        name, colon, text = line.partition(b": ")
        headers.append((name.decode("utf-8", "replace"), text if colon else None))
    return (None if value == b"-" else value), headers


def input_of(headers: dict[str, str], value: bytes) -> bytes:
    """The input that stands for a record."""
    return "\n".join(f"{name}: {text}" for name, text in headers.items()).encode() + _HEADER_END + value


def check(data: bytes) -> None:
    """What must hold of every input."""
    value, headers = record_of(data)
    try:
        event = decode(value=value, headers=headers)
    except DecodeError:
        return
    written = encode(event)
    again = decode(key=written.key, value=written.value, headers=written.headers)
    assert again.data == event.data
    assert (again.id, again.source, again.time) == (event.id, event.source, event.time)


def seeds() -> list[bytes]:
    """The golden examples, each in both modes."""
    found: list[bytes] = []
    for file in sorted(EXAMPLES.rglob("*.json")):
        example = json.loads(file.read_text())
        headers: dict[str, str] = example["headers"]
        found.append(input_of(headers, json.dumps(example["data"]).encode()))
        attributes = {name[3:]: text for name, text in headers.items() if name.startswith("ce_")}
        body = json.dumps({**attributes, "data": example["data"]}).encode()
        found.append(input_of({"content-type": "application/cloudevents+json"}, body))
    return found


def main() -> None:
    """Fuzz for a while."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--corpus", type=Path, default=None, help="kept there; default: a temporary folder")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="inputs that broke it")
    options = parser.parse_args()
    corpus: Path = options.corpus or Path(tempfile.mkdtemp(prefix="towline-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    options.findings.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-max_total_time={round(options.minutes * 60)}",
        f"-max_len={_LONGEST_BYTES}",
        f"-artifact_prefix={options.findings}/",
        "-timeout=10",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
