"""Captions by finished text encoders: each is encoded once and kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undust.conditioning.text import TextConditioner, joined

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
