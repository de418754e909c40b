"""Runs one command line and says what became of it: status, time, memory, programs, what is left.

A program of its own, so that the memory of whoever asks is not counted: a process inherits the
peak of the one that it was forked from.

    python -I watch.py REPORT SECONDS [--trace FILE] -- COMMAND...
"""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

SUBREAPER = 36  # of prctl(2): orphans of our children become ours
EVERY = 0.02  # seconds between looks at the processes


def main(report, seconds, *rest):
    cut = rest.index("--")
    options, command = rest[:cut], rest[cut + 1 :]
    traced = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "20000", "-e", "trace=execve"]
    if options:
        command = [*traced, "-e", "signal=none", "-o", options[1], "--", *command]
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    start = time.monotonic()
    child = subprocess.Popen(command, start_new_session=True)
    seen, peak, status = {}, 0, None
    while status is None and time.monotonic() - start < float(seconds):
        pid, code, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            status, peak = os.waitstatus_to_exitcode(code), max(peak, usage.ru_maxrss)
            break
        peak = max(peak, look(seen, skip=child.pid if options else 0))
        time.sleep(EVERY)
    elapsed = time.monotonic() - start
    left = end(child.pid if status is None else 0)
    found = {
        "status": status,
        "seconds": elapsed,
        "peak": peak,
        "programs": [list(each) for each in seen],
        "left": left,
    }
    pathlib.Path(report).write_text(json.dumps(found))


def look(seen, skip):
    """Notes the programs that run now; gives their memory together, in KiB, each page once."""
    total = 0
    for pid in descendants(os.getpid()):
        try:
            proc = pathlib.Path(f"/proc/{pid}")
            words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            lines = (proc / "smaps_rollup").read_text().splitlines()
            shares = [line.split()[1] for line in lines if line.startswith("Pss:")]
        except OSError:
            continue
        if pid != skip and words:
            seen[tuple(words)] = True
            total += sum(map(int, shares))
    return total


def descendants(pid):
    try:
        listed = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [one for child in map(int, listed.split()) for one in (child, *descendants(child))]


def end(main_child):
    """Ends what still runs; gives the command lines of what should not."""
    left, deadline = {}, time.monotonic() + 1
    while True:
        reap()
        running = descendants(os.getpid())
        if not running or (not main_child and time.monotonic() > deadline):
            break
        if main_child:
            break
        time.sleep(EVERY)
    look(left, skip=main_child)
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    time.sleep(EVERY)
    reap()
    return [list(each) for each in left if each]


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
