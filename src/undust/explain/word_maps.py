"""Word maps: where in a picture the cross-attention to each word of its prompt is.

Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention". A word's map
is the attention probability of its tokens, summed over them and averaged over heads, layers and
steps, with every layer upsampled to the size of the latent. The paper has sums in place of means,
which differ by a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.conditioning.text import PromptWord

Layers = Literal["all", "finest"]
"""The layers that count: all, as in the paper, or those with the most pixels alone."""


def word_maps(
    attention: Mapping[str, Tensor],
    words: Sequence[PromptWord],
    size: tuple[int, int],
    layers: Layers = "all",
) -> Tensor:
    """The maps [W, H, W'] of the words in one network call, of that size, in float32.

    attention: the probabilities [h, w, T] of each layer, as `RecordedCall` has them for one entry.
    T may be a multiple of the prompt's tokens, if these are repeated as by `Conditioning.concat`. A
    value is a probability: what part of a pixel's attention the word has, the rest being that of
    other words, of the start and end tokens and the padding. Bicubic upsampling as in the authors'
    code; what it takes below 0 is 0. Without layers all is 0.
    """
    finest = max((own[..., 0].numel() for own in attention.values()), default=0)
    maps = [
        _upsampled(of_words(own, words), size)
        for own in attention.values()
        if layers == "all" or own[..., 0].numel() == finest
    ]
    return torch.stack(maps).mean(0) if maps else torch.zeros(len(words), *size)


def of_words(probabilities: Tensor, words: Iterable[PromptWord]) -> Tensor:
    """Probabilities [h, w, T] of tokens → those of words [W, h, w]."""
    own = [probabilities[..., list(word.places)].sum(-1) for word in words]
    return torch.stack(own)


def unrepeated(probabilities: Tensor, tokens: int) -> Tensor:
    """Probabilities [..., k·T] of tokens that are repeated k times → [..., T]."""
    return probabilities.unflatten(-1, (-1, tokens)).sum(-2)


def attention_shares(maps: Tensor) -> Tensor:
    """Of all attention to the words, the share of each word's map [W, h, w] → [W], of sum 1.

    Attention to the start token, the end and the padding, which is most of it, does not count. 0
    for all where there is no attention to any word.
    """
    total = maps.sum((1, 2))
    return total / total.sum().clamp_min(torch.finfo(total.dtype).tiny)


def centres_of_mass(maps: Tensor) -> Tensor:
    """The centre of mass of each map [W, h, w] above its minimum → (x, y) [W, 2], in 0 … 1.

    From the left and from the top, pixels in their middle; the middle for a map of one value.
    """
    height, width = maps.shape[1:]
    above = maps - maps.amin((1, 2), keepdim=True)
    mass = above.sum((1, 2))
    x = (above.sum(1) * ((torch.arange(width) + 0.5) / width)).sum(1)
    y = (above.sum(2) * ((torch.arange(height) + 0.5) / height)).sum(1)
    found = torch.stack([x, y], 1) / mass[:, None]
    return torch.where(mass[:, None] > 0, found, 0.5)


def auc(map_: Tensor, acts: Tensor) -> float:
    """The area under the ROC curve of a map [h, w] for the cells that act, bool [h, w].

    It is the share of pairs of cells, one that acts and one that does not, in the right order.
    """
    high, low = map_[acts][:, None], map_[~acts][None]
    return ((high > low).double() + 0.5 * (high == low)).mean().item()


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[None], size, mode="bicubic", align_corners=False)[0].clamp_min(0)
