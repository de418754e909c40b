"""Prints the script that completes our command line in a shell."""

import click

from llmtrace.cli import program
from llmtrace.cli.frame import Session, command

SHELLS = ("bash", "zsh", "fish")


@command()
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def completion(session: Session, shell: str) -> int:
    r"""Print the completion script for a shell

    SHELL is bash, zsh or fish. The script asks llmtrace itself for every
    completion, so it is made once and stays right.

    \b
    Examples:
        eval "$(llmtrace completion bash)"
        llmtrace completion fish > ~/.config/fish/completions/llmtrace.fish
    """
    text = script(shell)
    if session.out.json:
        session.out.object("completion", shell=shell, script=text)
    else:
        session.out.stream(text)
    return 0


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    complete = made(program(), {}, "llmtrace", "_LLMTRACE_COMPLETE")
    return complete.source_template % complete.source_vars()
