"""Inline SVG of the report: every picture carries its own text, and colours come from classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmtrace.introspect.markup import Html, el, join
from llmtrace.introspect.palette import LEVELS
from llmtrace.introspect.words import number

if TYPE_CHECKING:
    from collections.abc import Sequence

PANEL = (208, 96)
"""Width and height of the plot of one feature."""
BAR = 150
"""Width of a bar in a table."""
SHAPES = (
    "M-4,-4h8v8h-8z",
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",
    "M0,-5.5L5,4h-10z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
    "M-5,-1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
    "M0,5.5L5,-4h-10z",
)
"""Marks of kinds of heads: square, disc, triangle, diamond, cross, triangle on its tip."""


def svg(
    width: float,
    height: float,
    label: str,
    *children: Html | None,
    class_: str = "",
    box: tuple[int, int] | None = None,
) -> Html:
    """A picture with its text; it shrinks with the page and keeps its proportions.

    ``box``: its own units, stretched to the width of the page and this height.
    """
    units = box or (width, height)
    name = f"pic {class_}".strip()
    return el(
        "svg",
        *children,
        class_=name,
        view_box=f"0 0 {_f(units[0])} {_f(units[1])}",
        aspect="none" if box else None,
        width=None if box else _f(width),
        height=_f(height),
        role="img",
        aria_label=label,
    )


def mosaic(levels: Sequence[Sequence[int | None]], cell: float, height: float) -> Html:
    """Cells in rows and columns, each of a level of the map ramp; None stays empty."""
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(levels):
        start = 0
        for x in range(1, len(row) + 1):
            if x < len(row) and row[x] == row[start]:
                continue
            level = row[start]
            if level is not None:
                wide = _f((x - start) * cell)
                path = f"M{_f(start * cell)},{_f(y * height)}h{wide}v{_f(height)}h-{wide}z"
                paths.setdefault(level, []).append(path)
            start = x
    return join(el("path", class_=f"c{n}", d="".join(paths[n])) for n in sorted(paths))


def level(share: float) -> int:
    """The level of the map ramp of a share of 1."""
    return min(LEVELS - 1, max(0, int(share * LEVELS)))


def bar(value: float, low: float, high: float, most: float, *, class_: str = "bar") -> Html:
    """A bar from zero with its interval as a whisker; the text beside it says the same."""
    scale = (BAR - 4) / (most or 1)
    x, a, b = (scale * min(max(v, 0), most) for v in (value, low, high))
    parts = [
        el("rect", class_="track", x="0", y="3", width=_f(BAR), height="10"),
        el("rect", class_=class_, x="0", y="3", width=_f(x), height="10"),
    ]
    if high > low:
        d = f"M{_f(a)},8H{_f(b)}M{_f(a)},4.5v7M{_f(b)},4.5v7"
        parts.append(el("path", class_="halo", d=d))
        parts.append(el("path", class_="whisker", d=d))
    return _mute(BAR, 16, *parts)


def diverging(value: float, most: float) -> Html:
    """A bar to the right for what speaks for a token, to the left for what speaks against."""
    half = BAR / 2
    wide = half * min(abs(value) / (most or 1), 1)
    x = half if value >= 0 else half - wide
    return _mute(
        BAR,
        16,
        el("rect", class_="track", x="0", y="3", width=_f(BAR), height="10"),
        el(
            "rect",
            class_="for" if value >= 0 else "against",
            x=_f(x),
            y="3",
            width=_f(wide),
            height="10",
        ),
        el("path", class_="axis", d=f"M{_f(half)},0v16"),
    )


def bullet(value: float, floor: float, most: float) -> Html:
    """A time as a bar, and the least it can be as a line across it."""
    scale = (BAR - 4) / (most or 1)
    at = _f(scale * floor)
    return _mute(
        BAR,
        16,
        el("rect", class_="track", x="0", y="3", width=_f(BAR), height="10"),
        el("rect", class_="bar", x="0", y="3", width=_f(scale * value), height="10"),
        el("path", class_="halo", d=f"M{at},0v16"),
        el("path", class_="mark", d=f"M{at},0v16"),
    )


def panel(points: Sequence[dict[str, Any]], label: str) -> Html:
    """One feature over the layers, each with its interval."""
    width, height = PANEL
    left, right, top, bottom = 40, 8, 8, 18
    least: float = min(p["low"] for p in points)
    most: float = max(p["high"] for p in points)
    if least > 0 and least < 0.6 * most:
        least = 0.0
    span = (most - least) or abs(most) or 1.0
    across = (width - left - right) / max(len(points) - 1, 1)

    def x(i: int) -> float:
        return left + (i * across if len(points) > 1 else (width - left - right) / 2)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - least) / span)

    base = height - bottom
    whiskers = "".join(
        f"M{_f(x(i))},{_f(y(p['low']))}V{_f(y(p['high']))}" for i, p in enumerate(points)
    )
    line = "M" + "L".join(f"{_f(x(i))},{_f(y(p['mean']))}" for i, p in enumerate(points))
    dots = "".join(
        f"M{_f(x(i) - 2.4)},{_f(y(p['mean']))}a2.4,2.4 0 1,0 4.8,0a2.4,2.4 0 1,0 -4.8,0z"
        for i, p in enumerate(points)
    )
    return svg(
        width,
        height,
        label,
        el("path", class_="axis", d=f"M{left},{top}V{base}H{width - right}"),
        _text(left - 5, top + 4, number(least + span, 2), "end"),
        _text(left - 5, base + 3, number(least, 2), "end"),
        _text(left, height - 4, str(points[0]["layer"]), "middle"),
        _text(width - right, height - 4, str(points[-1]["layer"]), "middle")
        if len(points) > 1
        else None,
        el("path", class_="whisker soft", d=whiskers),
        el("path", class_="line", d=line),
        el("path", class_="dot", d=dots),
    )


def scatter(points: Sequence[tuple[float, float, int, str]], axes: tuple[str, str]) -> Html:
    """Points in the unit square, each (x, y, kind, name); names stand where there is room."""
    size, left, bottom, top = 300, 34, 30, 10
    inner = size - left - 12
    height = inner + top + bottom
    places = [(left + inner * _unit(p[0]), top + inner * (1 - _unit(p[1]))) for p in points]
    marks: list[Html] = []
    for i, (x, y) in enumerate(places):
        kind, name = points[i][2] % len(SHAPES), points[i][3]
        side = -1 if x > size - 34 else 1
        is_free = all(
            abs(y - b) > 10 or not 0 <= side * (a - x) < 34 for a, b in places[:i] + places[i + 1 :]
        )
        text = _text(7 * side, 3, name, "start" if side > 0 else "end") if is_free else None
        mark = el("path", class_=f"k k{kind}", d=SHAPES[kind])
        at = f"translate({_f(x)},{_f(y)})"
        marks.append(el("g", el("title", name), mark, text, transform=at))
    grid = "".join(
        f"M{_f(left + inner * t)},{top}v{inner}M{left},{_f(top + inner * t)}h{inner}"
        for t in (0.25, 0.5, 0.75)
    )
    label = f"{len(points)} heads by {axes[0]} and {axes[1]}; the table below has the numbers"
    return svg(
        size,
        height,
        label,
        el("path", class_="grid", d=grid),
        el("path", class_="axis", d=f"M{left},{top}v{inner}h{inner}"),
        *marks,
        _text(left, height - 16, "0", "middle"),
        _text(left + inner, height - 16, "1", "middle"),
        _text(left + inner / 2, height - 4, axes[0], "middle", "name"),
        _text(left - 6, top + inner + 3, "0", "end"),
        _text(left - 6, top + 8, "1", "end"),
        el(
            "text",
            axes[1],
            class_="name",
            text_anchor="middle",
            transform=f"translate({left - 18},{_f(top + inner / 2)}) rotate(-90)",
        ),
        class_="square",
    )


def pairs(points: Sequence[tuple[float, float, str]], axes: tuple[str, str], label: str) -> Html:
    """Points of two quantities from zero, such as a share and what it is checked against."""
    width, height, left, bottom, top = 300, 200, 44, 34, 8
    wide, high = width - left - 10, height - top - bottom
    far = (
        max((p[0] for p in points), default=1.0) or 1.0,
        max((p[1] for p in points), default=1.0) or 1.0,
    )
    marks = [
        el(
            "path",
            el("title", name),
            class_="dot",
            transform=f"translate({_f(left + wide * x / far[0])},"
            f"{_f(top + high * (1 - y / far[1]))})",
            d="M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",
        )
        for x, y, name in points
    ]
    return svg(
        width,
        height,
        label,
        el("path", class_="axis", d=f"M{left},{top}v{high}h{wide}"),
        *marks,
        _text(left, height - 20, "0", "middle"),
        _text(left + wide, height - 20, number(far[0], 2), "end"),
        _text(left + wide / 2, height - 5, axes[0], "middle", "name"),
        _text(left - 5, top + 6, number(far[1], 2), "end"),
        _text(left - 5, top + high, "0", "end"),
        el(
            "text",
            axes[1],
            class_="name",
            text_anchor="middle",
            transform=f"translate(11,{_f(top + high / 2)}) rotate(-90)",
        ),
    )


def shape(kind: int) -> Html:
    """The mark of a kind of head, for a legend or a table."""
    path = el("path", class_=f"k k{kind % len(SHAPES)}", d=SHAPES[kind % len(SHAPES)])
    return el(
        "svg",
        el("g", path, transform="translate(7,7)"),
        class_="pic mark",
        view_box="0 0 14 14",
        width="14",
        height="14",
        aria_hidden="true",
    )


def legend() -> Html:
    """The map ramp, from its low end to its high end."""
    steps = [
        el("rect", class_=f"c{n}", x=str(9 * n), y="0", width="9.2", height="10")
        for n in range(LEVELS)
    ]
    return _mute(9 * LEVELS, 10, *steps)


def _mute(width: float, height: float, *children: Html) -> Html:
    """A picture of what stands as text beside it."""
    return el(
        "svg",
        *children,
        class_="pic",
        view_box=f"0 0 {_f(width)} {_f(height)}",
        width=_f(width),
        height=_f(height),
        aria_hidden="true",
    )


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Html:
    return el("text", text, x=_f(x), y=_f(y), text_anchor=anchor, class_=class_)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
