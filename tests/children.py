"""Children that run a command line and may be killed: forked from a process without threads.

A process that has computed has threads, which a fork leaves behind with their locks held; so
these come from a server of forks that has imported what commands import, and done nothing.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import llmtrace.blocks.plan
import llmtrace.cli.opening
import llmtrace.cli.run
import llmtrace.device.cpu
import llmtrace.engine.trace
import llmtrace.model.tokenizer
import llmtrace.store.carrier
import llmtrace.verify.intake  # noqa: F401
from llmtrace.cli import main
from llmtrace.store.maintenance import maintain

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["children"])
MAINTENANCE = "maintenance"  # in the place of a command line


def start(
    arguments: list[str] | str, environment: dict[str, str], out: Path, now: int | None = None
) -> multiprocessing.process.BaseProcess:
    """Starts a child; its standard output goes to a file, standard error to one beside it (.err).

    Its clock stands at ``now`` if given.
    """
    child = CONTEXT.Process(target=_run, args=(arguments, environment, str(out), now))
    child.start()
    return child


def _run(
    arguments: list[str] | str, environment: dict[str, str], out: str, now: int | None
) -> None:
    status = 70
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(out, flags, 0o600), 1)
        os.dup2(os.open(out + ".err", flags, 0o600), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.update(environment)
        if now is not None:
            time.time = lambda: float(now)
        if arguments == MAINTENANCE:
            store = Path(environment["XDG_DATA_HOME"]) / "llmtrace/store.git"
            status = 0 if maintain(store, {"PATH": os.environ["PATH"]}) else 1
        else:
            status = main(list(arguments))
    finally:
        os._exit(status)
