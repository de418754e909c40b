"""The report for a terminal, in lines that fit it; without colours it says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtrace.introspect.paint import Paint, fit, height, length, shade, wide, wrap
from llmtrace.introspect.tokens import brief, lens_levels, margin_mark, tint
from llmtrace.introspect.words import (
    NONE,
    TIMES,
    block_kinds,
    clip,
    grouped,
    number,
    place,
    quantity,
    summary,
    title,
    visible,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmtrace.introspect.words import Page

NARROWEST = 80
"""Columns that the page has at least."""
STRIP = 160
"""Most tokens of the strip: the last ones."""
WORD = 8
"""Columns of a word of the lens."""
LABEL = 7
"""Columns of the names of layers."""
NOTABLE = 3
"""Scores of each name that are shown of points and features."""
SIGNS = {"verified": "✓", "differs": "✗", "inconclusive": "?"}
MEANS = {
    "verified": "The replay gave every bit that the record claims.",
    "differs": "The replay and the record differ: this page shows the replay.",
    "inconclusive": "The record could not be judged here.",
}


def lines(page: Page, *, columns: int = 80, colour: bool = False) -> Iterator[str]:
    """The page, line by line; none is wider than ``columns``, from ``NARROWEST`` on."""
    paint, columns = Paint(colour), max(columns, NARROWEST)
    yield from _head(page, paint, columns)
    for heading, need, make in SECTIONS:
        yield ""
        yield paint.strong(heading)
        if need and not page[need]:
            yield paint.soft("  not computed")
        else:
            yield from make(page, paint, columns)


def _head(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    run = page["run"]
    verdict = run.get("verdict")
    word = f"{SIGNS[verdict]} {verdict}" if verdict else "replayed"
    tone = {"verified": paint.good, "differs": paint.bad}.get(verdict or "", paint.strong)
    sums = f"{paint.strong(grouped(run['checksum']))}  {paint.soft(run['commit'][:12])}"
    yield f"{tone(word)}  {sums}"
    if verdict:
        told = " ".join(text for text in (MEANS[verdict], visible(run.get("reason") or "")) if text)
        yield from (paint.soft(line) for line in wrap(told, columns))
    model = f"{visible(run['model'])} {run['model_id'][:12]}, {run['numerics']}, {run['device']}"
    yield from (paint.soft(line) for line in wrap(model, columns))
    yield ""
    yield from wrap(" ".join(summary(page)), columns)


def _strip(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    tokens = page["tokens"][-STRIP:]
    if len(tokens) < len(page["tokens"]):
        yield paint.soft(f"  the last {len(tokens)} of {len(page['tokens'])}")
    for row in _rows(page, tokens, columns):
        above = ""
        for token, text, _ in row:
            step = tint(token["logprob"])
            above += paint.tint(text, step) if token["is_output"] else paint.soft(text)
        yield above
        below = "".join(under for _, _, under in row).rstrip()
        if below:
            yield paint.soft(below)
    yield from (paint.soft(line) for line in wrap(STRIP_KEY, columns, "  "))


def _rows(
    page: Page, tokens: list[dict[str, Any]], columns: int
) -> Iterator[list[tuple[dict[str, Any], str, str]]]:
    """Tokens by lines: each with its text and what stands under it, equally wide."""
    row: list[tuple[dict[str, Any], str, str]] = []
    used = 0
    for token in tokens:
        text, under = clip(visible(token["text"]) or "∅", 60), _under(page, token)
        size = max(min(wide(text), 24), len(under))
        if row and used + size > columns:
            yield row
            row, used = [], 0
        row.append((token, fit(text, size), under.ljust(size)))
        used += size
        if "\n" in token["text"]:
            yield row
            row, used = [], 0
    if row:
        yield row


STRIP_KEY = (
    "under each output token: surprise (█ 8 nats and more), margin over the next likeliest"
    " (█ 4 nats and more, ▿ another was likelier), the layer it commits at (e: the embedding)"
)


def _under(page: Page, token: dict[str, Any]) -> str:
    if not token["is_output"]:
        return ""
    surprise = " " if token["logprob"] is None else height(min(-token["logprob"] / 8, 1))
    return surprise + margin_mark(token["margin"]) + brief(page, token)


def _lens(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    lens = page["lens"]
    levels, count = lens_levels(lens), len(lens["positions"])
    step = -(-count // (columns - LABEL))
    for row in reversed(range(len(levels))):
        cells = ""
        for i in range(0, count, step):
            part = levels[row][i : i + step]
            level = sum(part) // len(part)
            cells += paint.ramp(" ", level) if paint.colour else shade(1 - level / 15)
        yield fit(place(lens["layers"][row]), LABEL) + cells
    grain = "a column a position" if step == 1 else f"a column {step} positions"
    told = "bright" if paint.colour else "empty"
    yield paint.soft(f"  {told}: as the last layer says; {grain}, {count} in all")
    yield ""
    yield from _words(page, paint, columns, levels)


def _words(page: Page, paint: Paint, columns: int, levels: list[list[int]]) -> Iterator[str]:
    """The words of the lens around the least expected token."""
    lens, tokens = page["lens"], {t["position"]: t for t in page["tokens"]}
    room = (columns - LABEL) // (WORD + 1)
    known = [t for t in page["tokens"] if t["logprob"] is not None]
    at = min(known, key=lambda t: t["logprob"])["position"] - 1 if known else 0
    near = min(range(len(lens["positions"])), key=lambda i: abs(lens["positions"][i] - at))
    begin = max(0, min(near - room // 2, len(lens["positions"]) - room))
    shown = range(begin, min(begin + room, len(lens["positions"])))

    def words(texts: list[str]) -> list[str]:
        return [fit(clip(visible(text, space="·"), 60), WORD) for text in texts]

    def heading(name: str, shift: int) -> str:
        found = [tokens.get(lens["positions"][i] + shift) for i in shown]
        return fit(name, LABEL) + " ".join(words([t["text"] if t else "" for t in found])).rstrip()

    yield fit("", LABEL) + " ".join(fit(str(lens["positions"][i]), WORD) for i in shown).rstrip()
    yield heading("after", 0)
    for row in reversed(range(len(lens["layers"]))):
        cells = [
            paint.ramp(word, levels[row][i])
            for i, word in zip(shown, words([lens["top"][row][i] for i in shown]), strict=True)
        ]
        yield (fit(place(lens["layers"][row]), LABEL) + " ".join(cells)).rstrip()
    yield paint.strong(heading("came", 1))


def _layers(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    every = page["layers"]
    names = list(dict.fromkeys(n for each in every for n in each if n != "layer"))
    for name in names:
        means = [each[name]["mean"] for each in every if each.get(name)]
        if not means:
            continue
        least, most = min(means), max(means)
        bars = "".join(height((m - least) / (most - least) if most > least else 0) for m in means)
        ends = f"{number(means[0])} → {number(means[-1])}"
        yield fit(f"  {fit(title(name), 30)} {bars}  {ends}", columns).rstrip()
    yield paint.soft(f"  from layer {every[0]['layer']} to layer {every[-1]['layer']}, means")


def _heads(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    every = page["heads"]
    kinds = sorted({h["kind"] for h in every})
    letters = _letters(kinds)
    across, down = 36, 10
    field = [[" "] * across for _ in range(down)]
    for head in every:
        x = min(across - 1, max(0, int(head["sink"] * across)))
        y = min(down - 1, max(0, int((1 - head["entropy"]) * down)))
        field[y][x] = letters[head["kind"]]
    by_layer: dict[int, str] = {}
    for head in every:
        by_layer[head["layer"]] = by_layer.get(head["layer"], "") + letters[head["kind"]]
    side = [f"L{layer:<3} {by_layer[layer]}" for layer in sorted(by_layer, reverse=True)]
    side = ["kinds by layer and head", *side]
    for i in range(max(down, len(side))):
        left = f"  │{''.join(field[i])}" if i < down else ""
        left = "  └" + "─" * across if i == down else left
        right = side[i] if i < len(side) else ""
        yield fit(f"{left:<{across + 6}}{right}", columns).rstrip()
    if len(side) <= down:
        yield "  └" + "─" * across
    yield paint.soft("   up: entropy / ln(visible), 0 to 1; right: mass on position 0, 0 to 1")
    counts = {kind: sum(h["kind"] == kind for h in every) for kind in kinds}
    told = ", ".join(f"{letters[k]} {visible(k)} ({counts[k]})" for k in kinds)
    yield from wrap(told, columns, "   ")


def _letters(kinds: list[str]) -> dict[str, str]:
    """A letter for each kind: one of its own, as far as there are any."""
    found: dict[str, str] = {}
    for kind in kinds:
        free = [c for c in visible(kind) + "abcdefghijklmnopqrstuvwxyz" if c.isalpha()]
        found[kind] = next((c for c in free if c not in found.values()), "?")
    return found


def _attribution(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    half = (columns - 54) // 2
    for each in page["attribution"][:2]:
        word = clip(visible(each["text"], space="·"), 24)
        yield f"  position {each['position']}, “{word}”: direct logit by component"
        most = max(abs(c["logit"]) for c in each["components"]) or 1.0
        for c in sorted(each["components"], key=lambda c: -c["share"])[:8]:
            share = abs(c["logit"]) / most
            left, right = " " * half, length(share, half)
            if c["logit"] < 0:  # blocks grow from the left alone, so here by whole ones
                left, right = ("█" * round(share * half)).rjust(half), left
            checked = "" if c["ablation"] is None else f"  KL {number(c['ablation'])}"
            text = f"    {fit(place(c['name']), 12)} {left}│{right} "
            text += f"{number(c['logit']):>8} {100 * c['share']:5.1f} %{checked}"
            yield fit(text, columns).rstrip()
        if len(each["components"]) > 8:
            yield paint.soft(f"    and {len(each['components']) - 8} more")
    found = page["ablation"]
    told = (
        f"check by mean-ablation: Spearman {number(found['spearman'])}"
        f" [{number(found['low'])}, {number(found['high'])}], n = {found['n']}"
        if found
        else "the ablation check was not computed"
    )
    yield from wrap(told, columns, "  ")


def _scores(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    of_run = [s for s in page["scores"] if s["of"] == "run"]
    others, notable = [s for s in page["scores"] if s["of"] != "run"], []
    for name in dict.fromkeys(s["name"] for s in others):
        sign = 1 if name == "fitness" else -1
        named = [s for s in others if s["name"] == name]
        notable += sorted(named, key=lambda s: sign * s["value"])[:NOTABLE]
    yield from (_score(score, paint, columns) for score in [*of_run, *notable])
    notes = []
    if len(others) > len(notable):
        notes.append(
            f"of {len(others)} scores of points and features the {NOTABLE} least fit and the"
            f" {NOTABLE} greatest of each other score"
        )
    if any(not s["trusted"] for s in [*of_run, *notable]):
        notes.append("?: untrusted, fitness below 0.9")
    yield from (paint.soft(line) for line in wrap("; ".join(notes), columns, "  "))


def _score(score: dict[str, Any], paint: Paint, columns: int) -> str:
    size = columns - 58
    name = title(score["name"]) + ("" if score["of"] == "run" else f" {place(score['of'])}")
    cells = ["·"] * size
    low, value, high = (
        min(size - 1, max(0, round((size - 1) * score[n]))) for n in ("low", "value", "high")
    )
    cells[low : high + 1] = "─" * (high - low + 1)
    cells[value] = "●"
    text = f"  {fit(name, 24)} {number(score['value']):>6} {''.join(cells)}"
    text += f" [{number(score['low'])}, {number(score['high'])}]"
    text = fit(text if score["trusted"] else f"{text} ?", columns).rstrip()
    return text if score["trusted"] else paint.soft(text)


def _blocks(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    kinds = block_kinds(page)
    most = max(k["us"] for k in kinds) or 1.0
    size = columns - 56
    for kind in kinds:
        bar = list(length(kind["us"] / most, size))
        bar[min(size - 1, int(size * kind["floor_us"] / most))] = "┃"
        ratio = f"{number(kind['us'] / kind['floor_us'], 2)}{TIMES}" if kind["floor_us"] else ""
        text = f"  {fit(kind['block'], 15)} {''.join(bar)} {number(kind['us']):>6} µs"
        text += f" {ratio:>6} {quantity(kind['bytes'], 'B'):>9}"
        text += f" {quantity(kind['operations'], 'op'):>9}"
        yield fit(text, columns).rstrip()
    total, floor = (sum(k[n] for k in kinds) for n in ("us", "floor_us"))
    told = f"one token {number(total)} µs; ┃ the floor, in all {number(floor)} µs: these bytes at"
    told += " the speed at which this machine reads as many as the model has"
    yield from (paint.soft(line) for line in wrap(told, columns, "  "))


def _invariants(page: Page, paint: Paint, columns: int) -> Iterator[str]:
    signs = {"pass": paint.good("✓"), "fail": paint.bad("✗"), "not applicable": paint.soft(NONE)}
    order = ("fail", "pass", "not applicable")
    for each in sorted(page["invariants"], key=lambda e: order.index(e["verdict"])):
        name = fit(title(each["name"]).lower(), 30)
        if each["verdict"] == "not applicable":
            why = clip(visible(each["why"] or "does not apply"), 40)
            yield fit(f"  {signs[each['verdict']]} {name} {why}", columns + 8).rstrip()
            continue
        bound = f"of {number(each['bound'])}" if each["bound"] is not None else ""
        text = f"{number(each['margin']):>9} {bound:<12} n {number(each['n'])}"
        yield f"  {signs[each['verdict']]} {name}{text}".rstrip()
        if each["verdict"] == "fail":
            where = each["where"] or {}
            told = " ".join(f"{k} {visible(str(v))}" for k, v in where.items() if v is not None)
            told = "; ".join(text for text in (told, visible(each["why"] or "")) if text)
            yield from (paint.bad(line) for line in wrap(told, columns, "      "))


def _limits(page: Page, _: Paint, columns: int) -> Iterator[str]:
    for text in page["limits"]:
        first, *rest = wrap(visible(text), columns, "    ")
        yield "  -" + first[3:]
        yield from rest


SECTIONS: tuple[tuple[str, str, Callable[[Page, Paint, int], Iterator[str]]], ...] = (
    ("Tokens", "tokens", _strip),
    ("Lens", "lens", _lens),
    ("Layers", "layers", _layers),
    ("Heads", "heads", _heads),
    ("Attribution", "attribution", _attribution),
    ("Scores", "scores", _scores),
    ("Invariants", "invariants", _invariants),
    ("Time", "blocks", _blocks),
    ("Limits", "limits", _limits),
)
