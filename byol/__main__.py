"""`python -m byol` is the `byol` command."""

from byol.cli import main

main()
