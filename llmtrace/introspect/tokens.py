"""The report's token strip and lens: what stands for each token, in HTML."""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING, Any

from llmtrace.introspect.markup import Html, el
from llmtrace.introspect.palette import SURPRISES
from llmtrace.introspect.pictures import legend, level, mosaic, svg
from llmtrace.introspect.words import NONE, clip, commits, number, place, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmtrace.introspect.words import Page

CELLS = 14_000
"""Most cells of the lens that stand as words; the map above covers the others."""
COLUMNS = 360
"""Most columns of the map above; each is the mean over as many positions as it takes."""
WORD = 12
"""Most characters of a word in a cell."""
RAREST = 8.0
"""Nats of surprise from which on a token has the strongest tint."""
SURE = 4.0
"""Nats of margin from which on its mark is full."""
LONG = 400
"""Tokens from which on the strip scrolls by itself."""
MARKS = "▁▂▃▄▅▆▇█"


def tint(logprob: float | None) -> int:
    """The level of the tint behind a token."""
    if logprob is None:
        return 0
    return min(SURPRISES - 1, round((SURPRISES - 1) * min(-logprob, RAREST) / RAREST))


def margin_mark(margin: float | None) -> str:
    """The margin as a block: full from ``SURE`` nats on, ``▿`` where another token was likelier."""
    if margin is None:
        return " "
    if margin < 0:
        return "▿"
    return MARKS[min(len(MARKS) - 1, int(len(MARKS) * margin / SURE))]


def brief(page: Page, token: dict[str, Any]) -> str:
    """The layer that a token commits at, in a character or two: ``e`` for the embedding."""
    name = commits(page, token)
    return {"embed": "e", NONE: ""}.get(name, name.removeprefix("L"))


def strip(page: Page, *, name: str = "strip", parts: int | None = None) -> Html:
    """All tokens as text, each with its tint, margin and layer; ``parts``: the one to mark."""
    made = []
    for i, token in enumerate(page["tokens"]):
        mark = " parted" if i == parts else ""
        text = visible(token["text"]) or "∅"
        if token["is_output"]:
            under = margin_mark(token["margin"]) + brief(page, token)
            inner = f"{escape(clip(text, 40))}<i>{escape(under)}</i>"
            made.append(f'<span class="t s{tint(token["logprob"])}{mark}">{inner}</span>')
        else:
            made.append(f'<span class="t p{mark}">{escape(clip(text, 40))}</span>')
        if "\n" in token["text"]:
            made.append("<br>")
    classes = "strip long" if len(page["tokens"]) > LONG else "strip"
    label = "Tokens as text; the table below has their numbers"
    return el(
        "div",
        Html("".join(made)),
        class_=classes,
        id=name,
        dir="ltr",
        tabindex="0",
        role="group",
        aria_label=label,
    )


def strip_key() -> Html:
    """What tint, block and number of a token mean."""
    tints = [
        el("span", el("span", text, class_=f"t s{tint(-nats)}"), class_="step")
        for nats, text in ((0.0, "0"), (2.0, "2"), (4.0, "4"), (6.0, "6"), (8.0, "8+"))
    ]
    return el(
        "p",
        "Tint and bar: surprise in nats ",
        el("span", *tints, class_="steps"),
        " Under a token: margin over the next likeliest ",
        el("span", "▁ 0 … █ 4+ nats, ▿ another was likelier", class_="nowrap"),
        "; then the layer from which on the lens gives it (e: the embedding). Prompt tokens are"
        " set in grey.",
        class_="key",
    )


def token_table(page: Page) -> Html:
    """The same numbers as a table."""
    head = (
        "Position",
        "Token",
        "Text",
        "Log-probability",
        "Entropy",
        "Rank",
        "Margin",
        "Commits at",
    )
    rows = []
    for t in page["tokens"]:
        numbers = (
            number(t["logprob"]),
            number(t["entropy"]),
            number(t["rank"]),
            number(t["margin"]),
            commits(page, t),
        )
        cells = "".join(f"<td>{escape(text)}</td>" for text in numbers)
        text = f'<td class="text"><bdi>{escape(clip(visible(t["text"]), 40))}</bdi></td>'
        rows.append(
            f'<tr><th scope="row">{t["position"]}</th><td>{t["token"]}</td>{text}{cells}</tr>'
        )
    return el(
        "div",
        el(
            "table",
            el("caption", "Each token, in nats; rank 0 is the likeliest"),
            el("thead", el("tr", (el("th", name, scope="col") for name in head))),
            el("tbody", Html("".join(rows))),
            class_="numbers",
        ),
        class_="scroll tall",
        tabindex="0",
        role="region",
        aria_label="Table of tokens",
    )


def kept_positions(page: Page) -> list[int]:
    """Indices into the positions of the lens whose words are shown: the last ones that fit."""
    lens = page["lens"]
    room = max(1, CELLS // len(lens["layers"]))
    count = len(lens["positions"])
    return list(range(max(0, count - room), count))


def grid(page: Page) -> Html:
    """The lens as a table of words, last layer on top, coloured by the KL to it."""
    lens, tokens = page["lens"], {t["position"]: t for t in page["tokens"]}
    shown = kept_positions(page)
    positions = [lens["positions"][i] for i in shown]

    def word(position: int) -> str:
        found = tokens.get(position)
        return escape(clip(visible(found["text"], space="·"), WORD)) if found else NONE

    heads = "".join(
        f'<th scope="col" id="p{p}"><small>{p}</small>{word(p)}</th>' for p in positions
    )
    came = "".join(f"<td>{word(p + 1)}</td>" for p in positions)
    levels = lens_levels(lens)
    body = []
    for row in reversed(range(len(lens["layers"]))):
        cells = "".join(
            f'<td class="c{levels[row][i]}">'
            f"{escape(clip(visible(lens['top'][row][i], space='·'), WORD))}</td>"
            for i in shown
        )
        name = escape(place(lens["layers"][row]))
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    caption = "Likeliest next word by layer, after each position"
    table = Html(
        f'<table id="lens" class="lens"><caption>{caption}</caption>'
        f'<thead><tr><th scope="row">after</th>{heads}</tr>'
        f'<tr class="came"><th scope="row">came</th>{came}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
    return el(
        "div", table, class_="scroll", tabindex="0", role="region", aria_label="Lens", id="lens-box"
    )


def lens_levels(lens: dict[str, Any]) -> list[list[int]]:
    """Levels of the map ramp by layer and position: the top is no KL, the bottom the most."""
    most = max((max(row, default=0.0) for row in lens["kl"]), default=0.0) or 1.0
    return [[level(1 - math.sqrt(max(v, 0) / most)) for v in row] for row in lens["kl"]]


def overview(page: Page) -> Html:
    """All positions of the lens as a map; a click goes to the words."""
    lens = page["lens"]
    count, rows = len(lens["positions"]), len(lens["layers"])
    width = -(-count // COLUMNS)
    most = max((max(row, default=0.0) for row in lens["kl"]), default=0.0) or 1.0
    levels = [
        [level(1 - math.sqrt(_mean(row[i : i + width]) / most)) for i in range(0, count, width)]
        for row in reversed(lens["kl"])
    ]
    columns = len(levels[0])
    height = max(4.0, min(18.0, 160 / rows))
    first = kept_positions(page)[0]
    step = max(1, count // 40)
    links = [
        el(
            "a",
            el(
                "rect",
                class_="hit",
                x=f"{columns * i / count:.2f}",
                y="0",
                width=f"{columns * min(step, count - i) / count:.2f}",
                height=str(rows),
            ),
            href=f"#p{lens['positions'][max(i, first)]}",
            tabindex="-1",
            aria_hidden="true",
        )
        for i in range(0, count, step)
    ]
    grain = "each position" if width == 1 else f"means over {width} positions"
    label = (
        f"Lens of all {count} positions, {grain}, {rows} layers, last layer on top: bright where"
        " the layer says what the last one says"
    )
    return el(
        "figure",
        svg(
            columns,
            rows * height,
            label,
            mosaic(levels, 1, 1),
            *links,
            class_="wide",
            box=(columns, rows),
        ),
        el("figcaption", f"All {number(count)} positions from left to right, {grain}."),
    )


def _mean(values: Sequence[float]) -> float:
    return max(0.0, math.fsum(values) / len(values))


def lens_note(page: Page) -> str:
    """What of the lens stands as words, where that is not all."""
    count, shown = len(page["lens"]["positions"]), len(kept_positions(page))
    total = page["run"]["positions"]
    text = ""
    if count < total:
        text = f"The lens was computed at {number(count)} of {number(total)} positions. "
    if shown < count:
        text += f"Words are shown for the last {number(shown)} of them; the map has them all."
    return text.strip()


def lens_key() -> Html:
    """The colours of the lens."""
    return el(
        "p",
        el("span", "far from the last layer", class_="end"),
        legend(),
        el("span", "the same", class_="end"),
        id="lens-key",
        class_="key",
    )


def data(page: Page) -> Html:
    """What the script reads of tokens and lens: JSON that no markup can end."""
    held: dict[str, Any] = {
        "tokens": [
            [t["position"], t["token"], *(_short(t[n]) for n in _NUMBERS), commits(page, t)]
            for t in page["tokens"]
        ],
        "lens": None,
    }
    if page["lens"]:
        lens, shown = page["lens"], kept_positions(page)
        held["lens"] = {
            "layers": [place(name) for name in lens["layers"]],
            "positions": [lens["positions"][i] for i in shown],
            **{n: [[_short(row[i]) for i in shown] for row in lens[n]] for n in _MEASURES},
        }
    text = json.dumps(held, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="data">{text}</script>')


_NUMBERS = ("logprob", "entropy", "rank", "margin")
_MEASURES = ("kl", "logprob", "rank", "entropy", "top_logprob")


def _short(value: float | None) -> float | None:
    """Four digits: what is looked at need not be exact."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
