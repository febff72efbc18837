"""BYOL training: from images to a run folder. Needs the `train` extra."""
