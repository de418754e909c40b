"""Option before variable before file before default, and a setting that is wrong is named."""

from pathlib import Path

import pytest

from llmtrace.cli import main
from llmtrace.cli.frame import Session
from llmtrace.cli.input import read_lines, read_text
from llmtrace.cli.settings import KEYS, Settings
from llmtrace.errors import Trouble


@pytest.fixture
def config(home: Path) -> Path:
    path = home / ".config" / "llmtrace" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_defaults_lie_in_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    settings = Settings.read()
    assert settings.store == home / ".local/share/llmtrace/store.git"
    assert settings.config == home / ".config/llmtrace"
    assert settings.models == home / ".config/llmtrace/models.toml"
    assert settings.cache == home / ".cache/llmtrace"
    assert (settings.model, settings.threads) == (None, None)
    assert (settings.device, settings.numerics) == ("auto", "accuracy")
    assert not [*home.iterdir()], "reading settings makes no folder"


def test_option_before_variable_before_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('store = "/file"\nmodel = "m"\nthreads = 3\n')
    session = Session()
    assert Settings.read().store == Path("/file")
    assert (session.settings.model, session.settings.threads) == ("m", 3)
    monkeypatch.setenv("LLMTRACE_STORE", "/variable")
    monkeypatch.setenv("LLMTRACE_THREADS", "2")
    assert Settings.read().store == Path("/variable")
    assert Settings.read().threads == 2
    assert Settings.read(store="/option").store == Path("/option")
    monkeypatch.setenv("LLMTRACE_STORE", "")
    assert Settings.read().store == Path("/file")


def test_store_option_reaches_the_settings() -> None:
    session = Session()
    session.store = "~/elsewhere"
    assert session.settings.store == Path.home() / "elsewhere"


def test_xdg_folders_count_only_where_absolute(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert Settings.read().data == home / ".local/share/llmtrace"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings.read().data == tmp_path / "llmtrace"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stroe = 1", "unknown key 'stroe' in '{path}'"),
        ("store = 1", "'store' in '{path}' must be a text, is 1"),
        ("threads = 0", "'threads' in '{path}' must be a number from 1, is 0"),
        ("threads = true", "'threads' in '{path}' must be a number from 1, is True"),
        ("store", "cannot read '{path}': "),
        ("a = '\udcff'", "cannot read '{path}': "),
    ],
)
def test_wrong_configuration_is_named(config: Path, text: str, reason: str) -> None:
    config.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Trouble) as caught:
        Settings.read()
    assert str(caught.value).startswith(reason.format(path=config))


def test_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRACE_THREADS", "many")
    with pytest.raises(Trouble, match=r"^'LLMTRACE_THREADS' must be a number from 1, is 'many'$"):
        Settings.read()


def test_wrong_configuration_stops_what_needs_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("colour = true\n")
    assert main(["model", "list"]) == 4
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"llmtrace: error: unknown key 'colour' in '{config}'",
        f"llmtrace: hint: the keys are {', '.join(KEYS)}",
    ]
    assert main(["--help"]) == 0
    assert main(["completion", "bash"]) == 0


def test_unreadable_text_is_trouble(tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    with pytest.raises(Trouble, match="No such file"):
        read_text(str(path))
    path.write_bytes(b"ab\xffc")
    with pytest.raises(Trouble, match="is not UTF-8 text at byte 2"):
        read_text(str(path))
    with pytest.raises(Trouble, match=r"line 1 of .* is not UTF-8 text"):
        list(read_lines(str(path)))


def test_text_is_read_to_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    path.write_bytes("ä\r\n\n b \n".encode())
    assert read_text(str(path)) == "ä\r\n\n b \n"
    assert list(read_lines(str(path))) == ["ä", "b"]
