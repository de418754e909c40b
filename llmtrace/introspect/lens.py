"""The logit lens: what the model would say if it ended behind each layer.

The final norm is *computed anew* for each layer's residual stream, with that stream's own scale
(nostalgebraist 2020). Taken with the last layer's scale it would only be a change of temperature,
which makes early layers look uniform; attribution, on the contrary, wants that scale.
Logits are those of the kernels of ``accuracy``, with the weights as they are stored, whatever the
version: there the last layer's are the run's to the bit, and lenses of all versions compare. The
numbers made of them are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrace.blocks.block import Block, Matrix, Vector
from llmtrace.blocks.variants import room, trial, variants
from llmtrace.blocks.weights import padded
from llmtrace.device.device import Launch
from llmtrace.device.timing import microseconds
from llmtrace.introspect.forward import log_softmax
from llmtrace.introspect.wide import blocks_of
from llmtrace.probes import exact

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.trace import Model

LOGITS_BYTES = 64 << 20
"""Most memory for logits at the same time."""


@dataclass(frozen=True)
class Lens:
    """Of K streams (the embedding, then each layer) at N positions; each array (K, N)."""

    layers: tuple[str, ...]
    positions: np.ndarray
    """(N,) i64"""
    final: np.ndarray
    """(N,) i64: the token that was drawn, or the most likely one where none was."""
    top: np.ndarray
    """i64: the most likely token."""
    top_logprob: np.ndarray
    logprob: np.ndarray
    """Of the final token."""
    rank: np.ndarray
    """Of the final token, i64: 0 is the most likely."""
    entropy: np.ndarray
    """In nats."""
    kl: np.ndarray
    """KL(last layer || this one), in nats."""

    @property
    def commit_layer(self) -> np.ndarray:
        """(N,) i64: the first stream from which on the final token is on top; K if never."""
        import numpy as np

        agrees = self.top == self.final
        held = np.logical_and.accumulate(agrees[::-1], axis=0)
        return np.asarray(len(self.top) - held.sum(0))

    def beauty(self, vocabulary: int) -> np.ndarray:
        """B of residual points: max(0, 1 - H / ln V), (K, N)."""
        import numpy as np

        room = exact.log(np.asarray(float(vocabulary)))
        return np.maximum(1.0 - self.entropy / room, 0.0) if vocabulary > 1 else 0.0 * self.entropy

    def json(self) -> dict[str, Any]:
        """Gives plain types, layer by position, but for the tokens' texts."""
        names = ("top", "top_logprob", "logprob", "rank", "entropy", "kl")
        tables = {name: getattr(self, name).tolist() for name in names}
        return {"layers": list(self.layers), "positions": self.positions.tolist(), **tables}


def streams(layers: int) -> list[str]:
    """Names the points that a lens looks at: the embedding and what stands behind each layer."""
    return ["hook_embed", *(f"blocks.{n}.hook_resid_post" for n in range(layers))]


def lens(model: Model, inside: Inside) -> Lens:
    """Looks at all positions of an inside."""
    import numpy as np

    names = streams(model.architecture.layer_count)
    later = inside.positions >= inside.first_pick
    drawn = np.array(inside.output, np.int64)[inside.positions[later] - inside.first_pick]
    logits_of = _Logits(model)
    columns = []
    for begin, end in _pieces(len(inside.positions), len(names) * model.architecture.vocab_size):
        rows = np.concatenate([inside.rows[name][begin:end] for name in names])
        logits = logits_of(rows).reshape(len(names), end - begin, -1)
        final = logits[-1].argmax(-1).astype(np.int64)
        here = later[begin:end]
        final[here] = drawn[later[:begin].sum() :][: here.sum()]
        columns.append((final, *_measured(logits, final)))
    final, *tables = (np.concatenate(part, axis=-1) for part in zip(*columns, strict=True))
    return Lens(tuple(names), inside.positions, final, *tables)


def _measured(logits: np.ndarray, final: np.ndarray) -> tuple[np.ndarray, ...]:
    """Top, its logprob, logprob and rank of the final token, entropy and KL: (K, n) each."""
    import numpy as np

    count, rows, size = logits.shape
    logp = log_softmax(logits.reshape(-1, size).astype(np.float64)).reshape(logits.shape)
    p = exact.exp(logp)
    top = logits.argmax(-1).astype(np.int64)  # of equals the lowest
    wanted = np.broadcast_to(final, (count, rows))[..., None]
    mine = np.take_along_axis(logits, wanted, -1)
    before = (logits == mine) & (np.arange(size) < wanted)
    rank = ((logits > mine) | before).sum(-1)
    return (
        top,
        np.take_along_axis(logp, top[..., None], -1)[..., 0],
        np.take_along_axis(logp, wanted, -1)[..., 0],
        rank.astype(np.int64),
        np.maximum(0.0 - exact.dot(p, logp), 0.0),
        np.maximum(exact.dot(p[-1], logp[-1] - logp), 0.0),
    )


def _pieces(rows: int, floats: int) -> Iterator[tuple[int, int]]:
    step = max(1, LOGITS_BYTES // (4 * floats))
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


class _Logits:
    """Feeds rows of the residual stream to the last norm and the unembedding."""

    def __init__(self, model: Model) -> None:
        found = blocks_of(model)
        self._model, self._norm, self._unembed = model, found["ln_final"], found["unembed"]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Gives the logits of rows (R, C) f32: (R, V) f32."""
        import numpy as np

        device, width = self._model.device, padded(rows.shape[1])
        x = np.zeros((len(rows), width), np.float32)
        x[:, : rows.shape[1]] = rows
        placed = device.upload(x)
        count = device.upload(np.array([len(rows)], np.int32))
        y, normalized = (device.zeros(x.shape, "<f4") for _ in range(2))
        scale = device.zeros((len(rows),), "<f4")
        a = self._model.architecture
        logits = device.zeros((len(rows), padded(a.vocab_size)), "<f4")
        gain = self._model.weights.vector(_first(self._norm, Vector))
        matrix = _first(self._unembed, Matrix)
        table = self._model.weights.matrix(matrix)
        norm = (y, normalized, scale, placed, gain, None, count, a.hidden_size, width)
        sizes = (a.vocab_size, a.hidden_size, int(logits.shape[1]), int(table.shape[1]), width)
        kernel = "linear_" + self._model.weights.suffix(matrix)
        args = (logits, table, y, None, count, *sizes)
        work = int(table.shape[0]) * width * 4 * len(rows)
        shapes = room(len(rows), width, device.threads)
        own = {name: device.zeros(*shape) for name, shape in shapes.items()}
        plain = [Launch(kernel, args, a.vocab_size * len(rows))]
        ways = variants(plain, len(rows), own, device)

        def tried() -> dict[str, float]:
            least = variants(trial(plain, len(rows), device), len(rows), own, device)
            taken = microseconds(device, [*least.values()], work=work)
            return dict(zip(least, taken, strict=True))

        launches = [
            Launch("rms_norm", (*norm, a.norm_epsilon), len(rows)),
            *self._model.choices.take(ways, len(rows), tried),
        ]
        device.capture(launches).run(work)
        return device.download(logits)[:, : a.vocab_size]


def _first(block: Block, kind: type) -> Any:
    return next(arg for arg in block.args if isinstance(arg, kind))
