"""`make fuzz`: minutes of hostile input for everything that reads a stranger's file."""
