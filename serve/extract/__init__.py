"""Extraction: images through an encoder, by one process, several, or a Ray cluster."""
