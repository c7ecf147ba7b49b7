"""Results go to `out`, standard output; progress and errors to `err`, standard error."""

import os

from rich.console import Console

from minibeft.errors import LONGEST_LINE, cut, printable


class Screen(Console):
    """A console that raises an error for a closed pipe; rich would exit with status 1, as for a violated theorem."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads the output any more")


def shown(text: str) -> str:
    """Text of several lines that is safe for a terminal: escape sequences are made visible, and long words are cut."""
    return "\n".join(" ".join(cut(printable(w), LONGEST_LINE) for w in line.split(" ")) for line in text.split("\n"))


# Of several processes that torchrun started, the first one speaks.
OTHER_PROCESS = os.environ.get("RANK", "0") != "0"
out = Screen(quiet=OTHER_PROCESS)
err = Screen(stderr=True, quiet=OTHER_PROCESS)
