"""The carrier: what git sees, what it may use, what stays behind, and how it says what is wrong."""

import ast
import inspect
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llmtrace.cli.settings import Settings
from llmtrace.errors import Trouble
from llmtrace.store import carrier as module
from llmtrace.store.carrier import Carrier, Failed
from llmtrace.store.process import Caps
from servers import git, make_bare, refs, serve

ROOT = Path(__file__).parents[1]
MB = 1 << 20


def user(home: Path, **more: str) -> dict[str, str]:
    """What a user's environment lets through."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", **more}


@pytest.fixture
def carrier(home: Path) -> Carrier:
    return Carrier(user(home))


def shell(carrier: Carrier, script: str, folder: Path, **more: object) -> str:
    """What a shell script prints that git starts: all that git's children see, it sees."""
    with carrier.scratch(folder) as scratch:
        alias = ["-c", f"alias.x=!{script} #", "x"]
        return carrier.run(alias, repository=scratch, **more).decode()  # type: ignore[arg-type]


def alive(word: str) -> list[str]:
    done = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_only_one_thing_of_gitpython_is_used() -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = [
        n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "git.cmd"
    ]
    assert [[alias.name for alias in node.names] for node in imported] == [["Git"]]
    calls = [
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
        and getattr(node.func.value.func, "id", "") == "Git"
    ]
    assert calls == ["execute"]


def test_git_sees_the_environment_that_it_was_given_and_no_other(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "evil")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("LD_PRELOAD_NOT", "1")
    carrier = Carrier(user(home, https_proxy="http://me:hunter2@proxy:1"))
    seen = dict(
        line.split("=", 1) for line in shell(carrier, "env", tmp_path).splitlines() if "=" in line
    )
    assert seen["https_proxy"] == "http://me:hunter2@proxy:1"
    assert seen["GIT_TERMINAL_PROMPT"] == "0"
    assert seen["GIT_ALLOW_PROTOCOL"] == "file:git:http:https:ssh"
    assert seen["GIT_DIR"].startswith(f"{tmp_path}/.scratch-")
    assert not {"GIT_EXTERNAL_DIFF", "LD_PRELOAD_NOT", "XDG_CACHE_HOME"} & seen.keys()


def test_only_what_a_user_needs_for_remotes_is_passed_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SSH_AUTH_SOCK": "/s", "https_proxy": "http://p", "GIT_SSH_COMMAND": "ssh -v"}
    withheld = {"GIT_DIR": "/g", "GIT_CONFIG_GLOBAL": "/c", "GIT_ALLOW_PROTOCOL": "ext", "X": "1"}
    for name, text in (given | withheld).items():
        monkeypatch.setenv(name, text)
    seen = Settings.read().network
    assert given.items() <= seen.items()
    assert seen["HOME"] == str(home)
    assert not withheld.keys() & seen.keys()


def test_passwords_of_proxies_are_on_no_command_line(home: Path, tmp_path: Path) -> None:
    carrier = Carrier(user(home, https_proxy="http://me:hunter2@proxy:1"))
    lines = shell(carrier, "cat /proc/[0-9]*/cmdline 2>/dev/null", tmp_path)
    assert "--git-dir=" in lines
    assert "hunter2" not in lines


def test_git_has_no_terminal_and_a_group_of_its_own(carrier: Carrier, tmp_path: Path) -> None:
    session, group, terminal = shell(carrier, "ps -o sid=,pgid=,tty= -p $$", tmp_path).split()
    assert session == group
    assert int(session) != os.getsid(0)
    assert terminal == "?"


@pytest.mark.parametrize(
    ("configured", "given", "expected"),
    [
        ("", {}, "ssh -oBatchMode=yes"),
        ("", {"GIT_SSH_COMMAND": "ssh -i mine"}, "ssh -i mine"),
        ("[core]\n\tsshCommand = ssh -i other\n", {}, ""),
    ],
)
def test_ssh_is_started_as_the_user_says(
    configured: str, given: dict[str, str], expected: str, home: Path, tmp_path: Path
) -> None:
    (home / ".gitconfig").write_text(configured)
    said = shell(Carrier(user(home, **given)), 'echo "$GIT_SSH_COMMAND"', tmp_path)
    assert said.startswith(expected) if expected else said == "\n"


def test_settings_of_ours_stand_above_the_users(home: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {hooks}\n\tfsmonitor = touch {tmp_path}/ran\n"
        f'[protocol "ext"]\n\tallow = always\n[url "ext::touch {tmp_path}/ran "]\n'
        "\tinsteadOf = alias:\n[credential]\n\thelper = mine\n[push]\n\tgpgSign = true\n"
    )
    carrier = Carrier(user(home))
    with carrier.scratch(tmp_path) as scratch:

        def setting(name: str) -> str:
            return carrier.run(["config", "--get", name], repository=scratch).decode().strip()

        assert setting("core.hooksPath") == "/dev/null"
        assert setting("core.fsmonitor") == "false"
        assert setting("push.gpgSign") == "false"
        assert setting("credential.helper") == "mine"  # what they need stays
        for url in (f"ext::touch {tmp_path}/ran", "alias:x", "fd::0"):
            with pytest.raises(Failed, match=r"transport '(ext|fd)' not allowed"):
                carrier.run(["ls-remote", "--", url], repository=scratch)
    assert not (tmp_path / "ran").exists()


def test_a_process_that_takes_too_long_is_ended_with_all_it_started(
    carrier: Carrier, tmp_path: Path
) -> None:
    begun = time.monotonic()
    with pytest.raises(Trouble, match=r"git was stopped: it took more than 0\.5 seconds"):
        shell(carrier, "sleep 98761 & sleep 98761", tmp_path, caps=Caps(seconds=0.5))
    assert time.monotonic() - begun < 4
    assert not alive("sleep 98761")
    assert not list(tmp_path.glob(".scratch-*"))


def test_a_process_that_ignores_being_asked_is_killed(carrier: Carrier, tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="took more than"):
        shell(carrier, "trap '' TERM; sleep 98762", tmp_path, caps=Caps(seconds=0.3))
    assert not alive("sleep 98762")


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, home: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from llmtrace.store.carrier import Carrier\n"
        f"c = Carrier({user(home)!r})\n"
        f"with c.scratch(Path({str(tmp_path)!r})) as s:\n"
        "    c.run(['-c', 'alias.x=!sleep 98763', 'x'], repository=s)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    end = time.monotonic() + 20
    while not alive("^sleep 98763"):
        assert time.monotonic() < end
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=20)
    assert b"KeyboardInterrupt" in said
    assert not alive("sleep 98763")
    assert not list(tmp_path.glob(".scratch-*"))


def test_a_helper_that_keeps_standard_error_does_not_hold_us_up(
    carrier: Carrier, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert shell(carrier, "{ sleep 3 >/dev/null & }; echo done", tmp_path) == "done\n"
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("where", ["", " >&2"])
def test_a_process_that_says_too_much_is_ended(
    where: str, carrier: Carrier, tmp_path: Path
) -> None:
    with pytest.raises(Trouble, match="said more than 100000 bytes"):
        shell(carrier, f"yes{where}", tmp_path, caps=Caps(output_bytes=100_000))


def test_files_and_time_are_limited(carrier: Carrier, tmp_path: Path) -> None:
    with carrier.scratch(tmp_path) as scratch:
        big = os.urandom(3 * MB)
        write = ["hash-object", "-w", "--stdin"]
        assert len(carrier.run(write, repository=scratch, stdin=big)) == 41
        before = sorted((scratch / "objects").rglob("*"))
        with pytest.raises(Failed):
            caps = Caps(file_bytes=MB)
            carrier.run(write, repository=scratch, stdin=big + b"x", caps=caps)
        sizes = [p.stat().st_size for p in (scratch / "objects").rglob("*") if p not in before]
        assert max(sizes, default=0) <= MB
    with pytest.raises(Failed, match="signal 9"):
        shell(carrier, "while :; do :; done", tmp_path, caps=Caps(seconds=20, cpu_seconds=1))


def bomb(kind: int, size: int) -> bytes:
    """A pack of one object of so many zeros: 2 GiB take 2 MB."""
    head, left = [kind << 4 | size & 15], size >> 4
    while left:
        head[-1] |= 128
        head.append(left & 127)
        left >>= 7
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(16 * MB)) for _ in range(size // (16 * MB)))
    data = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + body + packer.flush()
    return data + sha1(data, usedforsecurity=False).digest()


@pytest.mark.parametrize(
    ("kind", "size", "says"),
    [(3, 256 * MB, "pack\t"), (2, 256 * MB, "git: "), (1, 256 * MB, "git: ")],
    ids=["blob", "tree", "commit"],
)
def test_a_pack_that_grows_in_memory_does_not(
    kind: int, size: int, says: str, home: Path, tmp_path: Path
) -> None:
    """Git streams large blobs; of other objects the cap of memory is the limit."""
    (tmp_path / "bomb").write_bytes(bomb(kind, size))
    code = (
        "import json, resource\nfrom pathlib import Path\n"
        "from llmtrace.store.carrier import Carrier, Failed\n"
        "from llmtrace.store.process import Caps\n"
        f"c, at = Carrier({user(home)!r}), Path({str(tmp_path)!r})\n"
        "with c.scratch(at) as s:\n"
        "    try:\n"
        "        said = c.run(['index-pack', '--stdin', '--strict'], repository=s,\n"
        "                     stdin=(at / 'bomb').read_bytes(),\n"
        "                     caps=Caps(memory_bytes=128 << 20)).decode()\n"
        "    except Failed as error:\n"
        "        said = str(error)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(json.dumps([said, used]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    said, kilobytes = json.loads(done.stdout)
    assert said.startswith(says)
    assert kilobytes < 64 << 10, kilobytes  # of which Python's own fork is most


def test_a_scratch_repository_is_gone_at_the_end(carrier: Carrier, tmp_path: Path) -> None:
    with carrier.scratch(tmp_path) as one, carrier.scratch(tmp_path) as other:
        assert one != other
        assert {one.parent, other.parent} == {tmp_path}
        assert git("--git-dir", one, "rev-parse", "--is-bare-repository") == "true"
        assert not (one / "hooks").exists()
        assert one.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), carrier.scratch(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(
    carrier: Carrier, home: Path, tmp_path: Path
) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom llmtrace.store.carrier import Carrier\n"
        f"with Carrier({user(home)!r}).scratch(Path({str(tmp_path)!r})) as s:\n"
        "    print(s, flush=True)\n    time.sleep(60)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert started.stdout is not None
    theirs = Path(started.stdout.readline().decode().strip())
    with carrier.scratch(tmp_path):
        assert theirs.exists()  # it lives
    started.kill()
    started.communicate()
    assert theirs.exists()
    with carrier.scratch(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]


def test_a_link_in_the_place_of_a_scratch_repository_is_not_followed(
    carrier: Carrier, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/.scratch-evil").symlink_to(kept)
    with carrier.scratch(tmp_path / "store"):
        pass
    assert (kept / "file").read_text() == "x"


def test_a_folder_that_cannot_be_written_is_trouble(carrier: Carrier, tmp_path: Path) -> None:
    with (
        pytest.raises(Trouble, match="cannot make a scratch repository"),
        carrier.scratch(tmp_path / "absent"),
    ):
        pass


@pytest.mark.parametrize("name", ["store", 'a:b "c"\\d\nä'])
def test_objects_are_seen_and_land_where_they_should(
    name: str, carrier: Carrier, tmp_path: Path
) -> None:
    store = make_bare(tmp_path / name)
    blob = ["hash-object", "-w", "--stdin"]
    before = set(store.rglob("*"))
    with carrier.scratch(tmp_path) as scratch:
        objects = store / "objects"
        lost = carrier.run(blob, repository=scratch, objects=objects, stdin=b"scratch").strip()
        assert set(store.rglob("*")) == before
        kept = carrier.run(blob, repository=scratch, into=objects, stdin=b"store").strip().decode()
        show = ["cat-file", "blob", kept]
        assert carrier.run(show, repository=scratch, objects=objects) == b"store"
        with pytest.raises(Failed):
            carrier.run(show, repository=scratch)
        assert carrier.run(["cat-file", "-t", lost.decode()], repository=scratch) == b"blob\n"
    assert git("--git-dir", store, "cat-file", "blob", kept) == "store"


def test_what_stands_in_a_store_is_neither_read_nor_run(carrier: Carrier, tmp_path: Path) -> None:
    """All the ways in which a repository starts programs, planted beside its objects."""
    store = make_bare(tmp_path / "store")
    ran = tmp_path / "ran"
    evil = f"touch {shlex.quote(str(ran))}"
    blob = carrier_blob(carrier, store)
    (store / "config").write_text(
        f"[core]\n\tbare = true\n\tsshCommand = {evil}\n\tfsmonitor = {evil}\n"
        f"\thooksPath = {store}/hooks\n\talternateRefsCommand = {evil}\n\tgitProxy = {evil}\n"
        f"[credential]\n\thelper = !{evil}\n[alias]\n\tls-remote = !{evil}\n"
        f'[url "ext::{evil} "]\n\tinsteadOf = http://\n[remote "http://127.0.0.1:1/x"]\n'
        f"\tuploadpack = {evil}\n\treceivepack = {evil}\n"
    )
    (store / "hooks").mkdir(exist_ok=True)
    for hook in ("pre-push", "reference-transaction", "post-index-change", "pre-receive"):
        (store / "hooks" / hook).write_text(f"#!/bin/sh\n{evil}\n")
        (store / "hooks" / hook).chmod(0o755)
    (store / "info").mkdir(exist_ok=True)
    (store / "info/attributes").write_text("* filter=evil diff=evil\n")
    hub = make_bare(tmp_path / "hub")
    with carrier.scratch(store) as scratch:
        here = {"repository": scratch, "objects": store / "objects"}
        spec = f"{blob}:refs/llmtrace/fork/x"
        carrier.run(["push", "--", str(hub), spec], **here)  # type: ignore[arg-type]
        for url in ("http://127.0.0.1:1/x", "ssh://127.0.0.1:1/x", "git://127.0.0.1:1/x"):
            with pytest.raises(Failed, match=r"refused|Couldn't connect"):
                carrier.run(["ls-remote", "--", url], **here)  # type: ignore[arg-type]
    assert refs(hub) == {"refs/llmtrace/fork/x": blob}
    assert not ran.exists()


def test_redirections_are_not_followed(carrier: Carrier, tmp_path: Path) -> None:
    """A server must not send us to one that only we can reach."""
    make_bare(tmp_path / "store.git")

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", inner.base + self.path)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    with (
        serve("http", tmp_path) as inner,
        HTTPServer(("127.0.0.1", 0), Redirect) as outer,
        carrier.scratch(tmp_path) as scratch,
    ):
        threading.Thread(target=outer.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{outer.server_address[1]}/store.git"
        with pytest.raises(Failed, match="302"):
            carrier.run(["ls-remote", "--", url], repository=scratch)
        assert inner.requests == []


def test_git_never_opens_a_store_to_ask_what_it_has(home: Path, tmp_path: Path) -> None:
    """By default a fetch starts git there; here it starts `true` instead."""
    store, hub = make_bare(tmp_path / "store"), make_bare(tmp_path / "hub")
    tree = git("--git-dir", store, "mktree")
    who = {f"GIT_{a}_{b}": "x" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    commit = git("--git-dir", store, "commit-tree", tree, "-m", "x", **who)
    git("--git-dir", store, "update-ref", "refs/heads/x", commit)
    git("--git-dir", store, "push", "-q", str(hub), "x")
    git("--git-dir", store, "update-ref", "refs/heads/y", commit)
    trace = tmp_path / "trace"
    carrier = Carrier(user(home, GIT_TRACE=str(trace)))
    with carrier.scratch(tmp_path) as scratch:
        fetch = ["fetch", "--no-tags", "--", str(hub), "x:refs/heads/x"]
        carrier.run(fetch, repository=scratch, objects=store / "objects")
        assert refs(scratch) == {"refs/heads/x": commit}
    started = trace.read_text()
    assert "fetch --no-tags" in started
    assert f"true {store}" in started
    assert f"--git-dir={store}" not in started
    assert "for-each-ref" not in started


def carrier_blob(carrier: Carrier, store: Path) -> str:
    with carrier.scratch(store) as scratch:
        write = ["hash-object", "-w", "--stdin"]
        into = store / "objects"
        return carrier.run(write, repository=scratch, into=into, stdin=b"x").decode().strip()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf 'fatal: no\\nfatal: more\\n' >&2; exit 128", "git: no"),
        ("printf 'warning: w\\nhint: h\\nerror: why.\\n' >&2; exit 1", "git: why"),
        (
            "printf 'remote: Counting objects: 10%% (1/9)\\rremote: no room\\n' >&2; exit 1",
            "no room",
        ),
        (
            "printf 'Host key failed.\\r\\nfatal: Could not read from remote x\\n' >&2; exit 9",
            "Host key",
        ),
        ("printf 'fatal: to x:\\nx: refused\\n' >&2; exit 1", "git: to x: x: refused"),
        ("printf 'fatal: \\033[31m\\303\\244\\n' >&2; exit 1", r"git: \x1b[31m\xe4"),
        ("printf 'fatal: %05000d' 1 >&2; exit 1", "git: 000"),
        ("exit 7", "git ended with status 7"),
        ("kill -9 $PPID", "git ended with signal 9"),
    ],
)
def test_reasons_are_one_line(script: str, expected: str, carrier: Carrier, tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        shell(carrier, script, tmp_path)
    said = str(caught.value)
    assert expected in said
    assert "\n" not in said
    assert said.isascii()
    assert len(said) < 400
    assert caught.value.code != 0


def test_progress_hears_each_line(carrier: Carrier, tmp_path: Path) -> None:
    heard: list[str] = []
    script = "printf 'one 1%%\\rone 2%%\\rdone\\n\\ntwo\\n' >&2"
    shell(carrier, script, tmp_path, progress=heard.append)
    assert heard == ["one 1%", "one 2%", "done", "two"]


def test_without_git_there_is_a_hint(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="no program 'git'") as caught:
        Carrier({"PATH": str(tmp_path)})
    assert caught.value.hints == ("install git, at least 2.43.7",)


@pytest.mark.parametrize(
    ("says", "warns"),
    [
        ("git version 2.43.6", True),
        ("git version 2.9", True),
        ("git version 2.43.7", False),
        ("git version 2.50.1 (Apple Git-155)", False),
        ("git version 3.0.0.rc1", False),
    ],
)
def test_an_old_git_is_warned_of(says: str, warns: bool, home: Path, tmp_path: Path) -> None:
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    warning = Carrier(user(home, PATH=f"{tmp_path}:/usr/bin:/bin")).warning()
    assert (warning is not None) == warns
    assert not warning or warning.startswith(f"git {says.split()[2]}")
