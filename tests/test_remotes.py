"""Remotes: which URLs and names are let in, what is remembered, and that planted ones are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands import Answer, call
from llmtrace.errors import Trouble
from llmtrace.store import canonical
from llmtrace.store.chain import Store
from llmtrace.store.remotes import Remote, Remotes, check_name, check_node, check_url

ROOT = Path(__file__).parents[1]
A, B, C = "a" * 52, "b" * 51 + "q", "c" * 51 + "a"


@pytest.mark.parametrize(
    ("text", "scheme", "host"),
    [
        ("https://example.org/me/runs.git", "https", "example.org"),
        ("https://example.org:8443/me/runs.git", "https", "example.org"),
        ("https://me@example.org/runs.git", "https", "example.org"),
        ("http://127.0.0.1:8080/runs.git", "http", "127.0.0.1"),
        ("ssh://git@example.org:22/srv/runs.git", "ssh", "example.org"),
        ("ssh://example.org/~me/runs.git", "ssh", "example.org"),
        ("ssh://[::1]:22/runs.git", "ssh", "[::1]"),
        ("git://example.org/runs.git", "git", "example.org"),
        ("file:///srv/runs.git", "file", ""),
        ("git@github.com:me/runs.git", "ssh", "github.com"),
        ("example.org:runs.git", "ssh", "example.org"),
        ("me@[::1]:runs.git", "ssh", "[::1]"),
        ("/srv/a:b::c d/runs.git", "path", ""),
    ],
)
def test_urls_of_every_form_are_kept_as_typed(text: str, scheme: str, host: str) -> None:
    assert check_url(text) == (text, scheme, host)
    assert check_url(check_url(text).text) == check_url(text)


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("hub.git", "./hub.git", "../x/../hub.git/"):
        assert check_url(text).text.startswith("/")
    assert check_url("./hub.git").text == f"{tmp_path}/hub.git"
    assert check_url("../hub.git").text == f"{tmp_path.parent}/hub.git"
    assert check_url("HTTPS://example.org/x").text == "https://example.org/x"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ext::sh -c 'touch /tmp/x'", "names a program"),
        ("ext::/x", "names a program"),
        ("fd::7", "names a program"),
        ("a::b", "names a program"),
        ("https::x", "names a program"),
        ("-oProxyCommand=x", "begins with '-'"),
        ("--upload-pack=x", "begins with '-'"),
        ("ssh://-oProxyCommand=x/y", "its host"),
        ("ssh://%2doProxyCommand=x/y", "its host"),
        ("ssh://me@-oProxyCommand=x/y", "its host"),
        ("ssh://-oProxyCommand=x@example.org/y", "its user"),
        ("ssh://%2dl@example.org/y", "its user"),
        ("-l@example.org:x", "begins with '-'"),
        ("me@-oProxyCommand=x:y", "its host"),
        ("example.org:-x", "its path begins with '-'"),
        ("https://me:hunter2@example.org/x", "has a password"),
        ("http://me:@example.org/x", "has a password"),
        ("ssh://me:hunter2@example.org/x", "has a password"),
        ("https://example.org/a\nb", "control characters"),
        ("https://example.org/a%0ab", "control characters"),
        ("https://example.org/a%0Dhost=evil", "control characters"),
        ("https://example.org%0ahost=evil/a", "its host"),
        ("https://example.org/a b", "spaces"),
        ("https://example.org/a?b", "'\\?'"),
        ("https://example.org/a#b", "'#'"),
        ("https://example.org", "no path"),
        ("https://example.org/", "no path"),
        ("https:///a", "its host"),
        ("https://example.org:0/a", "its port"),
        ("https://example.org:99999/a", "its port"),
        ("file://example.org/a", "has no host"),
        ("file://-a/b", "has no host"),
        ("ftp://example.org/a", "does not speak 'ftp'"),
        ("git+ssh://example.org/a", "does not speak"),
        ("javascript://example.org/a", "does not speak"),
        ("example.org:", "no host or no path"),
        (":x", "no host or no path"),
        ("ex ample.org:x", "its host"),
        ("", "0 characters"),
        ("/" + "a" * 2048, "2049 characters"),
        ("/a\x1b[31m", "control characters"),
        ("/a\u202eb", "control characters"),
    ],
)
def test_urls_that_git_must_not_be_given_are_refused(text: str, why: str) -> None:
    with pytest.raises(Trouble, match=why) as caught:
        check_url(text)
    said = " ".join((str(caught.value), *caught.value.hints))
    assert said.isprintable()
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["origin", "0", "a.b-c_d", "A" * 64])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a/b", "a b", "é", "a\n", "a" * 65, "a:b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(Trouble, match="no name for a remote"):
        check_name(name)


def test_nodes_are_named_by_id_or_by_the_beginning_of_one_that_is_here() -> None:
    other = A[:20] + B[20:]
    assert check_node(A) == A
    assert check_node("bbbbbbbb", [A, B]) == B
    with pytest.raises(Trouble, match="more than one node"):
        check_node("aaaaaaaa", [A, other])
    for text in ("bbbbbbb", "bbbbbbbb", "", "cccccccc", A.upper(), f"{A}a"):
        with pytest.raises(Trouble, match="no node"):
            check_node(text, [A])


def test_remotes_are_remembered(tmp_path: Path) -> None:
    remotes = Remotes.open(tmp_path)
    assert (remotes.names(), remotes.who(A)) == ([], [])
    remotes.add("two", "https://example.org/two", [B, A, B])
    remotes.add("one", "/one", [A])
    again = Remotes.open(tmp_path)
    assert again.names() == ["one", "two"]
    assert again.get("two") == Remote("two", "https://example.org/two", (A, B), published=False)
    assert (again.who(A), again.who(B), again.who(C)) == (["one", "two"], ["two"], [])
    again.publish("two")
    assert remotes.published("two")
    assert not remotes.published("one")
    remotes.set("two", nodes=[C])
    assert remotes.get("two") == Remote("two", "https://example.org/two", (C,), published=True)
    remotes.set("two", url="https://example.org/two")
    assert remotes.published("two")
    remotes.set("two", url="https://example.org/three")
    assert not remotes.published("two"), "nothing was pushed there yet"
    assert remotes.remove("two").nodes == (C,)
    assert remotes.names() == ["one"]
    with pytest.raises(Trouble, match="there is a remote 'one' already"):
        remotes.add("one", "/other")
    for absent in (remotes.get, remotes.remove, remotes.publish, remotes.set):
        with pytest.raises(Trouble, match="no remote 'two'"):
            absent("two")


def test_writers_do_not_lose_what_others_wrote(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom llmtrace.store.remotes import Remotes\n"
        f"remotes = Remotes.open(Path({str(tmp_path)!r}))\n"
        "for i in range(20):\n    remotes.add(f'{sys.argv[1]}{i}', '/x')\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in ("a", "b", "c")
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert len(Remotes.open(tmp_path).names()) == 60


def entry(**change: object) -> dict[str, object]:
    return {"url": "/x", "nodes": [], "published": False} | change


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"{}",
        b"[]",
        b'{"format":1,"remotes":{} }',
        b"\xff",
        b'{"format":1,"remotes":{"a":' + b"[" * 40 + b"]" * 40 + b"}}",
        b" " * (2 << 20),
        canonical.encode({"format": 2, "remotes": {}}),
        canonical.encode({"format": 1, "remotes": []}),
        canonical.encode({"format": 1, "remotes": {"-a": entry()}}),
        canonical.encode({"format": 1, "remotes": {"a": []}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(more=1)}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(url="ext::sh -c x")}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(url="--upload-pack=x")}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(url="relative")}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(url=7)}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(nodes=["x"])}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(nodes=[7])}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(nodes={})}}),
        canonical.encode({"format": 1, "remotes": {"a": entry(published=1)}}),
    ],
)
def test_a_file_that_somebody_else_wrote_is_refused(planted: bytes, tmp_path: Path) -> None:
    (tmp_path / "remotes.json").write_bytes(planted)
    remotes = Remotes.open(tmp_path)
    for use in (remotes.names, lambda: remotes.add("b", "/b"), lambda: remotes.who(A)):
        with pytest.raises(Trouble, match="is no list of remotes") as caught:
            use()
        assert str(caught.value).isprintable()
    assert (tmp_path / "remotes.json").read_bytes() == planted


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setenv("LLMTRACE_STORE", str(home / "store.git"))
    assert call("init").status == 0
    return home / "store.git"


def refused(answer: Answer, status: int, said: str) -> None:
    assert (answer.status, answer.out) == (status, "")
    assert answer.err.startswith(f"llmtrace: error: {said}"), answer.err
    assert "Traceback" not in answer.err


def test_command_adds_lists_changes_and_removes(store: Path, home: Path) -> None:
    own = Store.open(store, home / ".config/llmtrace/keys").node
    before = {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}
    assert call("remote", "list").out == ""
    assert call("remote", "add", "hub", "hub.git").out == f"hub\t{home}/hub.git\t-\n"
    said = call("remote", "add", "alice", "alice.org:x", "--node", A, "--node", own[:8])
    assert said.out == f"alice\talice.org:x\t{','.join(sorted([A, own]))}\n"
    assert call("remote", "list").lines == [said.lines[0], f"hub\t{home}/hub.git\t-"]
    assert call("remote", "set", "alice", "--forget", A[:8], "--node", B).out == (
        f"alice\talice.org:x\t{','.join(sorted([B, own]))}\n"
    )
    said = call("remote", "set", "alice", "--url", "https://alice.org/x", "--json")
    assert said.objects == [
        {
            **{"v": 1, "type": "remote", "name": "alice", "url": "https://alice.org/x"},
            **{"nodes": sorted([B, own]), "published": False},
        },
        {"v": 1, "type": "end", "status": 0},
    ]
    assert call("remote", "remove", "hub").status == 0
    assert [line.split("\t")[0] for line in call("remote", "list").lines] == ["alice"]
    after = {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}
    assert after.keys() - before.keys() == {"remotes.json", "remotes.lock"}
    assert {name: after[name] for name in before} == before, "not even git's configuration"
    assert (store / "remotes.json").stat().st_mode & 0o077 == 0


def test_command_refuses(store: Path) -> None:
    assert call("remote", "add", "a", "/a").status == 0
    refused(call("remote", "add", "a", "/b"), 4, "there is a remote 'a' already")
    refused(call("remote", "add", "b", "ext::sh -c x"), 4, "'ext::sh -c x' cannot be a remote")
    refused(call("remote", "add", "--", "-b", "/b"), 4, "no name for a remote: '-b'")
    refused(call("remote", "add", "b", "/b", "--node", "short"), 4, "no node 'short'")
    refused(call("remote", "set", "b", "--url", "/c"), 4, "no remote 'b'")
    refused(call("remote", "set", "a"), 2, "nothing to change")
    refused(call("remote", "remove", "b"), 4, "no remote 'b'")
    refused(call("remote", "add", "b"), 2, "missing argument")
    assert [line.split("\t")[0] for line in call("remote", "list").lines] == ["a"]
    password = call("remote", "add", "b", "https://me:hunter2@example.org/x")
    refused(password, 4, "'https://...@example.org/...' cannot be a remote: it has a password")
    assert "hunter2" not in password.err
    assert "credential helper" in password.err


def test_command_needs_a_store(home: Path) -> None:
    refused(call("remote", "list", "--store", home / "nowhere"), 4, "no store at")


def test_expected_nodes_may_be_given_by_nobody_else(store: Path) -> None:
    """A node that is to be forgotten must be one that is expected."""
    call("remote", "add", "a", "/a", "--node", A)
    refused(call("remote", "set", "a", "--forget", "bbbbbbbb"), 4, "no node 'bbbbbbbb'")
    assert json.loads((store / "remotes.json").read_bytes())["remotes"]["a"]["nodes"] == [A]


def test_adding_contacts_nobody(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no git to start."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for url in ("https://127.0.0.1:1/x", "ssh://127.0.0.1:1/x", "/nowhere"):
        assert call("remote", "add", f"r{len(url)}", url).status == 0
    assert not list(tmp_path.iterdir())
