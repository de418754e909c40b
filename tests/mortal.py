"""Loaded by the workers of a test's cluster: one that finds its end written down, dies of it.

A file in the folder LLMTRACE_TEST_ENDS names the moment; the first worker to get there takes the
file away and kills itself, as a machine dies that loses its power:

    computing   a prompt of its task is done, others are not
    told        it is about to record
    recorded    its chain holds the records, and nobody has heard of it
    gone        the same, and its store does not come back
"""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmtrace.cluster import worker

ENDS = Path(os.environ["LLMTRACE_TEST_ENDS"])
if (ENDS / "elsewhere").exists():  # what starts after a store has gone knows nothing of it
    os.environ["LLMTRACE_STORE"] = str(ENDS / "elsewhere.git")


def meets(moment: str) -> None:
    try:
        (ENDS / moment).unlink()
    except FileNotFoundError:
        return
    if moment == "gone":
        (ENDS / "elsewhere").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def mortal(
    function: Callable[..., Any], before: Sequence[str], after: Sequence[str]
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        for moment in before:
            meets(moment)
        answer = function(*arguments)
        for moment in after:
            meets(moment)
        return answer

    return run


worker._named = mortal(worker._named, (), ("computing",))
worker._record = mortal(worker._record, ("told",), ("recorded", "gone"))
