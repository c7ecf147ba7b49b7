"""The one error that a user's input can raise: a single line that names the file, the key and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LINE, LONGEST_WORD = 300, 80


class BadInput(Exception):
    """Input that minibeft refuses. The command line prints its text and exits with status 2, without a traceback."""

    def __init__(self, text: str):
        super().__init__(one_line(text))


def one_line(text: str) -> str:
    """The text on one line, without characters that control a terminal.

    Names come from files, and a name may hold escape sequences.
    """
    return printable(" ".join(text.split()))


def printable(line: str) -> str:
    """The line with every non-printable character written as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def shortened(line: str) -> str:
    """At most 300 characters: long paths lose their middle first, since their ends tell which file it is."""
    if len(line) > LONGEST_LINE:
        line = " ".join(cut(word, LONGEST_WORD) for word in line.split(" "))
    return cut(line, LONGEST_LINE)


def cut(text: str, longest: int) -> str:
    """The text without its middle, where it is longer than that."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


@contextmanager
def needs(packages: str, extra: str, what: str) -> Iterator[None]:
    """Around imports of an optional part: where one fails, BadInput says how to install it."""
    try:
        yield
    except ImportError as error:
        raise BadInput(f"{what} needs {packages}: pip install 'minibeft[{extra}]'") from error
