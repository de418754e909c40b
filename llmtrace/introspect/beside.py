"""Two reports side by side: where the runs part, and what differs then, as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrace.introspect import html, tokens
from llmtrace.introspect.markup import Html, el, join
from llmtrace.introspect.paint import Paint, fit, shade, wrap
from llmtrace.introspect.pictures import level, mosaic, svg
from llmtrace.introspect.sections import behind, table
from llmtrace.introspect.words import MINUS, clip, grouped, number, place, title, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmtrace.introspect.words import Page

SHOWN = 24
"""Features that are shown: those that are furthest apart for their intervals."""


class Apart(NamedTuple):
    """A mean in both runs; ``size`` is the distance in half widths of both intervals."""

    name: str
    a: dict[str, Any]
    b: dict[str, Any]

    @property
    def size(self) -> float:
        """Above 1 the intervals do not touch."""
        width = sum((one["high"] - one["low"]) / 2 for one in (self.a, self.b))
        far = abs(self.a["mean"] - self.b["mean"])
        return far / width if width > 0 else (float("inf") if far else 0.0)


def parting(a: Page, b: Page) -> int | None:
    """The first index at which the tokens differ; None if they are the same."""
    x, y = ([t["token"] for t in page["tokens"]] for page in (a, b))
    for i, (one, other) in enumerate(zip(x, y, strict=False)):
        if one != other:
            return i
    return None if len(x) == len(y) else min(len(x), len(y))


def features(a: Page, b: Page) -> list[Apart]:
    """Features of both runs whose means are not equal, the furthest apart first."""
    found = []
    others = {each["layer"]: each for each in b["layers"]}
    for each in a["layers"]:
        other = others.get(each["layer"], {})
        for name, value in each.items():
            if name != "layer" and value and other.get(name):
                found.append(Apart(f"{title(name)}, layer {each['layer']}", value, other[name]))
    for name, value in a["run_features"].items():
        if b["run_features"].get(name):
            found.append(Apart(f"{title(name)}, run", value, b["run_features"][name]))
    found = [each for each in found if each.a["mean"] != each.b["mean"]]
    return sorted(found, key=lambda each: -each.size)


def scores(a: Page, b: Page) -> list[Apart]:
    """Scores of the run in both."""
    one, other = (
        {s["name"]: {**s, "mean": s["value"]} for s in page["scores"] if s["of"] == "run"}
        for page in (a, b)
    )
    return [Apart(title(name), one[name], other[name]) for name in one if name in other]


def lens(a: Page, b: Page) -> tuple[list[int], list[list[float]]] | None:
    """Positions that both lenses have, and by layer how far their KLs are apart there."""
    one, other = a["lens"], b["lens"]
    if not one or not other or one["layers"] != other["layers"]:
        return None
    positions = sorted({*one["positions"]} & {*other["positions"]})
    at = [{p: i for i, p in enumerate(x["positions"])} for x in (one, other)]
    rows = [
        [abs(x[at[0][p]] - y[at[1][p]]) for p in positions]
        for x, y in zip(one["kl"], other["kl"], strict=True)
    ]
    return (positions, rows) if positions else None


def headline(a: Page, b: Page) -> str:
    """What the two runs have in common, in a sentence."""
    if a["run"]["checksum"] == b["run"]["checksum"]:
        return "The same run: both records have one checksum."
    if a["run"]["model_id"] != b["run"]["model_id"]:
        return "Runs of two models."
    at = parting(a, b)
    if at is None:
        return "The same tokens, computed differently."
    kind = "prompt" if at < sum(not t["is_output"] for t in a["tokens"]) else "output"
    words = [_word(page, at) for page in (a, b)]
    return f"The {kind}s part at position {at}: {words[0]} and {words[1]}."


def _word(page: Page, at: int) -> str:
    if at >= len(page["tokens"]):
        return "the end"
    token = page["tokens"][at]
    text = f"“{clip(visible(token['text'], space='·'), 24)}”"
    return text if token["logprob"] is None else f"{text} ({number(token['logprob'])} nats)"


def render(a: Page, b: Page) -> str:
    """Makes one HTML file of both."""
    at = parting(a, b)
    body = [
        el(
            "header",
            el("p", "llmtrace report of two runs", class_="kind"),
            el("h1", headline(a, b)),
        ),
        el(
            "main",
            _section("Tokens", _strips(a, b, at), tokens.strip_key()),
            _section("Scores", _apart("Scores of the runs", scores(a, b))),
            _section("Features", _features(features(a, b))),
            _section("Lens", _lens(a, b)),
            _section(
                "Runs", el("div", el("div", html.facts(a)), el("div", html.facts(b)), class_="two")
            ),
        ),
    ]
    names = " and ".join(page["run"]["checksum"][:8] for page in (a, b))
    return html.document(f"llmtrace {names}", body, None)


def _section(heading: str, *children: Html) -> Html:
    return el("section", el("h2", heading), *children)


def _strips(a: Page, b: Page, at: int | None) -> Html:
    made = []
    for name, page in (("A", a), ("B", b)):
        run = page["run"]
        made.append(
            el(
                "div",
                el("h3", f"{name}  ", el("span", grouped(run["checksum"]), class_="mono")),
                el(
                    "p",
                    f"{run.get('verdict') or 'replayed'}, {visible(run['model'])}",
                    class_="key",
                ),
                tokens.strip(page, name=f"strip-{name}", parts=at),
                behind("Numbers", tokens.token_table(page)),
            )
        )
    return el("div", *made, class_="two")


def _apart(caption: str, rows: Sequence[Apart]) -> Html:
    if not rows:
        return el("p", "Nothing that both have.", class_="none")
    body = [
        [
            each.name,
            *(f"{number(s['mean'])} [{number(s['low'])}, {number(s['high'])}]" for s in each[1:]),
            number(each.b["mean"] - each.a["mean"]),
            "apart" if each.size > 1 else "intervals touch",
        ]
        for each in rows
    ]
    return table(caption, ["", "A", "B", f"B {MINUS} A", ""], body)


def _features(every: list[Apart]) -> Html:
    if not every:
        return el("p", "All features that both have are equal.")
    caption = f"The {min(SHOWN, len(every))} of {len(every)} features furthest apart"
    return join(
        _apart(caption, every[:SHOWN]),
        behind("All", _apart("All features that differ", every)) if len(every) > SHOWN else None,
    )


def _lens(a: Page, b: Page) -> Html:
    found = lens(a, b)
    if not found:
        return el("p", "Not computed for both.", class_="none")
    positions, rows = found
    most = max(max(row) for row in rows)
    step = -(-len(positions) // tokens.COLUMNS)
    levels = [
        [level(max(row[i : i + step]) / (most or 1)) for i in range(0, len(row), step)]
        for row in reversed(rows)
    ]
    size = (len(levels[0]), len(levels))
    label = (
        f"How far the lenses are apart at {len(positions)} positions, at most {number(most)} nats"
    )
    return el(
        "figure",
        svg(size[0], 16 * size[1], label, mosaic(levels, 1, 1), class_="wide", box=size),
        el(
            "figcaption",
            f"Difference of the KL to the last layer at {len(positions)} common positions, from"
            f" left to right; the last layer on top; bright is up to {number(most)} nats.",
        ),
    )


def lines(a: Page, b: Page, *, columns: int = 80, colour: bool = False) -> Iterator[str]:
    """Both on a terminal."""
    paint = Paint(colour)
    yield from (paint.strong(line) for line in wrap(headline(a, b), columns))
    for name, page in (("A", a), ("B", b)):
        run = page["run"]
        word = run.get("verdict") or "replayed"
        tone = paint.good if word == "verified" else paint.strong
        yield f"{name}  {tone(word)}  {grouped(run['checksum'])}  {run['commit'][:12]}"
    at = parting(a, b)
    if at is not None:
        yield ""
        yield paint.strong(f"From position {max(0, at - 8)} on")
        yield from _tokens_beside(a, b, max(0, at - 8), paint, columns)
    for heading, rows in (("Scores", scores(a, b)), ("Features", features(a, b)[:SHOWN])):
        yield ""
        yield paint.strong(heading)
        if not rows:
            yield paint.soft("  nothing that differs and both have")
        for each in rows:
            text = f"  {fit(each.name, 36)} {number(each.a['mean']):>9} {number(each.b['mean']):>9}"
            text += f"  {number(each.b['mean'] - each.a['mean']):>9}"
            yield text + ("  apart" if each.size > 1 else "")
    yield from _lens_lines(a, b, paint, columns)


def _tokens_beside(a: Page, b: Page, begin: int, paint: Paint, columns: int) -> Iterator[str]:
    half = (columns - 9) // 2
    at = parting(a, b)
    end = begin + 24
    for i in range(begin, min(end, max(len(a["tokens"]), len(b["tokens"])))):
        cells = []
        for page in (a, b):
            token = page["tokens"][i] if i < len(page["tokens"]) else None
            text = visible(token["text"], space="·") if token else ""
            told = number(token["logprob"]) if token and token["logprob"] is not None else ""
            cells.append(f"{fit(clip(text, 60), half - 9)} {told:>8}")
        mark = "≠" if i == at else " "
        row = f"{i:>5} {mark} {cells[0]} {cells[1]}".rstrip()
        yield paint.strong(row) if i == at else row


def _lens_lines(a: Page, b: Page, paint: Paint, columns: int) -> Iterator[str]:
    found = lens(a, b)
    yield ""
    yield paint.strong("Lens")
    if not found:
        yield paint.soft("  not computed for both")
        return
    positions, rows = found
    most = max(max(row) for row in rows) or 1.0
    step = -(-len(positions) // (columns - 8))
    for name, row in reversed([*zip(a["lens"]["layers"], rows, strict=True)]):
        cells = (max(row[i : i + step]) / most for i in range(0, len(row), step))
        yield (fit(place(name), 8) + "".join(map(shade, cells))).rstrip()
    yield paint.soft(f"  difference of the KL to the last layer; full: {number(most)} nats")
