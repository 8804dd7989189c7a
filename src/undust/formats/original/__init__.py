"""Checkpoints in one file, under the names of the original code.

`keys` says what each of our tensors is called there, `infer` what the networks must be like for
their tensors to have the shapes they have, `variants` which model that makes, and `checkpoint`
reads and writes the file.
"""
