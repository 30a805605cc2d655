"""Runs one command: quiet libraries, errors as one line, exit codes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from typing import Any

import typer
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from towline.cli.errors import CliError
from towline.cli.output import warn
from towline.contracts.consumers import refused
from towline.contracts.errors import TowlineError
from towline.contracts.kafka import REFUSALS


def execute(work: Coroutine[Any, Any, int | None]) -> None:
    """Run `work` to its end and exit with the status that it returns (None: 0).

    Raises:
        typer.Exit: Always, unless the status is 0. 1: it did not work; 2: the command line is wrong;
            3: a command was not answered in time; 130: Ctrl-C.
    """
    _quiet()
    try:
        status = asyncio.run(work)
    except CliError as error:
        warn(f"towline: {error}")
        raise typer.Exit(error.exit_code) from None
    except TowlineError as error:
        warn(f"towline: {error}")
        raise typer.Exit(1) from None
    except REFUSALS as error:  # of reading itself: the topic may be seen, not read
        warn(f"towline: {refused(error)}")
        raise typer.Exit(1) from None
    except KafkaError as error:
        warn(f"towline: Kafka: {error!r}: see the broker's log")
        raise typer.Exit(1) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        warn(f"towline: {error.title}.{field}: {first['msg']}: see `towline settings`")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `towline results | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if status:
        raise typer.Exit(status)


def _quiet() -> None:
    """Libraries log nothing; an undecodable record is a line on standard error."""
    logging.basicConfig(level=logging.CRITICAL, format="towline: %(message)s", stream=sys.stderr)
    logging.getLogger("towline.contracts.consumers").setLevel(logging.WARNING)
