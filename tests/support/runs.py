"""Runs for tests. Needs torch."""

from byol.training import job
from byol.training.recipes.settings import Job


def run_training(settings, images, out, val_data=None, resume=False, tensorboard=False, export_check=False):
    """Train as the command does, with these settings."""
    job.run_training(Job(images, out, val_data, resume, tensorboard, export_check), settings)
