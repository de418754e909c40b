"""What the report says and how it writes numbers, the same on a terminal and in HTML.

Hides which characters are unsafe to show, and the sentences of the summary.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

Page = dict[str, Any]
"""The data of a report in plain JSON types, as ``llmtrace.introspect.page.page`` makes it."""

NONE, TIMES, MINUS = "\u2013", "\u00d7", "\u2212"
"""A dash for what there is not, and the signs of multiplication and subtraction."""
TITLES = {"logprob": "Log-probability", "kl": "KL to the last layer"}
_WORDS = {"attn": "attention", "mlp": "MLP", "kv": "KV"}
_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str, *, space: str = " ") -> str:
    r"""Text as it can be shown inside a line: what would move, reorder or hide is spelt ``\u202e``.

    A line break is an arrow; a mark that would join what stands before has a circle to stand on.
    """
    if text.isascii() and text.isprintable():
        return text.replace(" ", space)
    shown = "".join(_visible(text, i) for i in range(len(text))).replace(" ", space)
    return "◌" + shown if unicodedata.combining(shown[:1] or " ") else shown


def clip(text: str, most: int) -> str:
    """At most so many characters, the last of them an ellipsis where more would follow."""
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return _minus(f"{value:.{max(digits - 2, 0)}e}".replace("e-0", "e-").replace("e+0", "e"))
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:.{places}f}")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def quantity(value: float | None, unit: str) -> str:
    """A number with a decimal prefix: ``1.31 MB``."""
    if value is None:
        return NONE
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}"


def title(name: str) -> str:
    """What a feature or a score is called in a heading: ``mlp_update`` becomes ``MLP update``."""
    if name in TITLES:
        return TITLES[name]
    words = [_WORDS.get(word, word) for word in visible(name).replace("_", " ").split(" ")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def place(point: str) -> str:
    """A point as briefly as it is clear: ``L3 mlp_out``; ``embed`` and ``L3`` for the stream."""
    if point == "hook_embed":
        return "embed"
    found = re.fullmatch(r"blocks\.(\d+)\.(.*)", point)
    if not found:
        return visible(point.replace("hook_", ""))
    rest = found[2].replace("hook_", "").replace("resid_post", "")
    return visible(f"L{found[1]} {rest}".strip())


def grouped(digest: str, groups: int = 3) -> str:
    """The beginning of a digest in groups of four digits, to be read aloud."""
    return " ".join(digest[4 * i : 4 * i + 4] for i in range(groups))


def commits(page: Page, token: dict[str, Any]) -> str:
    """The layer from which on the lens gives this token, briefly."""
    layer = token["commit_layer"]
    if layer is None:
        return NONE
    names = page["lens"]["layers"] if page["lens"] else []
    return place(names[layer]) if 0 <= layer < len(names) else f"L{layer}"


def block_kinds(page: Page) -> list[dict[str, Any]]:
    """Blocks of one kind summed over the layers, the slowest first: by the number of layers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for block in page["blocks"]:
        found.setdefault(re.sub(r"^layers\.\d+\.", "", block["block"]), []).append(block)
    kinds = []
    for name, members in found.items():
        sums = {
            key: sum(m[key] * m["calls"] for m in members)
            for key in ("us", "bytes", "operations", "floor_us")
        }
        calls = sum(m["calls"] for m in members)
        count = f" {TIMES}{calls}" if calls > 1 else ""
        kernels = ", ".join(sorted({m["kernel"] for m in members}))
        kinds.append({"block": name + count, "kernel": kernels, **sums})
    return sorted(kinds, key=lambda kind: -kind["us"])


def summary(page: Page) -> list[str]:
    """The page in a few sentences, each left out where its numbers were not computed."""
    found = [_read(page), _sound(page), _decided(page), _important(page)]
    return [text for text in found if text]


def _read(page: Page) -> str:
    outputs = [t for t in page["tokens"] if t["is_output"]]
    text = f"The model read {_count(len(page['tokens']) - len(outputs), 'token')}"
    text += f" and wrote {_count(len(outputs), 'token')}"
    known = [t["logprob"] for t in outputs if t["logprob"] is not None]
    if not known:
        return text + "."
    mean = math.fsum(known) / len(known)
    least = min((t for t in outputs if t["logprob"] is not None), key=lambda t: t["logprob"])
    word = clip(visible(least["text"], space="·"), 24)
    return (
        f"{text}, at a mean log-probability of {number(mean)} nats (perplexity"
        f" {number(math.exp(min(-mean, 700)))}). The least expected was “{word}” at position"
        f" {least['position']}, at {number(least['logprob'])} nats."
    )


def _sound(page: Page) -> str:
    counts = dict.fromkeys(("pass", "fail", "not applicable"), 0)
    for each in page["invariants"]:
        counts[each["verdict"]] += 1
    judged = counts["pass"] + counts["fail"]
    if not judged:
        return ""
    if not counts["fail"]:
        return f"All {judged} invariants that apply hold."
    names = [title(e["name"]).lower() for e in page["invariants"] if e["verdict"] == "fail"]
    return f"{counts['fail']} of {judged} invariants fail: {', '.join(names)}."


def _decided(page: Page) -> str:
    outputs = [t for t in page["tokens"] if t["is_output"]]
    layers = sorted(t["commit_layer"] for t in outputs if t["commit_layer"] is not None)
    if not layers or not page["lens"]:
        return ""
    middle = commits(page, {"commit_layer": layers[(len(layers) - 1) // 2]})
    return (
        f"The lens of the last layer gives {len(layers)} of {len(outputs)} output tokens; half of"
        f" these are settled by {middle}."
    )


def _important(page: Page) -> str:
    shares: dict[str, list[float]] = {}
    for each in page["attribution"]:
        for component in each["components"]:
            shares.setdefault(component["name"], []).append(component["share"])
    if not shares:
        return ""
    means = {name: math.fsum(values) / len(values) for name, values in shares.items()}
    best = max(means, key=lambda name: means[name])
    text = f"{place(best)} says most about the tokens looked at"
    text += f" ({100 * means[best]:.0f} % of the direct attribution)."
    return text


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{number(count)} {what}s"


def _visible(text: str, at: int) -> str:
    character = text[at]
    if character in _SHOWN:
        return _SHOWN[character]
    if unicodedata.category(character) not in _UNSAFE:
        return character
    pictures = {unicodedata.category(c) for c in (text[at - 1 : at] + text[at + 1 : at + 2])}
    if character == "\u200d" and pictures == {"So"}:
        return character  # it makes one picture of two
    return ascii(character)[1:-1]
