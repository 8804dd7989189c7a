"""What other programs write into pictures: the texts of a file, and a reader per program."""
