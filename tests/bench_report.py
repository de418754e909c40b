"""How long a report of a thousand tokens takes, and how large its file is.

    python -m tests.bench_report [--tokens N] [--repeats N]

Runs the sample model once in a home of its own and reports it several times. Prints one JSON
object: seconds of the whole command in a process of its own; and, in this process, of the audit
and replay that give the verdict, of the replay that the page is made of, of the page without it,
of its times, of the HTML file and of the lines for a terminal. Each is the least of the repeats.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

CODE = "import sys; from llmtrace.cli import main; sys.exit(main())"


def command(*arguments: str) -> str:
    """What one command printed, run from this tree."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def least(repeats: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest call, and what it gave."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return round(min(times), 3), result


def measure(commit: str, repeats: int, folder: Path) -> dict[str, Any]:
    """The seconds of each part, in this process."""
    from llmtrace.cli.frame import Session
    from llmtrace.cli.opening import Models, open_store
    from llmtrace.cli.report import _subject
    from llmtrace.engine.trace import trace
    from llmtrace.introspect import html, terminal
    from llmtrace.introspect.page import page
    from llmtrace.introspect.watch import Watch
    from llmtrace.verify.reading import Run
    from llmtrace.verify.verify import verify

    session = Session()
    store = open_store(session)
    entry = store.read(commit)
    run = Run.of(entry)
    models = Models(session, None, None, None)
    model = models.find(run.claim.model, run.model_name)
    request = run.claim.request
    found: dict[str, Any] = {}
    found["verify_s"], verdict = least(repeats, lambda: verify(store, store.read(commit), models))

    def replay() -> list[Any]:
        watch = Watch(model, request)
        return [*trace(model, model.plan([request]), [request], observe=lambda _: watch)]

    subject = _subject(run, model, verdict, lambda _: None)
    found["replay_s"], _ = least(repeats, replay)
    whole, _ = least(repeats, lambda: page(model, subject, measures=False))
    timed, made = least(repeats, lambda: page(model, subject))
    found["page_s"] = round(whole - found["replay_s"], 3)
    found["times_s"] = round(timed - whole, 3)
    found["html_s"], text = least(repeats, lambda: html.render(made))
    found["terminal_s"], _ = least(repeats, lambda: [*terminal.lines(made)])
    found["html_bytes"] = len(text.encode())
    found["command_s"], _ = least(
        repeats, lambda: command("report", commit, "-o", str(folder / "page.html"))
    )
    return found


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for variable in ("CONFIG", "DATA"):
            os.environ[f"XDG_{variable}_HOME"] = str(folder / variable.lower())
        prompt = "Once upon a time there was a king who had a golden bird"
        count = ("-n", str(asked.tokens - 16), "--temperature", "0.9", "--seed", "3")
        said = json.loads(command("run", "-d", "cpu", *count, "--json", prompt).splitlines()[0])
        os.environ["LLMTRACE_DEVICE"] = "cpu"
        tokens = len(said["prompt_tokens"]) + len(said["output_tokens"])
        found = measure(said["commit"], asked.repeats, folder)
    print(json.dumps({"tokens": tokens, "cores": len(os.sched_getaffinity(0)), **found}))


if __name__ == "__main__":
    main()
