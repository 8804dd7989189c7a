"""Prompts and captions to tensors."""
