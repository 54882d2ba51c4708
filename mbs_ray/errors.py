"""The errors a user is told of in one line."""

from typing import Literal

LONGEST_REASON = 300
#: What a process that died had too little of; empty where that is not known.
Shortage = Literal["", "host memory", "device memory"]


class InputError(ValueError):
    """Bad input: one line that names the file, field or language and says what to do.

    The command line prints the line and exits with code 2.
    """


class StageDiedError(RuntimeError):
    """A stage's process or node is gone; what was finished lies in the run directories.

    ``run`` is what the stage was last seen to work on, or empty; ``shortage`` is what it died of, where that is known.
    The command line prints the line and exits with code 1: the same command goes on.
    """

    def __init__(self, message: str, run: str = "", shortage: Shortage = "") -> None:
        super().__init__(message)
        self.run, self.shortage = run, shortage


class LeaseLostError(RuntimeError):
    """Another command works on what this one worked on; it writes nothing more.

    The command line prints the line and exits with code 1.
    """


def one_line(error: BaseException) -> str:
    """Put what an error of a library says on one line of at most 300 characters; its type, where the words need it."""
    said = " ".join(str(error).split())
    if isinstance(error, LookupError | AttributeError | AssertionError | ImportError | ArithmeticError) or not said:
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - 1] + "…"
