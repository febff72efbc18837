"""What survives: kills, faults, long runs, and strangers' encoders."""
