"""Show: one record as a page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llmtrace.cli.frame import Session, command
from llmtrace.cli.output import plain
from llmtrace.cli.table import MOST_COLUMNS, columns, facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmtrace.store.entry import Entry
    from llmtrace.verify.reading import Run
    from llmtrace.verify.revocation import Revocation

INDENT = "    "


@command()
@click.argument("commit", metavar="COMMIT")
@click.option("--tokens", is_flag=True, help="Print each output token with its logprob.")
@click.option(
    "-m", "--model", metavar="NAME|DIR", help="Model whose tokenizer tells the text of tokens."
)
def show(session: Session, commit: str, tokens: bool, model: str | None) -> int:
    r"""Print one record

    COMMIT is any git revision of the store. Prints what the record says, as
    it stands: verify says whether it is true. With --json it is printed whole,
    floats as hexadecimal strings.

    \b
    Examples:
        llmtrace show HEAD
        llmtrace show --tokens HEAD
    """
    from llmtrace.cli.opening import open_store
    from llmtrace.verify.reading import Run
    from llmtrace.verify.revocation import revocation

    store = open_store(session)
    entry = store.read(commit)
    run = Run.of(entry) if entry.record.kind == "run" else None
    revoked = revocation(store, entry)
    if session.out.json:
        session.out.object(
            "show", **_whole(entry, run), revoked=revoked._asdict() if revoked else None
        )
        return 0
    page = facts(_head(entry, revoked) | (_asked(run) if run else {}))
    page += [*_texts_of(run), *_features(run)] if run else _section(entry)
    if run and tokens:
        page += _tokens(session, run, model)
    page += _files(entry)
    if run:
        page += ["", "attested, which no replay can check"]
        page += facts(dict(_flat(run.record.sections["attested"])), INDENT)
    for line in page:  # only now: a record is read whole before any of it is printed
        session.out.line(plain(line, keep="\t"))
    return 0


def _whole(entry: Entry, run: Run | None) -> dict[str, Any]:
    """Everything that the record says, for JSON."""
    record = entry.record
    logprobs, features = (run.logprobs, run.features) if run else (None, None)
    return {
        "commit": entry.id,
        "digest": record.digest,
        "checksum": record.checksum or None,
        "node": record.node,
        "record": record.sections,
        "prompt": run.prompt if run else None,
        "output": run.output if run else None,
        "logprobs": [float(x).hex() for x in logprobs] if logprobs is not None else None,
        "features": features.json if features else None,
    }


def _head(entry: Entry, revoked: Revocation | None) -> dict[str, str]:
    """Who says it, and where in which chain."""
    from llmtrace.cli.records import utc

    record = entry.record
    facts = {"commit": entry.id, "record": record.digest}
    if record.checksum:
        facts["checksum"] = record.checksum
    place = {"kind": record.kind, "node": record.node, "seq": str(record.seq)}
    facts |= place | {"time": utc(record.time)}
    if revoked:
        said = f": {revoked.reason}" if revoked.reason else ""
        facts["revoked"] = f"by {revoked.commit[:8]}, seq {revoked.seq}{said}"
    return facts


def _section(entry: Entry) -> list[str]:
    """The section of a record that is no run."""
    record = entry.record
    return ["", record.kind, *facts(dict(_flat(record.sections[record.kind])), INDENT)]


def _asked(run: Run) -> dict[str, str]:
    """What was asked for, and how it ended."""
    claim, trace = run.claim, run.record.sections["trace"]
    sampling = claim.request.sampling
    drawn = {
        "temperature": str(sampling.temperature),
        "top-k": str(sampling.top_k or "all"),
        "top-p": f"{sampling.top_p / 2**32:.9g}",
        "seed": str(sampling.seed),
    }
    facts = {
        "model": run.model_name,
        "model id": claim.model,
        "numerics": claim.numerics,
        "sampling": ", ".join(f"{name} {text}" for name, text in drawn.items())
        if sampling.temperature
        else "the most likely token",
        "tokens": f"{len(claim.request.prompt)} prompt + {len(claim.output)} output",
        "max tokens": str(claim.request.max_tokens),
        "stop": " ".join(map(str, claim.request.stop)) or "never",
        "finish": claim.finish_reason,
        "activations": trace["activations"],
        "probes": claim.level,
    }
    if claim.keep:
        facts["kept"] = " ".join(claim.keep)
    return facts


def _texts_of(run: Run) -> list[str]:
    """Prompt and output, as text where they are text."""
    page = []
    for title, text, ids in (
        ("prompt", run.prompt, run.claim.request.prompt),
        ("output", run.output, run.claim.output),
    ):
        whole = " ".join(map(str, ids)) if text is None else text
        page += ["", title if text is not None else f"{title}, as token ids"]
        page += [INDENT + line for line in whole.split("\n")]
    return page


def _features(run: Run) -> list[str]:
    features = run.features
    if features is None:
        return []
    page = ["", "features, means over positions"]
    page += facts({name: f"{value:.6g}" for name, value in features.run.items()}, INDENT)
    names = [*dict.fromkeys(name for row in features.places.values() for name in row)]
    rows = [(at, [row.get(name) for name in names]) for at, row in features.places.items()]
    if len(names) > MOST_COLUMNS:  # features one below the other, places beside each other
        places = [at for at, _ in rows]
        turned = zip(*(values for _, values in rows), strict=True)
        rows = list(zip(names, map(list, turned), strict=True))
        names = places
    return [*page, *columns(names, rows, before=INDENT)]


def _tokens(session: Session, run: Run, named: str | None) -> list[str]:
    """One line a token: index, position that drew it, id, logprob, and its text if known."""
    texts = _texts(session, run, named)
    logprobs, first = run.logprobs, len(run.claim.request.prompt) - 1
    page = [
        "",
        f"{'token':>9} {'position':>8} {'id':>8} {'logprob':>12}" + ("  text" if texts else ""),
    ]
    for i, token in enumerate(run.claim.output):
        logprob = "-" if logprobs is None else f"{float(logprobs[i]):.6g}"
        text = f"  {json.dumps(texts[i], ensure_ascii=False)}" if texts else ""
        page.append(f"{i:>9} {first + i:>8} {token:>8} {logprob:>12}{text}")
    return page


def _texts(session: Session, run: Run, named: str | None) -> list[str]:
    """What each output token adds to the text; [] if the model is not here."""
    from llmtrace.cli.records import checkpoint_of
    from llmtrace.model.tokenizer import TextStream, Tokenizer

    checkpoint = checkpoint_of(session, run, named)
    if checkpoint is None or not (checkpoint.path / "tokenizer.json").is_file():
        session.out.note("llmtrace: the model is not here, so tokens have no text: name it with -m")
        return []
    stream = TextStream(Tokenizer.open(checkpoint), run.claim.request.prompt)
    texts = [stream.push(token) for token in run.claim.output]
    texts[-1] += stream.finish()
    return texts


def _files(entry: Entry) -> list[str]:
    listed = entry.record.sections["parts"]
    if not listed:
        return []
    width = max(len(str(part["size"])) for part in listed)
    return [
        "",
        "parts",
        *facts({p["name"]: f"{p['size']:>{width}} bytes" for p in listed}, INDENT),
    ]


def _flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values of nested objects, as ``timings.total_us``."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield before + key, text
