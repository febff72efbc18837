"""How good encoders become: accuracy after training, by recipe, time and labels."""
