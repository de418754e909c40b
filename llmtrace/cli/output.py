"""Where words go: the answer to standard output, everything else to standard error.

Hides JSON lines, what quiet means, and how streams fail. Every piece of the answer is written
at once, and that it cannot be written is never silent: a closed pipe raises OutputClosed, a
full disk Trouble.
"""

import io
import os
import re
import sys
from typing import TYPE_CHECKING, TextIO, TypeAlias

from llmtrace.errors import Trouble

if TYPE_CHECKING:
    from tqdm import tqdm

JSON_VERSION = 1

# Controls, line separators, lone surrogates, and marks that reorder text on a terminal.
_UNSAFE = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"


class OutputClosed(Exception):
    """Whoever read standard output has stopped: it has seen enough, so this is no error."""


def plain(text: str, keep: str = "") -> str:
    r"""Others' text made safe to print: control characters as `\x1b`, but for those in `keep`."""
    if text.isprintable():
        return text
    return re.sub(_UNSAFE, lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)


class NoBar:
    """A progress bar that nobody would see; tqdm takes longer to import than many a command."""

    def __init__(self) -> None:
        self.n = 0

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> None:
        """Counts."""
        self.n += n

    def set_postfix_str(self, text: str) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Does nothing."""


Bar: TypeAlias = "tqdm[None] | NoBar"


class Output:
    """One command's way to speak; `quiet` and `verbose` are its only moods."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.totals: dict[str, int] = {}  # for the line that ends JSON output
        self._bar: tqdm[None] | None = None

    def line(self, text: str = "") -> None:
        """Prints one line of the answer for people."""
        self._write(text + "\n")

    def stream(self, piece: str) -> None:
        """Prints a piece of a model's text at once: exact, but escaped on a terminal."""
        self._write(plain(piece, keep="\n\t") if _is_terminal(sys.stdout) else piece)

    @property
    def columns(self) -> int | None:
        """How wide the terminal is that the answer goes to: 0 if it does not say, None if none."""
        if not _is_terminal(sys.stdout):
            return None
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns
        except OSError:
            return 0

    def object(self, type_: str, **fields: object) -> None:
        """Prints one JSON line `{"v": 1, "type": type_, …fields}`; NaN has no place in it.

        What could paint on a terminal, or end a line for some readers, is escaped.
        """
        import json

        line = {"v": JSON_VERSION, "type": type_, **fields}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        self._write(re.sub(_UNSAFE, lambda m: f"\\u{ord(m[0]):04x}", text) + "\n")

    def end(self, status: int) -> None:
        """Prints the last JSON line, without which a stream was cut short."""
        if self.json:
            self.object("end", status=status, **self.totals)

    def note(self, text: str) -> None:
        """Says something beside the answer, unless quiet."""
        if not self.quiet:
            say(text)

    def detail(self, text: str) -> None:
        """Says something that only a verbose run wants to know."""
        if self.verbose:
            say(text)

    def warn(self, text: str) -> None:
        """Says what may surprise later, unless quiet."""
        self.note(f"llmtrace: warning: {plain(text)}")

    def progress(
        self, total: int | None, what: str, unit: str = "it", *, streams: bool = False
    ) -> Bar:
        """Opens a progress bar; it shows only on a terminal that is not quiet.

        ``streams``: pieces of text come meanwhile, so it needs a terminal to itself.
        """
        shared = streams and _is_terminal(sys.stdout)
        if self.quiet or shared or not _is_terminal(sys.stderr):
            return NoBar()
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=what, unit=unit, leave=False, delay=0.5)
        return self._bar

    def _write(self, text: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.clear()  # it comes back under the text
        write(text)


def complain(message: str, *hints: str) -> None:
    """Says what is wrong and what to do about it."""
    say(f"llmtrace: error: {plain(message)}")
    for hint in hints:
        say(f"llmtrace: hint: {plain(hint)}")


def write(text: str) -> None:
    """Writes to standard output now, or raises OutputClosed or Trouble."""
    if sys.stdout is None:  # the shell's `>&-`
        raise Trouble("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
        raise OutputClosed from None
    except OSError as error:
        _abandon(sys.stdout)
        raise Trouble(f"cannot write to standard output: {error.strerror}") from error


def prepare() -> None:
    """Makes both streams UTF-8 whatever the locale; what cannot be encoded is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def say(text: str) -> None:
    """A line on standard error; when that is gone too, there is nobody to tell."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        _abandon(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _abandon(stream: TextIO) -> None:
    """Lets what a broken stream still holds go nowhere: else Python complains at exit."""
    try:
        number = stream.fileno()
    except OSError:  # a stand-in without a file, as in tests
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
