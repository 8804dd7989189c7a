"""The tokenizer of OpenAI's CLIP (Radford et al. 2021), used by every Stable Diffusion.

Single-file checkpoints do not contain it. Its merges are in `data`, with their licence.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from undust.conditioning.tokenizer import END, START, WORD_END, Tokenizer, alphabet

MERGES = Path(__file__).parent / "data" / "clip_merges.txt.gz"
LENGTH = 77


@cache
def clip(padding: str = END) -> Tokenizer:
    """49,408 entries: every byte, every byte at a word's end, every merge, and two special tokens.

    padding: the end token, or "!" (id 0) for OpenCLIP.
    """
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        _version, *lines = file.read().splitlines()
    pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
    letters = alphabet()
    pieces = [*letters, *(letter + WORD_END for letter in letters)]
    pieces += [left + right for left, right in pairs]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, START, END])}
    return Tokenizer(vocabulary, pairs, LENGTH, padding)
