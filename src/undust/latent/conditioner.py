"""The conditioner: prompts and size ids to the conditioning of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from undust.adapters.offload import Offload
from undust.conditioning.text import TextConditioner
from undust.errors import UndustError
from undust.networks.conditioning import Conditioning


class Conditioner:
    """Text encoders whose states are concatenated, and Stable Diffusion XL's size conditioning.

    texts: by their names in a model folder; num_size_ids: number of size ids the network takes;
    force_zeros_for_empty_prompt: whether no prompt is encoded as zeros and not as the empty prompt;
    offload: moves each encoder to its device.
    """

    def __init__(
        self,
        texts: Mapping[str, TextConditioner],
        num_size_ids: int = 0,
        *,
        force_zeros_for_empty_prompt: bool = False,
        offload: Offload | None = None,
    ) -> None:
        self.texts, self.num_size_ids = dict(texts), num_size_ids
        self._force_zeros, self._offload = force_zeros_for_empty_prompt, offload or Offload(None)

    def token_count(self, prompt: str | None) -> int:
        """The number of tokens of a prompt, a multiple of the tokenizer's length."""
        first = next(iter(self.texts.values()))
        return first.token_count(prompt or "")

    def __call__(
        self, prompts: Sequence[str | None], size_ids: Sequence[float] = (), *, clip_skip: int = 0
    ) -> Conditioning:
        """The conditioning of B prompts, text [B, T, D]; None is no prompt.

        size_ids: the same for all; clip_skip: last layers of the text encoders to leave out. Raises
        UndustError for another number of size_ids than `num_size_ids`; as `TextConditioner`.
        """
        return self._conditioning(prompts, lambda own, texts: own(texts, clip_skip), size_ids)

    def captions(
        self, captions: Sequence[str | None], size_ids: Sequence[float] = ()
    ) -> Conditioning:
        """The conditioning of captions, without prompt syntax; None is a dropped caption."""
        return self._conditioning(captions, TextConditioner.captions, size_ids)

    def _conditioning(
        self,
        texts: Sequence[str | None],
        encode: Callable[[TextConditioner, Sequence[str]], tuple[Tensor, Tensor | None]],
        size_ids: Sequence[float],
    ) -> Conditioning:
        if len(size_ids) != self.num_size_ids:
            raise UndustError(
                f"the U-Net takes {self.num_size_ids} size ids; {len(size_ids)} were given"
            )
        strings = [text or "" for text in texts]
        encoded = [
            self._offload.run(own.encoder, partial(encode, own, strings))
            for own in self.texts.values()
        ]
        text, pooled = torch.cat([states for states, _ in encoded], -1), encoded[-1][1]
        if self._force_zeros:
            given = torch.tensor([each is not None for each in texts], device=text.device)
            text = torch.where(given[:, None, None], text, 0)
            pooled = None if pooled is None else torch.where(given[:, None], pooled, 0)
        ids = torch.tensor([[*size_ids]] * len(texts), device=text.device) if size_ids else None
        return Conditioning(len(texts), text, pooled, ids)
