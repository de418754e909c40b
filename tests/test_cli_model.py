"""`model list`, `info` and `add`, with a stand-in for the Hugging Face hub on this machine."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmtrace.cli import main
from llmtrace.errors import Misuse, Trouble
from llmtrace.model import hub
from llmtrace.model.registry import sample_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the sample, though only a file is missing."""
    path = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(sample_folder(), path)
    (path / "generation_config.json").unlink()
    return path


def test_sample_is_always_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "list"]) == 0
    assert capsys.readouterr().out == f"sample\t{sample_folder()}\n"


def test_added_model_is_listed_and_opened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "add", "small", str(folder)]) == 0
    assert capsys.readouterr().out == f"small\t{folder}\n"
    assert main(["--json", "model", "list"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("name") for line in lines] == ["sample", "small", None]
    assert lines[1]["path"] == str(folder)
    assert main(["model", "info", "small"]) == 0
    assert "layers          6\n" in capsys.readouterr().out


def test_info_is_by_name_folder_or_setting(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for arguments, variable in (([str(folder)], ""), ([], str(folder)), ([], "")):
        monkeypatch.setenv("LLMTRACE_MODEL", variable)
        assert main(["model", "info", "--json", *arguments]) == 0
        ids.append(json.loads(capsys.readouterr().out.splitlines()[0])["id"])
    assert ids[0] == ids[1] != ids[2]


def test_what_cannot_run_gets_no_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "add", "nothing", str(tmp_path)]) == 4
    assert main(["model", "add", "sample", str(folder)]) == 2
    assert main(["model", "info", "nothing"]) == 4
    capsys.readouterr()
    assert main(["model", "list"]) == 0
    assert "nothing" not in capsys.readouterr().out


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The part of the hub's interface that a download of one repository asks for."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["consolidated.safetensors"] = b"not wanted"

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self, *, body: bool = True) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            headers: dict[str, str] = {}
            if path.startswith("/api/models/org/small/tree/"):
                sizes = {name: len(data) for name, data in files.items()}
                tree = [{"type": "file", "path": n, "size": sizes[n], "oid": "0"} for n in files]
                content = json.dumps(tree).encode()
            elif path.startswith("/api/models/org/small/"):
                siblings = [{"rfilename": name} for name in files]
                listing = {"id": "org/small", "sha": COMMIT, "siblings": siblings}
                content = json.dumps(listing).encode()
            elif path.startswith("/org/small/resolve/") and name in files:
                content = files[name]
                tag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_hub_model_is_downloaded_whole_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    with serve(folder) as endpoint:
        got = hub.download("hf:org/small@main", endpoint, tmp_path / "cache")
        wanted = {path.name for path in folder.iterdir()} - {"README.md", "metrics.json"}
        assert {path.name for path in got.iterdir()} == wanted
        for name in wanted:
            assert (got / name).read_bytes() == (folder / name).read_bytes()
        with pytest.raises(Trouble, match=r"^cannot download 'hf:org/none': "):
            hub.download("hf:org/none", endpoint, tmp_path / "cache")


def test_hub_out_of_reach_is_trouble(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"^cannot reach the hub for 'hf:org/small'$"):
        hub.download("hf:org/small", "http://127.0.0.1:9", tmp_path)


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:-/../x@", "hf:a/b@-x y"])
def test_hub_names_have_one_form(text: str, tmp_path: Path) -> None:
    with pytest.raises(Misuse):
        hub.download(text, "http://127.0.0.1:9", tmp_path)
