"""Export: what a record holds of the inside, for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmtrace.cli.files import write_whole
from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Trouble

if TYPE_CHECKING:
    import numpy as np

    from llmtrace.verify.reading import Run


@command()
@click.argument("commit", metavar="COMMIT")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Write to FILE, in place of what is there.",
)
def export(session: Session, commit: str, output: str) -> int:
    r"""Write the samples and kept tensors of a record to a file

    COMMIT is any git revision of the store. FILE is a safetensors file with
    one tensor a point, (positions, width) f32; and of each point that was
    sampled POINT.samples (positions, 8) f32, POINT.sample_index and
    POINT.positions. Prints FILE.

    \b
    Example:
        llmtrace run --keep 'blocks.*.hook_resid_post' "Once upon a time"
        llmtrace export HEAD -o inside.safetensors
    """
    from llmtrace.cli.records import open_run

    run = open_run(session, commit)
    tensors = _tensors(run)
    size = write_whole(Path(output), _packed(run, tensors))
    if session.out.json:
        facts = {
            n: {"dtype": t.dtype.name, "shape": list(t.shape)} for n, t in sorted(tensors.items())
        }
        session.out.object("export", commit=run.id, path=output, bytes=size, tensors=facts)
    else:
        session.out.line(plain(output))
    return 0


def _tensors(run: Run) -> dict[str, np.ndarray]:
    """Kept tensors and samples by name; raises Trouble where there are none."""
    kept, samples = run.kept, run.samples()
    if not kept and not samples:
        hint = "record some with 'llmtrace run --keep \"blocks.*.hook_resid_post\" PROMPT'"
        raise Trouble(f"'{run.id[:8]}' holds no samples and no kept tensors", hint)
    both = sorted(kept.keys() & samples.keys())
    if both:
        raise Trouble(f"'{run.id[:8]}' keeps a tensor with the name of a sample: '{both[0]}'")
    return kept | samples


def _packed(run: Run, tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    # One key: the library writes several in any order, and equal records give equal files.
    origin = {
        "commit": run.id,
        "checksum": run.record.checksum,
        "model": run.claim.model,
        "numerics": run.claim.numerics,
    }
    data: bytes = save(tensors, {"llmtrace": json.dumps(origin)})
    return data
