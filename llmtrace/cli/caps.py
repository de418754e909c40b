"""The options that say what the replay of a stranger's record may cost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

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
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
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
