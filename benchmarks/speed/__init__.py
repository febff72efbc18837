"""How fast, in how much memory: training, inference and each serving command, beside peers."""
