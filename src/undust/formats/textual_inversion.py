"""Files of learnt words: the vectors that stand for them in a prompt (Gal et al. 2022)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from undust.errors import UndustError, printable
from undust.formats import safetensors_file
from undust.formats.folder import summarize_names
from undust.formats.lora.names import split

MOST = 75  # vectors: as many tokens as CLIP reads of a prompt
WIDEST = 8192  # numbers in a vector; CLIP's largest text encoders have 1280
# A key that does not say the word → the text encoder that it is for, "" if it does not say that.
ENCODERS = {
    "emb_params": "",  # AUTOMATIC1111's
    "emp_params": "",  # OneTrainer's
    "string_to_param.*": "",
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "text_encoders_0": "clip_l",  # of pivotal tuning
    "text_encoders_1": "clip_g",
}
# Such a key, perhaps of one of the words that are bundled with a LoRA.
PLACE = re.compile(
    rf"(?:bundle_emb\.(?P<word>.+)\.)?(?P<key>{'|'.join(map(re.escape, ENCODERS))})(?P<out>_out)?"
)
NOTES = re.compile(r"step|name|sd_checkpoint(_name)?|string_to_token\..*")


def words(path: Path) -> list[str]:
    """The words in a file, "" for one that it does not name; errors as those of `load`."""
    return list(_places(path))


def load(path: Path, word: str = "") -> dict[str, Tensor]:
    """The vectors of a word, float32 [n, D] with n from 1 to 75, by whom they are for.

    "clip_l" is for the `text_encoder` of SDXL and "clip_g" for its `text_encoder_2` (the refiner's
    only one); they have as many vectors, since their states stand side by side. "" is what the file
    does not say: for whichever encoder is D wide. Read are the keys of `ENCODERS`, alone or beside
    a LoRA, and tensors under the words' own names, as diffusers writes them; [n, D], [D] and
    [1, n, D]. The only word of a file may be called anything; of several, `word` says which. Raises
    UndustError for anything else, and for numbers that are not finite.
    """
    known = _places(path)
    if word not in known and len(known) > 1:
        [several] = summarize_names("words", known)
        raise UndustError(
            f"{path} holds {several}, and not '{printable(word)}'; name one of them, "
            f"such as {printable(path.name)}={printable(min(known))}"
        )
    [places] = [known[word]] if word in known else known.values()
    tensors = safetensors_file.load(path)
    vectors = {
        encoder: tensors[key].reshape(_matrix(tensors[key].shape)).float()
        for encoder, key in places.items()
    }
    if not all(t.isfinite().all() for t in vectors.values()):
        raise UndustError(f"{path} is damaged: not all of its numbers are finite")
    counts = {name: len(t) for name, t in vectors.items()}
    if len(set(counts.values())) > 1:
        stated = " and ".join(f"{count} vectors for {name}" for name, count in counts.items())
        raise UndustError(f"{path} is damaged: {stated}; they have to be as many")
    return vectors


def _places(path: Path) -> dict[str, dict[str, str]]:
    """Every word of a file → whom its vectors are for → their key, where there are vectors."""
    entries = safetensors_file.header(path).tensors
    known = _words(path, entries.keys())
    widths: defaultdict[str, set[int]] = defaultdict(set)
    for encoder, key in (each for places in known.values() for each in places.items()):
        entry = entries[key]
        rows, width = _matrix(entry.shape)
        if not (1 <= rows <= MOST and 1 <= width <= WIDEST):
            raise UndustError(
                f"{path} is no textual inversion: {printable(key)} is {list(entry.shape)}, "
                f"not 1 to {MOST} vectors of at most {WIDEST:,} numbers"
            )
        if not entry.dtype.is_floating_point:
            raise UndustError(f"{path}: {printable(key)} holds {entry.dtype}, not vectors")
        widths[encoder].add(width)
    if any(len(found) > 1 for found in widths.values()):
        raise UndustError(f"{path} is no textual inversion: its vectors differ in width")
    return known


def _words(path: Path, keys: Collection[str]) -> dict[str, dict[str, str]]:
    """As `_places`, by the keys alone; "" is a word without a name."""
    known: defaultdict[str, dict[str, str]] = defaultdict(dict)
    strange: list[str] = []
    for key in sorted(keys):
        place = PLACE.fullmatch(key)
        if place is None:
            strange.append(key)
            continue
        if place["out"]:
            raise UndustError(
                f"{path}: {printable(key)} was learnt at the text encoder's output, "
                "which is not supported; at its input is"
            )
        own, encoder = known[place["word"] or ""], ENCODERS[place["key"]]
        if encoder in own or (own and "" in (encoder, *own)):
            other = min(own.values())
            raise UndustError(
                f"{path}: {printable(key)} and {printable(other)} are of the same word"
            )
        own[encoder] = key
    bundled = any(split(key)[1] for key in strange)
    if strange and not known and not bundled:
        return {key: {"": key} for key in strange}
    left = [key for key in strange if not NOTES.fullmatch(key)]
    if not known or (left and not bundled):
        [held] = summarize_names("tensors", left) or ["no tensors"]
        beside = " beside a word's vectors" if known else ""
        raise UndustError(f"{path} is no textual inversion: it holds {held}{beside}")
    return known


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """[n, D] of [n, D], [D] or [1, …, n, D]; (0, 0) of any other shape."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    rows, width = (1, *shape) if len(shape) == 1 else shape if len(shape) == 2 else (0, 0)
    return rows, width
