"""`python -m calotype.cli`."""

from . import main

main()
