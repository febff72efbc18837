"""Settings that fit: presets, what the images and the machine call for, and how long it takes."""
