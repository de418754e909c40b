"""Invariants of the linear layers, and of what the unembedding makes of the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmtrace.introspect.invariants import arithmetic, levels
from llmtrace.introspect.invariants.bounds import C, U, dot, norm_scale, variance, worst_dot
from llmtrace.introspect.invariants.flow import gained

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from llmtrace.introspect.invariants.case import Case, Invariant

PROOFS = 4
"""Random rows of Freivalds' check: what they all miss by chance is once in 16, if it is adverse."""
SAMPLES = 16
"""Outputs of a linear layer that are computed again at each position."""
LENSES = 8
"""Positions whose whole logits are computed again."""
ROUNDED = "this version rounds what it unembeds to 8 bits"
CHUNK = 1 << 22
"""Weights that are widened to float64 at a time."""


class Linear(NamedTuple):
    """One matrix: where it works, what it reads (N, K) f32, what it writes."""

    block: str
    tensor: str
    point: str
    x: np.ndarray
    bias: np.ndarray | None
    bits: int = 0
    """Of the weights that it multiplies by; 0 as they are stored."""

    def fed(self) -> np.ndarray:
        """The rows that are multiplied: (N, K) f64."""
        if not self.bits:
            return self.x.astype("f8")
        return levels.rows(self.x).values(self.x.shape[1])

    def weight(self, case: Case, which: slice | np.ndarray) -> np.ndarray:
        """Rows of the weights that are multiplied by: (..., K) f64."""
        w = case.weight(self.tensor, which)
        if not self.bits:
            return w.astype("f8")
        flat = w.reshape(-1, w.shape[-1])
        return levels.weights(flat, self.bits).values(w.shape[-1]).reshape(w.shape)

    def right(self, case: Case, row: int, which: np.ndarray) -> np.ndarray:
        """Outputs ``which`` of a row as the contract orders its sums, to the bit."""
        bias, w = None if self.bias is None else self.bias[which], case.weight(self.tensor, which)
        if not self.bits:
            return arithmetic.dots(w, self.x[row], bias)
        return levels.dots(levels.weights(w, self.bits), self.x[row], bias)


def linears(case: Case) -> Iterator[Linear]:
    """All linear layers, a tensor each, in the order in which they run."""
    for layer in case.layers:
        yield from _of_layer(case, layer)
    name = "model.embed_tokens" if case.architecture.tied else "lm_head"
    x, bits = case.rows("unembed.hook_in"), case.bits("unembed")
    yield Linear("unembed", name + ".weight", "unembed.hook_out", x, None, bits)


def _of_layer(case: Case, layer: int) -> Iterator[Linear]:
    block, point, tensor = f"layers.{layer}.", f"blocks.{layer}.", f"model.layers.{layer}."
    a = case.architecture

    def one(where: str, name: str, to: str, x: np.ndarray, has_bias: bool) -> Linear:
        bias = case.weight(f"{tensor}{name}.bias") if has_bias else None
        bits = case.bits(block + where)
        return Linear(block + where, f"{tensor}{name}.weight", point + to, x, bias, bits)

    x = gained(case, point + "ln1", tensor + "input_layernorm.weight")
    for letter in "qkv":
        name, to = f"self_attn.{letter}_proj", f"attn.hook_{letter}"
        yield one("qkv", name, to, x, a.attention_bias)
    z = case.rows(point + "attn.hook_z")
    yield one("o_proj", "self_attn.o_proj", "hook_attn_out", z, a.attention_bias)
    x = gained(case, point + "ln2", tensor + "post_attention_layernorm.weight")
    for name, to in (("gate_proj", "hook_pre"), ("up_proj", "hook_pre_linear")):
        yield one("gate_up", f"mlp.{name}", f"mlp.{to}", x, a.mlp_bias)
    post = case.rows(point + "mlp.hook_post")
    yield one("down_proj", "mlp.down_proj", "hook_mlp_out", post, a.mlp_bias)


def products(case: Case) -> Invariant:
    """R y = (R W) x + R b with rows R of random signs: Freivalds' check of every output."""
    import numpy as np

    text = "8 u sqrt((m^2 + 1.94 K)/3 sum_k x_k^2 sum_n w_nk^2), m = K/32"
    tally = case.tally("linear layers", text)
    for each in linears(case):
        x, y = each.fed(), case.rows(each.point).astype(np.float64)
        signs = _signs(case, each.tensor, y.shape[1])  # (R, N)
        folded, columns = _folded(case, each, signs)
        wanted = x @ folded.T
        spread = dot(x.shape[1]) * (x**2 @ columns)
        if each.bias is not None:
            wanted += signs @ each.bias.astype(np.float64)
            spread += variance() * (y**2).sum(axis=1)
        bound = np.repeat(C * np.sqrt(spread)[:, None], PROOFS, axis=1)
        got = _cleared(case, each, y @ signs.T, wanted, bound)
        tally.within(each.block, each.point, case.at(each.point), got, wanted, bound)
    return tally.result()


def outputs(case: Case) -> Invariant:
    """Some outputs of each linear layer, drawn at each position, computed again in float64."""
    import numpy as np

    text = "8 u sqrt((m^2 + 1.94 K)/3 sum_k (w_nk x_k)^2), m = K/32"
    tally = case.tally("sampled outputs", text)
    for each in linears(case):
        y, n = case.rows(each.point), case.size(each.tensor)
        x = each.fed()
        count, width = x.shape
        which = case.draw("outputs " + each.tensor, count * SAMPLES).reshape(count, SAMPLES) % n
        got = np.take_along_axis(y, which.astype(np.int64), axis=1).astype(np.float64)
        wanted, spread = np.zeros_like(got), np.zeros_like(got)
        step = max(1, CHUNK // (SAMPLES * width))
        for begin in range(0, count, step):
            part = slice(begin, begin + step)
            terms = each.weight(case, which[part])  # (n, 16, K)
            terms *= x[part, None]
            wanted[part], spread[part] = terms.sum(axis=2), (terms**2).sum(axis=2)
        spread *= dot(width)
        if each.bias is not None:
            wanted += each.bias[which]
            spread += variance() * wanted**2
        at, bound = case.at(each.point), C * np.sqrt(spread)
        got = _cleared(case, each, got, wanted, bound, which)
        tally.within(each.block, each.point, at, got, wanted, bound)
    return tally.result()


def _cleared(
    case: Case,
    each: Linear,
    got: np.ndarray,
    wanted: np.ndarray,
    bound: np.ndarray,
    which: np.ndarray | None = None,
) -> np.ndarray:
    """What was got, but what was wanted where it is beyond the bound and right to the bit.

    Roundings are not independent where many terms are equal. So beyond the bound the outputs
    ``which`` (all for None) are summed again as the contract orders; at the first row that is
    wrong all is left as it is.
    """
    import numpy as np

    got, y = got.copy(), case.rows(each.point)
    for row in np.flatnonzero((np.abs(got - wanted) > bound).any(axis=1)):
        columns = np.arange(y.shape[1]) if which is None else which[row]
        step = max(1, CHUNK // y.shape[1])
        for begin in range(0, len(columns), step):
            part = columns[begin : begin + step]
            right = each.right(case, int(row), part)
            if right.tobytes() != y[row, part].tobytes():
                return got
        got[row] = wanted[row]
    return got


def lens(case: Case) -> Invariant:
    """The logit lens of the last layer, wholly in float64, gives the logits."""
    import numpy as np

    text = "(m + 8.1) u sum_k |w_nk x_k| + the scale's |logit|, m = K/32"
    tally = case.tally("logit lens of the last layer", text)
    if case.bits("unembed"):
        return tally.result(ROUNDED)
    count = len(case.picked)
    if not count:
        return tally.result("no position that was looked at has logits")
    chosen = sorted({*np.linspace(0, count - 1, min(count, LENSES)).astype(int).tolist()})
    last, picked, logits = _head(case)
    scale, relative = norm_scale(last[chosen], float(case.architecture.norm_epsilon))
    x = last[chosen] / scale[:, None] * case.weight("model.norm.weight").astype(np.float64)
    name = _unembedding(case)
    wanted = np.zeros((len(chosen), case.size(name)))
    size = np.zeros_like(wanted)
    for part, w in _chunks(case, name):
        wanted[:, part], size[:, part] = x @ w.T, np.abs(x) @ np.abs(w).T
    bound = (worst_dot(x.shape[1]) + 2.01 * U) * size + relative * np.abs(wanted)
    tally.within("unembed", "unembed.hook_out", picked[chosen], logits[chosen], wanted, bound)
    return tally.result()


def attribution(case: Case) -> Invariant:
    """Direct logit attribution: what the parts give the drawn token adds up to its logit.

    The logit is centred over the vocabulary. What is left is the rounding of the residual
    stream's additions and of the head, and the bound is theirs.
    """
    import numpy as np

    text = "u sum |w x| over all additions to the stream + the head's"
    tally = case.tally("logit attribution", text)
    if case.bits("unembed"):
        return tally.result(ROUNDED)
    last, picked, logits = _head(case)
    if not len(picked):
        return tally.result("no position that was looked at has logits")
    name, gain = _unembedding(case), case.weight("model.norm.weight").astype(np.float64)
    vocabulary, mean, size = case.size(name), np.zeros(last.shape[1]), np.zeros(last.shape[1])
    for _, w in _chunks(case, name):
        mean += w.sum(axis=0) / vocabulary
        size += np.abs(w).sum(axis=0) / vocabulary
    tokens = np.array([case.claim.output[t - case.inside.first_pick] for t in picked], np.int64)
    own = case.weight(name, tokens).astype(np.float64)
    scale, relative = norm_scale(last, float(case.architecture.norm_epsilon))
    x = last * gain / scale[:, None]
    direction = (own - mean) * gain / scale[:, None]  # (M, C)
    parts, streams = _parts(case, len(picked))
    wanted = sum((part * direction).sum(axis=1) for part in parts)
    bound = U * sum(np.abs(stream * direction).sum(axis=1) for stream in streams)
    head = worst_dot(x.shape[1]) + 2.01 * U + relative
    bound += head * (np.abs(x) * (np.abs(own) + size)).sum(axis=1)
    got = logits[np.arange(len(picked)), tokens] - logits.mean(axis=1)
    tally.within("unembed", "unembed.hook_out", picked, got, wanted, bound)
    return tally.result()


def _parts(case: Case, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What is added to the residual stream at the last ``count`` rows, and each of its sums."""
    import numpy as np

    names, sums = ["hook_embed"], []
    for layer in case.layers:
        point = f"blocks.{layer}."
        names += [point + "hook_attn_out", point + "hook_mlp_out"]
        sums += [point + "hook_resid_mid", point + "hook_resid_post"]

    def end(name: str) -> np.ndarray:
        rows = case.rows(name)
        made: np.ndarray = rows[len(rows) - count :].astype(np.float64)
        return made

    return [end(name) for name in names], [end(name) for name in sums]


def _head(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The end of the residual stream (M, C), its positions, and the logits (M, V); float64."""
    import numpy as np

    last = case.rows(case.stream(case.architecture.layer_count))
    picked = case.picked
    rows = last[len(last) - len(picked) :].astype(np.float64)
    return rows, picked, case.rows("unembed.hook_out").astype(np.float64)


def _unembedding(case: Case) -> str:
    return "model.embed_tokens.weight" if case.architecture.tied else "lm_head.weight"


def _signs(case: Case, tensor: str, n: int) -> np.ndarray:
    """(R, N) f64 of ±1."""
    import numpy as np

    words = case.draw("signs " + tensor, PROOFS * -(-n // 32)).view(np.uint8)
    bits = np.unpackbits(words).reshape(PROOFS, -1)[:, :n]
    return bits.astype(np.float64) * 2 - 1


def _folded(case: Case, each: Linear, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R W (R, K), and the sums of squares of W's columns (K,)."""
    import numpy as np

    folded, columns = 0.0, 0.0
    for part, w in _chunks(case, each.tensor, each.bits):
        folded = folded + signs[:, part] @ w
        columns = columns + np.einsum("nk,nk->k", w, w)
    return np.asarray(folded), np.asarray(columns)


def _chunks(case: Case, tensor: str, bits: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of a matrix in float64, some at a time; as ``bits`` have them."""
    rows, width = case.model.checkpoint.tensors[tensor].shape
    step = max(1, CHUNK // width)
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        w = case.weight(tensor, part)
        yield part, levels.weights(w, bits).values(width) if bits else w.astype("f8")
