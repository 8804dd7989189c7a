"""Measurements of samplers and schedules on a model, and pictures of tables."""
