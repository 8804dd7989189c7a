"""Textual inversion files: the vectors that replace a word in a prompt (Gal et al. 2022)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from undust.errors import UndustError, printable
from undust.formats import safetensors_file
from undust.formats.folder import summarize_names
from undust.formats.lora.names import split

MAX_VECTORS = 75  # tokens that CLIP takes of a prompt
MAX_WIDTH = 8192  # of a vector; 1280 in CLIP's largest text encoders
# Keys without the word → the text encoder that they are for; "" for any.
ENCODERS = {
    "emb_params": "",  # AUTOMATIC1111's
    "emp_params": "",  # OneTrainer's
    "string_to_param.*": "",
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "text_encoders_0": "clip_l",  # of pivotal tuning
    "text_encoders_1": "clip_g",
}
# The text encoder's name in a model folder → in a file.
PARTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
# Such a key, also of words bundled with a LoRA.
BARE_KEY = re.compile(
    rf"(?:bundle_emb\.(?P<word>.+)\.)?(?P<key>{'|'.join(map(re.escape, ENCODERS))})(?P<out>_out)?"
)
NOTES = re.compile(r"step|name|sd_checkpoint(_name)?|string_to_token\..*")


def words(path: Path) -> list[str]:
    """The words in a file, "" for one without a name; errors as for `load`."""
    return list(_places(path))


def load(path: Path, word: str = "") -> dict[str, Tensor]:
    """The vectors of a word by text encoder, float32 [n, D] with n from 1 to 75.

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
            f"{path} has {several}, not '{printable(word)}'; name one of them, "
            f"such as {printable(path.name)}={printable(min(known))}"
        )
    [places] = [known[word]] if word in known else known.values()
    tensors = safetensors_file.load(path)
    vectors = {
        encoder: tensors[key].reshape(_matrix(tensors[key].shape)).float()
        for encoder, key in places.items()
    }
    if not all(t.isfinite().all() for t in vectors.values()):
        raise UndustError(f"{path} is damaged: it holds NaN or infinity")
    counts = {name: len(t) for name, t in vectors.items()}
    if len(set(counts.values())) > 1:
        stated = " and ".join(f"{count} vectors for {name}" for name, count in counts.items())
        raise UndustError(f"{path} is damaged: {stated}; the numbers have to be equal")
    return vectors


def save(path: Path, word: str, vectors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the vectors [n, D] of a word, by the names of the text encoders in a model folder.

    Of one text encoder under the word, as diffusers does; of SDXL's as "clip_l" and "clip_g".
    """
    named = (
        {word: vectors["text_encoder"]}
        if [*vectors] == ["text_encoder"]
        else {PARTS[name]: own for name, own in vectors.items()}
    )
    safetensors_file.save(path, named, {"format": "pt", **metadata})


def _places(path: Path) -> dict[str, dict[str, str]]:
    """Each word of a file → the text encoder → the key of its vectors, which are checked."""
    entries = safetensors_file.header(path).tensors
    known = _words(path, entries.keys())
    widths: defaultdict[str, set[int]] = defaultdict(set)
    for encoder, key in (each for places in known.values() for each in places.items()):
        entry = entries[key]
        rows, width = _matrix(entry.shape)
        if not (1 <= rows <= MAX_VECTORS and 1 <= width <= MAX_WIDTH):
            raise UndustError(
                f"{path} is not a textual inversion: {printable(key)} is {list(entry.shape)}, "
                f"not 1 to {MAX_VECTORS} vectors of at most {MAX_WIDTH:,} numbers"
            )
        if not entry.dtype.is_floating_point:
            raise UndustError(f"{path}: {printable(key)} holds {entry.dtype}, not vectors")
        widths[encoder].add(width)
    if any(len(found) > 1 for found in widths.values()):
        raise UndustError(f"{path} is not a textual inversion: its vectors differ in width")
    return known


def _words(path: Path, keys: Collection[str]) -> dict[str, dict[str, str]]:
    """As `_places`, by the keys alone, unchecked."""
    known: defaultdict[str, dict[str, str]] = defaultdict(dict)
    strange: list[str] = []
    for key in sorted(keys):
        place = BARE_KEY.fullmatch(key)
        if place is None:
            strange.append(key)
            continue
        if place["out"]:
            raise UndustError(
                f"{path}: {printable(key)} was trained at the text encoder's output, "
                "which is not supported; at its input is"
            )
        own, encoder = known[place["word"] or ""], ENCODERS[place["key"]]
        if encoder in own or (own and "" in (encoder, *own)):
            other = min(own.values())
            raise UndustError(
                f"{path}: {printable(key)} and {printable(other)} are for the same word"
            )
        own[encoder] = key
    bundled = any(split(key)[1] for key in strange)
    if strange and not known and not bundled:
        return {key: {"": key} for key in strange}
    left = [key for key in strange if not NOTES.fullmatch(key)]
    if not known or (left and not bundled):
        [held] = summarize_names("tensors", left) or ["no tensors"]
        beside = " beside a word's vectors" if known else ""
        raise UndustError(f"{path} is not a textual inversion: it holds {held}{beside}")
    return known


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """[n, D] of [n, D], [D] or [1, …, n, D]; (0, 0) of any other shape."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    rows, width = (1, *shape) if len(shape) == 1 else shape if len(shape) == 2 else (0, 0)
    return rows, width
