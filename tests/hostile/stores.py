"""Repositories with plants: met as a remote, and as a store that somebody handed over.

The chain in them is honest, so that nothing is refused before a plant could matter.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.place import Case, Line, Place, case, line
from hostile.stranger import Stranger
from llmtrace.store import canonical

Plant = Callable[[Place, Stranger], None]


def whole(
    place: Place,
    stranger: Stranger,
    *,
    status: int | tuple[int, ...] = 0,
    says: str = "",
    fetched: int = 0,
) -> Iterator[Line]:
    """Reads a store, and fetches from it."""
    handed = ("--store", stranger.path)
    yield line(*handed, "audit", stranger.branch, status=status, says=says)
    yield line(*handed, "verify", stranger.tip, status=status, says=says)
    told = ("fetched", stranger.node) if fetched == 0 else ()
    may = (STORE,) if fetched == 0 else ()
    yield line("fetch", stranger.path, status=fetched, says=told, may=may)


STORE = "home/.local/share/llmtrace/store.git/"


def planted(
    name: str, *, status: int | tuple[int, ...] = 0, says: str = "", fetched: int = 0
) -> Callable[[Plant], Plant]:
    """Registers a plant as a case."""

    def register(plant: Plant) -> Plant:
        @case(name)
        def make(place: Place) -> Case:
            stranger = place.stranger()
            stranger.add(stranger.run())
            plant(place, stranger)
            return Case(list(whole(place, stranger, status=status, says=says, fetched=fetched)))

        return plant

    return register


def configure(stranger: Stranger, text: str) -> None:
    with (stranger.path / "config").open("a") as file:
        file.write(text)


@planted("settings that start programs")
def _programs(place: Place, stranger: Stranger) -> None:
    run = place.payload
    configure(
        stranger,
        f"[core]\n\tfsmonitor = {run}\n\tsshCommand = {run}\n\tgitProxy = {run}\n"
        f"\thooksPath = {stranger.path}/hooks\n\talternateRefsCommand = {run}\n"
        f"\taskPass = {run}\n\tpager = {run}\n\teditor = {run}\n\tattributesFile = {run}\n"
        f"[uploadpack]\n\tpackObjectsHook = {run}\n[credential]\n\thelper = !{run}\n"
        f'[gpg]\n\tprogram = {run}\n[gpg "ssh"]\n\tprogram = {run}\n\tdefaultKeyCommand = {run}\n'
        f"[diff]\n\texternal = {run}\n[trace2]\n\teventTarget = {place.marker}\n"
        f'[filter "x"]\n\tclean = {run}\n\tsmudge = {run}\n\tprocess = {run}\n\trequired\n'
        f"[alias]\n\tfetch = !{run}\n\tls-remote = !{run}\n\tupload-pack = !{run}\n"
        f"[sendpack]\n\tsideband = false\n[receive]\n\tprocReceiveRefs = refs\n",
    )


@planted("hooks of all names")
def _hooks(place: Place, stranger: Stranger) -> None:
    names = (
        "pre-receive update post-receive post-update reference-transaction pre-push pre-auto-gc "
        "post-checkout post-commit post-merge post-rewrite proc-receive push-to-checkout "
        "fsmonitor-watchman post-index-change pre-commit"
    )
    for name in names.split():
        (stranger.path / "hooks" / name).write_text(place.payload.read_text())
        (stranger.path / "hooks" / name).chmod(0o755)


@planted("settings in other files")
def _included(place: Place, stranger: Stranger) -> None:
    text = f"[core]\n\tfsmonitor = {place.payload}\n\tsshCommand = {place.payload}\n"
    (stranger.path / "more").write_text(text)
    (stranger.path / "config.worktree").write_text(text)
    configure(stranger, "[include]\n\tpath = more\n[include]\n\tpath = /dev/zero.not\n")
    configure(stranger, f'[includeIf "gitdir:{stranger.path}"]\n\tpath = more\n')
    (place.root / ".gitconfig").write_text(text)
    (stranger.path / ".gitconfig").write_text(text)


@planted("an ext:: remote in the settings")
def _ext(place: Place, stranger: Stranger) -> None:
    url = f"ext::sh -c {place.payload}"
    configure(
        stranger,
        f'[protocol]\n\tallow = always\n[protocol "ext"]\n\tallow = always\n'
        f'[remote "origin"]\n\turl = {url}\n\tfetch = +refs/*:refs/*\n'
        f"\tuploadpack = {place.payload}\n\treceivepack = {place.payload}\n\tvcs = ext\n"
        f'[remote "evil"]\n\turl = {url}\n'
        f'[url "{url} "]\n\tinsteadOf = /\n[branch "{stranger.branch}"]\n\tremote = origin\n',
    )


@planted("a promisor remote that starts a program", status=4, fetched=4)
def _promisor(place: Place, stranger: Stranger) -> None:
    """The newest tree is missing: git would ask the remote of the settings for it."""
    configure(
        stranger,
        f'[extensions]\n\tpartialClone = origin\n[protocol "ext"]\n\tallow = always\n'
        f'[remote "origin"]\n\turl = ext::sh -c {place.payload}\n\tpromisor = true\n'
        f"\tpartialclonefilter = blob:none\n\tuploadpack = {place.payload}\n",
    )
    (stranger.path / "config").write_text(
        (stranger.path / "config").read_text().replace("version = 0", "version = 1")
    )
    for oid in place_ids(stranger):
        if stranger.place(oid).stat().st_size < 400:
            stranger.place(oid).unlink()


def place_ids(stranger: Stranger) -> list[str]:
    """Ids of the trees and blobs of the chain, which are loose."""
    found = [path.parent.name + path.name for path in stranger.path.glob("objects/??/*")]
    return sorted({*found} - {stranger.tip})


@planted("replacements of all objects")
def _replaced(place: Place, stranger: Stranger) -> None:
    other = place.stranger("other", 2)
    (stranger.path / "refs/replace").mkdir()
    blob = stranger.put("blob", b"replaced")
    commit = stranger.put("commit", f"tree {stranger.tree([])}\n\nreplaced\n".encode())
    for oid in place_ids(stranger):
        (stranger.path / "refs/replace" / oid).write_text(f"{blob}\n")
    (stranger.path / "refs/replace" / stranger.tip).write_text(f"{commit}\n")
    assert other.node != stranger.node


@planted("grafts", fetched=4)
def _grafts(place: Place, stranger: Stranger) -> None:
    (stranger.path / "info/grafts").write_text(f"{stranger.tip}\n")


@planted("a shallow file", fetched=4)
def _shallow(place: Place, stranger: Stranger) -> None:
    (stranger.path / "shallow").write_text(f"{stranger.tip}\n")


@planted("attributes")
def _attributes(place: Place, stranger: Stranger) -> None:
    text = "* filter=x diff=x merge=x export-subst working-tree-encoding=UTF-16\n" * 1000
    (stranger.path / "info/attributes").write_text(text)
    run = place.payload
    configure(stranger, f'[diff "x"]\n\ttextconv = {run}\n\tcommand = {run}\n')


@planted("alternates to nowhere, to itself and to a device", status=(0, 4))
def _alternates(place: Place, stranger: Stranger) -> None:
    (stranger.path / "objects/info/alternates").write_text(
        f'../objects\n{stranger.path}/objects\n/dev\n/proc/self/fd\n/nonexistent\n"\\377\n'
        + "../" * 2000
        + "\n"
    )
    (stranger.path / "objects/info/http-alternates").write_text(
        "file:///etc\nhttp://127.0.0.1:1/\n"
    )


@planted("a folder of objects that is elsewhere")
def _elsewhere(place: Place, stranger: Stranger) -> None:
    for name in ("objects", "refs"):
        (stranger.path / name).rename(place.root / f"{name}.real")
        (stranger.path / name).symlink_to(place.root / f"{name}.real")
    for path in (place.root / "objects.real").rglob("*"):
        assert path.exists()


@planted("garbage in what makes git fast", status=4, says="is damaged")
def _garbage(place: Place, stranger: Stranger) -> None:
    info, packs = stranger.path / "objects/info", stranger.path / "objects/pack"
    (info / "commit-graph").write_bytes(b"CGPH\x01\x01\x03\x00" + os.urandom(2000))
    (info / "packs").write_text("P ../../../../etc/passwd\n")
    for number in range(20):
        name = packs / f"pack-{number:040x}"
        name.with_suffix(".idx").write_bytes(b"\xfftOc\0\0\0\2" + b"\xff" * (3000 + number))
        name.with_suffix(".pack").write_bytes(b"PACK\0\0\0\2\xff\xff\xff\xff" + b"\xff" * 2000)
        name.with_suffix(".bitmap").write_bytes(b"BITM\0\1\0\1" + b"\xff" * 2000)


@planted("an index of all packs", status=4, says="multi-pack-index")
def _all_packs(place: Place, stranger: Stranger) -> None:
    """Its offsets would be believed; git itself looks at them."""
    start = b"MIDX\x01\x01\x04\x00\x00\x00\x00\x01"
    (stranger.path / "objects/pack/multi-pack-index").write_bytes(start + b"\xff" * 2000)


@planted("an index that leads out of its pack", status=4, says="is damaged", fetched=4)
def _leads_out(place: Place, stranger: Stranger) -> None:
    """A single byte of it: a library that believes it reads memory that is not its own."""
    for words in (("repack", "-adq"), ("prune-packed", "-q")):
        subprocess.run(["git", "--git-dir", stranger.path, *words], check=True)
    (path,) = stranger.path.glob("objects/pack/*.idx")
    data = bytearray(path.read_bytes())
    data[-40 - 4] = 0x7A  # the last offset, below 2^31
    data[-20:] = hashlib.sha1(data[:-20]).digest()
    path.chmod(0o644)
    path.write_bytes(data)


@planted("another format of repository", status=4, fetched=4)
def _format(place: Place, stranger: Stranger) -> None:
    (stranger.path / "config").write_text(
        "[core]\n\trepositoryformatversion = 1\n\tbare = true\n"
        "[extensions]\n\tobjectFormat = sha256\n\trefStorage = reftable\n"
    )


# Files that are none: whoever opens one waits for ever, or reads for ever. It is free what is
# said of them, as long as it is said in time and in little memory.


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(8 << 30)


def _special(what: str, name: str, change: Callable[[Path], None]) -> None:
    @case(f"{what} as {name.format(node='ID')}")
    def make(place: Place) -> Case:
        stranger = place.stranger()
        stranger.add(stranger.run())
        path = stranger.path / name.format(node=stranger.node)
        if change is not _sparse:
            path.unlink(missing_ok=True)
        change(path)
        handed = ("--store", stranger.path)
        return Case(
            [
                line(*handed, "audit", stranger.branch, status=(0, 1, 4), seconds=15),
                line(*handed, "verify", stranger.tip, status=(0, 4), seconds=15),
                line(
                    *("fetch", "--timeout", "2", stranger.path),
                    status=(0, 4),
                    may=(STORE,),
                    seconds=15,
                ),
            ]
        )


for _name in ("packed-refs", "config", "objects/info/alternates", "HEAD"):
    _special("a pipe", _name, _pipe)
_special("an endless file", "packed-refs", _endless)
_special("an endless file", "refs/heads/node/{node}", _endless)
_special("a sparse file of 8 GiB", "config", _sparse)
_special("a sparse file of 8 GiB", "HEAD", _sparse)


@case("a pipe as remotes.json")
def _pipe_of_remotes(place: Place) -> Case:
    stranger = place.stranger()
    os.mkfifo(stranger.path / "remotes.json")
    return Case([line("--store", stranger.path, "fetch", "evil", status=4, seconds=10)])


# remotes.json of a store that was handed over


def _listed(name: str, url: str, why: str) -> None:
    @case(name)
    def make(place: Place) -> Case:
        stranger = place.stranger()
        stranger.add(stranger.run())
        text = url.format(payload=place.payload, root=place.root)
        one = {"url": text, "nodes": [], "published": True}
        data = canonical.encode({"format": 1, "remotes": {"evil": one}})
        (stranger.path / "remotes.json").write_bytes(data)
        handed = ("--store", stranger.path)
        return Case(
            [
                line(*handed, "fetch", "evil", status=4, says=why),
                line(*handed, "push", "evil", status=4, says=why),
                line(*handed, "remote", "list", status=4, says=why),
            ]
        )


_LIST = "is no list of remotes"
_listed("ext:: in remotes.json", "ext::sh -c {payload}", _LIST)
_listed("--upload-pack in remotes.json", "--upload-pack={payload}", _LIST)
_listed("a newline in remotes.json", "/tmp/x\n[core]\n\tfsmonitor = {payload}", _LIST)
_listed("an ssh option in remotes.json", "ssh://-oProxyCommand={payload}/x", _LIST)
_listed("a relative path in remotes.json", "../../../x", _LIST)
