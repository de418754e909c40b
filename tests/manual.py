"""Makes what follows from the command line: option lists in man/, scripts in completions/.

    python -m tests.manual --write      brings the files up to date
    python -m tests.manual              names those that are not, and exits 1

The prose of a page is written by hand; between the lines `.\\" options` and `.\\" end options`
stands what click knows. A group's page has one pair of such lines for each command, named after
it: `.\\" options list`. Between `.\\" commands` and its end stands the table of commands.
"""

import re
import sys
from pathlib import Path

import click

from llmtrace.cli import COMMANDS, program
from llmtrace.cli.completion import script
from llmtrace.cli.frame import GLOBAL

ROOT = Path(__file__).parents[1]
SCRIPTS = {"bash": "llmtrace.bash", "zsh": "_llmtrace", "fish": "llmtrace.fish"}
LIST = re.compile(
    r'^(\.\\" (options|commands) ?(\S*)\n).*?(^\.\\" end \2$)', re.MULTILINE | re.DOTALL
)


def generated() -> dict[Path, str]:
    """Each file that is not only written by hand, and what it should contain."""
    files = {ROOT / "completions" / name: script(shell) for shell, name in SCRIPTS.items()}
    for name in ["", *COMMANDS]:
        path = ROOT / "man" / ("-".join(["llmtrace", *name.split()]) + ".1")
        if path.exists():
            files[path] = with_options(path.read_text(), name)
    return files


def with_options(page: str, name: str) -> str:
    """The page of a command with the options that this command has."""
    return LIST.sub(
        lambda m: m[1] + (commands() if m[2] == "commands" else options(name, m[3])) + m[4], page
    )


def commands() -> str:
    """One `.TP` paragraph a command, in the order of the help."""
    pages = {name: f".BR {roff('llmtrace-' + name)} (1)" for name in COMMANDS}
    return "".join(f".TP\n{pages[name]}\n{roff(text)}\n" for name, text in COMMANDS.items())


def options(name: str, subcommand: str = "") -> str:
    """One `.TP` paragraph an option, in the order of the help."""
    if not name:
        return "".join(paragraph(option) for option in GLOBAL)
    context = click.Context(program())
    command = program().get_command(context, name)
    if subcommand and isinstance(command, click.Group):
        command = command.get_command(context, subcommand)
    if command is None:
        raise SystemExit(f"no command '{name} {subcommand}'")
    return "".join(paragraph(p) for p in command.params if isinstance(p, click.Option))


def paragraph(option: click.Option) -> str:
    """What the help says of an option, as roff."""
    context = click.Context(click.Command("llmtrace"))
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag or option.count else option.make_metavar(context)
    value = value[1:-1] if value[:1] + value[-1:] == "[]" else value
    value = f" \\fI{roff(value)}\\fR" if value else ""
    text = roff(" ".join((option.help or "").split()))
    if isinstance(option.show_default, str):
        text += f" Default: {roff(option.show_default)}."
    elif option.show_default and option.default is not None:
        text += f" Default: {roff(str(option.default))}."
    return f".TP\n{names}{value}\n{text}\n"


def roff(text: str) -> str:
    """Text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"^\.", r"\\&.", text)


def stale() -> list[Path]:
    """The generated files that do not say what they should."""
    return [p for p, text in generated().items() if not p.exists() or p.read_text() != text]


def main(arguments: list[str]) -> int:
    for path in stale():
        if "--write" in arguments:
            path.write_text(generated()[path])
        print(path.relative_to(ROOT))
    return 0 if "--write" in arguments or not stale() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
