"""The one error that a user's input can raise: a single line that names the file, the key and the remedy."""


class BadInput(Exception):
    """Input that minibeft refuses. The command line prints its text and exits with status 2, without a traceback."""

    def __init__(self, text: str):
        super().__init__(" ".join(text.splitlines()))
