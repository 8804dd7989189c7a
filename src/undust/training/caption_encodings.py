"""Captions by finished text encoders: each is encoded once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from undust.conditioning.text import TextConditioner, joined
from undust.datasets.encoded import remaking
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.training.data import Observe

FILES = "captions-*.safetensors"
SHARD = 1024  # captions in a file
MEMORY = 4 << 30  # bytes of encoded captions that are kept


class CaptionEncodings:
    """The encoded captions of a run, kept in memory as far as they fit.

    A caption is encoded alone and in float32, so that its numbers depend neither on the batch in
    which it is first drawn nor on the precision of the run.
    """

    def __init__(self, texts: Sequence[TextConditioner], memory: int = MEMORY) -> None:
        """texts: text encoders that are not trained; memory: bytes to use at most."""
        self._texts, self._free = tuple(texts), memory
        self._kept: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, captions: Sequence[str | None]) -> tuple[Tensor, Tensor | None]:
        """The states [B,T,D] and pooled state [B,P] of captions; None is encoded as ""."""
        rows = [self._encoded(caption or "") for caption in captions]
        pooled = [each for _, each in rows if each is not None]
        return torch.cat([states for states, _ in rows]), torch.cat(pooled) if pooled else None

    @cached_property
    def digest(self) -> str:
        """A hash of the text encoders' weights, tokenizers and choice of states."""
        found = hashlib.sha256()
        for text in self._texts:
            words = sorted(text.tokenizer.numbers.items()), text.tokenizer.length
            found.update(json.dumps([words, text.penultimate, text.pooled]).encode())
            for name, tensor in sorted(text.encoder.state_dict().items()):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def write(self, folder: Path, captions: Sequence[str], observe: Observe) -> list[str]:
        """Writes encoded captions to files of a folder; those there of the same captions stay.

        observe: called with the number of captions done and of all. A line for each damaged file.
        """
        notes: list[str] = []
        earlier = {*folder.glob(FILES)}
        for number, start in enumerate(range(0, len(captions), SHARD)):
            part = captions[start : start + SHARD]
            path = folder / f"captions-{number:05}.safetensors"
            earlier.discard(path)
            metadata = {"text_encoders": self.digest, "captions": json.dumps(part)}
            try:
                whole = path.is_file() and _metadata(path) == metadata
            except UndustError as error:
                whole = False
                notes.append(f"captions were encoded again: {error}")
            if not whole:
                text, pooled = self(part)
                tensors = {"text": text} if pooled is None else {"text": text, "pooled": pooled}
                safetensors_file.save(path, tensors, metadata)
            observe(start + len(part), len(captions))
        for path in earlier:  # of more captions, perhaps by another text encoder
            path.unlink()
        return notes

    def read(self, folder: Path) -> None:
        """Uses the files that `write` has left in a folder.

        Raises UndustError for those of other text encoders, and for damaged ones.
        """
        for path in sorted(folder.glob(FILES)):
            with remaking():
                metadata = _metadata(path)
            if metadata.get("text_encoders") != self.digest:
                raise UndustError(
                    f"{path} was encoded with another text encoder: undust data encode encodes "
                    "the captions with this recipe"
                )
            with remaking():
                tensors = safetensors_file.load(path)
            try:
                captions = TypeAdapter(list[str]).validate_json(metadata.get("captions", ""))
                states, own = tensors["text"].split(1), tensors.get("pooled")
                pooled = [None] * len(captions) if own is None else own.split(1)
                rows = zip(states, pooled, strict=True)
                self._kept |= dict(zip(captions, rows, strict=True))
            except (ValueError, KeyError) as error:
                raise UndustError(f"{path} is damaged: remove it, and encode again") from error

    def _encoded(self, caption: str) -> tuple[Tensor, Tensor | None]:
        if caption in self._kept:
            return self._kept[caption]
        device = next(self._texts[0].encoder.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            found = joined([text.captions([caption]) for text in self._texts])
        size = sum(each.nbytes for each in found if each is not None)
        if size <= self._free:
            self._free -= size
            self._kept[caption] = found
        return found


def _metadata(path: Path) -> dict[str, str]:
    return safetensors_file.header(path).metadata
