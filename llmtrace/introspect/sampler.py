"""Enhanced sampling: what a scheme and level ``detail`` store beside the probe records.

``samples.safetensors``, for rule N of the scheme, from 0 on:

    N/POINT.samples       (n, values) f32, whole rows where there are no indices
    N/POINT.sample_index  (n, values) i32
    N/POINT.positions     (n,) i32
    N/lens.…              positions (n,) i32; top and rank (n, L+1) i32; top_logprob, logprob,
                          entropy and kl (n, L+1) f32: the embedding, then behind each layer

Rules that found no position leave nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmtrace.introspect.lens import lens
from llmtrace.probes.records import probe_seed, sample_indices

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.probes.recorder import Recorder
    from llmtrace.probes.scheme import Rule, Scheme

_STREAM = 3  # of the draws


class Sampler:
    """Takes the samples of one run, told of the stored positions in order."""

    def __init__(self, model: Model, request: Request, recorder: Recorder, scheme: Scheme) -> None:
        self._model, self._recorder, self._rules = model, recorder, scheme.rules
        self._seed = probe_seed(model.id, request.prompt)
        self._found: dict[str, list[np.ndarray]] = {}
        self._places: list[set[int]] | None = None

    def add(self, inside: Inside) -> None:
        """Takes from some positions what the rules ask for."""
        if self._places is None:
            stored = set(self._recorder.positions())
            self._places = [stored.intersection(places) for places in self._recorder.places()]
        for number, (rule, places) in enumerate(zip(self._rules, self._places, strict=True)):
            if not places.isdisjoint(inside.positions.tolist()):
                self._sample(number, rule, inside, places)

    def tensors(self) -> dict[str, np.ndarray]:
        """Gives all of them, by name."""
        import numpy as np

        return {name: np.concatenate(pieces) for name, pieces in self._found.items()}

    def _sample(self, number: int, rule: Rule, inside: Inside, places: set[int]) -> None:
        import numpy as np

        here = np.array([n for n, p in enumerate(inside.positions.tolist()) if p in places])
        drew = int((inside.positions < inside.first_pick).sum())  # row of the first with logits
        for column in self._recorder.columns[number] if rule.values != 0 else ():
            name = self._recorder.points[column][0]
            rows, at = inside.rows[name], here
            if column >= inside.points.shape[1]:
                at = here[here >= drew]
                rows = rows[at - drew]
            else:
                rows = rows[at]
            if len(at):
                self._store(f"{number}/{name}", rule, column, inside.positions[at], rows)
        if rule.lens:
            self._look_through(f"{number}/lens", inside, here)

    def _store(
        self, name: str, rule: Rule, column: int, positions: np.ndarray, rows: np.ndarray
    ) -> None:
        import numpy as np

        width = rows.shape[1]
        if rule.values is not None and rule.values < width:
            index = sample_indices(
                self._seed, column, positions.tolist(), width, rule.values, _STREAM
            )
            rows = np.take_along_axis(rows, index, axis=1)
            self._keep(f"{name}.sample_index", index.astype(np.int32))
        self._keep(f"{name}.samples", rows)
        self._keep(f"{name}.positions", positions.astype(np.int32))

    def _look_through(self, name: str, inside: Inside, here: np.ndarray) -> None:
        import numpy as np

        found = lens(self._model, inside)
        for field in ("top", "rank"):
            self._keep(f"{name}.{field}", getattr(found, field).T[here].astype(np.int32))
        for field in ("top_logprob", "logprob", "entropy", "kl"):
            self._keep(f"{name}.{field}", getattr(found, field).T[here].astype(np.float32))
        self._keep(f"{name}.positions", inside.positions[here].astype(np.int32))

    def _keep(self, name: str, array: np.ndarray) -> None:
        self._found.setdefault(name, []).append(array)
