"""Text for a terminal: how wide it is, how it is cut and filled, and its colours, if any."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from llmtrace.introspect.palette import map_ramp, rgb, text_on, tints

BLOCKS = "▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"


def wide(text: str) -> int:
    """Columns that a text takes: two for what East Asian fonts draw so, none for what combines."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """Text in exactly so many columns: cut with an ellipsis, or filled with spaces."""
    if wide(text) > columns:
        kept, used = "", 0
        for character in text:
            if used + _columns(character) > columns - 1:
                break
            kept, used = kept + character, used + _columns(character)
        text = kept + "…"
    space = " " * (columns - wide(text))
    return space + text if right else text + space


def wrap(text: str, columns: int, indent: str = "") -> list[str]:
    """Lines of whole words; what is longer than a line is cut into pieces."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if wide(indent + longer) <= columns:
            line = longer
            continue
        if line:
            lines.append(indent + line)
        line = word
        while wide(indent + line) > columns:
            piece, rest = _split(line, columns - wide(indent))
            lines.append(indent + piece)
            line = rest
    return [*lines, indent + line] if line else lines


def _split(text: str, columns: int) -> tuple[str, str]:
    used = 0
    for i, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[: max(i, 1)], text[max(i, 1) :]
    return text, ""


def shade(share: float) -> str:
    """A share of 1 as a block that is more or less filled."""
    return SHADES[min(len(SHADES) - 1, max(0, int(share * len(SHADES))))]


def height(share: float) -> str:
    """A share of 1 as a block that is more or less high."""
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]


def length(share: float, columns: int) -> str:
    """A share of 1 as a bar in exactly so many columns, to an eighth of one."""
    eighths = round(8 * columns * min(1.0, max(0.0, share)))
    full, rest = divmod(eighths, 8)
    part = " ▏▎▍▌▋▊▉"[rest] if rest else ""
    return ("█" * full + part).ljust(columns)


@dataclass(frozen=True)
class Paint:
    """Colours where they are wanted; without them every text stays as it is."""

    colour: bool

    def strong(self, text: str) -> str:
        """What is read first."""
        return self._sgr("1", text)

    def soft(self, text: str) -> str:
        """What may be passed over."""
        return self._sgr("2", text)

    def good(self, text: str) -> str:
        """What is as it should be."""
        return self._sgr("1;32", text)

    def bad(self, text: str) -> str:
        """What is not."""
        return self._sgr("1;31", text)

    def tint(self, text: str, step: int) -> str:
        """Text on a step of the ramp of surprise."""
        return self._on(text, tints(dark=False)[step], "#000000")

    def ramp(self, text: str, step: int) -> str:
        """Text on a step of the ramp of maps."""
        return self._on(text, map_ramp()[step], text_on(map_ramp()[step]))

    def _on(self, text: str, back: str, front: str) -> str:
        b, f = (";".join(map(str, rgb(colour))) for colour in (back, front))
        return self._sgr(f"48;2;{b};38;2;{f}", text)

    def _sgr(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text
