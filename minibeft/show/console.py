"""Results go to `out`, standard output; progress and errors to `err`, standard error."""

import os

from rich.console import Console

# Of several processes that torchrun started, the first one speaks.
_quiet = os.environ.get("RANK", "0") != "0"
out = Console(quiet=_quiet)
err = Console(stderr=True, quiet=_quiet)
