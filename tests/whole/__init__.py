"""The whole product: real processes, killed, cut off, and used wrongly."""
