"""Every example of README.md, samples and the man pages runs, and prints what it says it does.

In Markdown an example is a block marked `console`, in a page an `.EX` block of its section
EXAMPLES. Lines that begin with `$ ` are typed into one bash for the whole document, in a fresh
home; lines that begin with `> ` go on with it, as bash prompts. What follows is its output, both
streams together: `…` stands for any text in a line, alone on a line for any lines. Without
output shown, any will do. A command must succeed unless the next one is `echo $?`.

A comment `needs gpu` or `needs net` before a block has it run only where there is one.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import conftest
from running import device

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").glob("*.1"))
SAMPLES = sorted((ROOT / "samples").glob("inside/*.md"))
MARK = "llmtrace-example-ends"
SECONDS = 600


@dataclass
class Example:
    """One command as typed, and what the document shows of its output."""

    place: str
    command: str
    shown: list[str] = field(default_factory=list)


def markdown_blocks(text: str) -> list[tuple[int, str, list[str]]]:
    """The first line's number, the need and the lines of each `console` block."""
    block = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [located(text, match) for match in block.finditer(text)]


def roff_blocks(text: str) -> list[tuple[int, str, list[str]]]:
    """The same of each `.EX` block in EXAMPLES, as a reader sees it."""
    start = text.index("\n.SH EXAMPLES\n") if "\n.SH EXAMPLES\n" in text else len(text)
    end = text.find("\n.SH ", start + 1)
    block = re.compile(r"^\.EX\n(.*?)^\.EE$", re.MULTILINE | re.DOTALL)
    found = [located(text, match) for match in block.finditer(text, start, end)]
    return [(number, need, [unroff(line) for line in lines]) for number, need, lines in found]


def located(text: str, match: re.Match[str]) -> tuple[int, str, list[str]]:
    before = text[: match.start()].rstrip().rpartition("\n")[2]
    need = re.search(r"needs (gpu|net)", before)
    first = text.count("\n", 0, match.start(1)) + 1
    return first, need[1] if need else "", match[1].splitlines()


def unroff(line: str) -> str:
    for escape, text in {"\\-": "-", "\\(aq": "'", "\\&": "", "\\e": "\\"}.items():
        line = line.replace(escape, text)
    return line


def examples(document: Path) -> list[Example]:
    text = document.read_text()
    blocks = markdown_blocks(text) if document.suffix == ".md" else roff_blocks(text)
    found: list[Example] = []
    for first, need, lines in blocks:
        if need == "net" or (need == "gpu" and not conftest.has_gpu()):
            continue
        assert lines[0].startswith("$ "), f"{document.name}:{first}: begin with '$ '"
        for number, line in enumerate(lines, first):
            if line.startswith("$ "):
                found.append(Example(f"{document.name}:{number}", line[2:]))
            elif line.startswith("> ") and not found[-1].shown:
                found[-1].command += "\n" + line[2:]
            else:
                found[-1].shown.append(line)
    return found


def run(typed: list[Example], path: str, home: Path) -> list[tuple[str, int]]:
    """The output and exit status of each command, all typed into one shell."""
    work = home / "work"
    work.mkdir()
    (work / "samples").symlink_to(ROOT / "samples")
    script = ["exec 2>&1"]
    for example in typed:
        script += [example.command, f"(s=$?; printf '\\n{MARK} %d\\n' $s; exit $s)"]
    kept = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "CXX") if name in os.environ}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", "\n".join(script)],
        cwd=work,
        env=kept | {"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    ended = re.compile(rf"(.*?)\n{MARK} (\d+)\n", re.DOTALL)
    return [(output, int(status)) for output, status in ended.findall(done.stdout)]


def matches(shown: list[str], output: str) -> bool:
    pattern = ""
    for line in "\n".join(shown).rstrip("\n").splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r" *\n"
    return re.fullmatch(pattern, output.rstrip("\n") + "\n") is not None


def check(document: Path, path: str, home: Path) -> None:
    typed = examples(document)
    assert typed, f"{document.name} has no example"
    ran = run(typed, path, home)
    assert len(ran) == len(typed), f"{typed[len(ran)].place}: the shell ended here"
    for number, (example, (output, status)) in enumerate(zip(typed, ran, strict=True)):
        is_asked = number + 1 < len(typed) and typed[number + 1].command == "echo $?"
        said = f"{example.place}: {example.command}\nexit status {status}, printed:\n{output}"
        assert status == 0 or is_asked, said
        if example.shown:
            assert matches(example.shown, output), f"{said}\nshown:\n" + "\n".join(example.shown)


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *SAMPLES, *PAGES], ids=lambda path: path.name
)
def test_examples_run_as_shown(document: Path, programs: str, home: Path) -> None:
    device()  # the first to use the kernels would say that it compiles them
    check(document, programs, home)


def test_runner_reads_markdown(programs: str, home: Path) -> None:
    document = home / "README.md"
    document.write_text(
        "```sh\npip install .\n```\n\n"
        "```console\n$ x=3; echo a \\\n> b\na b\n$ false\n$ echo $?\n1\n```\n\n"
        "<!-- needs net -->\n```console\n$ exit 9\n```\n\n"
        "```console\n$ seq $x\n1\n…\n$ echo one two three\none … three\n```\n"
    )
    check(document, programs, home)


def test_runner_reads_roff(programs: str, home: Path) -> None:
    page = home / "page.1"
    page.write_text(
        ".TH PAGE 1\n.SH EXAMPLES\nProse.\n.EX\n$ printf \\(aq%s\\en\\(aq a\\-b\na\\-b\n.EE\n"
        '.\\" needs net\n.EX\n$ exit 9\n.EE\n.SH SEE ALSO\n.EX\n$ exit 9\n.EE\n'
    )
    assert [example.command for example in examples(page)] == ["printf '%s\\n' a-b"]
    check(page, programs, home)


@pytest.mark.parametrize(
    "session", ["$ false", "$ echo a\nb", "$ seq 2\n1", "$ exit 0\n$ true", "$ seq 3\n1\n…\n2"]
)
def test_runner_refuses_what_is_not_as_shown(session: str, programs: str, home: Path) -> None:
    document = home / "README.md"
    document.write_text(f"```console\n{session}\n```\n")
    with pytest.raises(AssertionError, match=r"README\.md:2|README\.md:3"):
        check(document, programs, home)
