"""Images and their labels, from wherever they lie to RGB pixels. Torch-free; training and serving stand on it."""
