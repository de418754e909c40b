"""The statement of a verdict: an in-toto Statement whose predicate is a SLSA verification summary.

Hides two specifications: https://in-toto.io/Statement/v1 and
https://slsa.dev/verification_summary/v1. What they have no field for stands in one field
of our own, whose name is a URI as they ask.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmtrace.errors import Trouble
from llmtrace.verify.judge import INCONCLUSIVE, VERIFIED

if TYPE_CHECKING:
    from llmtrace.store.entry import Entry
    from llmtrace.verify.judge import Verdict
    from llmtrace.verify.spot import Draw

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/verification_summary/v1"
OURS = "urn:llmtrace:verdict:1"
POLICY = "urn:llmtrace:policy:replay:1"
LEVEL = "LLMTRACE_REPLAYED"
"""Of our own track: a name that begins with SLSA_ would claim one of theirs."""
_REASON = 1000  # characters


def statement(
    entry: Entry, verdict: Verdict, node: str, time: int, spot: Draw | None = None
) -> dict[str, Any]:
    """Says what ``node`` found of a commit at ``time`` (UTC seconds): the section of a record.

    Raises Trouble for an inconclusive verdict: that is about the verifier, not the record.
    """
    if verdict.verdict == INCONCLUSIVE:
        raise Trouble(f"the verdict of '{entry.id[:8]}' is inconclusive, which nobody records")
    passed = verdict.verdict == VERIFIED
    subject = [{"name": "commit", "digest": {"gitCommit": entry.id}}]
    resource = f"urn:llmtrace:commit:{entry.id}"
    try:
        digests = {"blake3": entry.digest, "sha256": hashlib.sha256(entry.json).hexdigest()}
        subject.append({"name": "record.json", "digest": digests})
        resource = f"urn:llmtrace:record:{entry.digest}"
    except Trouble:
        pass  # an invalid commit may have none
    return {
        "_type": TYPE,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": {
            "verifier": {"id": f"urn:llmtrace:node:{node}"},
            "timeVerified": datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "resourceUri": resource,
            "policy": {"uri": POLICY},
            "verificationResult": "PASSED" if passed else "FAILED",
            "verifiedLevels": [LEVEL if passed else "FAILED"],
            "slsaVersion": "1.0",
            OURS: _ours(entry, verdict, spot),
        },
    }


def _ours(entry: Entry, verdict: Verdict, spot: Draw | None) -> dict[str, Any]:
    from llmtrace import __version__

    difference = verdict.difference
    found: dict[str, Any] = {
        "verdict": verdict.verdict,
        "reason": verdict.reason[:_REASON],
        "checked": list(verdict.checked),
        "unchecked": list(verdict.unchecked),
        "first_difference": dataclasses.asdict(difference) if difference else None,
        "numerics": None,
        "device": dict(verdict.device) if verdict.device else None,
        "llmtrace": __version__,
        "spot": None,
    }
    if verdict.device:  # it was replayed, so the claim is well-formed
        found["numerics"] = entry.record.sections["trace"]["numerics"]
    if spot:
        found["spot"] = {
            "seed": spot.seed.hex(),
            "drawn": len(spot.records),
            "of": spot.population,
            "population": spot.digest,
        }
    return found
