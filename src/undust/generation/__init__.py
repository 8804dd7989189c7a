"""A recipe goes in, steps and pictures come out."""
