"""Checks that are run by `make`, not by pytest."""
