"""Adapters of networks that the networks do not depend on, and their placement on devices."""
