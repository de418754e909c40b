"""Names of models: which there are, what stands behind one, and giving a new one."""

from pathlib import Path

import click

from llmtrace.cli.frame import Group, Session, command
from llmtrace.cli.output import plain

model = Group("model", help="List, examine and name models", no_args_is_help=True)


@command("list", group=model)
def list_models(session: Session) -> int:
    """List the names of models and their folders

    One line a model: its name, a tab and its folder. The sample model comes
    with llmtrace and is always the first.
    """
    from llmtrace.model.registry import listing, sample_folder

    for name, folder in listing(session.settings.models, sample_folder()):
        if session.out.json:
            session.out.object("model", name=name, path=str(folder))
        else:
            session.out.line(plain(f"{name}\t{folder}", keep="\t"))
    return 0


@command(group=model)
@click.argument("name", metavar="[MODEL]", required=False)
def info(session: Session, name: str | None) -> int:
    r"""Print what a model is: identity, family, sizes

    MODEL is a name or a folder; without it, the default model. The id is a
    digest of configuration, tokenizer and weights, the same wherever the
    model lies.

    \b
    Examples:
        llmtrace model info
        llmtrace model info ./TinyLlama-1.1B
    """
    from llmtrace.model.registry import SAMPLE, resolve, sample_folder

    settings = session.settings
    name = name or settings.model or SAMPLE
    folder = resolve(name, settings.models, sample_folder())
    facts = _facts(folder, settings.cache / "models")
    if session.out.json:
        session.out.object("model", name=name, **facts)
        return 0
    width = max(map(len, facts))
    session.out.line(f"{'name':{width}}  {plain(name)}")
    for key, value in facts.items():
        words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        session.out.line(f"{key.replace('_', ' '):{width}}  {plain(words)}")
    return 0


@command(group=model)
@click.argument("name")
@click.argument("source", metavar="DIR|hf:ORG/NAME[@REVISION]")
def add(session: Session, name: str, source: str) -> int:
    r"""Give a folder or a model of the Hugging Face hub a name

    A model of the hub is downloaded first. Nothing else in llmtrace downloads
    a model. The folder is opened before it is named, so what cannot run is
    refused here.

    \b
    Examples:
        llmtrace model add tiny ./TinyLlama-1.1B
        llmtrace model add smol hf:HuggingFaceTB/SmolLM2-135M
    """
    from llmtrace.model import hub, registry

    folder = hub.download(source) if source.startswith(hub.PREFIX) else Path(source)
    _facts(folder, session.settings.cache / "models")
    registry.add(name, folder, session.settings.models)
    if session.out.json:
        session.out.object("model", name=name, path=str(folder.resolve()))
    else:
        session.out.line(plain(f"{name}\t{folder.resolve()}", keep="\t"))
    return 0


def _facts(folder: Path, cache: Path) -> dict[str, object]:
    """What a checkpoint is; refuses one that this llmtrace cannot run."""
    from math import prod

    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint
    from llmtrace.model.identity import identify

    checkpoint = Checkpoint.open(folder)
    architecture = Architecture.of(checkpoint)
    architecture.check(checkpoint)
    tensors = checkpoint.tensors.values()
    return {
        "path": str(folder.resolve()),
        "id": identify(checkpoint, cache),
        "family": architecture.family,
        "parameters": sum(prod(tensor.shape) for tensor in tensors),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "layers": architecture.layer_count,
        "hidden_size": architecture.hidden_size,
        "heads": architecture.head_count,
        "kv_heads": architecture.kv_head_count,
        "vocab_size": architecture.vocab_size,
        "context_length": architecture.context_length,
    }
