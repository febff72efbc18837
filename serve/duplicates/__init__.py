"""Near-duplicates among images, and between test and training images, by the cosine of their features."""
