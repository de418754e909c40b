"""push: what goes where over real servers, what is refused before, and that nothing is started."""

import base64
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

import chains
from commands import Answer
from llmtrace.errors import Trouble
from llmtrace.store import forks, publish
from llmtrace.store.carrier import Carrier
from llmtrace.store.remotes import Remotes
from llmtrace.verify.secrets import kinds
from servers import KINDS, Server, git, make_bare, refs, serve
from test_carrier import user
from test_fetch import Home, snapshot
from test_store import PARTS, append

ROOT = Path(__file__).parents[1]


class Owner(Home):
    """Somebody with a chain and a remote."""

    def push(self, *arguments: str | Path, status: int = 0, **environment: str) -> Answer:
        said = self.call("push", *arguments, **environment)
        assert said.status == status, said.err
        assert "Traceback" not in said.err
        assert not list(self.path.glob(".scratch-*"))
        return said

    @property
    def node(self) -> str:
        return self.open().node


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """Three records: the identity and two runs."""
    made = Owner(tmp_path / "owner")
    store = made.open()
    append(store, 1)
    append(store, 2)
    return made


@pytest.fixture
def hub(tmp_path: Path, owner: Owner) -> Path:
    """An empty repository, which the owner calls origin."""
    (tmp_path / "served").mkdir()
    path = make_bare(tmp_path / "served/store.git")
    assert owner.call("remote", "add", "origin", path).status == 0
    return path


@pytest.fixture
def other(tmp_path: Path) -> Owner:
    """Somebody else, with a chain of his own."""
    made = Owner(tmp_path / "other")
    append(made.open(), 7)
    return made


def hand_over(giver: Home, taker: Path) -> str:
    """Brings a chain into another store, as plain git does it; gives its node."""
    node: str = giver.open().node
    git("--git-dir", giver.path, "push", "-q", "-f", str(taker), f"node/{node}")
    return node


def chain(owner: Home) -> list[str]:
    """Commit ids, newest first."""
    return [entry.id for entry in owner.open().log()]


def refused(answer: Answer, status: int, *said: str) -> None:
    assert answer.status == status
    error = answer.err[answer.err.index("llmtrace: error: ") :]
    for words in said:
        assert words in error, answer.err
    assert error.isascii()
    assert all(line.startswith("llmtrace: ") for line in error.splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_arrives_whole_and_grows(kind: str, owner: Owner, hub: Path) -> None:
    node = owner.node
    ref = f"refs/heads/node/{node}"
    with serve(kind, hub.parent) as server:
        assert owner.call("remote", "set", "origin", "--url", server.url()).status == 0
        here = server.environment
        said = owner.push("--publish", **here)
        assert said.out == f"pushed node/{node} 3 records\n"
        assert refs(hub) == {ref: chain(owner)[0]}
        assert owner.push(**here).out == f"up to date node/{node}\n"
        append(owner.open(), 3)
        before = snapshot(owner.path)
        assert owner.push("origin", **here).out == f"pushed node/{node} 1 record\n"
        assert snapshot(owner.path) == before
        clone = hub.parent / "clone"
        git("clone", "-q", "-b", f"node/{node}", server.url(), clone, **here)
        listed = git("-C", clone, "rev-list", "HEAD").splitlines()
        assert listed == chain(owner)
        assert git("-C", clone, "fsck", "--strict", "--no-dangling") == ""
        assert (clone / "prompt.txt").read_bytes() == PARTS["prompt.txt"]
        assert refs(hub) == {ref: listed[0]}


def test_the_first_push_says_what_becomes_public_and_is_refused(owner: Owner, hub: Path) -> None:
    store = owner.open()
    for number in range(3, 9):
        prompt = f"\n\n  prompt {number} \x1b[31m {'x' * 99}\nsecond line".encode()
        append(store, number, PARTS | {"prompt.txt": prompt})
    append(store, 9, {"digests.bin": b"1"})
    said = owner.push(status=2)
    assert said.out == ""
    refused(said, 2, "nothing was pushed to 'origin' yet", "hint: llmtrace push origin --publish")
    lines = said.err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("public at 'origin'"))
    size = sum(len(e.json) + sum(map(len, e.files.values())) for e in store.log())
    assert lines[start] == "public at 'origin' for ever: 10 records (1 identity, 9 run)"
    assert lines[start + 1] == f"8 prompts, 8 outputs, {size:,} bytes"
    assert lines[start + 2] == "prompts, the newest 5:"
    shown = lines[start + 3 : start + 8]
    assert [line[:21] for line in shown] == [rf"    prompt {n} \x1b[31m "[:21] for n in range(4, 9)]
    assert "second line" not in said.err
    assert refs(hub) == {}
    assert owner.push("-q", status=2).err.startswith("llmtrace: error: nothing was pushed")
    assert not Remotes.open(owner.path).published("origin")
    said = owner.push("--publish")
    assert "public at 'origin' for ever: 10 records" in said.err
    append(store, 10)
    assert "public at" not in owner.push().err
    assert refs(hub)[f"refs/heads/node/{owner.node}"] == chain(owner)[0]


def test_texts_that_are_tokens_alone_are_said_to_be_unread(owner: Owner, hub: Path) -> None:
    trace = {"prompt_tokens": [1, 2], "output_tokens": [3]}
    owner.open().append_run(trace, {}, {"model": "tiny"}, {"digests.bin": b"1"}, 1_700_000_009)
    said = owner.push(status=2).err
    assert "3 prompts, 3 outputs, " in said
    assert "2 texts as tokens alone, not scanned for secrets" in said


def token(header: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")


SECRETS = {  # put together here, so that no scanner stops at this file
    "AWS Access Key": "my key is AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub Token": "ghp_" + "aB3d" * 9,
    "Private Key": "-----BEGIN OPENSSH PRIVATE" + " KEY-----\nb3BlbnNzaA\n",
    "JSON Web Token": f"{token({'alg': 'HS256'})}.{token({'sub': 'me'})}.abcdefgh",
    "Basic Auth Credentials": "get https://me:hunter2" + "@example.org/x for me",
    "Slack Token": "xoxb-123456789012-123456789012-" + "abcdefABCDEF",
    "Secret Keyword": 'then set password = "hunter2' + 'x" and go on',
    "Hugging Face Token": "hf_" + "aB3" * 11 + "x",
    "Anthropic Key": "sk-ant-api03-" + "aB3d" * 20,
    "OpenAI Token": "sk-proj-" + "aB3d" * 20,
    "Google API Key": "AIza" + "aB3d5" * 7,
}
MORE = {
    "GitHub Token": "github_pat_" + "aB3d" * 20,
    "Private Key": "-----BEGIN ENCRYPTED PRIVATE" + " KEY-----",
    "AWS Access Key": "aws_secret_access_key = '" + "wJalrXUtnF" * 4 + "'",
    "Secret Keyword": "export DB_PASSWORD=" + "hunter2hunter2",
    "Stripe Access Key": "sk_live_" + "aB3d" * 6,
}
HARMLESS = [
    "The password is a word that one says; a secret, a key, a token of love.",
    "What is the secret: 'a', 'b' or 'cat'? The key = none, the password is 'x'.",
    'password = "{password}", password = "<your password>", password = "..."',
    "token = os.environ['TOKEN']; password = getpass.getpass()",
    f"sha256:{'0123456789abcdef' * 4} and {'ef' * 32}",
    "https://example.org/a/b/c?x=1#y and mailto:me@example.org, see ssh://git@example.org/x",
    "internationalization_of_everything.in_one_very_long_name(and, some, arguments)",
    "Pneumonoultramicroscopicsilicovolcanoconiosis! " * 9,
    "",
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n",
]


@pytest.mark.parametrize(("kind", "text"), [*SECRETS.items(), *MORE.items()])
def test_secrets_are_known_by_their_form(kind: str, text: str) -> None:
    assert kind in kinds(text)
    assert kind in kinds(f"{'Once upon a time there was. ' * 400}\n{text}\n{'And then. ' * 900}")


@pytest.mark.parametrize("text", HARMLESS)
def test_prose_is_no_secret(text: str) -> None:
    assert kinds(text) == []


def test_secrets_stop_a_push_until_they_are_allowed(owner: Owner, hub: Path) -> None:
    store = owner.open()
    commits = {
        kind: append(store, number, {"prompt.txt": text.encode(), "output.txt": b"ok"})
        for number, (kind, text) in enumerate(SECRETS.items(), 10)
    }
    said = owner.push("--publish", status=4)
    refused(said, 4, "(AWS Access Key), and 10 more records", "push origin --publish --allow-secr")
    for kind, commit in list(commits.items())[:10]:
        assert f"secret? {commit} prompt.txt: {kind}\n" in said.err
    assert refs(hub) == {}
    assert not Remotes.open(owner.path).published("origin")
    assert owner.push("--publish", "--allow-secrets").out.endswith(" 14 records\n")
    for text in ("hunter2", "AKIA" + "IO", "xoxb-", "aB3d"):
        assert text not in said.err[said.err.index("llmtrace: error") :]
    tip = refs(hub)
    late = append(store, 50, {"output.txt": SECRETS["GitHub Token"].encode()})
    said = owner.push(status=4)
    refused(said, 4, f"'output.txt' of record '{late[:12]}'", "hint: llmtrace push origin --allow")
    assert "record '" + late[:12] + "' looks like it holds a secret (GitHub Token)\n" in said.err
    assert refs(hub) == tip
    assert owner.push("--allow-secrets").out.endswith(" 1 record\n")


def test_secrets_in_other_words_of_a_record_are_seen(owner: Owner, hub: Path) -> None:
    attested = {"model": "https://me:hunter2" + "@example.org/x", "device": "cpu"}
    owner.open().append_run({}, {}, attested, {}, 1_700_000_009)
    refused(owner.push("--publish", status=4), 4, "'record.json' of record", "(Basic Auth Cred")
    assert refs(hub) == {}


def test_a_copy_that_is_behind_its_own_remote_is_refused(owner: Owner, hub: Path) -> None:
    owner.push("--publish")
    append(owner.open(), 3)
    shutil.copytree(owner.folder, owner.folder.with_name("saved"))
    append(owner.open(), 4)
    owner.push()
    there = refs(hub)
    old_store = owner.folder.with_name("saved") / "data/llmtrace/store.git"
    shutil.rmtree(owner.path)
    shutil.copytree(old_store, owner.path)
    refused(owner.push(status=4), 4, "does not end with record 4", "a copy or was restored")
    shutil.rmtree(owner.folder)  # with the keys, so that nothing here knows of record 4
    shutil.copytree(owner.folder.with_name("saved"), owner.folder)
    said = owner.push(status=4)
    refused(said, 4, "'origin' holds records of your own chain that this store does not")
    assert "it is a copy or was restored\nllmtrace: hint: llmtrace fetch origin\n" in said.err
    append(owner.open(), 5)  # and now it has forked
    refused(owner.push(status=4), 4, "'origin' holds records of your own chain")
    assert refs(hub) == there


def test_a_branch_that_its_key_did_not_end_is_not_pushed(owner: Owner, hub: Path) -> None:
    branch = owner.path / "refs/heads/node" / owner.node
    first = chain(owner)[2]  # of the last record alone the memory of the key has all
    branch.write_text(f"{first}\n")
    refused(owner.push("--publish", status=4), 4, "does not end with record 2")
    assert refs(hub) == {}
    assert branch.read_text() == f"{first}\n"


def test_chains_of_others_are_handed_on_when_named(owner: Owner, other: Owner, hub: Path) -> None:
    node = hand_over(other, owner.path)
    own = owner.node
    assert owner.push("--publish").out == f"pushed node/{own} 3 records\n"
    assert f"refs/heads/node/{node}" not in refs(hub)
    assert owner.push("origin", node[:8]).out == f"pushed node/{node} 2 records\n"
    assert refs(hub)[f"refs/heads/node/{node}"] == chain(other)[0]
    append(other.open(), 8)
    hand_over(other, owner.path)
    append(owner.open(), 3)
    said = owner.push("--all")
    assert sorted(said.lines) == sorted(
        [f"pushed node/{own} 1 record", f"pushed node/{node} 1 record"]
    )
    assert refs(hub) == refs(owner.path)
    refused(owner.push("origin", "a" * 52, status=4), 4, "no chain of the node")
    refused(owner.push("origin", node, "--all", status=2), 2, "--all and NODE cannot be used")


def test_a_remote_that_is_ahead_of_anothers_chain_is_left_alone(
    owner: Owner, other: Owner, hub: Path
) -> None:
    node = hand_over(other, owner.path)
    append(other.open(), 8)
    hand_over(other, hub)
    there = refs(hub)[f"refs/heads/node/{node}"]
    before = snapshot(owner.path)
    said = owner.push("origin", node, "--json")
    only, end = said.objects
    assert only == {
        **{"v": 1, "type": "push", "remote": "origin", "what": "chain", "node": node},
        **{"result": "ahead", "records": 0, "tip": chain(other)[1]},
    }
    assert (end["status"], end["ahead"]) == (0, 1)
    assert owner.push("origin", node).out == f"ahead node/{node}\n"
    assert refs(hub)[f"refs/heads/node/{node}"] == there
    assert snapshot(owner.path) == before


def test_a_fork_of_anothers_chain_is_named_and_stops_nothing_else(
    owner: Owner, other: Owner, hub: Path
) -> None:
    common = chain(other)[0]
    twin = Owner(other.folder.with_name("twin"))
    shutil.copytree(other.folder, twin.folder)
    append(other.open(), 8)
    append(twin.open(), 9)
    node = hand_over(twin, owner.path)
    hand_over(other, hub)
    there = refs(hub)
    said = owner.push("origin", node, status=4)
    assert said.out == f"forked node/{node}\n"
    refused(said, 4, f"'node/{node}' goes on in two ways after '{common[:12]}'")
    assert said.err.endswith(f"hint: llmtrace fetch origin {node}\n")
    assert refs(hub) == there
    said = owner.push("--all", "--publish", status=4)
    assert f"pushed node/{owner.node} 3 records\n" in said.out
    assert refs(hub) == there | {f"refs/heads/node/{owner.node}": chain(owner)[0]}


def test_proofs_of_forks_go_along(owner: Owner, other: Owner, hub: Path) -> None:
    twin = Owner(other.folder.with_name("twin"))
    shutil.copytree(other.folder, twin.folder)
    one, two = append(other.open(), 8), append(twin.open(), 9)
    node = other.node
    git("--git-dir", twin.path, "push", "-q", str(other.path), f"node/{node}:refs/heads/twin")
    proof = forks.prove(other.open(), one, two)
    assert forks.keep(owner.open(), proof)
    owner.push("--publish")
    ref = f"refs/llmtrace/fork/{node}"
    blob = refs(hub)[ref]
    assert git("--git-dir", hub, "cat-file", "blob", blob).encode() == proof.data
    assert owner.push().out == f"up to date node/{owner.node}\n"
    git("--git-dir", hub, "update-ref", "-d", ref)
    said = owner.push("--json").objects
    assert {"what": "proof", "node": node, "result": "pushed", "tip": blob}.items() <= said[
        0
    ].items()
    assert refs(hub)[ref] == blob
    mine = git("--git-dir", hub, "hash-object", "-w", "--stdin")
    git("--git-dir", hub, "update-ref", ref, mine)
    owner.push()
    assert refs(hub)[ref] == mine, "what is there stays"


def test_long_chains_go_in_batches_and_go_on_after_an_interruption(
    owner: Owner, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = owner.open()
    for number in range(3, 12):
        append(store, number)
    ids = chain(owner)[::-1]  # 12, oldest first
    ref = f"refs/heads/node/{store.node}"
    monkeypatch.setattr(publish, "RECORDS", 5)
    hook = hub / "hooks/pre-receive"
    hook.write_text(f"#!/bin/sh\ntest ! -e {hub}/closed || {{ echo full; exit 1; }}\n")
    hook.chmod(0o755)
    after = hub / "hooks/post-receive"
    after.write_text(f"#!/bin/sh\ntouch {hub}/closed\n")
    after.chmod(0o755)
    with serve("http", hub.parent) as server:
        owner.call("remote", "set", "origin", "--url", server.url())
        said = owner.push("--publish", status=4)
        refused(said, 4, f"'origin' refused 'node/{store.node}': [remote rejected]", "; full")
        assert refs(hub) == {ref: ids[4]}, "the first batch stays"
        after.unlink()
        (hub / "closed").unlink()
        server.requests.clear()
        assert owner.push().out == f"pushed node/{store.node} 7 records\n"
        posts = [line for line in server.requests if line == "POST /store.git/git-receive-pack"]
        assert len(posts) == 2
    assert refs(hub) == {ref: ids[11]}
    assert git("--git-dir", hub, "fsck", "--strict", "--no-dangling") == ""


def test_batches_are_cut_by_bytes_and_by_refs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "BYTES", 100)
    monkeypatch.setattr(publish, "REFS", 2)
    sizes = {"a1": 60, "a2": 40, "a3": 1, "b1": 500, "c1": 1, "d1": 1, "e1": 1}
    targets = {ref: [oid for oid in sizes if oid[0] == ref] for ref in "abcde"}
    batches = list(publish._batches(targets, sizes))
    assert batches == [
        ({"a": "a2"}, 2, []),
        ({"a": "a3"}, 1, ["a"]),
        ({"b": "b1"}, 1, ["b"]),
        ({"c": "c1", "d": "d1"}, 2, ["c", "d"]),
        ({"e": "e1"}, 1, ["e"]),
    ]


def test_the_servers_reason_reaches_the_user_in_one_line(owner: Owner, hub: Path) -> None:
    hook = hub / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\nprintf 'no \\033[31mroom\\nfor \\303\\244 you\\n' >&2\nexit 1\n")
    hook.chmod(0o755)
    said = owner.push("--publish", status=4)
    refused(
        said, 4, "'origin' refused 'node/", r"(pre-receive hook declined); no \x1b[31mroom; for \x"
    )
    assert refs(hub) == {}


def test_records_that_arrive_there_meanwhile_are_not_overwritten(
    owner: Owner, hub: Path, home: Path
) -> None:
    store, remote = owner.open(), Remotes.open(owner.path).get("origin")
    carrier = Carrier(user(home))
    chains_, _ = publish.survey(store, carrier, remote, [store.node], store.node)
    targets = {one.ref: one.commits for one in chains_}
    git("--git-dir", hub, "fetch", "-q", str(owner.path), f"node/{store.node}")
    tree = git("--git-dir", hub, "rev-parse", "FETCH_HEAD^{tree}")
    who = {f"GIT_{a}_{b}": "x" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    alien = git("--git-dir", hub, "commit-tree", tree, "-m", "x", **who)
    git("--git-dir", hub, "update-ref", f"refs/heads/node/{store.node}", alien)
    with pytest.raises(Trouble, match=r"'origin' has other records of 'node/.*' by now") as caught:
        list(publish.send(store, carrier, remote, targets, {}))
    assert caught.value.hints == ("llmtrace fetch origin",)
    assert refs(hub) == {f"refs/heads/node/{store.node}": alien}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("path", "does not appear to be a git repository"),
        ("http", "not found"),
        ("git", "access denied or repository not exported"),
        ("ssh", "does not appear to be a git repository"),
    ],
)
def test_a_remote_that_is_not_there_is_trouble(
    kind: str, said: str, owner: Owner, hub: Path
) -> None:
    with serve(kind, hub.parent) as server:
        owner.call("remote", "set", "origin", "--url", server.url("absent.git"))
        answer = owner.push("--publish", status=4, **server.environment)
    refused(answer, 4, "cannot reach 'origin': git: ", said, "see 'llmtrace remote list'")


def test_a_server_that_knows_us_not_is_trouble_and_asks_nothing(owner: Owner, hub: Path) -> None:
    with serve("ssh", hub.parent) as server:
        owner.call("remote", "set", "origin", "--url", server.url())
        answer = owner.push("--publish", status=4)
        refused(answer, 4, "cannot reach 'origin': git: Host key verification failed")
        options = server.environment["GIT_SSH_COMMAND"].replace("/user ", "/host ")
        answer = owner.push("--publish", status=4, GIT_SSH_COMMAND=options)
        refused(answer, 4, "Permission denied (publickey)")
    assert refs(hub) == {}


def test_a_server_that_takes_no_pushes_is_trouble(owner: Owner, hub: Path) -> None:
    git("--git-dir", hub, "config", "http.receivepack", "false")
    with serve("http", hub.parent) as server:
        owner.call("remote", "set", "origin", "--url", server.url())
        answer = owner.push("--publish", status=4)
        assert "POST /store.git/git-receive-pack" not in server.requests
    refused(answer, 4, "cannot push to 'origin': git: ", "403")
    assert refs(hub) == {}


def test_which_remote_is_meant(owner: Owner, hub: Path, tmp_path: Path) -> None:
    owner.push("--publish")
    owner.call("remote", "add", "second", make_bare(tmp_path / "second"))
    assert owner.push().out.startswith("up to date ")
    refused(owner.push("third", status=4), 4, "no remote 'third'", "the remotes are origin, second")
    owner.call("remote", "remove", "origin")
    assert owner.push("--publish").out.startswith("pushed ")  # the only one
    owner.call("remote", "remove", "second")
    refused(owner.push(status=2), 2, "no remote 'origin'", "llmtrace remote add origin URL")
    owner.call("remote", "add", "a", "/a")
    owner.call("remote", "add", "b", "/b")
    refused(owner.push(status=2), 2, "no remote 'origin'", "the remotes are a, b")
    refused(owner.push("--store", tmp_path / "absent", status=4), 4, "no store at")
    assert not (tmp_path / "absent").exists()


def test_what_is_no_record_is_not_pushed(owner: Owner, hub: Path) -> None:
    node = "a" * 52
    tree = git("--git-dir", owner.path, "mktree")
    who = {f"GIT_{a}_{b}": "x" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    alien = git("--git-dir", owner.path, "commit-tree", tree, "-m", "x", **who)
    git("--git-dir", owner.path, "update-ref", f"refs/heads/node/{node}", alien)
    refused(owner.push("--publish", "--all", status=4), 4, f"'{alien[:8]}' is no record")
    assert refs(hub) == {}


@pytest.fixture
def planted(owner: Owner, hub: Path, tmp_path: Path) -> Iterator[Path]:
    """A store in which everything that git would run makes a file; nothing may make it."""
    ran = tmp_path / "ran"
    evil = f"touch {shlex.quote(str(ran))}"
    with (owner.path / "config").open("a") as file:
        file.write(
            f"[core]\n\tsshCommand = {evil}\n\tfsmonitor = {evil}\n\tgitProxy = {evil}\n"
            f"\thooksPath = {owner.path}/hooks\n\talternateRefsCommand = {evil}\n"
            f"\taskPass = {evil}\n[credential]\n\thelper = !{evil}\n"
            f'[protocol "ext"]\n\tallow = always\n[url "ext::{evil} "]\n\tinsteadOf = {hub}\n'
            f"\tinsteadOf = http\n\tinsteadOf = ssh\n"
            f'[remote "origin"]\n\turl = ext::{evil}\n\treceivepack = {evil}\n'
            f'[remote "{hub}"]\n\turl = ext::{evil}\n\treceivepack = {evil}\n'
        )
    (owner.path / "hooks").mkdir()
    for name in ("pre-push", "reference-transaction", "post-update", "pre-receive", "update"):
        hook = owner.path / "hooks" / name
        hook.write_text(f"#!/bin/sh\n{evil}\n")
        hook.chmod(0o755)
    yield ran
    assert not ran.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_in_a_store_is_not_started(
    kind: str, planted: Path, owner: Owner, hub: Path
) -> None:
    with serve(kind, hub.parent) as server:
        owner.call("remote", "set", "origin", "--url", server.url())
        assert owner.push("--publish", **server.environment).out.endswith(" 3 records\n")
    assert refs(hub) == {f"refs/heads/node/{owner.node}": chain(owner)[0]}


@pytest.mark.parametrize("url", ["ext::touch {ran}", "--receive-pack=touch {ran}", "a::b"])
def test_what_is_planted_among_the_remotes_is_refused(
    url: str, planted: Path, owner: Owner
) -> None:
    file = owner.path / "remotes.json"
    listed = json.loads(file.read_bytes())
    listed["remotes"]["origin"] |= {"url": url.format(ran=planted), "published": True}
    file.write_text(json.dumps(listed, separators=(",", ":"), sort_keys=True))
    refused(owner.push(status=4), 4, "is no list of remotes")


def test_json_is_as_its_schemas_say(owner: Owner, other: Owner, hub: Path) -> None:
    hand_over(other, owner.path)
    schemas = ROOT / "llmtrace/cli/schemas"
    for arguments in (
        ("remote", "list"),
        ("push", "--publish"),
        ("push", "--all"),
        ("push", "nowhere"),
        ("remote", "remove", "origin"),
    ):
        for line in owner.call(*arguments, "--json").objects:
            schema = json.loads((schemas / f"{line['type']}.json").read_text())
            jsonschema.Draft202012Validator(schema).validate(line)
            assert not line.keys() - schema["properties"].keys()


def test_a_foreign_chain_of_a_thousand_records_goes_at_once(
    owner: Owner, hub: Path, tmp_path: Path
) -> None:
    node, tip = chains.make(tmp_path / "long.git", 1000)
    git("--git-dir", tmp_path / "long.git", "push", "-q", str(owner.path), f"node/{node}")
    said = owner.push("origin", node, "--publish")
    assert said.out == f"pushed node/{node} 1,000 records\n"
    assert refs(hub) == {f"refs/heads/node/{node}": tip}


def test_servers_here_are_all_four(tmp_path: Path) -> None:
    """A kind that is skipped above is skipped here, where one sees it."""
    make_bare(tmp_path / "store.git")
    for kind in KINDS:
        with serve(kind, tmp_path) as server:
            assert isinstance(server, Server)
            assert git("ls-remote", server.url(), **server.environment) == ""
