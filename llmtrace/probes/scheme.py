"""Schemes: what to sample where, fixed before a run and part of its record.

A scheme is a TOML file of rules; a position that fits one is looked at again when the run is at
its end, its probe records are stored, and of the rule's points so many values:

    [[sample]]
    points = ["blocks.*.mlp.hook_post"]  # globs; all points if absent
    layers = [0, -1]                     # of these layers alone; negative from the last
    positions = "output"                 # all, prompt, output, last, chosen, [0, -1], {every = 16}
    when = {entropy_above = 2.5}         # what must hold there
    values = 64                          # one from each 64th of a row; "all": rows; 0: none
    lens = true                          # what the model would say behind each layer

``chosen`` are the two positions that every record stores: the one that drew the least certain
token, and the last. Conditions: ``entropy``, ``logprob``, ``margin`` or ``rank`` of the token that
was drawn there, each ``_above`` or ``_below`` a number, and ``massive = true``: an activation of
the rule's points is above 100 and above 1000 times the mean magnitude of its row (Sun et al.
2024). All conditions of a rule must hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Misuse
from llmtrace.probes import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

NAMED = ("all", "prompt", "output", "last", "chosen")
TOLD = ("entropy", "logprob", "margin", "rank")
BOUNDS = tuple(f"{what}_{side}" for what in TOLD for side in ("above", "below"))
MOST_RULES, MOST_GLOBS, MOST_VALUES = 64, 256, 1 << 20
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
EVERYWHERE = ("*",)
KEYS = ("points", "layers", "positions", "when", "values", "lens")

Positions = str | int | tuple[int, ...]
"""One of NAMED, every so many, or some, of which negative ones count from the end."""


@dataclass(frozen=True)
class Rule:
    """What to sample, and where."""

    points: tuple[str, ...] = EVERYWHERE
    layers: tuple[int, ...] | None = None
    positions: Positions = "all"
    bounds: tuple[tuple[str, float], ...] = ()
    """Names of BOUNDS, each with a float32."""
    massive: bool = False
    values: int | None = 8
    """None: whole rows."""
    lens: bool = False

    def columns(self, points: list[tuple[str, int]], layers: int) -> list[int]:
        """Gives the columns of its points, of a plan with these points (names and widths).

        Raises Misuse if a glob names none.
        """
        from llmtrace.probes.points import Names

        names = [name for name, _ in points]
        found = set(Names(names).match(self.points))
        if self.layers is not None:
            inside = {
                f"blocks.{layer % layers}." for layer in self.layers if -layers <= layer < layers
            }
            found = {n for n in found if ".".join(n.split(".")[:2]) + "." in inside}
        return [column for column, name in enumerate(names) if name in found]

    def holds(self, drawn: np.ndarray, massive: np.ndarray, first_pick: int) -> np.ndarray:
        """Says where its conditions hold: (T,) bool, of token records (G, 4) and massive (T,)."""
        import numpy as np

        held = np.ones(len(massive), bool)
        if self.massive:
            held &= massive
        for name, bound in self.bounds:
            what, side = name.rsplit("_", 1)
            told = records.field(drawn, what, records.TOKEN_FIELDS).astype(np.float64)
            after = told > bound if side == "above" else told < bound
            held[:first_pick] = False
            held[first_pick:] &= after
        return held

    def places(self, positions: int, first_pick: int, chosen: Iterable[int]) -> list[int]:
        """Gives the positions that it speaks of, conditions apart, ascending."""
        found: Iterable[int]
        match self.positions:
            case "all":
                found = range(positions)
            case "prompt":
                found = range(first_pick)
            case "output":
                found = range(first_pick, positions)
            case "last":
                found = (positions - 1,)
            case "chosen":
                found = chosen
            case int() as step:
                found = range(0, positions, step)
            case named:
                assert isinstance(named, tuple)
                found = (n + positions if n < 0 else n for n in named)
        return sorted({n for n in found if 0 <= n < positions})


@dataclass(frozen=True)
class Scheme:
    """Rules, in their order."""

    rules: tuple[Rule, ...] = ()

    def json(self) -> dict[str, Any]:
        """Gives what a record holds: every key of every rule, numbers as exact floats."""
        return {"rules": [_json(rule) for rule in self.rules]}


NONE = Scheme()
DETAIL = Scheme(
    (
        Rule(positions="chosen", values=None),
        Rule(("blocks.*.hook_resid_post",), positions="all", values=64),
        Rule(positions="output", values=0, lens=True),
    )
)
"""What level ``detail`` adds to a record, behind the rules of its scheme."""


def parse(text: str) -> Scheme:
    """Reads a scheme file; raises Misuse naming what is wrong."""
    import tomli

    try:
        found = tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise Misuse(f"not TOML: {error}") from None
    if set(found) != {"sample"} or not isinstance(found["sample"], list):
        raise Misuse("no table [[sample]], or others beside it", "see 'man llmtrace-scheme'")
    rules = [_rule(number, table) for number, table in enumerate(found["sample"], 1)]
    if len(rules) > MOST_RULES:
        raise Misuse(f"{len(rules)} rules, at most {MOST_RULES}")
    return Scheme(tuple(rules))


def read(document: Any) -> Scheme:
    """Reads what ``Scheme.json`` gave, whoever wrote it; raises ValueError."""
    if not isinstance(document, dict) or set(document) != {"rules"}:
        raise ValueError("a scheme does not hold exactly: rules")
    if not isinstance(document["rules"], list) or len(document["rules"]) > MOST_RULES:
        raise ValueError("rules of the scheme are no list")
    rules = []
    for number, table in enumerate(document["rules"], 1):
        if not isinstance(table, dict) or set(table) != {*KEYS}:
            raise ValueError(f"rule {number} of the scheme does not hold exactly: {' '.join(KEYS)}")
        when = table["when"]
        if not isinstance(when, dict):
            raise ValueError(f"'when' of rule {number} is no object")  # noqa: TRY004
        asked = {**table, "when": {k: _number(v) if k in BOUNDS else v for k, v in when.items()}}
        if table["layers"] is None:
            del asked["layers"]
        try:
            rules.append(_rule(number, asked))
        except Misuse as error:
            raise ValueError(str(error)) from None
    scheme = Scheme(tuple(rules))
    if scheme.json() != document:
        raise ValueError("the scheme is not in its one form")
    return scheme


def _json(rule: Rule) -> dict[str, Any]:
    positions: Any = rule.positions
    if isinstance(positions, int):
        positions = {"every": positions}
    when: dict[str, Any] = {name: bound.hex() for name, bound in rule.bounds}
    return {
        "points": list(rule.points),
        "layers": None if rule.layers is None else list(rule.layers),
        "positions": list(positions) if isinstance(positions, tuple) else positions,
        "when": when | ({"massive": True} if rule.massive else {}),
        "values": "all" if rule.values is None else rule.values,
        "lens": rule.lens,
    }


def _rule(number: int, table: Any) -> Rule:
    if not isinstance(table, dict):
        raise Misuse(f"rule {number} is no table")
    for key in table:
        if key not in KEYS:
            raise Misuse(f"unknown key '{key}' in rule {number}", "the keys are " + ", ".join(KEYS))
    where = f"of rule {number}"
    points = table.get("points", list(EVERYWHERE))
    if not _all(points, str) or not 0 < len(points) <= MOST_GLOBS:
        raise Misuse(f"'points' {where} is no list of globs")
    layers = table.get("layers")
    if layers is not None and not _all(layers, int):
        raise Misuse(f"'layers' {where} is no list of whole numbers")
    values, lens = table.get("values", 8), table.get("lens", False)
    if values != "all" and not (type(values) is int and 0 <= values <= MOST_VALUES):
        raise Misuse(f"'values' {where} is neither 'all' nor a number up to {MOST_VALUES}")
    if type(lens) is not bool:
        raise Misuse(f"'lens' {where} is neither true nor false")
    bounds, massive = _when(table.get("when", {}), where)
    return Rule(
        tuple(points),
        None if layers is None else tuple(layers),
        _positions(table.get("positions", "all"), where),
        bounds,
        massive,
        None if values == "all" else values,
        lens,
    )


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _positions(asked: Any, where: str) -> Positions:
    if isinstance(asked, str) and asked in NAMED:
        return asked
    if _all(asked, int):
        return tuple(asked)
    if isinstance(asked, dict) and set(asked) == {"every"}:
        step = asked["every"]
        if type(step) is int and step > 0:
            return step
    hint = 'a list of numbers, {every = 16}, or one of "' + '", "'.join(NAMED) + '"'
    raise Misuse(f"'positions' {where} means nothing", hint)


def _when(asked: Any, where: str) -> tuple[tuple[tuple[str, float], ...], bool]:
    import numpy as np

    if not isinstance(asked, dict):
        raise Misuse(f"'when' {where} is no table")
    bounds = []
    for name, value in sorted(asked.items()):
        if name == "massive" and value is True:
            continue
        if name not in BOUNDS:
            known = ", ".join((*BOUNDS, "massive = true"))
            raise Misuse(f"unknown condition '{name}' {where}", f"there are {known}")
        if type(value) not in {int, float} or not abs(value) < 2.0**127:
            raise Misuse(f"'{name}' {where} is no number")
        bounds.append((name, float(np.float32(value))))
    return tuple(bounds), asked.get("massive", False) is True


def _number(text: Any) -> float:
    if not isinstance(text, str) or len(text) > 32:
        raise ValueError("a bound is no hexadecimal float")
    return float.fromhex(text)


def massive(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Says at which positions one of the points has a massive activation: (n,) bool.

    points (n, K, 32) u32: their records; widths (K,).
    """
    import numpy as np

    most = records.field(points, "absmax").astype(np.float64)
    mean = records.field(points, "l1").astype(np.float64) / widths
    return np.asarray(((most > MASSIVE) & (most > MASSIVE_RATIO * mean)).any(axis=1))


def needs(scheme: Scheme, points: Mapping[str, int], layers: int) -> tuple[str, ...]:
    """Gives the points of which whole rows may be stored.

    Raises Misuse if a glob of any rule names no point.
    """
    listed = list(points.items())
    whole: dict[str, None] = {}
    for rule in scheme.rules:
        columns = rule.columns(listed, layers)
        if rule.values is None or rule.values > 8:
            whole.update(dict.fromkeys(listed[column][0] for column in columns))
    return tuple(whole)
