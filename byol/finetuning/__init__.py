"""Fine-tuning of a trained encoder on a few labels. Needs the `train` extra."""
