"""The report on a training run: one HTML page that needs nothing else."""
