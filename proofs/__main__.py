"""`python -m minibeft.proofs` is `minibeft prove`."""

import sys

import typer

from minibeft.errors import BadInput
from minibeft.prove import prove

if __name__ == "__main__":
    try:
        typer.run(prove)
    except BadInput as error:
        print(f"minibeft: {error}", file=sys.stderr)
        sys.exit(2)
