"""The report as one HTML file: no network, no foreign code, readable without its script.

Hides the document around the sections. Style and script are inside, allowed by their digests
alone; everything else of the page is text that was escaped when it was put there.
"""

from __future__ import annotations

import math
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrace.introspect import sections, tokens
from llmtrace.introspect.markup import Html, el, join
from llmtrace.introspect.palette import map_ramp, rgb, text_on, tints
from llmtrace.introspect.words import TIMES, clip, grouped, number, summary, title, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmtrace.introspect.markup import Child
    from llmtrace.introspect.words import Page

SIGNS = {
    "verified": ("✓", "good", "The replay gave every bit that the record claims."),
    "differs": ("✗", "bad", "The replay and the record differ: this page shows the replay."),
    "inconclusive": ("?", "", "The record could not be judged here."),
    None: ("", "", "Not judged: this page shows a replay."),
}


def render(page: Page) -> str:
    """Makes the whole file."""
    return document(f"llmtrace {page['run']['checksum'][:12]}", [page_body(page)], page)


def document(name: str, body: Iterable[Child], data_of: Page | None) -> str:
    """Puts a body into a page of its own, with what the script reads."""
    style, script = _style(), _script()
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}';"
        " base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", name),
        Html(f"<style>{style}</style>"),
    )
    foot = (tokens.data(data_of), Html(f"<script>{script}</script>")) if data_of else ()
    return f'<!doctype html>\n<html lang="en">{head}<body>{join(body, foot)}</body></html>\n'


def page_body(page: Page) -> Html:
    """The report of one run, from its verdict to its limits."""
    made = [section(page, *each) for each in SECTIONS]
    return join(
        el("a", "Skip to the tokens", href="#tokens", class_="skip"),
        _header(page),
        el("main", *made),
        el(
            "footer",
            "Made by llmtrace from a replay. Times were measured where the page was made and are"
            " no part of the record; everything else is the same on every machine.",
        ),
    )


def section(page: Page, key: str, heading: str, make: Callable[[Page], Child], need: str) -> Html:
    """A section, or that what it needs was not computed."""
    is_there = not need or bool(page[need])
    body = make(page) if is_there else el("p", "Not computed.", class_="none")
    return el("section", el("h2", heading, id=key), body, aria_labelledby=key)


def _header(page: Page) -> Html:
    run = page["run"]
    verdict = run.get("verdict")
    sign, tone, said = SIGNS[verdict]
    reason = run.get("reason")
    word = f"{sign} {verdict}" if verdict else "Replayed"
    text = summary(page)
    return el(
        "header",
        el("p", "llmtrace report", class_="kind"),
        el(
            "div",
            el("h1", word[:1].upper() + word[1:], class_=tone or None),
            el("span", grouped(run["checksum"]), class_="sum", title=run["checksum"]),
            el(
                "button",
                "Copy checksum",
                type="button",
                id="copy",
                hidden=True,
                data_text=run["checksum"],
            ),
            el("span", id="copied", class_="mono", role="status"),
            class_="verdict",
        ),
        el("p", said, f" {visible(reason)}." if reason else None, class_="said"),
        el("p", " ".join(text), class_="abstract"),
        _figures(page),
        el(
            "nav",
            el("ul", (el("li", el("a", h, href=f"#{k}")) for k, h, *_ in SECTIONS)),
            aria_label="Contents",
        ),
    )


def _figures(page: Page) -> Html:
    """The few numbers that a reader looks for first."""
    known = [t["logprob"] for t in page["tokens"] if t["logprob"] is not None]
    found: list[tuple[str, str, str]] = []
    if known:
        mean = math.fsum(known) / len(known)
        small = f"{number(mean)} nats a token"
        found.append(("Perplexity", number(math.exp(min(-mean, 700))), small))
    for score in page["scores"]:
        if score["of"] == "run":
            between = f"{number(score['low'])} to {number(score['high'])}"
            trust = between if score["trusted"] else f"{between}, untrusted"
            found.append((title(score["name"]), number(score["value"]), trust))
    judged = [e["verdict"] for e in page["invariants"] if e["verdict"] != "not applicable"]
    if judged:
        passed = judged.count("pass")
        found.append(("Invariants", f"{passed} / {len(judged)}", "hold"))
    if page["blocks"]:
        total = sum(b["us"] * b["calls"] for b in page["blocks"])
        floor = sum(b["floor_us"] * b["calls"] for b in page["blocks"])
        small = f"{number(total / floor, 2)}{TIMES} the floor" if floor else ""
        found.append(("One token", f"{number(total)} µs", small))
    return el(
        "dl",
        (el("div", el("dt", n), el("dd", value, el("small", small))) for n, value, small in found),
        class_="figures",
    )


def facts(page: Page) -> Html:
    """What was run, of what, how."""
    run = page["run"]
    rows = [
        ("Prompt", el("span", visible(clip(run["prompt"] or "", 4000)), class_="prompt")),
        ("Output", el("span", visible(clip(run["output"] or "", 8000)), class_="prompt")),
        ("Commit", el("code", run["commit"])),
        ("Checksum", el("code", run["checksum"])),
        ("Model", join(f"{visible(run['model'])} ", el("code", run["model_id"]))),
        ("Numerics", run["numerics"]),
        ("Replayed on", visible(str(run["device"]))),
        ("Level of probes", run["level"]),
        ("Positions", number(run["positions"])),
    ]
    made = (join(el("dt", name), el("dd", value)) for name, value in rows)
    return el("dl", made, class_="facts")


def _tokens(page: Page) -> Html:
    return join(
        tokens.strip(page),
        el("output", id="about-token", class_="about", aria_live="polite"),
        tokens.strip_key(),
        sections.behind("Numbers", tokens.token_table(page)),
    )


def _lens(page: Page) -> Html:
    measures = (("kl", "KL to the last layer"), ("logprob", "log-probability of what came"),
                ("rank", "its rank"), ("entropy", "entropy"))  # fmt: skip
    choices = [
        el(
            "label",
            el("input", type="radio", name="measure", value=value, checked=value == "kl"),
            f" {text}",
        )
        for value, text in measures
    ]
    note = tokens.lens_note(page)
    return join(
        el(
            "p",
            "Each layer's residual stream read as if it were the last: normed anew, then"
            " unembedded. Rows are layers, the last on top.",
        ),
        tokens.overview(page) if len(page["lens"]["positions"]) > 12 else None,
        el("fieldset", el("legend", "Colour by"), *choices, id="measure", hidden=True),
        tokens.grid(page),
        el("output", id="about-lens", class_="about", aria_live="polite"),
        tokens.lens_key(),
        el("p", note, class_="key") if note else None,
    )


def _layers(page: Page) -> Html:
    return join(
        sections.layers(page),
        sections.behind("Features of the run", sections.run_features(page))
        if page["run_features"]
        else None,
    )


def _heads(page: Page) -> Html:
    return join(sections.heads(page), sections.patterns(page) if page["patterns"] else None)


def _attribution(page: Page) -> Html:
    return join(
        el(
            "p",
            "How much each component adds to the logit of the token that came, through the final"
            " norm's own scale. Blue bars to the right speak for it, orange bars to the left"
            " against.",
        ),
        el("div", el("div", sections.attribution(page)), sections.ablation(page), class_="two"),
    )


def _scores(page: Page) -> Html:
    return join(
        el(
            "p",
            "From 0 to 1, with the interval as a whisker. Fitness: how many of the bits are right."
            " Beauty: how much is said by how few, a proxy for what can be understood. Relevance:"
            " the share in what was said. Untrusted: fitness below 0.9.",
        ),
        sections.scores(page),
    )


def _limits(page: Page) -> Html:
    return el("ul", (el("li", visible(text)) for text in page["limits"]), class_="limits")


SECTIONS: tuple[tuple[str, str, Callable[[Page], Child], str], ...] = (
    ("tokens", "Tokens", _tokens, "tokens"),
    ("lens-title", "Lens", _lens, "lens"),
    ("layers", "Layers", _layers, "layers"),
    ("heads", "Heads", _heads, "heads"),
    ("attribution", "Attribution", _attribution, "attribution"),
    ("scores", "Scores", _scores, "scores"),
    ("invariants", "Invariants", sections.invariants, "invariants"),
    ("blocks", "Time", sections.blocks, "blocks"),
    ("run", "Run", facts, ""),
    ("limits", "Limits", _limits, "limits"),
)


@cache
def _style() -> str:
    rules = [(Path(__file__).parent / "report.css").read_text("utf-8")]
    rules += [
        f".c{n}{{background:{c};color:{text_on(c)};fill:{c}}}" for n, c in enumerate(map_ramp())
    ]
    for dark in (False, True):
        made = "".join(
            f".s{n}{{background:{c};box-shadow:inset 0 -{n / 2:g}px {_edge(c, dark)}}}"
            for n, c in enumerate(tints(dark=dark))
        )
        rules.append(f"@media (prefers-color-scheme:dark){{{made}}}" if dark else made)
    return "\n".join(rules)


def _edge(colour: str, dark: bool) -> str:
    """The colour of the bar at the foot of a tint."""
    red, green, blue = (int(c * (1.35 if dark else 0.62)) for c in rgb(colour))
    return f"#{min(red, 255):02x}{min(green, 255):02x}{min(blue, 255):02x}"


@cache
def _script() -> str:
    return (Path(__file__).parent / "report.js").read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
