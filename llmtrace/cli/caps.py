"""The options of a command that replays: with what, where, and what it may cost for strangers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import threads
from llmtrace.verify import caps

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Size(click.ParamType[int]):
    """Bytes, as '512M' or '4G'."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Gives the number of bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value)
        if found is None or not int(found[1]):
            self.fail(f"'{value}' is no size such as '512M' or '4G'", param, ctx)
        return int(found[1]) << _UNITS[found[2].upper()]


def capped(function: Callable[..., int]) -> Callable[..., int]:
    """Adds the options to a command; they come as max_tokens, max_memory and max_seconds."""
    for option in reversed(_CAPS):
        function = option(function)
    return function


def replays(function: Callable[..., int]) -> Callable[..., int]:
    """Adds those, and model, device and threads."""
    for option in reversed(_WHERE):
        function = option(function)
    return capped(function)


_CAPS = (
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=caps.TOKENS,
        metavar="COUNT",
        help=f"Replay no longer runs of other nodes (default: {caps.TOKENS}).",
    ),
    click.option(
        "--max-memory",
        type=Size(),
        default=caps.MEMORY,
        metavar="SIZE",
        help=f"Memory for a replay of other nodes' runs (default: {caps.MEMORY >> 30}G).",
    ),
    click.option(
        "--max-seconds",
        type=click.IntRange(1),
        default=caps.SECONDS,
        metavar="COUNT",
        help=f"Time for a replay of other nodes' runs (default: {caps.SECONDS}).",
    ),
)

_WHERE = (
    click.option(
        "-m",
        "--model",
        metavar="NAME|DIR",
        help="Model to replay with (default: the one the record names).",
    ),
    click.option(
        "-d",
        "--device",
        metavar="auto|cpu|cuda[:N]",
        help="Where to replay; cannot move a bit (default: auto).",
    ),
    threads,
)
