"""What all commands share: global options anywhere, help in one shape, an int as the way out.

    @command()                                    # llmtrace/cli/verify.py
    @click.argument("commits", nargs=-1, required=True, metavar="COMMIT...")
    @click.option("-d", "--device", metavar="DEVICE", help="Where to replay.")
    def verify(session: Session, commits: tuple[str, ...], device: str | None) -> int:
        '''Replay recorded runs and compare them with their records

        What it reads, writes and returns. The first line is also in `llmtrace.cli.COMMANDS`.
        '''
        from llmtrace.verify.verdict import judge  # what is heavy, inside

        ...
        session.out.line(f"verified {commit}")
        return 0

The command has the name of its file and of its function. It raises LlmtraceError for what is
explained, and catches nothing else: `llmtrace.cli.main` turns every way out into an exit status.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

import llmtrace
from llmtrace.cli.output import Output, write
from llmtrace.errors import LlmtraceError, Misuse

if TYPE_CHECKING:
    from llmtrace.cli.settings import Settings

COLUMNS = 79  # of every help text


class Session:
    """One command line: what the global options say, and what follows from them."""

    store: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @cached_property
    def settings(self) -> "Settings":
        """Environment and configuration under the options of this command line."""
        from llmtrace.cli.settings import Settings

        return Settings.read(store=self.store)

    @cached_property
    def out(self) -> Output:
        """The streams, as loud as was asked for."""
        if self.quiet and self.verbose:
            raise Misuse("--quiet and --verbose cannot be used together")
        return Output(json=self.json, quiet=self.quiet, verbose=self.verbose)


def _remember(context: click.Context, option: click.Parameter, value: object) -> None:
    session = context.find_object(Session)
    if session is not None and value is not None and option.name is not None:
        setattr(session, option.name, value)


def _show_help(context: click.Context, _option: click.Parameter, value: object) -> None:
    if value and not context.resilient_parsing:
        write(context.get_help() + "\n")
        context.exit()


def _show_version(context: click.Context, _option: click.Parameter, value: object) -> None:
    if value and not context.resilient_parsing:
        write(f"llmtrace {llmtrace.__version__}\n")
        context.exit()


def _global(*names: str, help: str, metavar: str | None = None) -> click.Option:  # noqa: A002
    """An option of the group and of every command; the one that stands last wins."""
    return click.Option(
        names,
        is_flag=metavar is None,
        metavar=metavar,
        default=None,
        expose_value=False,
        callback=_remember,
        help=help,
    )


def _page(*names: str, callback: Callable[..., None], help: str) -> click.Option:  # noqa: A002
    """An option that prints something instead of running the command."""
    return click.Option(
        names, is_flag=True, is_eager=True, expose_value=False, callback=callback, help=help
    )


GLOBAL = [
    _global("--store", metavar="DIR", help="Keep records in DIR (or set LLMTRACE_STORE)."),
    _global("--json", help="Print JSON lines."),
    _global("-q", "--quiet", help="Print the answer alone, without notes or progress."),
    _global("-v", "--verbose", help="Say more on standard error."),
    _page("--version", callback=_show_version, help="Print the version and exit."),
    _page("-h", "--help", callback=_show_help, help="Print this and exit."),
]


threads = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="COUNT",
    help="CPU threads (default: all cores).",
)
"""Of every command that computes."""


class Command(click.Command):
    """A command line of one session: the global options stand anywhere after the program."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings.setdefault("add_help_option", False)  # ours goes through `write`
        settings.setdefault("context_settings", {"max_content_width": COLUMNS})
        super().__init__(*args, **settings)
        if self.help:  # click keeps the lines after a backspace; a raw docstring only spells it
            self.help = self.help.replace("\\b\n", "\b\n")

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Adds the global options to what the command itself takes."""
        return [*self.params, *GLOBAL]

    def get_short_help_str(self, limit: int = COLUMNS) -> str:
        """The first line of the help, whole."""
        return (self.help or "").partition("\n")[0]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the command's own options, then the global ones."""
        own = [param for param in self.params if isinstance(param, click.Option)]
        for title, options in (("Options", own), ("Global options", GLOBAL)):
            rows = [row for option in options if (row := option.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> int:
        """Runs the command; a JSON stream that is not cut short ends with a line that says so."""
        assert self.callback is not None
        session = ctx.ensure_object(Session)
        out = session.out
        try:
            status: int = ctx.invoke(self.callback, session, **ctx.params)
        except LlmtraceError as error:
            out.end(error.status)
            raise
        out.end(status)
        return status


class Group(Command, click.Group):
    """Commands under one name: `commands` that are here, and those of a table that are not yet.

    The table has the first line of each command's help, so that help imports none of them. A
    command of the table is found in the package `room`, in the module of its own name.
    """

    def __init__(
        self, *args: Any, room: str = "", table: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.room = room
        self.table = table or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help, which is the order of use."""
        return [*self.commands, *self.table]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command if the table has it."""
        if cmd_name not in self.table:
            return self.commands.get(cmd_name)
        found: click.Command = getattr(import_module(f"{self.room}.{cmd_name}"), cmd_name)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists commands above options, without importing any."""
        here = {name: command.get_short_help_str() for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([*here.items(), *self.table.items()])
        Command.format_options(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> int:
        """Runs the one command that was named."""
        status: int = click.Group.invoke(self, ctx)
        return status


def command(
    name: str | None = None, *, group: Group | None = None
) -> Callable[[Callable[..., int]], Command]:
    """Makes a function of a session and its options a command with the function's name."""

    def decorate(function: Callable[..., int]) -> Command:
        made = click.command(name or function.__name__, cls=Command)(function)
        if group is not None:
            group.add_command(made)
        return made

    return decorate
