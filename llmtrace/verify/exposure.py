"""Exposure: what becomes public when records are pushed, in numbers, words and secrets."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from llmtrace.store.chain import Store
from llmtrace.store.entry import Entry
from llmtrace.store.record import Record
from llmtrace.verify import secrets
from llmtrace.verify.secrets import Secret

PROMPTS = 5  # of which the first line is shown
_LINE = 72  # characters of it
_TEXTS = ("prompt.txt", "output.txt")
_RUN = ("link", "parts", "trace", "probes")  # sections of a run without words of anybody's
_SHORTEST = 8  # characters of a word that can be a secret


@dataclass
class Exposure:
    """What some records hold."""

    kinds: Counter[str] = field(default_factory=Counter)  # records of each kind
    prompts: int = 0
    outputs: int = 0
    unread: int = 0  # texts that are there as tokens alone, in which no secret is found
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each commit's files
    first: deque[str] = field(default_factory=lambda: deque(maxlen=PROMPTS))  # newest last
    secrets: list[Secret] = field(default_factory=list)

    @property
    def records(self) -> int:
        """How many records."""
        return len(self.sizes)

    @property
    def bytes(self) -> int:
        """How many bytes of files, before git compresses them."""
        return sum(self.sizes.values())


def expose(
    store: Store, commits: Iterable[str], seen: Callable[[], object] = lambda: None
) -> Exposure:
    """Reads records that are about to be pushed; calls ``seen`` after each.

    Raises Trouble for a commit that is no record: only records are pushed.
    """
    found = Exposure()
    for commit in commits:
        entry = store.read(commit)
        record = entry.record
        found.kinds[record.kind] += 1
        sizes = (int(part["size"]) for part in record.sections["parts"])
        found.sizes[entry.id] = len(entry.json) + sum(sizes)
        if record.kind == "run":
            _count(found, record)
        for part, text in _texts(entry, record):
            if part == "prompt.txt":
                found.first.append(_first_line(text))
            found.secrets += [Secret(entry.id, part, kind) for kind in secrets.kinds(text)]
        seen()
    return found


def _count(found: Exposure, record: Record) -> None:
    trace = record.sections["trace"]
    for name, part in (("prompt_tokens", "prompt.txt"), ("output_tokens", "output.txt")):
        if part not in record.parts:
            if not trace.get(name):
                continue
            found.unread += 1
        if part == "prompt.txt":
            found.prompts += 1
        else:
            found.outputs += 1


def _texts(entry: Entry, record: Record) -> Iterator[tuple[str, str]]:
    """The texts of a record, each with the name of the part that holds it."""
    for name in _TEXTS:
        if name in record.parts:
            yield name, record.parts[name].decode(errors="replace")
    skipped = _RUN if record.kind == "run" else _RUN[:2]
    words = [
        word
        for section, value in record.sections.items()
        if section not in skipped
        for word in _words(value)
    ]
    if words:
        yield "record.json", "\n".join(words)


def _words(value: object) -> Iterator[str]:
    """All texts inside a value."""
    if isinstance(value, str):
        if len(value) >= _SHORTEST:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)


def _first_line(text: str) -> str:
    """The first line with a word in it, cut; not escaped."""
    lines = (line.strip() for line in text.splitlines())
    line = next(filter(None, lines), "")
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"
