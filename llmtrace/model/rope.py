"""Rotary position embedding: inverse frequencies of every scaling that Llama models use.

Formulas: transformers 5, modeling_rope_utils.py (ROPE_INIT_FUNCTIONS), evaluated
in decimal and rounded once. Dynamic and longrope follow the run's limit, never
the length so far, so that a prefix of a run has the bits of the whole run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble
from llmtrace.model.rounding import context, exact

if TYPE_CHECKING:
    from collections.abc import Callable

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
ONE = Decimal(1)
DEFAULT_THETA = 10000.0
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
OPTIONAL = {
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
}


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys, read once from either spelling of config.json."""

    kind: str
    """default, linear, dynamic, yarn, longrope or llama3."""
    theta: Decimal
    head_size: int
    context_length: int
    original_length: int
    """The context length before scaling."""
    numbers: dict[str, Decimal] = field(hash=False)
    """The scaling's own numbers, those of REQUIRED and OPTIONAL that are set."""
    short_factors: tuple[Decimal, ...] = ()
    long_factors: tuple[Decimal, ...] = ()
    truncate: bool = True

    @classmethod
    def of(cls, config: dict[str, Any], head_size: int, context_length: int) -> Rope:
        """Reads ``rope_parameters``, or the older ``rope_scaling`` and ``rope_theta``.

        Raises Trouble for a scaling or an option that llmtrace does not know.
        """
        # transformers: rope_scaling wins where both are set.
        given = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(given, dict):
            raise Trouble(f"rope_scaling '{given}' of 'config.json' is not an object")
        settings = {key: value for key, value in given.items() if value is not None}
        kind = settings.get("rope_type", settings.get("type", "default"))
        if not isinstance(kind, str) or kind not in REQUIRED:
            raise Trouble(f"rope type '{kind}' is unknown", f"llmtrace reads {', '.join(REQUIRED)}")
        _refuse_partial(settings, config)
        for key in REQUIRED[kind]:
            if key not in settings:
                raise Trouble(f"rope type '{kind}' has no '{key}' in 'config.json'")
        # transformers (for Phi-3): a length beside the scaling outranks the one in it.
        original = config.get("original_max_position_embeddings") or settings.get(
            "original_max_position_embeddings", context_length
        )
        lists = kind == "longrope"
        rope = cls(
            kind=kind,
            theta=_positive(
                "rope_theta", settings.get("rope_theta", config.get("rope_theta") or DEFAULT_THETA)
            ),
            head_size=head_size,
            context_length=context_length,
            original_length=int(_positive("original_max_position_embeddings", original)),
            numbers=_numbers(kind, settings),
            short_factors=_factors("short_factor", settings, head_size) if lists else (),
            long_factors=_factors("long_factor", settings, head_size) if lists else (),
            truncate=settings.get("truncate", True) is not False,
        )
        rope.refuse_singular()
        return rope

    def refuse_singular(self) -> None:
        """Raises Trouble for numbers with which the scaling's formula divides by zero."""
        numbers = self.numbers
        if self.kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
            raise Trouble("'high_freq_factor' of 'config.json' is not above 'low_freq_factor'")
        if self.kind == "dynamic" and self.head_size == 2:
            raise Trouble("rope type 'dynamic' has no meaning for a head size of '2'")
        if self.kind == "yarn" and self.theta == 1:
            raise Trouble("rope type 'yarn' has no meaning for a rope_theta of '1'")
        if self.kind == "longrope" and self.original_length == 1:
            raise Trouble("rope type 'longrope' has no meaning for an original length of '1'")

    @property
    def follows_limit(self) -> bool:
        """Whether the frequencies depend on the run's limit."""
        return self.kind in {"dynamic", "longrope"}

    def inverse_frequencies(self, run_limit: int) -> list[Decimal]:
        """The angle per position of each of the head_size / 2 pairs, in radians."""
        with localcontext(context()):
            return SCALINGS[self.kind](self, run_limit)

    def attention_factor(self) -> Decimal:
        """What multiplies both cosines and sines; 1 except for yarn and longrope."""
        with localcontext(context()):
            if self.kind not in {"yarn", "longrope"}:
                return ONE
            if "attention_factor" in self.numbers:
                return self.numbers["attention_factor"]
            factor = self._factor()
            if self.kind == "longrope":
                if factor <= 1:
                    return ONE
                return (1 + factor.ln() / Decimal(self.original_length).ln()).sqrt()
            mscale = self.numbers.get("mscale")
            mscale_all_dim = self.numbers.get("mscale_all_dim")
            if mscale and mscale_all_dim:
                return _yarn_scale(factor, mscale) / _yarn_scale(factor, mscale_all_dim)
            return _yarn_scale(factor, ONE)

    def _factor(self) -> Decimal:
        if "factor" in self.numbers:
            return self.numbers["factor"]
        return Decimal(self.context_length) / Decimal(self.original_length)


def _powers(theta: Decimal, head_size: int) -> list[Decimal]:
    # theta^(2i/d), i = 0 .. d/2 - 1
    return [theta ** (Decimal(i) / head_size) for i in range(0, head_size, 2)]


def _default(rope: Rope, run_limit: int) -> list[Decimal]:
    del run_limit
    return [1 / power for power in _powers(rope.theta, rope.head_size)]


def _linear(rope: Rope, run_limit: int) -> list[Decimal]:
    return [frequency / rope.numbers["factor"] for frequency in _default(rope, run_limit)]


def _dynamic(rope: Rope, run_limit: int) -> list[Decimal]:
    # NTK-aware: theta grows with the length (reddit: bloc97, emozilla)
    size, factor = Decimal(rope.head_size), rope.numbers["factor"]
    length = max(run_limit, rope.context_length)
    growth = factor * length / rope.context_length - (factor - 1)
    theta = rope.theta * growth ** (size / (size - 2))
    return [1 / power for power in _powers(theta, rope.head_size)]


def _yarn(rope: Rope, run_limit: int) -> list[Decimal]:
    # arXiv 2309.00071: slow pairs are interpolated, fast ones kept, a ramp between
    del run_limit
    size, factor = rope.head_size, rope._factor()
    low = _yarn_pair(rope, rope.numbers.get("beta_fast") or Decimal(32))
    high = _yarn_pair(rope, rope.numbers.get("beta_slow") or ONE)
    if rope.truncate:
        low, high = Decimal(math.floor(low)), Decimal(math.ceil(high))
    low, high = max(low, Decimal(0)), min(high, Decimal(size - 1))
    if low == high:
        high += Decimal("0.001")
    frequencies = []
    for i, power in enumerate(_powers(rope.theta, size)):
        ramp = min(max((i - low) / (high - low), Decimal(0)), ONE)
        frequencies.append(ramp / (factor * power) + (1 - ramp) / power)
    return frequencies


def _yarn_pair(rope: Rope, rotations: Decimal) -> Decimal:
    # the pair, as a real number, that turns so many times over the original length
    turns = rope.original_length / (rotations * 2 * PI)
    return rope.head_size * turns.ln() / (2 * rope.theta.ln())


def _yarn_scale(factor: Decimal, mscale: Decimal) -> Decimal:
    return ONE if factor <= 1 else mscale * factor.ln() / 10 + 1


def _longrope(rope: Rope, run_limit: int) -> list[Decimal]:
    # arXiv 2402.13753: searched factors, one set for short runs and one for long
    factors = rope.long_factors if run_limit > rope.original_length else rope.short_factors
    powers = _powers(rope.theta, rope.head_size)
    return [1 / (factor * power) for factor, power in zip(factors, powers, strict=True)]


def _llama3(rope: Rope, run_limit: int) -> list[Decimal]:
    # Llama 3.1: long wavelengths divided by factor, short ones kept, smooth between
    factor, length = rope.numbers["factor"], rope.original_length
    low, high = rope.numbers["low_freq_factor"], rope.numbers["high_freq_factor"]
    frequencies = []
    for frequency in _default(rope, run_limit):
        wavelength = 2 * PI / frequency
        smooth = (length / wavelength - low) / (high - low)
        smooth = min(max(smooth, Decimal(0)), ONE)
        frequencies.append((1 - smooth) * frequency / factor + smooth * frequency)
    return frequencies


SCALINGS: dict[str, Callable[[Rope, int], list[Decimal]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def _refuse_partial(settings: dict[str, Any], config: dict[str, Any]) -> None:
    for place in (settings, config):
        partial = place.get("partial_rotary_factor")
        if partial is not None and partial != 1:
            raise Trouble(f"partial_rotary_factor '{partial}' is not supported for 'llama'")


def _numbers(kind: str, settings: dict[str, Any]) -> dict[str, Decimal]:
    # Scalings ignore what they do not use, as in transformers.
    names = OPTIONAL | {name for name in REQUIRED[kind] if not name.startswith(("short", "long"))}
    return {
        name: _positive(name, settings[name], or_zero=name in OPTIONAL and name != "factor")
        for name in sorted(names)
        if name in settings
    }


def _factors(name: str, settings: dict[str, Any], head_size: int) -> tuple[Decimal, ...]:
    given = settings[name]
    if not isinstance(given, list) or len(given) != head_size // 2:
        raise Trouble(f"'{name}' of 'config.json' is not a list of '{head_size // 2}' numbers")
    return tuple(_positive(name, factor) for factor in given)


def _positive(name: str, value: Any, *, or_zero: bool = False) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Trouble(f"{name} '{value}' of 'config.json' is not a number")
    if value < 0 or (value == 0 and not or_zero):
        raise Trouble(f"{name} '{value}' of 'config.json' is not above zero")
    return exact(value)
