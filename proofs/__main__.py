"""`python -m minibeft.proofs` is `minibeft prove`."""

import sys

from minibeft.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "prove")
    main()
