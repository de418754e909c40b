"""Float64 with the model's own weights on the device: what the numbers should have been.

Hides ``kernels/wide.cu``: sums in a fixed order, so equal bits on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from llmtrace.blocks.block import Block, Matrix, Vector
from llmtrace.blocks.llama import blocks
from llmtrace.blocks.weights import padded, widen, widened
from llmtrace.device.device import Launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llmtrace.blocks.weights import Weights
    from llmtrace.device.device import Array
    from llmtrace.engine.trace import Model

STRETCH = 256
"""Rows that ``wide_sum`` adds together."""
_TURNS = (  # 2/pi, and pi/2 in three pieces: multiples of the first two, up to 2^24, are exact
    float.fromhex("0x1.45f306dc9c883p-1"),
    float.fromhex("0x1.921fb54p+0"),
    float.fromhex("0x1.10b461p-30"),
    float.fromhex("0x1.a62633145c06ep-58"),
)

_means: WeakKeyDictionary[Weights, dict[Matrix, np.ndarray]] = WeakKeyDictionary()
_blocks: WeakKeyDictionary[Weights, dict[str, Block]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layers:
    """Linear blocks of one shape, or R outputs of each, with the weights as they are stored."""

    kernels: list[str]
    weights: list[Array]
    """(R, K') each, K padded with zeros to a multiple of 32."""
    biases: list[Array | None]
    """(R,) f32 each."""


@dataclass(frozen=True)
class Outputs:
    """Asks L linear blocks for their outputs of x (L, T, K)."""

    layers: Layers
    x: np.ndarray


@dataclass(frozen=True)
class Mixes:
    """Asks what attention gives: q (T, H, D) f64, scaled; keys, values (S, G, D); visible (T,)."""

    q: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    visible: np.ndarray


def blocks_of(model: Model) -> dict[str, Block]:
    """Gives the blocks of a model by name, in the order in which they run."""
    if model.weights not in _blocks:
        _blocks[model.weights] = {block.name: block for block in blocks(model.architecture)}
    return _blocks[model.weights]


def matrix_of(block: Block) -> Matrix:
    """Gives the weights of a linear block or a table."""
    return next(arg for arg in block.args if isinstance(arg, Matrix))


def gain(model: Model, block: Block) -> np.ndarray:
    """Gives the gain of a norm block: (C,) f32."""
    return _values(model, next(arg for arg in block.args if isinstance(arg, Vector)))


def _values(model: Model, vector: Vector) -> np.ndarray:
    import numpy as np

    return np.concatenate([widen(model.checkpoint.tensors[name]) for name in vector.tensors])


def rows_of(model: Model, matrix: Matrix, index: np.ndarray) -> np.ndarray:
    """Gives chosen rows of a stored table: (N, K) f64."""
    import numpy as np

    (name,) = matrix.tensors
    tensor = model.checkpoint.tensors[name]
    return widened(tensor.rows(index), tensor.dtype).astype(np.float64)


def layers(model: Model, made: Sequence[Block], rows: np.ndarray | None = None) -> Layers:
    """Places linear blocks of one shape, to be asked for outputs ``rows`` (L, R), or for all."""
    weights, matrices = model.weights, [matrix_of(block) for block in made]
    vectors = [next((a for a in block.args if isinstance(a, Vector)), None) for block in made]
    if rows is None:
        kernels = ["wide_" + weights.suffix(matrix) for matrix in matrices]
        placed = [weights.matrix(matrix) for matrix in matrices]
        return Layers(kernels, placed, [vector and weights.vector(vector) for vector in vectors])
    biases = [
        vector and model.device.upload(_values(model, vector)[chosen])
        for vector, chosen in zip(vectors, rows, strict=True)
    ]
    kernels = ["wide_" + weights.suffix(*matrices)] * len(made)
    return Layers(kernels, weights.rows(matrices, rows), biases)


def linear(model: Model, asked: Sequence[Outputs]) -> list[np.ndarray]:
    """Gives (L, T, R) f64 for each: the products of ``x`` and the weights, and the biases."""
    import numpy as np

    device, launches, results, work = model.device, [], [], 0
    for each in asked:
        placed, biases = each.layers.weights, each.layers.biases
        (outputs, stride), (layers, count, _) = map(int, placed[0].shape), each.x.shape
        padded_x = np.zeros((layers, count, stride))
        padded_x[..., : each.x.shape[2]] = each.x
        x, y = device.upload(padded_x), device.zeros((layers, count, outputs), "<f8")
        counted = device.upload(np.array([count], np.int32))
        sizes = (outputs, stride, outputs, stride, stride)
        each_layer = zip(each.layers.kernels, placed, biases, strict=True)
        for n, (kernel, w, bias) in enumerate(each_layer):
            args = (y[n], w, x[n], bias, counted, *sizes)
            launches.append(Launch(kernel, args, outputs * -(-count // 4)))
        results.append(y)
        work += layers * outputs * stride * count * 8
    device.capture(launches).run(work)
    return [device.download(y) for y in results]


def attention(model: Model, asked: Sequence[Mixes]) -> list[np.ndarray]:
    """Gives (T, H, D) f64 for each: the values, mixed by the softmax of q·k."""
    made = zip(_mixed(model, asked), asked, strict=True)
    return [model.device.download(z).reshape(each.q.shape) for (z, _), each in made]


def weights(model: Model, asked: Sequence[Mixes]) -> list[np.ndarray]:
    """Gives (T, H, S) f64 for each: exp(q·k less the largest), 0 of what is not visible."""
    made = zip(_mixed(model, asked), asked, strict=True)
    return [model.device.download(w)[..., : len(each.keys)] for (_, w), each in made]


def _mixed(model: Model, asked: Sequence[Mixes]) -> list[tuple[Array, Array]]:
    """What attention gives and with which weights, on the device."""
    import numpy as np

    device, launches, results, work = model.device, [], [], 0
    for each in asked:
        (count, heads, size), (length, groups, _) = each.q.shape, each.keys.shape
        stride = padded(length)
        keys = np.zeros((groups, size, stride))
        keys[..., :length] = each.keys.transpose(1, 2, 0)
        values = each.values.astype(np.float64).reshape(length, -1)
        z = device.zeros((count, heads * size), "<f8")
        weight = device.zeros((count, heads, stride), "<f8")
        placed: list[Array] = [
            device.upload(array)
            for array in (
                np.ascontiguousarray(each.q.reshape(count, -1)),
                keys,
                values,
                each.visible.astype(np.int32),
                np.array([count], np.int32),
            )
        ]
        args = (z, weight, *placed, heads, groups, size, stride)
        launches.append(Launch("wide_attention", args, count * heads))
        results.append((z, weight))
        work += count * heads * size * length * 16
    device.capture(launches).run(work)
    return results


def mean_row(model: Model, matrix: Matrix) -> np.ndarray:
    """Gives the mean of a matrix over its rows: (K,) f64, made once for each model."""
    import numpy as np

    known = _means.setdefault(model.weights, {})
    if matrix not in known:
        kernel = "wide_sum_" + model.weights.suffix(matrix)
        width, count = model.checkpoint.tensors[matrix.tensors[0]].shape[1], 0
        total = np.zeros(padded(width))
        for stripe in model.weights.stripes(matrix, STRETCH):
            rows, stride = stripe.shape
            stretches = -(-rows // STRETCH)
            partial = model.device.zeros((stretches, stride), "<f8")
            args = (partial, model.device.upload(stripe), rows, stride, stride, stride)
            model.device.capture([Launch(kernel, args, stretches)]).run(stripe.size * 8)
            for row in model.device.download(partial):
                total = total + row
            count += rows
        known[matrix] = (total / count)[:width]
    return known[matrix]


def angles(model: Model, positions: np.ndarray, run_limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives cosine and sine (N, D/2) f64 of the angles that the contract rounds to float32."""
    import numpy as np

    a = model.architecture
    rate, factor = a.inverse_frequencies(run_limit), float(a.rope_attention_factor(run_limit))
    angle = (positions.astype(np.float32)[:, None] * rate).astype(np.float64)
    cosine, sine = cosine_sine(angle)
    return cosine * factor, sine * factor


def cosine_sine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of float32 angles below 2^24, held as f64, each within 2^-51.

    angle = k pi/2 + r; Taylor's series in r to r^19 and r^18; the low bits of k choose.
    """
    import numpy as np

    inverse, first, second, third = _TURNS
    k = np.rint(angle * inverse)
    r = ((angle - k * first) - k * second) - k * third
    z = r * r
    sine, cosine = np.zeros_like(z), np.zeros_like(z)
    for n in range(18, 0, -2):  # 1 - z/(n(n+1)) (1 - ...), innermost first
        sine = (1.0 - sine) * z / (n * (n + 1))
        cosine = (1.0 - cosine) * z / (n * (n - 1))
    sine, cosine = r * (1.0 - sine), 1.0 - cosine
    quadrant = k.astype(np.int64)
    odd = quadrant % 2 == 1
    made_cosine, made_sine = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    minus_cosine, minus_sine = (quadrant + 1) // 2 % 2 == 1, quadrant // 2 % 2 == 1
    return (
        np.where(minus_cosine, 0.0 - made_cosine, made_cosine),
        np.where(minus_sine, 0.0 - made_sine, made_sine),
    )


def rotated(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Turns each pair (i, i + D/2) of heads x (..., N, H, D) by angles (N, D/2)."""
    import numpy as np

    half = cosine.shape[-1]
    low, high, c, s = x[..., :half], x[..., half:], cosine[:, None], sine[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], axis=-1)
