"""Versions: the numerics contracts that this llmtrace can compute, by name and revision."""

from __future__ import annotations

from llmtrace.errors import Inconclusive

VERSIONS = ("accuracy.1",)
"""A frozen version stays, bit for bit, for ever; ``tests/golden`` holds its records."""


def version(name: str) -> str:
    """Gives the full name: ``accuracy`` is its newest revision. Raises Inconclusive for others."""
    for known in reversed(VERSIONS):
        if name in {known, known.split(".")[0]}:
            return known
    raise Inconclusive(f"no numerics '{name}' in this llmtrace", "it knows: " + ", ".join(VERSIONS))
