"""Which commit a word names, without letting libgit2 read what a stranger wrote to find out.

Full ids, beginnings of ids, HEAD, names of branches and refs, each with any number of ``~``,
``~N`` and ``^`` behind it: what people type. Other syntax of git's is left to libgit2.
"""

import re
from typing import TYPE_CHECKING

from llmtrace.errors import Trouble
from llmtrace.store.commit import COMMIT_LIMIT, parse_commit

if TYPE_CHECKING:
    from llmtrace.store.objects import Objects

_ID = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[0-9a-f]{4,39}")
_WORD = re.compile(r"([^~^:@{}?*\[\\\s]+)((?:~[0-9]{0,9}|\^)*)")
_FOLDERS = ("refs/", "refs/tags/", "refs/heads/", "refs/remotes/")  # in git's order


def resolve(objects: "Objects", revision: str) -> str | None:
    """The id of a commit; None for what this does not know. Raises Trouble and KeyError."""
    match = _WORD.fullmatch(revision)
    oid = _named(objects, match[1]) if match else None
    if match is None or oid is None:
        return None
    for step in re.findall(r"~[0-9]*|\^", match[2]):
        for _ in range(int(step[1:] or 1)):
            parents = _parents(objects, oid)
            if not parents:
                raise KeyError(revision)
            oid = parents[0]
    if objects.kind(oid) != "commit":
        return None
    return oid


def _named(objects: "Objects", word: str) -> str | None:
    if _ID.fullmatch(word):
        return word
    if word == "HEAD":
        return objects.tip(objects.head())
    names = [word] if word.startswith("refs/") else [folder + word for folder in _FOLDERS]
    for name in names:
        try:
            found = objects.reference(name)
        except Trouble:  # no name that a ref can have
            continue
        if found and _ID.fullmatch(found):
            return found
    return objects.expand(word) if _PART.fullmatch(word) else None


def _parents(objects: "Objects", oid: str) -> tuple[str, ...]:
    try:
        return parse_commit(objects.read(oid, "commit", COMMIT_LIMIT)).parents
    except ValueError:  # no record, but somebody's commit
        raise Trouble(f"'{oid[:8]}' is no record") from None
