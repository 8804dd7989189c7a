"""Measurements of samplers and schedules on a model."""
