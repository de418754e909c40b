"""A child process under caps: what it may use, what it says, and that none of it stays behind."""

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from llmtrace.errors import Trouble

_SAID_LIMIT = 64 << 10  # bytes that are kept of standard error
_GRACE = 2.0  # seconds between asking a process to stop and ending it


@dataclass(frozen=True)
class Caps:
    """What one git process may use; the limits hold for each process that it starts, too."""

    seconds: float = 600.0  # by the clock
    cpu_seconds: int = 300
    file_bytes: int = 2 << 30  # of each file written
    memory_bytes: int = 192 << 20  # of data, which is not the files mapped
    output_bytes: int = 64 << 20  # of standard output, and of standard error


CAPS = Caps()  # where nothing else is said


def limits(caps: Caps) -> list[tuple[int, tuple[int, int]]]:
    """For ``resource.setrlimit``; a limit that we are under already is not raised."""
    wanted = {
        resource.RLIMIT_CPU: caps.cpu_seconds,
        resource.RLIMIT_FSIZE: caps.file_bytes,
        resource.RLIMIT_DATA: caps.memory_bytes,
        resource.RLIMIT_CORE: 0,
    }
    found = []
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        found.append((limit, (most, most)))
    return found


class Watch:
    """Reads what a process says until it ends, or until it says or takes too much."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        caps: Caps,
        progress: Callable[[str], None] | None,
    ) -> None:
        self._process = process
        self._caps = caps
        self._progress = progress
        self._end = time.monotonic() + caps.seconds
        self._line = b""
        self._heard = 0
        self._said = bytearray()
        self.output = bytearray()

    @property
    def said(self) -> str:
        """Standard error, from its beginning."""
        return self._said.decode(errors="replace")

    def read(self) -> None:
        """Raises Trouble when a cap is reached.

        Helpers of ssh and of credentials may outlive git and keep its standard error open:
        so its end is that of the process, and of standard output.
        """
        takers = {self._process.stdout: self._take_output, self._process.stderr: self._take_said}
        with selectors.DefaultSelector() as waiting:
            for stream, take in takers.items():
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                waiting.register(stream, selectors.EVENT_READ, take)
            while waiting.get_map():
                only_said = self._process.stdout not in {k.fileobj for k in _keys(waiting)}
                ended = only_said and self._process.poll() is not None
                ready = waiting.select(0 if ended else 0.02 if only_said else self._left())
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if data:
                        key.data(data)
                    else:
                        waiting.unregister(key.fileobj)
                if ended and not ready:
                    break
                self._left()
        try:
            self._process.wait(self._left())
        except subprocess.TimeoutExpired:
            self._left()
            raise

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Trouble(f"git was stopped: it took more than {self._caps.seconds:g} seconds")
        return left

    def _take_output(self, data: bytes) -> None:
        self.output += data
        self._cap(len(self.output))

    def _take_said(self, data: bytes) -> None:
        self._heard += len(data)
        self._cap(self._heard)
        self._said += data[: max(0, _SAID_LIMIT - len(self._said))]
        if self._progress is None:
            return
        *lines, rest = re.split(rb"[\r\n]+", self._line + data)
        self._line = rest[-1024:]
        for line in lines:
            if line.strip():
                self._progress(line.decode(errors="replace").rstrip())

    def _cap(self, size: int) -> None:
        if size > self._caps.output_bytes:
            raise Trouble(f"git was stopped: it said more than {self._caps.output_bytes} bytes")


def _keys(waiting: selectors.BaseSelector) -> list[selectors.SelectorKey]:
    return list(waiting.get_map().values())


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all of its group: politely, so that git removes what it began."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
