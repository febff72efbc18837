"""One encoded picture to upright RGB pixels, whatever a stranger wrote into it."""
