"""What each score is and how it fails, in a line each: ``man/llmtrace-scores.7`` says the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """One score of one kind of thing."""

    score: str
    """``fitness``, ``beauty``, ``relevance`` or ``usefulness``."""
    of: str
    """``point``, ``run`` or ``feature``."""
    formula: str
    fails: tuple[str, ...]
    """Where it says less, or other, than it seems to."""


DEFINITIONS = (
    Definition(
        "fitness",
        "point",
        "F = clip(-log2(|y - y64| / |y64|) / 24, 0, 1)",
        (
            "massive dimensions hide errors of all others",
            "16 outputs of a row know its bits to about half a bit",
            "the weights are taken as stored: a wrong checkpoint is computed perfectly",
        ),
    ),
    Definition(
        "fitness",
        "run",
        "the mean of F over the blocks, or exp(-mean KL(p64 || p)) where it is propagated",
        (
            "errors of single blocks may cancel or grow on the way: the propagated one tells",
            "a mean hides a single bad block: the least one is named beside it",
            "teacher-forced: near a tie a free run would part from the float64 one",
        ),
    ),
    Definition(
        "fitness",
        "feature",
        "F = clip(-log2(|f - f64| / |f64|) / 24, 0, 1); of a count 1 if it is right, else 0",
        (
            "a feature that is a small difference of large numbers is unfit, its records are not",
            "a count at its threshold may flip by rounding alone",
            "it is said of the arithmetic: a feature may be exact and meaningless",
        ),
    ),
    Definition(
        "beauty",
        "point",
        "B = max(0, (C - C0) / (1 - C0)), C = 1 - H / ln n",
        (
            "a proxy: few carriers of the mass need not be understandable ones",
            "sinks and massive dimensions win without meaning: B* leaves them out",
            "coordinates of the residual stream mean nothing by themselves: there a lens is taken",
            "a lens is brittle in early layers",
        ),
    ),
    Definition(
        "beauty",
        "run",
        "the sum over components p of R_p B*_p",
        ("a component that attribution overrates brings its beauty with it",),
    ),
    Definition(
        "beauty",
        "feature",
        "B = max(0, 1 - LZ(q) / LZ(q shuffled)), q the layers by positions in 8 bits",
        (
            "a proxy: what can be told shortly need not be worth telling",
            "LZ78 learns slowly: of some thousand cells it sees little but repetition",
            "one extreme value leaves all others in few of the 256 steps",
        ),
    ),
    Definition(
        "relevance",
        "point",
        "R = |a_p| / sum of |a_q|, a_p = <c_p gamma / sigma, W_U[y] - mean W_U>",
        (
            "effects through later layers are invisible",
            "components that cancel inflate each other",
            "the scale of the last norm is frozen",
            "a model repairs itself: what is taken away may be made good later",
        ),
    ),
    Definition(
        "relevance",
        "run",
        "the share of the 5 largest R",
        ("of a model of two layers or less it is always 1: it has 5 components",),
    ),
    Definition(
        "relevance",
        "feature",
        "R = |Spearman(f, -log-probability)| over at least 30 tokens, p of 999 permutations",
        ("correlation is not cause", "tokens of one text depend on each other: p is too small"),
    ),
    Definition(
        "usefulness",
        "run",
        "U = F B* R, in units of 2^-16",
        ("a product of proxies: for ranking runs of one job, never for comparing models",),
    ),
)
