"""What ``introspect`` makes by further passes: the float64 pass, ablation, gradients, an answer.

Hides what they cost: memory is asked for before a pass starts, the clock between its blocks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llmtrace.cli.table import columns
from llmtrace.cli.worth import as_text, spread
from llmtrace.errors import Inconclusive, Misuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llmtrace.engine.trace import Model
    from llmtrace.introspect.inside import Inside
    from llmtrace.verify.caps import Caps
    from llmtrace.verify.reading import Run

DEEP = ("propagated", "ablation", "gradients")
"""The passes of ``--deep``, in their order."""
LEAST = 3
STREAM = "hook_resid_post"
ONLY_READ = "for reading only: not the same on every machine"


def checked_answer(text: str | None) -> None:
    """Raises Misuse for an answer that is no text, before anything is computed."""
    if text == "":
        raise Misuse("the answer is empty", "--answer Paris")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise Misuse(f"the answer is not UTF-8 text at character {error.start}") from None


def answer_tokens(model: Model, run: Run, text: str) -> list[int]:
    """The tokens of an answer after the run's prompt; raises Misuse where there can be none."""
    from llmtrace.model.tokenizer import Tokenizer

    if not Tokenizer.exists(model.checkpoint):
        raise Misuse(f"model '{model.checkpoint.path}' has no tokenizer.json to read an answer")
    prompt = run.claim.request.prompt
    tokens = Tokenizer.open(model.checkpoint).following(prompt, run.prompt, text)
    if not tokens:
        raise Misuse(f"the answer '{text}' has no tokens")
    room, beyond = model.architecture.context_length, len(prompt) + len(tokens)
    if beyond > room:
        raise Misuse(
            f"prompt and answer have {beyond} tokens, the model's context is {room}",
            "shorten the answer",
        )
    return tokens


def memory(model: Model, run: Run, looked: int, answer: list[int] | None, deep: bool) -> int:
    """Bytes that the passes in float64 take, the largest of them."""
    from llmtrace.introspect import forward

    request, most = run.claim.request, 0
    if deep:
        most = forward.memory(model.architecture, request.positions, looked, looked)
    if answer:
        fed = len(request.prompt) + len(answer)
        rows = min(len(answer), forward.ANSWERED)
        most = max(most, forward.memory(model.architecture, fed, 0, rows))
    return most


def passes(
    model: Model, run: Run, inside: Inside, caps: Caps | None, heed: Callable[[], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Makes the passes of ``--deep``, one after the other: the name of each and its JSON."""
    limit = run.claim.request.run_limit
    yield "propagated", _propagated(model, inside, limit, heed)
    yield "ablation", _ablation(model, run, inside, heed)
    yield "gradients", _gradients(model, inside, limit, caps, heed)


def _propagated(
    model: Model, inside: Inside, limit: int, heed: Callable[[], None]
) -> dict[str, Any]:
    from llmtrace.introspect.forward import propagate

    found = propagate(model, inside, limit, heed)
    return {
        **{name: spread(getattr(found, name)) for name in ("fitness", "kl")},
        "nines": found.nines,
        "worst_kl": found.worst_kl,
        **{name: spread(getattr(found, name)) for name in ("same_top", "certified")},
        "points": {name: spread(one) for name, one in found.points.items()},
    }


def _ablation(model: Model, run: Run, inside: Inside, heed: Callable[[], None]) -> dict[str, Any]:
    from llmtrace.introspect.ablation import ablate
    from llmtrace.introspect.relevance import Attributor
    from llmtrace.probes import exact

    found = ablate(
        model,
        inside.tokens,
        inside.positions[inside.positions >= inside.first_pick],
        Attributor(model)(inside).share,
        run_limit=run.claim.request.run_limit,
        seed=int(run.record.checksum[:16], 16),  # nobody chooses it
        heed=heed,
    )
    columns_of = (found.names, found.share, exact.mean(found.kl), found.damage)
    return {
        "components": [
            {"name": name, "relevance": float(r), "kl": float(kl), "damage": float(damage)}
            for name, r, kl, damage in zip(*columns_of, strict=True)
        ],
        "spearman": spread(found.trust),
    }


def _gradients(
    model: Model, inside: Inside, limit: int, caps: Caps | None, heed: Callable[[], None]
) -> dict[str, Any]:
    from llmtrace.introspect.gradients import memory, opinion
    from llmtrace.verify.caps import Capped

    needed, most = memory(model, len(inside.tokens)), caps.memory if caps else _machine()
    if needed > most:
        return _none(f"gradients need {needed >> 20} MiB, more than {most >> 20} MiB")
    try:
        found = opinion(model, inside, limit, heed)
    except Capped:
        raise
    except Inconclusive as error:
        return _none(f"{error}: {', '.join(error.hints)} gives it")
    return {
        "why": None,
        "positions": [*found.positions],
        "components": [
            {"name": name, "share": float(share), "relevance": float(r)}
            for name, share, r in zip(found.names, found.share, found.relevance, strict=True)
        ],
        "spearman": spread(found.trust),
    }


def _none(why: str) -> dict[str, Any]:
    return {"why": why, "positions": [], "components": [], "spearman": None}


def _machine() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def answered(
    model: Model, run: Run, text: str, tokens: list[int], heed: Callable[[], None]
) -> dict[str, Any]:
    """How likely the model in float64 finds an answer, as JSON."""
    from llmtrace.introspect.forward import likelihood

    found = likelihood(model, run.claim.request.prompt, tokens, heed)
    return {"text": text, "tokens": tokens, "logprob": spread(found), "sum": found.mean * found.n}


def propagated_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of the float64 pass."""
    found = whole["propagated"]
    yield f"{'fitness':13} {as_text(found['fitness'])}"
    yield f"{'nines':13} {found['nines']:.4g}"
    yield f"{'worst KL':13} {found['worst_kl']:.3g} nats"
    yield f"{'same top':13} {as_text(found['same_top'])}"
    yield f"{'certified':13} {as_text(found['certified'])}"
    points = found["points"]
    count = sum(name.endswith(STREAM) for name in points)
    names = [f"L{layer}" for layer in range(count)]
    row = [points[f"blocks.{layer}.{STREAM}"]["mean"] for layer in range(count)]
    yield from columns(names, [(f"F of {STREAM}", row)], cell=8, digits=3)
    yield ""
    yield f"{'least fit':33} F"
    for name in sorted(points, key=lambda each: points[each]["mean"])[:LEAST]:
        yield f"{name:33} {as_text(points[name])}"


def ablation_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of the ablated components."""
    found = whole["ablation"]
    yield f"{'component':25} {'R':>8} {'KL':>10} {'A':>8}"
    for each in found["components"]:
        kl, damage = each["kl"], each["damage"]
        yield f"{each['name']:25} {each['relevance']:8.4f} {kl:10.3g} {damage:8.4f}"
    yield f"Spearman of R and KL: {as_text(found['spearman'])}"


def gradient_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of gradients."""
    found = whole["gradients"]
    if found["why"]:
        yield f"none: {found['why']}"
        return
    yield ONLY_READ
    yield f"at positions {', '.join(map(str, found['positions']))}"
    yield f"{'component':25} {'R':>8} {'grad x act':>11}"
    for each in found["components"]:
        yield f"{each['name']:25} {each['relevance']:8.4f} {each['share']:11.4f}"
    yield f"Spearman of R and gradient x activation: {as_text(found['spearman'])}"


def answer_lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of an answer."""
    found = whole["answer"]
    yield f"{'text':16} {found['text']}"
    yield f"{'ln p of a token':16} {as_text(found['logprob'])}"
    yield f"{'ln p of all':16} {found['sum']:.6g}"
