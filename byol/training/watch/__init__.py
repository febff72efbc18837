"""What is watched while a run goes on: kNN accuracy, the signs of collapse, progress for people."""
