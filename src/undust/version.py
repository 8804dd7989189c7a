"""The version of undust."""

__version__ = "0.2.0"
