"""Data sets on disk: folders of pictures with captions, and the builder of an example."""
