"""Files: written whole or not at all, locked, and read with the care that strangers' files need."""
