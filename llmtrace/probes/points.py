"""The names of points: TransformerLens's own, and what else the same values are called.

The legacy names of TransformerLens (on unprocessed weights) are the names; others that stand
for the same value are aliases: TransformerLens's bridge of version 3, and the modules of
Hugging Face by their output. A name whose value is made nowhere is known too, and refused
with the reason. llmtrace-points(7) shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Place:
    """A point of every layer, or of the model; ``{i}`` is the layer's number, from 0."""

    name: str
    width: str
    """Values of a row: d of the stream, H heads or G key-value heads of D, ff neurons, V tokens."""
    meaning: str
    bridge: tuple[str, ...] = ()
    """TransformerLens's names of version 3, and legacy ones that are the same value."""
    modules: tuple[str, ...] = ()
    """Hugging Face modules whose output it is."""


PLACES = (
    Place(
        "hook_embed", "d", "embedding of the token", ("embed.hook_out",), ("model.embed_tokens",)
    ),
    Place("blocks.{i}.ln1.hook_scale", "1", "what the row is divided by before attention"),
    Place("blocks.{i}.ln1.hook_normalized", "d", "the divided row, before the gains"),
    Place(
        "blocks.{i}.attn.hook_q",
        "HD",
        "queries",
        ("blocks.{i}.attn.q.hook_out",),
        ("model.layers.{i}.self_attn.q_proj",),
    ),
    Place(
        "blocks.{i}.attn.hook_k",
        "GD",
        "keys",
        ("blocks.{i}.attn.k.hook_out",),
        ("model.layers.{i}.self_attn.k_proj",),
    ),
    Place(
        "blocks.{i}.attn.hook_v",
        "GD",
        "values",
        ("blocks.{i}.attn.v.hook_out",),
        ("model.layers.{i}.self_attn.v_proj",),
    ),
    Place("blocks.{i}.attn.hook_rot_q", "HD", "queries, turned by their position"),
    Place("blocks.{i}.attn.hook_rot_k", "GD", "keys, turned by their position"),
    Place(
        "blocks.{i}.attn.hook_z",
        "HD",
        "values mixed by attention, a head beside the other",
        ("blocks.{i}.attn.o.hook_in",),
    ),
    Place(
        "blocks.{i}.hook_attn_out",
        "d",
        "what attention adds to the stream",
        ("blocks.{i}.attn.hook_out", "blocks.{i}.attn.o.hook_out"),
        ("model.layers.{i}.self_attn", "model.layers.{i}.self_attn.o_proj"),
    ),
    Place(
        "blocks.{i}.hook_resid_mid",
        "d",
        "the stream after attention",
        ("blocks.{i}.ln2.hook_in", "blocks.{i}.hook_mlp_in"),
    ),
    Place("blocks.{i}.ln2.hook_scale", "1", "what the row is divided by before the MLP"),
    Place("blocks.{i}.ln2.hook_normalized", "d", "the divided row, before the gains"),
    Place(
        "blocks.{i}.mlp.hook_pre",
        "ff",
        "gate of the MLP, before its activation",
        ("blocks.{i}.mlp.gate.hook_out",),
        ("model.layers.{i}.mlp.gate_proj",),
    ),
    Place(
        "blocks.{i}.mlp.hook_pre_linear",
        "ff",
        "what the gate multiplies",
        ("blocks.{i}.mlp.in.hook_out",),
        ("model.layers.{i}.mlp.up_proj",),
    ),
    Place(
        "blocks.{i}.mlp.hook_post",
        "ff",
        "neurons of the MLP: the activated gate times what it multiplies",
        ("blocks.{i}.mlp.out.hook_in",),
    ),
    Place(
        "blocks.{i}.hook_mlp_out",
        "d",
        "what the MLP adds to the stream",
        ("blocks.{i}.mlp.hook_out", "blocks.{i}.mlp.out.hook_out"),
        ("model.layers.{i}.mlp", "model.layers.{i}.mlp.down_proj"),
    ),
    Place(
        "blocks.{i}.hook_resid_post",
        "d",
        "the stream after the layer",
        ("blocks.{i}.hook_out",),
        ("model.layers.{i}",),
    ),
    Place("ln_final.hook_scale", "1", "what the last row is divided by"),
    Place("ln_final.hook_normalized", "d", "the divided row, before the gains"),
    Place(
        "unembed.hook_in",
        "d",
        "what the logits are made of: the last row with the gains",
        ("ln_final.hook_out",),
        ("model.norm",),
    ),
    Place("unembed.hook_out", "V", "logits", (), ("lm_head",)),
)
"""Every point of a Llama, in the order in which its value is made."""

PRECEDING = ("hook_resid_pre", "hook_in", "ln1.hook_in")
"""Names in a layer for the stream before it: the layer before's after it, or the embedding."""

REFUSED = {
    "blocks.{i}.attn.hook_attn_scores": "attention never holds its scores: "
    "their log-sum-exp, greatest and entropy by head are in the head records",
    "blocks.{i}.attn.hook_pattern": "attention never holds its pattern: "
    "what it looks at by head is in the head records, rows are remade by 'llmtrace introspect'",
    "blocks.{i}.attn.hook_result": "the results of heads are never made apart: "
    "multiply the columns of a head in 'blocks.{i}.attn.hook_z' by its part of the output weights",
    "blocks.{i}.ln1.hook_out": "the row with the gains is no point: "
    "multiply 'blocks.{i}.ln1.hook_normalized' by them",
    "blocks.{i}.ln2.hook_out": "the row with the gains is no point: "
    "multiply 'blocks.{i}.ln2.hook_normalized' by them",
    "model.layers.{i}.input_layernorm": "the row with the gains is no point: "
    "multiply 'blocks.{i}.ln1.hook_normalized' by them",
    "model.layers.{i}.post_attention_layernorm": "the row with the gains is no point: "
    "multiply 'blocks.{i}.ln2.hook_normalized' by them",
    "model.layers.{i}.mlp.act_fn": "the activated gate is no point: "
    "'blocks.{i}.mlp.hook_post' is it times 'blocks.{i}.mlp.hook_pre_linear'",
    "hook_pos_embed": "positions are no part of the embedding in this model",
}
"""Names that are known and hold no value here, and why."""


class Names:
    """What the points of one model are called.

    ``points`` are the names that its plan has, in its order.
    """

    def __init__(self, points: Iterable[str]) -> None:
        self.points = tuple(points)
        has = set(self.points)
        layers = sum(name.endswith(".hook_resid_post") for name in self.points)
        before = ["hook_embed", *(f"blocks.{i}.hook_resid_post" for i in range(layers - 1))]
        self._same = {
            f"blocks.{i}.hook_resid_pre": before[i] for i in range(layers) if before[i] in has
        }
        found = {
            f"blocks.{i}.{name}": before[i]
            for i in range(layers)
            for name in PRECEDING
            if before[i] in has
        }
        for place in PLACES:
            for layer in range(layers) if "{i}" in place.name else (0,):
                name = place.name.format(i=layer)
                for alias in (*place.bridge, *place.modules) if name in has else ():
                    found[alias.format(i=layer)] = name
        self.aliases: Mapping[str, str] = found
        """Every other name, and the point that is the same value."""
        self._refused = {
            name.format(i=layer): reason.format(i=layer)
            for name, reason in REFUSED.items()
            for layer in (range(layers) if "{i}" in name else (0,))
        }

    def resolve(self, name: str) -> str:
        """Gives the point of a name or an alias; raises Misuse, with the reason where one is known.

        A name is taken as it stands: ``*`` is no glob here.
        """
        if name in self.points:
            return name
        if name in self.aliases:
            return self.aliases[name]
        raise self._unknown(name, self._refused.get(name))

    def match(self, globs: Iterable[str]) -> tuple[str, ...]:
        """Gives the points that globs name, in the order of the plan.

        A glob is tried on the points and ``hook_resid_pre``; where none of them has it, on all
        aliases. Raises Misuse if one names none.
        """
        found: set[str] = set()
        for glob in globs:
            own = {name: name for name in self.points} | self._same
            named = {p for name, p in own.items() if fnmatchcase(name, glob)} or {
                p for name, p in self.aliases.items() if fnmatchcase(name, glob)
            }
            if not named:
                reasons = (why for name, why in self._refused.items() if fnmatchcase(name, glob))
                raise self._unknown(glob, next(reasons, None))
            found |= named
        return tuple(name for name in self.points if name in found)

    def _unknown(self, name: str, reason: str | None) -> Misuse:
        if reason is not None:
            return Misuse(f"'{name}' cannot be read", reason)
        return Misuse(
            f"no point '{name}' in this model",
            "points have names such as 'blocks.0.hook_resid_post'",
        )
