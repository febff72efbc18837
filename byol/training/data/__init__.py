"""From images to the batches of a step, and their two views."""
