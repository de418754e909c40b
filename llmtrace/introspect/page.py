"""The data of the report: one replay of a run, looked at from all sides, in plain JSON types.

Hides where each number comes from. What was not computed is absent: a list is empty, a value
None. Positions that cost much to look at are chosen, the least certain ones first; the page says
how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrace.blocks.llama import blocks
from llmtrace.engine.trace import Done, Fed, trace
from llmtrace.introspect.ablation import SAMPLED, ablate
from llmtrace.introspect.cost import costs
from llmtrace.introspect.features import (
    FEATURES,
    MOST_ROWS,
    describe,
    effective_rank,
    head_kind,
    perplexity,
)
from llmtrace.introspect.glance import glance
from llmtrace.introspect.invariants import Case, check
from llmtrace.introspect.lens import streams
from llmtrace.introspect.patterns import patterns
from llmtrace.introspect.relevance import Attributor, components
from llmtrace.introspect.scores import Scorer
from llmtrace.introspect.watch import Watch
from llmtrace.probes.records import TOKEN_FIELDS, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from llmtrace.blocks.plan import Plan
    from llmtrace.engine.evidence import Claim
    from llmtrace.engine.inside import Inside
    from llmtrace.engine.request import Request
    from llmtrace.engine.trace import Model
    from llmtrace.introspect.words import Page
    from llmtrace.probes.exact import Spread

ATTRIBUTED = 3
"""Tokens whose attribution is shown: the least certain ones."""
AFFORDED = 2e10
"""Operations up to which the lens looks at all positions, and components are ablated unasked."""
LIMITS = (
    "The lens reads each layer as if it were the last. It was not trained to, so early layers may"
    " say less than they know.",
    "Attribution is direct: what a component does by way of later ones is not in it, and"
    " components that oppose each other make both look large.",
    "Beauty is a proxy. What is concentrated need not mean anything.",
    "Intervals are 95 % over positions, taken as independent; neighbours are not.",
    "Kinds of heads are named by thresholds on this run alone.",
)


@dataclass(frozen=True)
class Subject:
    """What is looked at, and what its record says beside the claim."""

    commit: str
    checksum: str
    model_name: str
    claim: Claim
    prompt: str | None
    output: str | None
    verdict: str | None
    reason: str
    """Why the verdict is what it is; "" where there is nothing to say."""
    digests: bytes | None
    """``digests.bin``; None where the record has none."""
    text: Callable[[int], str]
    """The text of a token by itself."""
    heed: Callable[[Fed], None] = lambda _: None
    """Is told how far the replay is; may raise."""


class Replay(NamedTuple):
    """What the page is made of: a replay that ``watch`` observed."""

    watch: Watch
    plan: Plan
    kept: Mapping[str, np.ndarray]
    """By name, at all positions: what ``streamed`` names."""


def streamed(model: Model, request: Request) -> tuple[str, ...]:
    """The points that a replay should keep: those of the lens where it can look everywhere."""
    affordable = _lens_operations(model, request) <= AFFORDED
    return tuple(streams(model.architecture.layer_count)) if affordable else ()


def replay(model: Model, subject: Subject) -> Replay:
    """Replays the run; raises NotFinite, and whatever ``heed`` raises."""
    request = subject.claim.request
    watch = Watch(model, request)
    plan = model.plan([request], keep=streamed(model, request))
    for event in trace(model, plan, [request], observe=lambda _: watch):
        if isinstance(event, Fed):
            subject.heed(event)
        if isinstance(event, Done):
            return Replay(watch, plan, event.trace.kept)
    raise AssertionError("a trace ends with its run")


def page(
    model: Model,
    subject: Subject,
    *,
    measures: bool = True,
    ablates: bool | None = None,
    replayed: Replay | None = None,
) -> Page:
    """Makes the page, of a replay that was ``replayed`` already or of one more.

    ``measures``: the time of its blocks too. ``ablates``: whether components are ablated; for None
    where it takes about a second.
    """
    request = subject.claim.request
    watch, plan, kept = replayed or replay(model, subject)
    last, inside = watch.inside(watch.last), watch.inside(watch.chosen)
    scorer = Scorer(model, request)
    scorer.add(inside)
    made: Page = {"run": _run(model, subject)}
    made["tokens"] = _tokens(subject, watch)
    made["lens"] = _lens(model, subject, watch, kept, made["tokens"])
    made["layers"], made["run_features"] = _features(watch)
    _ranks(made["layers"], kept)
    named = (*(feature.name for feature in FEATURES), "effective_rank")
    made["meanings"] = {name: describe(name).meaning for name in named}
    made["heads"] = _heads(watch)
    made["patterns"] = patterns(last, made["heads"])
    made["attribution"] = _attribution(model, inside, made["tokens"])
    made["ablation"] = None
    if ablates or (ablates is None and _ablation_operations(model, request) <= AFFORDED):
        made["ablation"] = _ablation(model, subject, inside, made["attribution"])
    made["scores"] = _scores(scorer)
    made["blocks"] = []
    seed = bytes.fromhex(subject.checksum)
    made["invariants"] = _invariants(Case(inside, model, subject.claim, subject.digests, seed))
    made["limits"] = [_sample(made, inside), *LIMITS]
    if measures:  # last: it writes to the cache
        made["blocks"] = costs(model, plan, request, subject.claim.output)
    return made


def _run(model: Model, subject: Subject) -> dict[str, Any]:
    claim = subject.claim
    return {
        "commit": subject.commit,
        "checksum": subject.checksum,
        "model": subject.model_name,
        "model_id": claim.model,
        "numerics": claim.numerics,
        "device": model.device.name,
        "prompt": subject.prompt,
        "output": subject.output,
        "level": claim.level,
        "positions": claim.request.positions,
        "verdict": subject.verdict,
        "reason": subject.reason or None,
    }


def _tokens(subject: Subject, watch: Watch) -> list[dict[str, Any]]:
    claim = subject.claim
    count = len(claim.request.prompt)
    drawn = watch.drawn
    known = {name: field(drawn, name, TOKEN_FIELDS).tolist() for name in TOKEN_FIELDS}
    made = []
    for position, token in enumerate((*claim.request.prompt, *claim.output)):
        i = position - count
        made.append(
            {
                "position": position,
                "token": token,
                "text": subject.text(token),
                "is_output": i >= 0,
                **{n: known[n][i] if i >= 0 else None for n in TOKEN_FIELDS},
                "commit_layer": None,
            }
        )
    return made


def _lens_operations(model: Model, request: Request) -> float:
    """Of the lens at all positions."""
    a = model.architecture
    return 2.0 * (a.layer_count + 1) * a.vocab_size * a.hidden_size * request.positions


def _ablation_operations(model: Model, request: Request) -> float:
    """Of the ablation of as many components as are sampled, each half of a pass."""
    weights = sum(math.prod(t.shape) for t in model.checkpoint.tensors.values())
    return 1.0 * SAMPLED * weights * request.positions


def _lens(
    model: Model,
    subject: Subject,
    watch: Watch,
    kept: Mapping[str, np.ndarray],
    tokens: list[dict[str, Any]],
) -> dict[str, Any]:
    """The lens at all positions whose streams were kept, else at those that were looked at."""
    import numpy as np

    rows, positions = kept, np.arange(subject.claim.request.positions)
    if not kept:
        inside = watch.inside(watch.wanted())
        rows, positions = inside.rows, inside.positions
    drawn = [t["token"] if t["is_output"] else -1 for t in tokens]
    found = glance(model, rows, positions, np.array([drawn[p + 1] for p in positions]))
    for position, layer in zip(positions.tolist(), found.commit_layer.tolist(), strict=True):
        if tokens[position + 1]["is_output"] and layer < len(found.layers):
            tokens[position + 1]["commit_layer"] = layer
    made = found.json()
    for name in ("top_logprob", "logprob", "entropy", "kl"):
        made[name] = np.round(getattr(found, name).astype(np.float64), 5).tolist()
    return {**made, "top": [[subject.text(token) for token in row] for row in made["top"]]}


def _ablation(
    model: Model, subject: Subject, inside: Inside, attribution: list[dict[str, Any]]
) -> dict[str, Any]:
    """Ablates components, and tells each token that is shown what that did to it."""
    request, found = subject.claim.request, Attributor(model)(inside)
    picks = inside.positions[inside.positions >= inside.first_pick]
    seed = int(subject.checksum[:16], 16)
    limit = request.run_limit
    done = ablate(model, inside.tokens, picks, found.share, run_limit=limit, seed=seed)
    column = {position + 1: i for i, position in enumerate(picks.tolist())}
    for each in attribution:
        for component in each["components"]:
            if component["name"] in done.names:
                row = done.names.index(component["name"])
                component["ablation"] = float(done.kl[row, column[each["position"]]])
    trust = done.trust
    return {"n": trust.n, "spearman": trust.mean, "low": trust.low, "high": trust.high}


def _features(watch: Watch) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    every = watch.totals
    layers: list[dict[str, Any]] = [{"layer": n} for n in range(every.shape.layers)]
    run: dict[str, Any] = {}
    for feature in FEATURES:
        spreads = every.spreads(feature.name)
        if feature.of == "layer":
            for layer, spread in zip(layers, spreads, strict=False):
                layer[feature.name] = _spread(spread)
        elif spreads:
            run[feature.name] = _spread(spreads[0])
            if feature.name == "logprob":
                run["perplexity"] = _spread(perplexity(spreads[0]))
    return layers, run


def _ranks(layers: list[dict[str, Any]], kept: Mapping[str, np.ndarray]) -> None:
    """Tells each layer the effective rank of its stream, where streams were kept: one number."""
    for each in layers:
        rows = kept.get(f"blocks.{each['layer']}.hook_resid_post")
        if rows is not None and len(rows) > 1:
            rank, n = effective_rank(rows), min(len(rows), MOST_ROWS)
            each["effective_rank"] = {"mean": rank, "low": rank, "high": rank, "n": n}


def _spread(spread: Spread) -> dict[str, float | int]:
    return {"mean": spread.mean, "low": spread.low, "high": spread.high, "n": spread.n}


def _heads(watch: Watch) -> list[dict[str, Any]]:
    words = watch.totals.heads()  # (L, H, 8)
    names = ("entropy", "sink", "self", "previous", "distance", "first", "induction")
    return [
        {
            "layer": layer,
            "head": head,
            **dict(zip(names, map(float, words[layer, head]), strict=False)),
            "kind": head_kind(words[layer, head]),
        }
        for layer in range(words.shape[0])
        for head in range(words.shape[1])
    ]


def _attribution(
    model: Model, inside: Inside, tokens: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    found = Attributor(model)(inside)
    names = components(inside.architecture.layer_count)
    picked = inside.positions[inside.positions >= inside.first_pick].tolist()
    share, gap = found.share, found.gap
    order = sorted(range(len(picked)), key=lambda row: tokens[picked[row] + 1]["logprob"])
    made = []
    for row in sorted(order[:ATTRIBUTED]):
        token = tokens[picked[row] + 1]
        parts = [
            {"name": n, "logit": float(found.logit[row, i]), "share": float(share[row, i]),
             "ablation": None}
            for i, n in enumerate(names)
        ]  # fmt: skip
        made.append(
            {**{n: token[n] for n in ("position", "token", "text")}, "components": parts,
             "gap": float(gap[row])}
        )  # fmt: skip
    return made


def _scores(scorer: Scorer) -> list[dict[str, Any]]:
    return [
        {
            "name": score.name,
            "of": score.of,
            "value": score.spread.mean,
            "low": score.spread.low,
            "high": score.spread.high,
            "n": score.spread.n,
            "trusted": score.trusted,
        }
        for score in scorer.table()
    ]


def _invariants(case: Case) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "verdict": each.verdict,
            "margin": _finite(each.margin),
            "bound": _finite(each.bound),
            "n": each.n,
            "where": {"position": each.where.position, "block": each.where.block}
            if each.where
            else None,
            "why": each.why,
        }
        for each in check(case)
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sample(made: Page, inside: Inside) -> str:
    """Says how much was looked at."""
    total, points = made["run"]["positions"], blocks(inside.architecture)
    count = sum(len(block.points) for block in points)
    return (
        f"Scores, attribution and invariants look at {len(inside.positions)} of {total} positions,"
        f" the last and those that drew the least expected tokens, at all {count} points. Features"
        " and heads are of all positions."
    )
