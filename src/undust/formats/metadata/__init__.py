"""Metadata that other programs write into pictures: the texts of a file, a reader per program."""
