"""The report's sections below the tokens, in HTML: layers, heads, attribution, scores, blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.introspect.markup import Html, el, join
from llmtrace.introspect.pictures import (
    bar,
    bullet,
    diverging,
    level,
    mosaic,
    pairs,
    panel,
    scatter,
    shape,
    svg,
)
from llmtrace.introspect.words import (
    NONE,
    TIMES,
    block_kinds,
    clip,
    number,
    place,
    quantity,
    title,
    visible,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmtrace.introspect.markup import Child
    from llmtrace.introspect.words import Page

WINDOW = 32
"""Most positions of a pattern that are drawn: the last ones."""


def table(
    caption: str, head: Sequence[Child], rows: Iterable[Sequence[Child]], class_: str = "numbers"
) -> Html:
    """A table whose first column names its rows."""
    body = [
        el("tr", el("th", row[0], scope="row"), (el("td", cell) for cell in row[1:]))
        for row in rows
    ]
    made = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", (el("th", name, scope="col") for name in head))),
        el("tbody", *body),
        class_=class_,
    )
    return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def behind(text: str, *children: Child) -> Html:
    """What opens on demand."""
    return el("details", el("summary", text), *children)


def interval(value: dict[str, Any]) -> str:
    """Mean and interval as text."""
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def layers(page: Page) -> Html:
    """Small multiples of all features by layer, and their numbers."""
    every = page["layers"]
    names = list(dict.fromkeys(n for each in every for n in each if n != "layer"))
    by_name = {n: [{"layer": e["layer"], **e[n]} for e in every if e.get(n)] for n in names}
    flat = [n for n, points in by_name.items() if not any(p["mean"] for p in points)]
    meanings = page.get("meanings") or {}
    panels = [
        _feature(name, points, meanings.get(name, ""))
        for name, points in by_name.items()
        if name not in flat
    ]
    rows = [
        [str(each["layer"]), *(interval(each[n]) if each.get(n) else NONE for n in names)]
        for each in every
    ]
    numbers = table(
        "Features by layer, mean and 95 % interval", ["Layer", *(title(n) for n in names)], rows
    )
    note = "From the first layer to the last; whiskers: 95 % interval over positions."
    if flat:
        note += f" Zero in every layer: {', '.join(title(n).lower() for n in flat)}."
    return join(
        el("div", *panels, class_="panels"), el("p", note, class_="key"), behind("Numbers", numbers)
    )


def _feature(name: str, points: list[dict[str, Any]], meaning: str) -> Html:
    ends = f"{number(points[0]['mean'])} at layer {points[0]['layer']}"
    ends += f", {number(points[-1]['mean'])} at layer {points[-1]['layer']}"
    caption = el("figcaption", title(name), el("small", visible(meaning)) if meaning else None)
    return el("figure", caption, panel(points, f"{title(name)} by layer: {ends}"), class_="panel")


def run_features(page: Page) -> Html:
    """Features of the whole run."""
    rows = [
        [title(name), number(f["mean"]), f"[{number(f['low'])}, {number(f['high'])}]", str(f["n"])]
        for name, f in page["run_features"].items()
    ]
    return table("Features of the run", ["Feature", "Mean", "95 % interval", "n"], rows)


def heads(page: Page) -> Html:
    """Entropy against sink mass, kinds by layer, and the numbers."""
    every = page["heads"]
    kinds = sorted({h["kind"] for h in every})
    points = [
        (h["sink"], h["entropy"], kinds.index(h["kind"]), f"{h['layer']}.{h['head']}")
        for h in every
    ]
    names = el(
        "ul",
        (
            el(
                "li",
                shape(i),
                f" {visible(kind)} ",
                el("small", str(sum(h["kind"] == kind for h in every))),
            )
            for i, kind in enumerate(kinds)
        ),
        class_="kinds",
    )
    across = 1 + max(h["head"] for h in every)
    by_layer: dict[int, dict[int, str]] = {}
    for head in every:
        by_layer.setdefault(head["layer"], {})[head["head"]] = head["kind"]
    rows = []
    for layer in sorted(by_layer, reverse=True):
        cells: list[Child] = [str(layer)]
        for head in range(across):
            kind = by_layer[layer].get(head)
            cells.append(
                join(shape(kinds.index(kind)), el("span", visible(kind), class_="unseen"))
                if kind is not None
                else NONE
            )
        rows.append(cells)
    kind_map = table(
        "Kinds by layer (down) and head (across)",
        ["Layer", *(str(n) for n in range(across))],
        rows,
        "kindmap",
    )
    figure = el(
        "figure",
        scatter(points, ("mass on position 0", "entropy / ln(visible)")),
        el("figcaption", "Each mark is one head, named layer.head."),
    )
    fields = ("entropy", "sink", "self", "previous", "distance", "induction")
    numbers = table(
        "Heads, means over positions",
        ["Head", "Kind", *(title(f) for f in fields)],
        (
            [f"{h['layer']}.{h['head']}", visible(h["kind"]), *(number(h[f]) for f in fields)]
            for h in every
        ),
    )
    return join(
        el("div", figure, el("div", names, kind_map), class_="beside"), behind("Numbers", numbers)
    )


def patterns(page: Page) -> Html:
    """Where chosen heads look: a row a position, a column a key."""
    made = [_pattern(each) for each in page["patterns"] if each["rows"]]
    shown = max((len(each["positions"][-WINDOW:]) for each in page["patterns"]), default=0)
    note = f"The last {shown} positions that were looked at, each a row; keys from left to right,"
    note += " key 0 first. Bright is more."
    return join(
        el("h3", "Patterns of chosen heads"),
        el("div", *made, class_="panels"),
        el("p", note, class_="key"),
    )


def _pattern(each: dict[str, Any]) -> Html:
    positions, rows = each["positions"][-WINDOW:], each["rows"][-WINDOW:]
    last = rows[-1]
    begin = max(0, len(last) - WINDOW)
    most = max(max(row) for row in rows) or 1.0
    levels = []
    for row in rows:
        cells: list[int | None] = [level((p / most) ** 0.5) for p in row[begin:]]
        cells += [None] * (len(last) - len(row))
        # Position 0 is where the mass goes that has no place: it stays in sight.
        levels.append([level((row[0] / most) ** 0.5), None, *cells] if begin else cells)
    best = max(range(len(last)), key=lambda i: last[i])
    name = f"Head {each['layer']}.{each['head']}"
    label = f"{name}: position {positions[-1]} looks most at position {best},"
    label += f" with {number(last[best])}"
    size = (len(levels[0]), len(rows))
    side = 200 / size[0]
    picture = svg(200, side * size[1], label, mosaic(levels, 1, 1), class_="pattern", box=size)
    keys = f"keys {'0, ' if begin else ''}{begin} to {len(last) - 1}"
    return el("figure", el("figcaption", f"{name}, {keys}"), picture, class_="panel")


def attribution(page: Page) -> Html:
    """What speaks for each of the tokens looked at, and what mean-ablation says of it."""
    made = []
    for number_, each in enumerate(page["attribution"]):
        word = clip(visible(each["text"], space="·"), 24)
        most = max(abs(c["logit"]) for c in each["components"])
        rows = [
            [
                place(c["name"]),
                join(diverging(c["logit"], most)),
                number(c["logit"]),
                f"{100 * c['share']:.1f} %",
                number(c["ablation"]),
            ]
            for c in sorted(each["components"], key=lambda c: -c["share"])
        ]
        caption = f"Position {each['position']}, “{word}”"
        shown = table(
            f"{caption}: direct logit by component; rounding {number(each['gap'])}",
            ["Component", "Against | for", "Logit", "Share", "Ablation KL"],
            rows,
            "numbers bars",
        )
        made.append(el("details", el("summary", caption), shown, open=number_ == 0, class_="token"))
    return join(*made)


def ablation(page: Page) -> Html:
    """The share of each component against the KL that its mean-ablation causes."""
    found = page["ablation"]
    if not found:
        return el("p", "The ablation check was not computed.", class_="none")
    told = f"Spearman {number(found['spearman'])} [{number(found['low'])},"
    told += f" {number(found['high'])}], n = {found['n']}"
    points = [
        (c["share"], c["ablation"], f"{place(c['name'])} at {each['position']}")
        for each in page["attribution"]
        for c in each["components"]
        if c["ablation"] is not None
    ]
    return el(
        "figure",
        pairs(points, ("share of the attribution", "KL by ablation, nats"), told) if points else "",
        el("figcaption", f"Does attribution say what matters? {told}."),
    )


def scores(page: Page) -> Html:
    """All scores with their intervals; of the run first; the untrusted are dimmed and say so."""
    every = page["scores"]
    made: list[Html] = []
    for of_run in (True, False):
        rows = [s for s in every if (s["of"] == "run") == of_run]
        if not rows:
            continue
        shown = _scores("Scores of the run" if of_run else "Scores of points and features", rows)
        made.append(shown if of_run else behind(f"{len(rows)} scores of points, features", shown))
    return join(*made)


def _scores(caption: str, rows: list[dict[str, Any]]) -> Html:
    body = []
    for s in rows:
        name = title(s["name"]) if s["of"] == "run" else f"{title(s['name'])} of {place(s['of'])}"
        body.append(
            el(
                "tr",
                el("th", name, scope="row"),
                el("td", number(s["value"])),
                el("td", bar(s["value"], s["low"], s["high"], 1.0)),
                el("td", f"[{number(s['low'])}, {number(s['high'])}]"),
                el("td", str(s["n"])),
                el("td", "" if s["trusted"] else "untrusted"),
                class_=None if s["trusted"] else "untrusted",
            )
        )
    head = ("Score", "Value", "0 to 1", "95 % interval", "n", "")
    made = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", (el("th", text, scope="col") for text in head))),
        el("tbody", *body),
        class_="numbers bars",
    )
    return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def blocks(page: Page) -> Html:
    """Time of each block beside the least that the memory allows."""
    kinds, every = block_kinds(page), sorted(page["blocks"], key=lambda b: -b["us"])
    total, floor = (sum(k[n] for k in kinds) for n in ("us", "floor_us"))
    told = f"One token takes {number(total)} µs in {sum(b['calls'] for b in every)} blocks"
    told += f", {number(total / floor, 2)} times the" if floor else "; the floor is"
    told += f" {number(floor)} µs that moving their bytes takes at the speed at which this machine"
    told += " reads as many bytes as the model has. Less than one: held in a nearer cache."
    return join(el("p", told), _times("Kinds of blocks, over all layers", kinds))


def _times(caption: str, rows: list[dict[str, Any]]) -> Html:
    head = ("Block", "Time and floor", "µs", "Floor µs", "Ratio", "Bytes", "Operations", "Kernel")
    most = max(b["us"] for b in rows)
    body = (
        [
            b["block"],
            bullet(b["us"], b["floor_us"], most),
            number(b["us"]),
            number(b["floor_us"]),
            f"{number(b['us'] / b['floor_us'], 2)}{TIMES}" if b["floor_us"] else NONE,
            quantity(b["bytes"], "B"),
            quantity(b["operations"], ""),
            visible(b["kernel"]),
        ]
        for b in rows
    )
    return table(caption, head, body, "numbers bars")


def invariants(page: Page) -> Html:
    """Every invariant with its verdict, its margin and where it fails."""
    signs = {"pass": "✓ pass", "fail": "✗ fail", "not applicable": f"{NONE} not applicable"}
    order = ("fail", "pass", "not applicable")
    body = []
    for each in sorted(page["invariants"], key=lambda e: order.index(e["verdict"])):
        where = each["where"] or {}
        place_ = " ".join(
            text
            for text in (
                f"position {where['position']}" if where.get("position") is not None else "",
                visible(str(where["block"])) if where.get("block") else "",
            )
            if text
        )
        body.append(
            el(
                "tr",
                el("th", title(each["name"]), scope="row"),
                el("td", signs[each["verdict"]], class_=f"v {each['verdict'].split()[0]}"),
                el("td", number(each["margin"])),
                el("td", number(each["bound"])),
                el("td", number(each["n"])),
                el(
                    "td",
                    " · ".join(t for t in (place_, visible(each["why"] or "")) if t),
                    class_="text",
                ),
            )
        )
    caption = "Invariants: what must hold inside any sound run"
    head = ("Invariant", "Verdict", "Found", "Bound", "n", "Where and why")
    made = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", (el("th", text, scope="col") for text in head))),
        el("tbody", *body),
        class_="numbers",
    )
    return el("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)
