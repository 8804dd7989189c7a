"""Files of a word that was learnt: the vectors that stand for it in a prompt (Gal et al. 2022)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from undust.errors import UndustError, shown
from undust.formats import safetensors_file

MOST = 75  # vectors: as many tokens as CLIP reads of a prompt
WIDEST = 8192  # numbers in a vector; CLIP's largest text encoders have 1280
ENCODERS = ("clip_l", "clip_g")


def load(path: Path) -> dict[str, Tensor]:
    """The vectors in a file, float32 [n, D] with n from 1 to 75, by whom they are for.

    "clip_l" is for the `text_encoder` of SDXL and "clip_g" for its `text_encoder_2` (the refiner's
    only one); they have as many vectors, since their states stand side by side. "" is what the file
    does not say: for whichever encoder is D wide. Read are AUTOMATIC1111's `emb_params`, diffusers'
    one tensor under the word's own name, either also as one vector [D], and both of SDXL.
    The word is not in the result: it is what the file is called. Raises UndustError for anything
    else, and for numbers that are not finite.
    """
    entries = safetensors_file.header(path).tensors
    if len(entries) != 1 and entries.keys() != set(ENCODERS):
        names = ", ".join(shown(name) for name in sorted(entries)[:3])
        raise UndustError(
            f"{path} is no textual inversion: it holds {len(entries)} tensors ({names}), "
            f"not one, nor {' and '.join(ENCODERS)}"
        )
    for name, entry in entries.items():
        shape = entry.shape if len(entry.shape) > 1 else (1, *entry.shape)
        if len(shape) != 2 or not (1 <= shape[0] <= MOST and 1 <= shape[1] <= WIDEST):
            raise UndustError(
                f"{path} is no textual inversion: {shown(name)} is {list(entry.shape)}, "
                f"not 1 to {MOST} vectors of at most {WIDEST:,} numbers"
            )
        if not entry.dtype.is_floating_point:
            raise UndustError(f"{path}: {shown(name)} holds {entry.dtype}, not vectors")
    vectors = {
        name if name in ENCODERS else "": (t if t.ndim == 2 else t[None]).float()
        for name, t in safetensors_file.load(path).items()
    }
    if not all(t.isfinite().all() for t in vectors.values()):
        raise UndustError(f"{path} is damaged: not all of its numbers are finite")
    counts = {name: len(t) for name, t in vectors.items()}
    if len(set(counts.values())) > 1:
        stated = " and ".join(f"{count} vectors for {name}" for name, count in counts.items())
        raise UndustError(f"{path} is damaged: {stated}; they have to be as many")
    return vectors
