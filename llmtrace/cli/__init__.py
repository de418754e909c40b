"""The command line: one file a command; how such a file looks is at the top of `frame.py`.

Here are the commands' names, and `main`, which gives every way out its exit status: 1 is a
verdict and nothing else, so a crash, Ctrl-C or a closed pipe must not end in it. Click is
imported inside for the same reason: a broken installation is trouble, not a verdict.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtrace.cli.frame import Group

DONE = 0
DIFFERS = 1
USAGE = 2
INCONCLUSIVE = 3
TROUBLE = 4
INTERRUPTED = 130
OUTPUT_CLOSED = 141

COMMANDS = {  # in the order of use, each with the first line of its help
    "run": "Generate text and record what happened inside as a commit",
    "verify": "Replay recorded runs and compare them with their records",
    "audit": "Check whole chains: form, signatures, digests, order, forks",
    "log": "List records, newest first",
    "show": "Print one record",
    "diff": "Compare two records",
    "bisect": "Find where two records of one job part, and say who is right",
    "compare": "Judge another engine's activations by distance to a record",
    "introspect": "Check the inside of a run and say what it is worth",
    "export": "Write the samples and kept tensors of a record to a file",
    "report": "Show the inside of a run as a page or an HTML file",
    "bench": "Measure versions and variants: time, accuracy, memory",
    "remote": "List, name and forget remotes, and the nodes expected there",
    "push": "Push one's own chain to a remote",
    "fetch": "Fetch chains of other nodes and let in what is sound",
    "model": "List, examine and name models",
    "init": "Make a store with a node of one's own and print its id",
    "key": "Show, rotate and export keys",
    "revoke": "Revoke records of one's own chain",
    "hook": "Refuse bad chains on a git server",
    "completion": "Print the completion script for a shell",
}

HELP = """Run a language model, record what happened inside it as a signed git
commit, and let anyone check that commit by running it again

The same bits on every device: 'verify' on a laptop checks a 'run' on a GPU.

Exit status: 0 done or verified, 1 a record differs or is invalid, 2 usage,
3 inconclusive, 4 trouble. See 'man llmtrace'.
"""


def program() -> "Group":
    """The tree of all commands; those in COMMANDS are imported when they are asked for."""
    from llmtrace.cli.frame import Group

    return Group("llmtrace", help=HELP, room=__name__, table=COMMANDS, no_args_is_help=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit status, whatever happens."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:  # SystemExit too: no library decides our exit status
        return _status(error)


def _run(arguments: list[str]) -> int:
    from llmtrace.cli import output, settings
    from llmtrace.cli.frame import Session

    output.prepare()
    tree = program()
    if question := settings.completion_request():
        from click.shell_completion import shell_complete

        return shell_complete(tree, {}, "llmtrace", "_LLMTRACE_COMPLETE", question)
    with tree.make_context("llmtrace", list(arguments), obj=Session()) as context:
        return tree.invoke(context)


def _status(error: BaseException) -> int:
    """Explains an error on standard error and returns the exit status that it stands for."""
    try:
        return _explain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as second:  # such as a module that cannot be imported
        _last_words(second)
        return TROUBLE


def _explain(error: BaseException) -> int:
    import click

    from llmtrace.cli import output
    from llmtrace.errors import LlmtraceError

    if isinstance(error, click.exceptions.Exit):  # after --help or --version
        return error.exit_code
    if isinstance(error, output.OutputClosed):
        return OUTPUT_CLOSED
    if isinstance(error, LlmtraceError):
        output.complain(str(error), *error.hints)
        return error.status
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        output.say(error.format_message())
        return USAGE
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "llmtrace"
        said = " ".join(error.format_message().split()).rstrip(".").split(". ")
        message, *hints = [text[:1].lower() + text[1:] for text in said]
        output.complain(message, *hints, f"see '{where} --help'")
        return USAGE
    return _bug(error)


def _bug(error: BaseException) -> int:
    from llmtrace.cli import output, settings

    text = f"bug: {type(error).__name__}: {error}"
    if settings.is_debugging():
        import traceback

        output.say("".join(traceback.format_exception(error)).rstrip())
        output.complain(text)
    else:
        output.complain(text, "set LLMTRACE_DEBUG=1 to see where")
    return TROUBLE


def _last_words(error: BaseException) -> None:
    """Says what is wrong when even the rest of this package cannot be imported."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"llmtrace: error: {type(error).__name__}: {error}\n")
        except OSError:
            return
