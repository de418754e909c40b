"""HTML that cannot say what it should not: whatever is not made here is text and is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

VOID = {"meta", "br", "col", "input", "link"}


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


Child = str | None
"""Html stands as it is, any other text is escaped, None is nothing."""


def el(name: str, /, *children: Child | Iterable[Child], **attributes: object) -> Html:
    """Makes an element.

    ``class_`` and ``for_`` lose the underscore, other underscores become hyphens (``aria_label``);
    an attribute that is None or False is left out, True stands without a value.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: Child | Iterable[Child]) -> Html:
    """Puts children one after the other."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if name.startswith("view-box"):
        name = "viewBox"
    elif name == "aspect":
        name = "preserveAspectRatio"
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
