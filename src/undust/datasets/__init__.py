"""Data sets on disk: pictures and films with captions, in folders, tars and Parquet."""
