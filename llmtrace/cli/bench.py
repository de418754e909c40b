"""Bench: what the versions of the arithmetic cost on a device and what they give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.files import write_whole
from llmtrace.cli.frame import Session, command, threads
from llmtrace.cli.output import plain
from llmtrace.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmtrace.engine.trace import Model

LENGTH, BATCH, TEXT = 256, 16, 64
"""Tokens of a prompt, sequences of a batch, tokens of the text that is compared with float64."""
TITLES = {
    "token": "one token, the last of a sequence",
    "batch": "sequences, a token each",
    "prompt": "tokens of a prompt",
}
CELL = 21


@command()
@click.option(
    "-m", "--model", metavar="NAME|DIR", help="Model to measure (default: the sample model)."
)
@click.option(
    "--numerics",
    multiple=True,
    metavar="VERSION",
    help="Version of the arithmetic; can be repeated (default: all).",
)
@click.option(
    "-d", "--device", metavar="auto|cpu|cuda[:N]", help="What to measure (default: auto)."
)
@threads
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(1),
    metavar="COUNT",
    help=f"Tokens of a prompt, and before a token (default: {LENGTH}).",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=BATCH,
    metavar="COUNT",
    help=f"Sequences of a batch (default: {BATCH}).",
)
@click.option("--no-accuracy", is_flag=True, help="Compare nothing with float64.")
@click.option("-o", "--output", metavar="FILE", help="Write a plot too, as SVG.")
def bench(session: Session, **options: Any) -> int:
    r"""Measure versions and variants: time, accuracy, memory

    Measures one token, a token each of a batch, and a prompt, block by block:
    the time beside the floor of this device, bits of accuracy against
    float64, and with * what no other version beats in time, accuracy and
    memory at once. Variants give the same bits; the fastest of each kernel is
    printed with its times, and runs take it from now on.

    \b
    Examples:
        llmtrace bench
        llmtrace bench --numerics accuracy --numerics speed -n 128
        llmtrace bench -d cuda -o bench.svg
    """
    from llmtrace.blocks.versions import VERSIONS, version
    from llmtrace.cli.opening import Models, open_device
    from llmtrace.introspect.bench import compare, sizes
    from llmtrace.model.registry import SAMPLE

    wanted = {n.name: n for n in [version(name) for name in options["numerics"]] or VERSIONS}
    name = options["model"] or session.settings.model or SAMPLE
    outline = Models(session, name, options["device"], options["threads"]).outline(name)
    context = outline.architecture.context_length
    asked = sizes(options["batch"], _length(options["tokens"], context))
    text = 0 if options["no_accuracy"] else min(TEXT, context)
    device = open_device(session, options["device"], options["threads"])

    def place(numerics: str) -> Model:
        from llmtrace.engine.trace import Model

        given = (outline.checkpoint, outline.architecture, device, outline.id)
        return Model.place(*given, wanted[numerics], session.settings.cache / "packed")

    with session.out.progress(None, "measure", "block") as bar:
        found = compare(place, wanted, asked, text, bar.update)
    title = name.rstrip("/").rsplit("/", 1)[-1] or name
    about: dict[str, Any] = {"model": {"name": title, "id": outline.id}, "device": device.name}
    about |= {"machine": device.describe(), "threads": device.threads}
    if options["output"]:
        _write(session, options["output"], found, title)
    if session.out.json:
        for each in found:
            session.out.object("bench", **about, **each)
        return 0
    for line in _lines(found):
        session.out.line(line.rstrip())
    if options["output"]:
        session.out.line(plain(options["output"]))
    return 0


def _length(wanted: int | None, context: int) -> int:
    """Gives the tokens of the prompt: with the token behind it they fit the model's context."""
    if wanted and wanted > context - 1:
        raise Misuse(
            f"a prompt of {wanted} and a token more exceed the model's context of {context}",
            f"-n {max(context - 1, 1)}",
        )
    return wanted or max(min(LENGTH, context - 1), 1)


def _write(session: Session, path: str, found: list[dict[str, Any]], title: str) -> None:
    from llmtrace.introspect.plot import plot

    size = write_whole(Path(path), plot(found, title).encode())
    session.out.detail(f"llmtrace: {size} bytes")


def _lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """What is printed: the versions as a whole, then size by size their blocks, then variants."""
    yield from _versions(found)
    for n in range(len(found[0]["sizes"])):
        yield ""
        yield from _blocks([(each["numerics"], each["sizes"][n]) for each in found])
    yield ""
    yield "variants, microseconds of a call; runs take the fastest"
    yield from _variants(found)


def _versions(found: list[dict[str, Any]]) -> Iterator[str]:
    names = [size["size"] for size in found[0]["sizes"]]
    speeds = "".join(f"{name + ' tok/s':>14} " for name in names)
    yield f"{'version':12}{speeds}{'KL':>9} {'same top':>8} {'MB':>8} {'KB/token':>8}"
    for each in found:
        cells = "".join(f"{size['tokens_s']:14.1f}{_star(size)}" for size in each["sizes"])
        given = each["accuracy"]
        kl, top = (f"{given[key]['mean']:.3g}" if given else "-" for key in ("kl", "same_top"))
        memory = f"{each['weights_bytes'] / 1e6:8.1f} {each['cache_bytes'] / 1e3:8.3g}"
        yield f"{each['numerics']:12}{cells}{kl:>9} {top:>8} {memory}"
    yield "* none of the others beats it in time, accuracy and memory"


def _blocks(columns: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """One size: by block and version microseconds of all layers, the share of the floor, bits."""
    size = columns[0][1]
    count = size["rows"] if size["size"] == "prompt" else size["sequences"]
    many = f"{count} " if size["size"] != "token" else ""
    yield f"{size['size']}: {many}{TITLES[size['size']]}"
    yield f"{'':11}" + "".join(f"{name:>{CELL}}" for name, _ in columns)
    yield f"{'block':11}" + f"{'us':>9} {'floor':>5} {'bits':>4} " * len(columns)
    for k, unit in enumerate(size["blocks"]):
        yield f"{unit['block']:11}" + "".join(_cell(own["blocks"][k]) for _, own in columns)
    whole = (f"{own['us']:9.0f} {own['floor_us'] / own['us']:5.0%}      " for _, own in columns)
    yield f"{'step':11}" + "".join(whole)


def _cell(unit: dict[str, Any]) -> str:
    share = unit["floor_us"] / unit["us"] if unit["us"] else 0.0
    bits = "   -" if unit["bits"] is None else f"{unit['bits']:4.1f}"
    return f"{unit['us'] * unit['calls']:9.1f} {share:5.0%} {bits}{_star(unit)}"


def _variants(found: list[dict[str, Any]]) -> Iterator[str]:
    for each in found:
        for size in each["sizes"]:
            for unit in size["blocks"]:
                if len(unit["variants"]) > 1:
                    ordered = sorted(unit["variants"].items(), key=lambda one: one[1])
                    told = ", ".join(f"{name} {us:.1f}" for name, us in ordered)
                    yield f"{each['numerics']:12}{size['size']:8}{unit['block']:11}{told}"


def _star(each: dict[str, Any]) -> str:
    return "*" if each["front"] else " "
