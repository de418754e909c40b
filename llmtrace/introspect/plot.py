"""One SVG file of what versions cost and give: accuracy over time, and where the time goes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmtrace.introspect.markup import Html, el, join
from llmtrace.introspect.words import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, MARGIN = 900, 60
PANEL = (220, 200)
"""Width and height of the plot of one size."""
GAP = 70
BAR, STEP = 12, 15
"""Height of a bar, and of a bar with its gap."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's, which colour-blind eyes tell apart."""
SHAPES = ("M-5,-5h10v10h-10z", "M0,-6L6,5h-12z", "M-6,0L0,-6L6,0L0,6z", "M-6,-2h12v4h-12z")
STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}.small{font-size:"
    "10px;fill:#555}.axis{stroke:#888;fill:none}.grid{stroke:#ddd}.floor{fill:#0005}"
    ".front{fill:none;stroke:#888;stroke-dasharray:4 3}"
)


def plot(found: Sequence[dict[str, Any]], model: str) -> str:
    """Draws what ``llmtrace.introspect.bench.compare`` found: a whole file."""
    sizes = [size["size"] for size in found[0]["sizes"]]
    has_accuracy = all(each["accuracy"] for each in found)
    top = 90
    panels = [
        el(
            "g",
            *_panel(found, n, has_accuracy=has_accuracy),
            transform=f"translate({MARGIN + n * (PANEL[0] + GAP)},{top})",
        )
        for n in range(len(sizes))
    ]
    below, bars = top + PANEL[1] + 70, []
    for n in range(len(sizes)):
        made, height = _bars(found, n)
        bars.append(el("g", *made, transform=f"translate({MARGIN},{below})"))
        below += height
    label = f"Versions of {visible(model)}: accuracy over time, and time by block"
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + el(
        "svg",
        el("style", STYLE),
        el("rect", width="100%", height="100%", fill="#fff"),
        _text(MARGIN, 30, label, class_="title"),
        _legend(found),
        *panels,
        *bars,
        xmlns="http://www.w3.org/2000/svg",
        view_box=f"0 0 {WIDTH} {below}",
        width=WIDTH,
        height=below,
        role="img",
        aria_label=label,
    )


def _legend(found: Sequence[dict[str, Any]]) -> Html:
    parts, x = [], MARGIN
    for n, each in enumerate(found):
        parts.append(_mark(n, x + 6, 52))
        told = f"{each['numerics']}: weights {each['weights_bytes'] / 1e6:.1f} MB"
        parts.append(_text(x + 18, 56, told))
        x += 24 + 7 * len(told)
    return join(*parts)


def _panel(found: Sequence[dict[str, Any]], n: int, *, has_accuracy: bool) -> list[Html]:
    """One size: microseconds of a token to the right, nines of accuracy upwards."""
    wide, high = PANEL
    sizes = [each["sizes"][n] for each in found]
    xs = [math.log10(size["us"] / size["rows"]) for size in sizes]
    kl = [each["accuracy"]["kl"]["mean"] if has_accuracy else 1.0 for each in found]
    ys = [-math.log10(max(one, 1e-16)) for one in kl]
    low, most = min(xs) - 0.15, max(xs) + 0.15
    tall = max(1.0, math.ceil(max(ys) + 0.5))
    places = [
        ((x - low) / (most - low) * wide, high - max(y, 0.0) / tall * high)
        for x, y in zip(xs, ys, strict=True)
    ]
    title = {"token": "One token", "batch": f"Batch of {sizes[0]['rows']}"}
    parts = [
        _text(0, -12, title.get(sizes[0]["size"], f"Prompt of {sizes[0]['rows']}")),
        el("path", class_="axis", d=f"M0,0V{high}H{wide}"),
        _text(wide / 2, high + 36, "µs a token", class_="small", anchor="middle"),
        el(
            "text",
            "nines: -log10 KL",
            class_="small",
            transform=f"translate(-34,{high})rotate(-90)",
        ),
    ]
    for tick in range(int(tall) + 1):
        y = high - tick / tall * high
        parts.append(el("path", class_="grid", d=f"M0,{y:.1f}H{wide}"))
        parts.append(_text(-6, y + 4, str(tick), class_="small", anchor="end"))
    for value in _ticks(low, most):
        x = (math.log10(value) - low) / (most - low) * wide
        parts.append(_text(x, high + 16, f"{value:g}", class_="small", anchor="middle"))
        parts.append(el("path", class_="axis", d=f"M{x:.1f},{high}v4"))
    best = sorted(p for p, size in zip(places, sizes, strict=True) if size["front"])
    if len(best) > 1:
        parts.append(
            el("path", class_="front", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in best))
        )
    for k, ((x, y), size) in enumerate(zip(places, sizes, strict=True)):
        told = f"{found[k]['numerics']}: {size['us'] / size['rows']:.4g} µs a token"
        parts.append(el("g", el("title", told), _mark(k, x, y)))
    return parts


def _bars(found: Sequence[dict[str, Any]], n: int) -> tuple[list[Html], int]:
    """One size: the time of each kind of block in each version, and its floor in front of it."""
    sizes = [each["sizes"][n] for each in found]
    name, rows = sizes[0]["size"], sizes[0]["rows"]
    most = max(u["us"] * u["calls"] for size in sizes for u in size["blocks"]) or 1.0
    scale = (WIDTH - 2 * MARGIN - 200) / most
    told = f"{name}: µs of all layers by block, {rows} row{'s' * (rows > 1)}; dark: the floor"
    parts, y = [_text(0, 0, told, class_="title")], 12
    for k, unit in enumerate(sizes[0]["blocks"]):
        parts.append(_text(90, y + STEP * len(found) / 2 + 2, unit["block"], anchor="end"))
        for version, size in enumerate(sizes):
            own = size["blocks"][k]
            us, floor = own["us"] * own["calls"], own["floor_us"] * own["calls"]
            bits = "" if own["bits"] is None else f", {own['bits']:.1f} bits"
            place = {"x": 96, "y": y, "height": BAR}
            colour = COLOURS[version % len(COLOURS)]
            text = f"{us:.0f}{' *' * own['front']}{bits}"
            parts += [
                el("rect", width=f"{us * scale:.1f}", fill=colour, **place),
                el("rect", width=f"{min(floor, us) * scale:.1f}", class_="floor", **place),
                _text(100 + us * scale, y + BAR - 2, text, class_="small"),
            ]
            y += STEP
        y += 6
    return parts, y + 50


def _ticks(low: float, most: float) -> list[float]:
    every = [m * 10.0**e for e in range(math.floor(low), math.ceil(most) + 1) for m in (1, 2, 5)]
    return [value for value in every if low <= math.log10(value) <= most]


def _mark(n: int, x: float, y: float) -> Html:
    shape, colour = SHAPES[n % len(SHAPES)], COLOURS[n % len(COLOURS)]
    return el("path", d=shape, fill=colour, transform=f"translate({x:.1f},{y:.1f})")


def _text(
    x: float, y: float, text: str, *, class_: str | None = None, anchor: str | None = None
) -> Html:
    return el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_, text_anchor=anchor)
