"""Images behind URLs, through fsspec. Needs the `remote` extra."""
