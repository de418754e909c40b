"""What the user hands in: UTF-8 text from a file, or from standard input where it says `-`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llmtrace.errors import Trouble


def is_terminal() -> bool:
    """Says whether reading standard input would wait for somebody to type."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text(path: str) -> str:
    """All of a file, exactly; raises Trouble for what cannot be read or is no UTF-8."""
    place = "standard input" if path == "-" else f"'{path}'"
    try:
        content = _standard_input().read() if path == "-" else Path(path).read_bytes()
        return content.decode()
    except UnicodeDecodeError as error:
        raise Trouble(f"{place} is not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise Trouble(f"cannot read {place}: {error.strerror}") from error


def read_lines(path: str) -> Iterator[str]:
    """The lines of a file as they come, without their ends and without empty ones."""
    place = "standard input" if path == "-" else f"'{path}'"
    try:
        with _standard_input() if path == "-" else Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode().strip()
                except UnicodeDecodeError as error:
                    raise Trouble(f"line {number} of {place} is not UTF-8 text") from error
                if text:
                    yield text
    except OSError as error:
        raise Trouble(f"cannot read {place}: {error.strerror}") from error


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise Trouble("standard input is closed")
    return sys.stdin.buffer
