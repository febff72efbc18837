"""The bundle: the folder that export writes and serving reads. Torch-free."""
