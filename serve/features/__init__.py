"""Features files: written whole, read strictly."""
