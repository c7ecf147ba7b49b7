"""`python -m minibeft` is the console script `minibeft`."""

from minibeft.cli.main import main

main()
