"""Every way out of the program has its exit status, and 1 is never anything but a verdict."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from llmtrace.cli import COMMANDS, main, program
from llmtrace.cli.frame import GLOBAL, Command
from llmtrace.cli.output import plain
from manual import SCRIPTS, script

ROOT = Path(__file__).parents[1]

# A program with one more command, `act`, which ends as its argument says.
ACT = """
import os, signal, sys, types
import click
import llmtrace.cli as cli
from llmtrace.cli.frame import command
from llmtrace.errors import Inconclusive, Misuse, Trouble

@command()
@click.argument("how")
def act(session, how):
    if how.isdigit():
        return int(how)
    if how == "crash":
        raise ValueError("no \\x1b[31mgood")
    if how == "sys.exit":
        sys.exit(1)
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    if how == "lines":
        for _ in range(100_000):
            session.out.line("a line")
    if how == "note":
        session.out.note("noted")
    if how == "colour":
        session.out.stream("\\x1b[31mred\\x1b[0m\\n")
    if how == "text":
        session.out.stream("\\u00e9\\u2026\\udce9\\n")
    kinds = {"misuse": Misuse, "inconclusive": Inconclusive, "trouble": Trouble}
    if how in kinds:
        raise kinds[how]("no record '3f0c1e9'", "fetch it with 'llmtrace fetch origin'")
    return 0

module = types.ModuleType("llmtrace.cli.act")
module.act = act
sys.modules["llmtrace.cli.act"] = module
cli.COMMANDS["act"] = "Act"
sys.exit(cli.main())
"""


def python(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    settings = {"check": False} | piped | settings
    return subprocess.run([sys.executable, *arguments], **settings)


def act(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return python("-c", ACT, *arguments, **settings)


@pytest.mark.parametrize(
    ("how", "status"),
    [("0", 0), ("1", 1), ("3", 3), ("misuse", 2), ("inconclusive", 3), ("trouble", 4)],
)
def test_status_of_what_is_explained(how: str, status: int) -> None:
    done = act("act", how)
    assert (done.returncode, done.stdout) == (status, "")
    said = "llmtrace: error: no record '3f0c1e9'\n"
    said += "llmtrace: hint: fetch it with 'llmtrace fetch origin'\n"
    assert done.stderr == ("" if how.isdigit() else said)


@pytest.mark.parametrize("how", ["crash", "sys.exit"])
def test_bug_is_trouble_and_never_a_verdict(how: str) -> None:
    done = act("act", how)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("llmtrace: error: bug: ")
    assert "LLMTRACE_DEBUG=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    loud = act("act", how, env=os.environ | {"LLMTRACE_DEBUG": "1"})
    assert loud.returncode == 4
    assert "Traceback" in loud.stderr


def test_interrupt_is_130_and_silent() -> None:
    done = act("act", "interrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_interrupt_while_starting_is_130() -> None:
    code = """
import os, signal, sys
class Stop:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop())
from llmtrace.cli import main
sys.exit(main(["verify", "HEAD"]))
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_closed_pipe_is_141_and_silent() -> None:
    for arguments in (["act", "lines"], ["--help"], ["completion", "bash"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = act(*arguments, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")


def test_pipe_closed_by_head_is_141() -> None:
    line = '"$PYTHON" -c "$ACT" act lines | head -n 1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "ACT": ACT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("a line\n141\n", "")


@pytest.fixture
def full() -> Iterator[int]:
    """A file that takes nothing, as on a full disk."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


@pytest.mark.parametrize("arguments", [["act", "lines"], ["--help"], ["--version"]])
def test_full_disk_is_trouble(arguments: list[str], full: int) -> None:
    done = act(*arguments, stdout=full)
    assert done.returncode == 4
    assert done.stderr == (
        "llmtrace: error: cannot write to standard output: No space left on device\n"
    )


def test_closed_output_is_trouble() -> None:
    done = act("act", "lines", preexec_fn=lambda: os.close(1), stdout=None)
    assert done.returncode == 4
    assert done.stderr == "llmtrace: error: standard output is closed\n"


@pytest.mark.parametrize(("how", "status"), [("1", 1), ("trouble", 4), ("crash", 4), ("note", 0)])
def test_lost_standard_error_changes_no_status(how: str, status: int, full: int) -> None:
    assert act("act", how, stderr=full).returncode == status
    closed = act("act", how, preexec_fn=lambda: os.close(2), stderr=None)
    assert (closed.returncode, closed.stdout) == (status, "")


def test_output_is_utf8_in_every_locale() -> None:
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = act("act", "text", env=os.environ | old, text=False)
    assert (done.returncode, done.stdout) == (0, "é…\\udce9\n".encode())


def test_broken_installation_is_trouble() -> None:
    code = "import sys; sys.modules['click'] = None; from llmtrace.cli import main; "
    code += "sys.exit(main(['verify', 'HEAD']))"
    done = python("-c", code)
    assert done.returncode == 4
    assert done.stderr.startswith("llmtrace: error: ModuleNotFoundError: ")


@pytest.mark.parametrize("arguments", [[], ["model"]])
def test_no_arguments_is_usage(arguments: list[str]) -> None:
    done = act(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: llmtrace ")


def test_usage_errors_read_as_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert main(["completion", "--quit", "bash"]) == 2
    assert main(["completion"]) == 2
    assert main(["-q", "completion", "bash", "-v"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "llmtrace: error: no such command 'nonsense'",
        "llmtrace: hint: see 'llmtrace --help'",
        "llmtrace: error: no such option '--quit'",
        "llmtrace: hint: did you mean '--quiet'?",
        "llmtrace: hint: see 'llmtrace completion --help'",
        "llmtrace: error: missing argument 'SHELL'",
        "llmtrace: hint: choose from: bash, zsh, fish",
        "llmtrace: hint: see 'llmtrace completion --help'",
        "llmtrace: error: --quiet and --verbose cannot be used together",
    ]


@pytest.mark.parametrize(("how", "status"), [("0", 0), ("1", 1), ("inconclusive", 3)])
def test_json_ends_with_an_end(how: str, status: int) -> None:
    for arguments in (["--json", "act", how], ["act", how, "--json"]):
        done = act(*arguments)
        assert done.returncode == status
        assert json.loads(done.stdout) == {"v": 1, "type": "end", "status": status}


def test_json_cut_short_has_no_end() -> None:
    assert act("act", "crash", "--json").stdout == ""


def test_global_options_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--json", "completion", "fish"], ["completion", "fish", "--json"]):
        assert main(arguments) == 0
        first, end = capsys.readouterr().out.splitlines()
        assert json.loads(first)["shell"] == "fish"
        assert json.loads(end)["type"] == "end"
    for arguments in (["--version"], ["completion", "--version"], ["-h"], ["completion", "-h"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith(("llmtrace 0", "Usage: llmtrace "))


def test_help_imports_no_command() -> None:
    code = "import sys; from llmtrace.cli import main; main(['--help']); "
    code += "print(*sorted(m for m in sys.modules if m.startswith('llmtrace.')))"
    done = python("-c", code, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    frame = {"llmtrace.cli", "llmtrace.cli.frame", "llmtrace.cli.output", "llmtrace.errors"}
    assert loaded <= frame | {"llmtrace.cli.settings"}


def every_command() -> list[tuple[str, Command]]:
    context = click.Context(program())
    found: list[tuple[str, Command]] = []
    for name in COMMANDS:
        command = program().get_command(context, name)
        assert isinstance(command, Command)
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {n}", c) for n, c in command.commands.items()]  # type: ignore[misc]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_table_has_the_first_line_of_each_help(name: str) -> None:
    command = getattr(import_module(f"llmtrace.cli.{name}"), name)
    assert command.name == name
    assert command.get_short_help_str() == COMMANDS[name]


def test_help_lines_are_short_and_claim_nothing_twice() -> None:
    names = {opt for option in GLOBAL for opt in option.opts}
    for name, command in every_command():
        first = command.get_short_help_str()
        assert first, f"'{name}' is missing its help"
        assert len(first) <= 60, name
        assert not first.endswith("."), name
        with click.Context(command, info_name=name, max_content_width=79) as context:
            page = command.get_help(context)
        assert not [line for line in page.splitlines() if len(line) > 79], name
        assert "\\b" not in page, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"'{name} {option.opts[0]}' is missing its help"
                assert option.help.endswith("."), f"'{name} {option.opts[0]}'"
                assert not names & {*option.opts}, f"'{name}' hides a global option"


def test_plain_escapes_what_moves_a_terminal() -> None:
    assert plain("naïve text, 文…") == "naïve text, 文…"
    assert plain("a\x1b[2J\x07\r\n\x9b\x7f") == "a\\x1b[2J\\x07\\r\\n\\x9b\\x7f"
    assert plain("a\u202eb\u2028\udc9b") == "a\\u202eb\\u2028\\udc9b"
    assert plain("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_model_text_is_exact_in_a_pipe_and_harmless_on_a_terminal() -> None:
    assert act("act", "colour").stdout == "\x1b[31mred\x1b[0m\n"
    ours, theirs = os.openpty()
    act("act", "colour", stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 100) == b"\\x1b[31mred\\x1b[0m\r\n"
    os.close(ours)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_completion_prints_what_is_installed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)
    assert "_LLMTRACE_COMPLETE" in script(shell)


def test_bash_completes_commands_and_options(programs: str) -> None:
    file = ROOT / "completions" / SCRIPTS["bash"]
    ask = "COMP_WORDS=(llmtrace {0}); COMP_CWORD={1}; _llmtrace_completion llmtrace; "
    ask += "echo ${{COMPREPLY[@]}}"
    for words, index, expected in (("compl", 1, "completion"), ("completion z", 2, "zsh")):
        done = subprocess.run(
            ["bash", "-c", f"source {file}; {ask.format(words, index)}"],
            env=os.environ | {"PATH": programs},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == expected + "\n", done.stderr
