"""Everything that waits for a GPU, in three calls of some minutes: see README.md here."""
