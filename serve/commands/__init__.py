"""The commands that need no torch, one file each. Heavy imports wait until a command runs."""
