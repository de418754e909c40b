"""Fitness, beauty and relevance of a run and of its points, each in [0, 1], with n and interval.

Definitions and failure modes: ``man/llmtrace-scores.7``. A mean is over the positions that were
looked at (for relevance: those that drew a token), its 95 % interval by Student's t, held to
[0, 1]. All in float64 of a fixed order, so that ``scores.json`` is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.introspect.beauty import Energies, rows_beauty
from llmtrace.introspect.fitness import LAYER_BLOCKS, OTHERS, TRUSTED, Local
from llmtrace.introspect.relevance import Attributor, components, concentration
from llmtrace.probes import exact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model

BLOCK_POINT = {
    "ln1": "ln1.hook_normalized",
    "qkv": "attn.hook_q",
    "rope_q": "attn.hook_rot_q",
    "rope_k": "attn.hook_rot_k",
    "attn": "attn.hook_z",
    "o_proj": "hook_attn_out",
    "resid_add1": "hook_resid_mid",
    "ln2": "ln2.hook_normalized",
    "gate_up": "mlp.hook_pre",
    "act": "mlp.hook_post",
    "down_proj": "hook_mlp_out",
    "resid_add2": "hook_resid_post",
}
"""The first point that each block of a layer writes: what its fitness is said of."""
OTHER_POINT = {
    "embed": "hook_embed",
    "ln_final": "ln_final.hook_normalized",
    "unembed": "unembed.hook_out",
}


@dataclass(frozen=True)
class Score:
    """One line of the table: a score of the run or of a point."""

    name: str
    """``fitness``, ``beauty``, ``relevance`` or ``usefulness``."""
    of: str
    spread: exact.Spread
    trusted: bool


class Scorer:
    """Scores one run from its inside, told in order of position."""

    def __init__(self, model: Model, request: Request) -> None:
        a = model.architecture
        self._layers, self._heads, self._size = a.layer_count, a.head_count, a.head_size
        self._local, self._attribute = Local(model, request), Attributor(model)
        self._fitness: dict[str, list[np.ndarray]] = {}
        self._energies = {name: Energies() for name in ("hook_embed", "hook_post", "hook_z")}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._shares: list[np.ndarray] = []
        self._gaps: list[np.ndarray] = []
        self._later: list[np.ndarray] = []

    def add(self, inside: Inside) -> None:
        """Takes some positions, all after those before."""
        import numpy as np

        for name, values in self._local.measure(inside).items():
            self._fitness.setdefault(name, []).append(values)
        post = [inside.rows[f"blocks.{n}.mlp.hook_post"] for n in range(self._layers)]
        z = [inside.rows[f"blocks.{n}.attn.hook_z"] for n in range(self._layers)]
        heads = np.stack(z).reshape(self._layers, -1, self._heads, self._size)
        by_head = heads.transpose(0, 2, 1, 3).reshape(-1, len(inside.positions), self._size)
        self._energies["hook_embed"].add(inside.rows["hook_embed"][None])
        self._energies["hook_post"].add(np.stack(post))
        self._energies["hook_z"].add(by_head)
        self._rows.append(rows_beauty(inside.heads, inside.positions))
        later = inside.positions >= inside.first_pick
        self._later.append(later)
        if later.any():
            found = self._attribute(inside)
            whole = exact.total(np.abs(found.logit))
            self._shares.append(found.share)
            self._gaps.append(np.abs(found.gap) / np.where(whole > 0, whole, 1.0))

    def scores(self) -> dict[str, Any]:
        """Gives ``scores.json``; raises ValueError if no position drew a token."""
        fitness, beauty = self._fitness_by_block(), self._beauty_by_point()
        relevance = self._relevance()
        n, m = len(fitness["ln1"][0]), len(relevance)
        return {
            "v": 1,
            "positions": n,
            "drawn": m,
            "run": self._run(fitness, beauty, relevance),
            "fitness": {name: _by_layer(values) for name, values in fitness.items()},
            "beauty": {
                name: {"plain": _by_layer(plain), "star": _by_layer(star)}
                for name, (plain, star) in beauty.items()
            },
            "relevance": self._relevance_json(relevance),
        }

    def table(self) -> list[Score]:
        """Gives every score with its interval, the run's first, then by point."""
        fitness, beauty = self._fitness_by_block(), self._beauty_by_point()
        relevance = self._relevance()
        run = self._of_run(fitness, beauty, relevance)
        trusted = run["fitness"].mean >= TRUSTED
        lines = [Score(name, "run", spread, trusted) for name, spread in run.items()]
        trust: dict[str, bool] = {}
        for name, values in fitness.items():
            for point, row in zip(self._points(name), values, strict=True):
                spread = held(row)
                trust[point] = spread.mean >= TRUSTED
                lines.append(Score("fitness", point, spread, trust[point]))
        for name, (_, star) in beauty.items():
            for layer, row in enumerate(star):
                point = name if len(star) == 1 else f"blocks.{layer}.{name}"
                lines.append(Score("beauty", point, held(row), trust.get(point, trusted)))
        for point, column in zip(components(self._layers), relevance.T, strict=True):
            lines.append(Score("relevance", point, held(column), trust[point]))
        return lines

    def _points(self, block: str) -> list[str]:
        if block in OTHER_POINT:
            return [OTHER_POINT[block]]
        return [f"blocks.{layer}.{BLOCK_POINT[block]}" for layer in range(self._layers)]

    def _fitness_by_block(self) -> dict[str, np.ndarray]:
        import numpy as np

        return {
            name: np.concatenate(self._fitness[name], 1)
            for name in (*LAYER_BLOCKS, *OTHERS)
            if name in self._fitness
        }

    def _beauty_by_point(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """B and B* by point, (L, N) each; of heads their mean."""
        import numpy as np

        plain, star = (
            np.concatenate(parts).transpose(1, 2, 0) for parts in zip(*self._rows, strict=True)
        )  # (L, H, N)
        z = (x.reshape(plain.shape) for x in self._energies["hook_z"].scores())
        z_plain, z_star = (exact.mean(x, axis=1) for x in z)
        return {
            "hook_embed": self._energies["hook_embed"].scores(),
            "attn.hook_pattern": (exact.mean(plain, axis=1), exact.mean(star, axis=1)),
            "attn.hook_z": (z_plain, z_star),
            "mlp.hook_post": self._energies["hook_post"].scores(),
        }

    def _relevance(self) -> np.ndarray:
        import numpy as np

        if not self._shares:
            raise ValueError("no position that drew a token was looked at")
        return np.concatenate(self._shares)

    def _of_run(
        self,
        fitness: Mapping[str, np.ndarray],
        beauty: Mapping[str, tuple[np.ndarray, np.ndarray]],
        relevance: np.ndarray,
    ) -> dict[str, exact.Spread]:
        """The run's fitness, beauty, relevance (its concentration) and usefulness."""
        import numpy as np

        later = np.concatenate(self._later)
        # of what stands behind the layers there is nothing before the first draw
        inner = np.concatenate([v for v in fitness.values() if v.shape[1] == len(later)])
        star = {name: values[:, later] for name, (_, values) in beauty.items()}
        outs = np.stack([star["attn.hook_pattern"], star["mlp.hook_post"]], 1)  # (L, 2, M)
        parts = np.concatenate([star["hook_embed"], outs.reshape(-1, outs.shape[-1])])
        found = {
            "fitness": held(exact.mean(inner, axis=0)),
            "beauty": held(exact.dot(relevance, parts.T)),
            "relevance": held(concentration(relevance)),
        }
        mean = low = high = 1.0
        for each in found.values():
            mean, low, high = mean * each.mean, low * each.low, high * each.high
        return {**found, "usefulness": exact.Spread(mean, low, high, found["beauty"].n)}

    def _run(
        self,
        fitness: Mapping[str, np.ndarray],
        beauty: Mapping[str, tuple[np.ndarray, np.ndarray]],
        relevance: np.ndarray,
    ) -> dict[str, Any]:
        found = self._of_run(fitness, beauty, relevance)
        useful = found.pop("usefulness")
        block, least = min(_means(fitness), key=lambda pair: pair[1])
        return {
            **{name: _json(spread) for name, spread in found.items()},
            "usefulness": {
                "q16": exact.q16(useful.mean),
                "low": exact.q16(useful.low),
                "high": exact.q16(useful.high),
                "n": useful.n,
            },
            "least": {"block": block, "fitness": exact.hex32(least)},
            "trusted": found["fitness"].mean >= TRUSTED,
        }

    def _relevance_json(self, relevance: np.ndarray) -> dict[str, Any]:
        import numpy as np

        shares = exact.mean(relevance, axis=0)
        gap = exact.spread(np.concatenate(self._gaps))
        return {
            "hook_embed": exact.hex32(float(shares[0])),
            "hook_attn_out": [exact.hex32(float(x)) for x in shares[1::2]],
            "hook_mlp_out": [exact.hex32(float(x)) for x in shares[2::2]],
            "gap": _json(gap),
        }


def _means(fitness: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """The mean fitness of each block, by its name, in the order of the layers."""
    for name, values in fitness.items():
        for layer, mean in enumerate(exact.mean(values)):
            yield (f"layers.{layer}.{name}" if name in LAYER_BLOCKS else name), float(mean)


def held(values: np.ndarray) -> exact.Spread:
    """A mean and its interval, which cannot leave [0, 1]."""
    found = exact.spread(values)
    mean, low, high = (min(max(x, 0.0), 1.0) for x in (found.mean, found.low, found.high))
    return exact.Spread(mean, low, high, found.n)


def _json(spread: exact.Spread) -> dict[str, Any]:
    values = {"mean": spread.mean, "low": spread.low, "high": spread.high}
    return {**{name: exact.hex32(value) for name, value in values.items()}, "n": spread.n}


def _by_layer(values: np.ndarray) -> dict[str, Any]:
    """Of values (L, N): the mean over layers with its interval over positions, and each layer's."""
    found = _json(held(exact.mean(values, axis=0)))
    if len(values) > 1:
        found["layers"] = [exact.hex32(float(mean)) for mean in exact.mean(values)]
    return found
