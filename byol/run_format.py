"""What a run leaves behind and how it is read: the names of its files, the limits of its metrics. Torch-free."""

from __future__ import annotations

CONFIG, METRICS, LAST, VIEWS = "config.json", "metrics.jsonl", "last.safetensors", "views.png"
RESULT = "result.json"  # of a fine-tuning
TRAIN, FINETUNE = "train", "finetune"  # the commands that write one: `task` in config.json and in checkpoints

# Below the first and the third of these training is collapsing; a healthy std_ratio is between the second and 1.
COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO, COLLAPSED_RANK = 0.1, 0.5, 1.5
