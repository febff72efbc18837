"""The documentation, run as it stands."""
