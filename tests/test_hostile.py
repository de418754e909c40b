"""The hostile corpus: nothing of a stranger's is executed, and nothing of it may hurt.

Each case is a few command lines, real processes under a watch. Whatever the case, all of what
`hostile.place.meet` asserts holds: the exit status, no program started that is not ours, no
payload run, no byte changed where none may be, no control character printed, memory, time, and
nothing left behind.
"""

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pygit2
import pytest

import hostile.bombs
import hostile.copies
import hostile.runs
import hostile.servers
import hostile.stores
import hostile.urls
from commands import call
from hostile import place as corpus
from hostile.objects import FORGED
from hostile.place import STORE, Place, Seen, line, meet
from hostile.stranger import Stranger

FAMILIES = (  # which register their cases
    *(hostile.bombs, hostile.copies, hostile.runs, hostile.servers, hostile.stores),
    hostile.urls,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> corpus.Template:
    return corpus.Template(tmp_path_factory.mktemp("template"))


class Crowd(NamedTuple):
    """Many strangers in one repository, met once; one of them is honest."""

    place: Place
    path: Path
    honest: Stranger
    others: dict[str, Stranger]
    fetched: Seen
    audited: Seen

    def said(self, seen: Seen, stranger: Stranger) -> str:
        (one,) = [text for text in seen.out.decode().splitlines() if stranger.node in text]
        return one


@pytest.fixture(scope="module")
def crowd(template: corpus.Template, tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    place = Place(tmp_path_factory.mktemp("crowd"), template)
    honest = place.stranger("crowd", 255)
    honest.add(honest.run())
    others = {}
    for seed, name in enumerate(FORGED):
        others[name] = place.stranger("crowd", seed)
        others[name].add(others[name].run())
        FORGED[name].change(others[name])
    path = honest.path
    fetched = meet(place, line("fetch", path, status=4, may=(f"home/{STORE}",), seconds=120))
    audited = meet(place, line("--store", path, "audit", status=1, seconds=60))
    return Crowd(place, path, honest, others, fetched, audited)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_chain_is_refused_and_found(
    name: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, forged = crowd.others[name], FORGED[name]
    told = crowd.said(crowd.fetched, stranger)
    assert told.startswith(f"refused node/{stranger.node} "), told
    assert forged.told in told
    monkeypatch.setenv("HOME", str(crowd.place.home))
    monkeypatch.setenv("LLMTRACE_DEVICE", "cpu")
    for words in (("audit", stranger.branch), ("verify", stranger.tip)):
        found = call("--store", crowd.path, *words)
        assert found.status == 1, found
        assert forged.why in found.out, found
        assert corpus.CONTROLS.search(found.out + found.err) is None


def test_of_the_crowd_only_the_honest_chain_is_let_in(crowd: Crowd) -> None:
    assert crowd.said(crowd.fetched, crowd.honest).startswith(f"fetched {crowd.honest.branch} ")
    store = pygit2.Repository(str(crowd.place.store))
    own = f"refs/heads/node/{crowd.place.node()}"
    assert {*store.references} == {own, f"refs/heads/{crowd.honest.branch}"}
    assert crowd.honest.tip in store
    assert not [name for name, other in crowd.others.items() if other.tip in store]


def test_a_server_refuses_all_of_the_crowd(crowd: Crowd, programs: str, tmp_path: Path) -> None:
    """Plain git pushes them, to a repository whose hook asks for our judgement."""
    server = tmp_path / "server.git"
    subprocess.run(["git", "init", "-q", "--bare", server], check=True)
    hook = server / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\nexec llmtrace hook pre-receive\n")
    hook.chmod(0o755)

    def push(*refs: str) -> tuple[int, str]:
        done = subprocess.run(
            ["git", "--git-dir", crowd.path, "push", server, *refs],
            env=corpus.environment(tmp_path) | {"PATH": programs},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    status, said = push(*(other.branch for other in crowd.others.values()))
    assert status != 0
    refused = [name for name, one in crowd.others.items() if f"refs/heads/{one.branch}: " in said]
    assert refused == [*FORGED], {*FORGED} - {*refused}
    assert corpus.CONTROLS.search(said.replace("\t", " ").replace("\r", " ")) is None
    assert not [*pygit2.Repository(str(server)).references]
    status, said = push(crowd.honest.branch)
    assert status == 0, said


@pytest.mark.parametrize("name", corpus.READ)
def test_what_is_only_read_starts_no_program(
    name: str, template: corpus.Template, tmp_path: Path
) -> None:
    place = Place(tmp_path, template)
    for one in corpus.lines_of(corpus.READ[name], place):
        corpus.read(place, one)


@pytest.fixture(scope="module")
def met(
    request: pytest.FixtureRequest,
    template: corpus.Template,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[None]]]:
    """The cases that were asked for, two at a time: they are processes of their own."""

    def work(name: str, place: Place) -> None:
        for one in corpus.lines_of(corpus.CASES[name], place):
            meet(place, one)

    asked = [item.callspec.params["name"] for item in request.session.items if is_case(item)]
    with ThreadPoolExecutor(2) as pool:
        places = {name: Place(tmp_path_factory.mktemp("case"), template) for name in asked}
        yield {name: pool.submit(work, name, places[name]) for name in asked}


def is_case(item: pytest.Item) -> bool:
    return getattr(item, "originalname", "") == test_a_stranger_does_no_harm.__name__


@pytest.mark.parametrize("name", corpus.CASES)
def test_a_stranger_does_no_harm(name: str, met: dict[str, Future[None]]) -> None:
    met[name].result()
