"""Every error that we explain to the user, as one small tree.

    LlmtraceError          what failed, hints that can be pasted, an exit status
      Misuse        (2)    the command line asks for something that has no meaning
      Inconclusive  (3)    model, version or device is not here: no verdict either way
      Trouble       (4)    input, files, network

A record that differs or is invalid is no error but a verdict (exit status 1).
The message is lower case, quotes its subject and has no full stop.
"""


class LlmtraceError(Exception):
    """What failed, with hints on what to do; printed by the command line, never below it."""

    status = 4

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.hints = hints


class Misuse(LlmtraceError):
    """A request that has no meaning, such as two options that exclude each other."""

    status = 2


class Inconclusive(LlmtraceError):
    """Something that a replay needs is not on this machine, so there is no verdict."""

    status = 3


class Trouble(LlmtraceError):
    """Input, files or network do not allow what was asked."""

    status = 4
