"""Compare: activations that another engine made, judged by their distance to a record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.errors import Inconclusive

if TYPE_CHECKING:
    from llmtrace.introspect.compare import Compared, Comparison
    from llmtrace.verify.reading import Run

MOST = 10  # lines of the table, unless all are asked for
NOISES = ("bfloat16", "float16", "float32")


@command()
@click.argument("commit", metavar="COMMIT")
@click.argument("file", metavar="FILE")
@click.option(
    "--noise",
    type=click.Choice(NOISES),
    default="bfloat16",
    metavar="TYPE",
    show_default=True,
    help="Type to which the other engine may round: bfloat16, float16 or float32.",
)
@click.option("--all", "everything", is_flag=True, help="Print all tensors, in block order.")
def compare(session: Session, commit: str, file: str, noise: str, everything: bool) -> int:
    r"""Judge another engine's activations by distance to a record

    COMMIT is any git revision of the store, FILE a safetensors file with one
    tensor a point, (positions, width), named as TransformerLens or Hugging
    Face name it, in float32, bfloat16 or float16. Every number that the
    record holds of a point is computed again from FILE; a point differs if
    one is farther off than rounding to TYPE explains. No model is needed.

    Prints agrees or differs, the first point that differs, and the tensors
    nearest to their thresholds or farthest beyond them. Exits 0 if all
    agree, 1 if one differs, 3 if there is nothing to compare.

    \b
    Example:
        python samples/export_activations.py MODEL run.json -o FILE
        llmtrace compare HEAD FILE
    """
    from llmtrace.blocks.versions import version
    from llmtrace.cli.records import open_run
    from llmtrace.introspect.compare import DIFFERS, UNTOLD, Told
    from llmtrace.introspect.compare import compare as judge
    from llmtrace.introspect.tensors import tensors_of

    run = open_run(session, commit)
    numerics = version(run.claim.numerics)
    if numerics.weight_bits:
        why = f"'{run.id[:8]}' was computed in '{numerics.name}', which rounds more than any noise"
        raise Inconclusive(why, "record it again with --numerics accuracy")
    tensors = tensors_of(Path(file))
    told = Told(run.claim, run.points, run.stored, run.kept)
    found = judge(told, tensors, noise)
    if found.judgement == UNTOLD:
        raise _nothing(run, file, found)
    if found.ignored:
        more = f" and {len(found.ignored) - 1} more" if len(found.ignored) > 1 else ""
        session.out.warn(f"no points of this run: '{found.ignored[0]}'{more}")
    if session.out.json:
        for each in found.tensors:
            session.out.object("compared", **_object(each))
        session.out.object("compare", commit=run.id, file=file, **_whole(found))
    else:
        for line in _lines(found, everything):
            session.out.line(plain(line))
    return 1 if found.judgement == DIFFERS else 0


def _nothing(run: Run, file: str, found: Comparison) -> Inconclusive:
    """Why there is no judgement."""
    if run.stored is None and not run.kept:
        hint = "record it again, at level 'stats' or above or with --keep"
        return Inconclusive(f"'{run.id[:8]}' holds no numbers to compare", hint)
    names = f": it has '{found.ignored[0]}'" if found.ignored else ""
    hint = "points have names such as 'blocks.0.hook_resid_post': see llmtrace-points(7)"
    return Inconclusive(f"no tensor of '{file}' can be compared{names}", hint)


def _object(each: Compared) -> dict[str, Any]:
    """A tensor as one JSON object."""
    return {
        "name": each.name,
        "point": each.point,
        "judgement": each.judgement,
        "distance": each.distance,
        "noise": each.noise,
        "witnesses": [
            {"witness": f.witness, "value": f.value, "threshold": f.threshold, "ratio": f.ratio}
            for f in each.findings
        ],
    }


def _whole(found: Comparison) -> dict[str, Any]:
    """The judgement as one JSON object."""
    from llmtrace.introspect.noise import UNITS

    first = found.first
    return {
        "judgement": found.judgement,
        "noise": found.noise,
        "unit": UNITS[found.noise],
        "level": found.level,
        "tensors": len(found.tensors),
        "differing": sum(each.judgement == "differs" for each in found.tensors),
        "first": None if first is None else first.point,
        "ignored": list(found.ignored),
    }


def _lines(found: Comparison, everything: bool) -> list[str]:
    lines = [_judgement(found)]
    rows = list(found.tensors)
    if not everything:
        rows = sorted(rows, key=lambda each: -(each.worst.ratio if each.worst else -1.0))[:MOST]
    width = max(len(each.name) for each in rows)
    lines.append(f"{'':{width}}  distance     noise  witness          value  threshold")
    for each in rows:
        text = f"{each.name:{width}}  {each.distance:8.2e}  {each.noise:8.2e}  "
        if worst := each.worst:
            text += f"{worst.witness:13}  {worst.value:8.2e}   {worst.threshold:8.2e}"
            text += f"  {each.judgement}" if each.judgement == "differs" else ""
        else:
            text += "untold"
        lines.append(text)
    if len(rows) < len(found.tensors):
        lines.append(f"({len(found.tensors) - len(rows)} more are nearer to the record: --all)")
    return lines


def _judgement(found: Comparison) -> str:
    noise = f"the noise of {found.noise} at level {found.level:.2f}"
    if found.first is None or found.first.worst is None:
        what = "tensor" if len(found.tensors) == 1 else "tensors"
        return f"agrees in {len(found.tensors)} {what}, within {noise}"
    worst, count = found.first.worst, sum(t.judgement == "differs" for t in found.tensors)
    where = f"differs from {found.first.point} on, in {count} of {len(found.tensors)} tensors"
    far = f"{worst.witness} is off by {worst.value:.3g} there, {noise} explains"
    return f"{where}: {far} {worst.threshold:.3g}"
