"""Training: data, losses, one loop, checkpoints."""
