"""Files of every kind: written whole or not at all, locked, and opened as what a stranger may have made of them."""
