"""One key on two machines: a second digest for a seq is refused, or it is found and proven."""

import shutil
import subprocess
from pathlib import Path

from hostile.place import PROGRAM, STORE, Case, Place, case, environment, line
from hostile.servers import PAINT

RUN = ("run", "-m", "tiny", "-n", "2")


def do(place: Place, *words: str | Path, home: Path | None = None) -> str:
    """A command line before the case begins."""
    done = subprocess.run(
        [*PROGRAM, *map(str, words)],
        env=environment(home or place.home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def twin(place: Place, name: str = "twin") -> Path:
    """A copy of the home: store, key and the memory of what it signed."""
    return Path(shutil.copytree(place.home, place.root / name, symlinks=True))


def bare(place: Place, *homes: Path) -> Path:
    """A remote 'origin' of these homes, to which the first one has pushed."""
    path = place.root / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", path], check=True)
    for home in homes:
        do(place, "remote", "add", "origin", path, home=home)
    do(place, "push", "origin", "--publish", home=homes[0])
    return path


def kept(node: str, home: str = "home") -> tuple[str, ...]:
    """What a proof of a fork may write: its ref, one object and a lock."""
    store = f"{home}/{STORE}"
    return (f"{store}/refs/llmtrace", f"{store}/objects", f"{store}/llmtrace.lock")


@case("a key on two machines, both in use")
def _both(place: Place) -> Case:
    """The first has pushed record 2; the second has signed another one."""
    node = place.node()
    bare(place, place.home)
    other = twin(place)
    do(place, *RUN, "first")
    do(place, "push")
    do(place, *RUN, "second", home=other)
    forked = ("forked", f"node/{node}")
    return Case(
        [
            line("push", status=4, says="copy or was restored", home=other),
            line("fetch", status=4, says=(*forked, "seq 2"), may=kept(node, "twin"), home=other),
            line("audit", status=1, says=forked, home=other),
            line("fetch", place.root / f"twin/{STORE}", status=4, says=forked, may=kept(node)),
            line("audit", status=1, says=forked),
        ]
    )


@case("a chain that forks before a third party's eyes")
def _third(place: Place) -> Case:
    """A reader who has one half of the fork is shown the other: nothing of it gets in."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    do(place, "fetch", stranger.path)
    stranger.add(stranger.run())
    rewritten = place.stranger("rewritten")
    rewritten.add(rewritten.run(attested={"model": "another"}))
    rewritten.add(rewritten.run())
    forked = ("forked", f"node/{stranger.node}", "seq 1")
    return Case(
        [
            line("fetch", rewritten.path, status=4, says=forked, may=kept(stranger.node)),
            line("fetch", rewritten.path, status=4, says="forked"),
            line("audit", stranger.node, status=1, says="forked"),
            line(
                *("fetch", stranger.path),
                status=(0, 4),
                may=(f"home/{STORE}",),
            ),
        ]
    )


@case("a chain that was cut")
def _cut(place: Place) -> Case:
    """A remote that shows less than before is behind: no news, and nothing is taken back."""
    stranger = place.stranger()
    early = stranger.add(stranger.run())
    stranger.add(stranger.run())
    do(place, "fetch", stranger.path)
    stranger.publish(early)
    return Case([line("fetch", stranger.path, status=0, says=("behind", stranger.node))])


@case("an old copy of the store beside the key of today")
def _restored(place: Place) -> Case:
    old = place.root / "old.git"
    shutil.copytree(place.store, old)
    do(place, *RUN, "newer")
    why = "it is a copy or was restored"
    return Case(
        [
            line("--store", old, *RUN, "again", status=4, says=why),
            line("--store", old, "revoke", "HEAD", status=4, says=why),
            line("--store", old, "key", "rotate", status=4, says=why),
        ]
    )


@case("a key that was restored beside the store of today")
def _old_key(place: Place) -> Case:
    """Its memory is older than the chain, which tells it what it has signed since."""
    keys = place.home / ".config/llmtrace/keys"
    shutil.copytree(keys, place.root / "keys")
    do(place, *RUN, "newer")
    shutil.rmtree(keys)
    (place.root / "keys").rename(keys)
    own = ("home/.config/llmtrace/keys", f"home/{STORE}")
    return Case(
        [
            line(*RUN, "again", status=0, may=own),
            line("audit", status=0, says=("sound", "4 records")),
        ]
    )


@case("a remote that holds more of one's own chain")
def _ahead(place: Place) -> Case:
    """Signed on another machine: a push from here is refused until it was fetched."""
    bare(place, place.home)
    other = twin(place)
    do(place, *RUN, "elsewhere", home=other)
    do(place, "push", home=other)
    return Case([line("push", status=4, says="fetch")])


@case("a stranger's chain under one's own name")
def _own_name(place: Place) -> Case:
    """A remote that says that one's own branch is its chain."""
    stranger = place.stranger()
    stranger.add(stranger.run())
    stranger.publish(branch=f"node/{place.node()}")
    return Case([line("fetch", stranger.path, place.node(), status=4, says="refused")])


@case("a remote whose hook paints")
def _hook(place: Place) -> Case:
    """A hook of the remote's, on the remote's side; what it says comes here."""
    path = bare(place, place.home)
    do(place, *RUN, "more")
    hook = path / "hooks/pre-receive"
    hook.write_text(f"#!/bin/sh\necho '{PAINT}no' >&2\nexit 1\n")
    hook.chmod(0o755)
    return Case([line("push", status=4, programs=("pre-receive", "sh"))])
