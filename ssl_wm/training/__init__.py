"""Training: the one loop, checkpoints, self-supervised objectives and pretraining."""
