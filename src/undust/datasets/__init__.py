"""Data sets on the disk: the folder convention that training reads, and builders that write it."""
