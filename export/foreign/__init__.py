"""Encoders that other toolkits trained: found in their files, nothing guessed."""
