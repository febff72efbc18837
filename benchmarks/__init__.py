"""Measurements behind every performance claim, see README.md here."""
