"""Git as a carrier: fixed argument lists to the git program, the only file that knows GitPython.

Hides all that makes git safe to start. It never opens the user's store, nor anybody's
repository, as its own: ``--git-dir`` is always a scratch repository of our making, which
sees the objects of a store beside its own. So configuration, hooks and attributes that
somebody planted in a store are read by nobody. Of GitPython only ``execute`` is used,
with a list.
"""

import contextlib
import fcntl
import os
import re
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from llmtrace.errors import Trouble
from llmtrace.store import durable
from llmtrace.store.process import CAPS, Caps, Watch, end, limits

if TYPE_CHECKING:
    import subprocess

OLDEST = (2, 43, 7)  # older ones have known holes, such as CVE-2025-48384 and -48385
_MARK = ".scratch-"
_PROGRAMS = "programs"  # in a scratch repository: what git may start of its own
_PROGRAM = re.compile(r"git|git-(remote|credential)-.+|git-(upload|receive)-pack")
# All of a scratch repository's configuration. It stands above that of user and machine: their
# helpers for credentials and their proxies stay; what starts programs, or has git do more than
# it was told, does not.
_SETTINGS = (
    "core.repositoryFormatVersion=0",
    "core.bare=true",
    "core.logAllRefUpdates=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.attributesFile=/dev/null",
    "core.askPass=/bin/false",
    "core.alternateRefsCommand=true",  # without it git opens the store to list its refs
    "core.bigFileThreshold=1m",  # memory: no object is held whole for a delta
    "core.packedGitWindowSize=1m",
    "core.packedGitLimit=64m",
    "core.deltaBaseCacheLimit=16m",
    "core.commitGraph=false",
    "core.multiPackIndex=true",
    "pack.threads=1",
    "pack.window=0",  # parts of records are no deltas of each other
    "pack.windowMemory=32m",
    "pack.deltaCacheSize=16m",
    "pack.writeReverseIndex=false",
    "index.threads=1",
    "transfer.fsckObjects=true",
    "fetch.fsckObjects=true",
    "fetch.fsck.badFilemode=error",
    "transfer.bundleURI=false",
    "transfer.unpackLimit=1",
    "fetch.unpackLimit=1",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "fetch.prune=false",
    "submodule.recurse=false",
    "push.followTags=false",
    "push.gpgSign=false",
    "push.negotiate=false",
    "push.recurseSubmodules=no",
    "protocol.version=2",
    "protocol.ext.allow=never",
    "http.followRedirects=false",  # a URL is the one that its user typed
    "http.lowSpeedLimit=1",  # a server whose hooks are at work only says now and then that it is
    "http.lowSpeedTime=120",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.pushUpdateRejected=false",
)
_DURABLE = ("core.fsync=all", "core.fsyncMethod=fsync")
_ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",  # overrides every protocol.*.allow
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_ADVICE": "0",
    "GIT_PAGER": "cat",
    "GIT_FLUSH": "0",
}
_SSH = "ssh -oBatchMode=yes -oForwardAgent=no -oPermitLocalCommand=no -oConnectTimeout=20"
_REASON = 300  # characters of a reason
_NOISE = re.compile(
    r"(?i)((remote|git): )?(warning:|hint:|total \d|\w+ing objects\b|\w+ing deltas\b)"
    r"|\*\*|.*\d+% \(|remote: *$|To "
)


class Failed(Trouble):
    """Git ended with an error: its own reason in one line, and all that it said."""

    def __init__(self, message: str, code: int, output: bytes, said: str) -> None:
        super().__init__(message)
        self.code = code  # git's exit status
        self.output = output
        self.said = said  # standard error, at most 64 KiB; not escaped


class Carrier:
    """Starts git with a clean environment, fixed settings and caps.

    ``environment`` is all of the user's that git may see, chosen by the command line.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        program = shutil.which("git", path=environment.get("PATH", os.defpath))
        if program is None:
            raise Trouble("no program 'git'", "install git, at least 2.43.7")
        self._program = str(Path(program).absolute())
        self._exec_path: str | None = None  # once it was asked for
        self._environment = {**environment, **_ENVIRONMENT}
        if "GIT_SSH_COMMAND" not in environment and not self._has_ssh_command():
            self._environment["GIT_SSH_COMMAND"] = _SSH

    def version(self) -> tuple[int, ...]:
        """The version of git."""
        found = re.search(rb"(\d+)\.(\d+)(?:\.(\d+))?", self._execute(["version"], {}, b"", CAPS))
        return tuple(int(part or 0) for part in found.groups()) if found else ()

    def warning(self) -> str | None:
        """Says what is wrong with this git, None if it is new enough; to be said once a command."""
        version = self.version()
        if version >= OLDEST:
            return None
        is_, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
        return f"git {is_} has known holes, unless they were closed by its packager: use {needed}"

    def run(
        self,
        arguments: Sequence[str],
        *,
        repository: Path,
        objects: Path | None = None,
        into: Path | None = None,
        stdin: bytes = b"",
        caps: Caps = CAPS,
        progress: Callable[[str], None] | None = None,
    ) -> bytes:
        """Runs git in a repository that ``scratch`` gave; gives its standard output.

        ``arguments`` begin with the command, or with ``-c`` settings. It sees the objects
        in the folder ``objects`` (``store.path / "objects"``) but writes none there; those
        it writes go to the repository, or durably to the folder ``into``. ``progress`` is
        given each line of standard error, not escaped.

        Raises Failed with git's reason, and Trouble when a cap is reached.
        """
        extra: dict[str, str] = {}
        settings: tuple[str, ...] = ()
        if objects is not None:
            extra["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _quoted(objects)
        if into is not None:
            extra["GIT_OBJECT_DIRECTORY"] = str(into.absolute())
            settings = _DURABLE
        command = [f"--git-dir={repository.absolute()}"]
        if (repository / _PROGRAMS).is_dir():
            extra["GIT_EXEC_PATH"] = str((repository / _PROGRAMS).absolute())
        for setting in settings:
            command += ["-c", setting]
        return self._execute([*command, *arguments], extra, stdin, caps, progress)

    @contextlib.contextmanager
    def scratch(self, beside: Path) -> Iterator[Path]:
        """Makes a bare repository inside the folder ``beside``, such as a store; gone at the end.

        What killed processes left there is removed first: the living hold a lock on theirs.
        """
        with durable.troubled("make a scratch repository in", beside):
            with _locked(beside):
                _sweep(beside)
                path = Path(tempfile.mkdtemp(prefix=_MARK, dir=beside))
                handle = os.open(path, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                for folder in ("objects/info", "objects/pack", "refs/heads", _PROGRAMS):
                    (path / folder).mkdir(parents=True)
                for name, place in self._programs().items():
                    (path / _PROGRAMS / name).symlink_to(place)
                (path / "config").write_text("".join(map(_written, _SETTINGS)))
                (path / "HEAD").write_text("ref: refs/heads/none\n")
            except BaseException:
                _remove(path, handle)
                raise
        try:
            yield path
        finally:
            _remove(path, handle)

    def _programs(self) -> dict[str, str]:
        """Git, and of its other programs those that reach remotes and ask for credentials.

        So git-http-fetch is none of them. A server may name URLs of packs that nobody asked it
        for, and that program gets them from wherever they point, such as services that only
        this machine can reach.
        """
        if self._exec_path is None:
            found = self._execute(["--exec-path"], {}, b"", CAPS)
            self._exec_path = os.fsdecode(found).strip()
        with os.scandir(self._exec_path) as entries:
            return {entry.name: entry.path for entry in entries if _PROGRAM.fullmatch(entry.name)}

    def _has_ssh_command(self) -> bool:
        """Says whether the user configured a program for ssh, which must not be overridden."""
        asked = ["--git-dir=/dev/null", "config", "--get", "core.sshCommand"]
        try:  # no repository: what is read is the configuration of user and machine
            return bool(self._execute(asked, {}, b"", CAPS).strip())
        except Failed:
            return False

    def _execute(
        self,
        arguments: Sequence[str],
        extra: Mapping[str, str],
        stdin: bytes,
        caps: Caps,
        progress: Callable[[str], None] | None = None,
    ) -> bytes:
        command = [self._program, *arguments]
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            given = cast("BinaryIO", file)
            started = _start(command, {**self._environment, **extra}, given, caps)
        watch = Watch(started, caps, progress)
        try:
            watch.read()
        except BaseException:  # Ctrl-C too: neither git nor ssh may stay behind
            end(started)
            raise
        finally:
            for stream in (started.stdout, started.stderr):
                if stream is not None:
                    stream.close()
        if started.returncode:
            code, said = started.returncode, watch.said
            raise Failed(_reason(said, code), code, bytes(watch.output), said)
        return bytes(watch.output)


def _start(
    command: list[str], environment: dict[str, str], stdin: BinaryIO, caps: Caps
) -> "subprocess.Popen[bytes]":
    """Starts git under its limits, in a session of its own: no terminal, so no questions.

    GitPython gives a child all of our environment and can only add to it. ``env -i`` would
    show passwords of proxies to whoever lists processes; so the child itself takes the
    environment that it may have, in the last step before it becomes git.
    """
    try:
        from git.cmd import Git
    except ImportError as error:  # it starts git when it is imported
        raise Trouble(f"GitPython cannot start git: {error}") from error

    allowed = limits(caps)

    def become() -> None:
        for limit, pair in allowed:
            resource.setrlimit(limit, pair)
        os.execve(command[0], command, environment)  # noqa: S606 (no shell: that is the point)

    with warnings.catch_warnings():  # Python 3.12 warns of threads; ``become`` takes no lock
        warnings.simplefilter("ignore", DeprecationWarning)
        handle = Git("/").execute(
            command,
            istream=stdin,
            as_process=True,
            shell=False,
            preexec_fn=become,
            start_new_session=True,
        )
    started = handle.proc
    assert started is not None
    handle.proc = None  # it would end the process in its own way
    return started


def _reason(said: str, code: int) -> str:
    """What git says is wrong, in one line: the first line that is neither warning nor progress."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said)]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    if not kept:
        return f"git ended with signal {-code}" if code < 0 else f"git ended with status {code}"
    named = [line for line in kept if re.match(r"(fatal|error|remote|ssh): ", line)]
    first = (named or kept)[0]
    if kept[0] is not first and first.startswith("fatal: Could not read from remote"):
        first = kept[0]  # what ssh said
    if first.endswith(":"):  # the reason stands in the next line
        first += " " + " ".join(kept[kept.index(first) + 1 :][:1])
    text = re.sub(r"^((fatal|error|remote|git): )+", "", first)
    return "git: " + re.sub(r"[^ -~]", lambda m: ascii(m[0])[1:-1], text)[:_REASON].rstrip(".")


def _written(setting: str) -> str:
    """A setting as a section of a configuration file."""
    name, _, value = setting.partition("=")
    section, *inner, key = name.split(".")
    title = " ".join([section, *(f'"{word}"' for word in inner)])
    return f"[{title}]\n\t{key} = {value}\n"


def _quoted(path: Path) -> str:
    """A folder as git's lists of folders have it, whatever characters are in its name."""
    text = str(path.absolute())
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(char, escape)
    return f'"{text}"'


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Removes the scratch repositories that nobody holds."""
    for path in folder.glob(f"{_MARK}*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its owner lives
            os.close(handle)
            continue
        _remove(path, handle)


def _remove(path: Path, handle: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(handle)
