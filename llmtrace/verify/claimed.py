"""A file of claimed activations: whole tensors under the names of points, by anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.errors import Trouble
from llmtrace.verify.locate import Inside

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from llmtrace.blocks.block import Point
    from llmtrace.model.architecture import Architecture
    from llmtrace.verify.reading import Run

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class File:
    """A safetensors file; read when it is asked what it tells."""

    path: Path

    @property
    def size(self) -> int:
        """Its bytes; raises Trouble if it cannot be read."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise Trouble(f"cannot read '{self.path}': {error.strerror}") from None

    def inside(self, run: Run, architecture: Architecture) -> Inside:
        """What the file tells of a run of this architecture.

        Raises Trouble for another format, a name that is no point, another dtype or shape.
        """
        from llmtrace.blocks.llama import aliases, blocks
        from llmtrace.probes.commitment import STORED

        points = [point for block in blocks(architecture) for point in block.points]
        known = {point.name: (column, point) for column, point in enumerate(points)}
        known |= {name: known[other] for name, other in aliases(architecture).items()}
        kept, columns = {}, {}
        for name, tensor in self._tensors().items():
            if name not in known:
                hint = "points have names such as 'blocks.0.hook_resid_post'"
                raise Trouble(f"'{self.path}': '{name[:80]}' is no point of the model", hint)
            column, point = known[name]
            self._check(name, tensor, point, run)
            kept[point.name] = tensor
            columns[column] = _root(tensor)[:STORED]
        return Inside(kept=kept, columns=columns)

    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError, safe_open

        from llmtrace.model.checkpoint import HEADER_LIMIT

        found: dict[str, np.ndarray] = {}
        if not self.path.is_file():
            raise Trouble(f"'{self.path}' is no file")
        try:
            with self.path.open("rb") as opened:
                claimed = int.from_bytes(opened.read(8), "little")
            if claimed > HEADER_LIMIT:
                raise Trouble(f"'{self.path}': its header claims {claimed} bytes")
            with safe_open(self.path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    dtype = file.get_slice(name).get_dtype()
                    if dtype != "F32":
                        hint = "write float32, which widens every shorter type exactly"
                        raise Trouble(f"'{self.path}': '{name[:80]}' is {dtype}, not F32", hint)
                    found[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise Trouble(f"cannot read '{self.path}': {error}") from None
        if not found:
            raise Trouble(f"'{self.path}' holds no tensors")
        return found

    def _check(self, name: str, tensor: np.ndarray, point: Point, run: Run) -> None:
        picked = point.which == "picked"
        rows = len(run.claim.output) if picked else run.claim.request.positions
        expected = (rows, point.rows.width)
        if tensor.shape != expected:
            what = "output tokens" if picked else "positions"
            raise Trouble(
                f"'{self.path}': '{name[:80]}' has the shape {tensor.shape}, not {expected}",
                f"one row for each of the {rows} {what}",
            )


def _root(tensor: np.ndarray) -> bytes:
    """The root of a point, as ``llmtrace.probes.commitment`` says."""
    from blake3 import blake3

    return blake3(b"".join(blake3(row.tobytes()).digest() for row in tensor)).digest()
