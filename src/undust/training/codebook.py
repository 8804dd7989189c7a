"""The training of a codebook: by gradient or by moving averages, with dead codes revived."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from undust.networks.vq import Codebook
from undust.training.configs import Config
from undust.training.data import Batch, RandomStream

EPS = 1e-5  # of a code's weight in the moving average
COLLAPSED = 0.1  # share of codes in use


class CodebookConfig(Config):
    """The training of the codebook of a VQ first stage."""

    update: Literal["gradient", "ema"] = Field(
        default="gradient",
        description="codes follow a gradient, or the moving average of their latents",
    )
    decay: float = Field(
        default=0.99, ge=0, lt=1, description="of the moving averages of codes and of their use"
    )
    revive_after: int = Field(
        default=100,
        ge=0,
        description="steps without use after which a code is moved to a latent of the batch, at "
        "the start too; 0: never",
    )


class CodebookTraining(nn.Module):
    """Statistics of a codebook, and its changes beside those by gradient.

    All of it is in buffers, which are part of a checkpoint and not of the published model. uses
    [K]: moving average of the latent pixels for which a code was the nearest, per batch; idle [K]:
    steps since it was. With `update = "ema"` the codes are a buffer too.
    """

    uses: Tensor
    idle: Tensor
    weights: Tensor
    sums: Tensor

    def __init__(self, config: CodebookConfig, codebook: Codebook) -> None:
        super().__init__()
        self.config = config
        self._codebook = [codebook]  # a list, so that it is not a part of this module
        codes = codebook.embedding.weight.detach()
        self.register_buffer("uses", torch.zeros(len(codes)))
        self.register_buffer("idle", torch.full((len(codes),), config.revive_after))
        if config.update == "ema":
            self.register_buffer("weights", torch.ones(len(codes)))
            self.register_buffer("sums", codes.clone())
            del codebook.embedding.weight
            codebook.embedding.register_buffer("weight", codes)

    @property
    def codes(self) -> Tensor:
        """The codes [K,C], without gradient."""
        return self._codebook[0].embedding.weight.detach()

    @torch.no_grad()
    def revive(self, z: Tensor, batch: Batch) -> None:
        """Moves codes without use to latents of the batch [B,C,h,w], drawn without replacement."""
        after = self.config.revive_after
        dead = (self.idle >= after).nonzero()[:, 0] if after else self.idle[:0]
        latents = _rows(z)
        dead = dead[: len(latents)]
        if not len(dead):
            return
        chances = batch.uniform(RandomStream.REVIVAL, math.prod(z.shape[2:]))
        drawn = latents[chances.flatten().argsort()[: len(dead)].to(latents.device)]
        self.codes[dead] = drawn
        self.idle[dead] = 0
        if self.config.update == "ema":
            self.weights[dead], self.sums[dead] = 1.0, drawn

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor) -> None:
        """Counts the nearest codes [B,h,w] of latents [B,C,h,w]; with "ema" the codes follow.

        A code is the average of its latents (van den Oord et al. 2017, appendix A.1), with weights
        that are smoothed so that none is zero.
        """
        index, keep = index.flatten(), self.config.decay
        counts = torch.bincount(index, minlength=len(self.uses)).to(self.uses)
        self.uses.lerp_(counts, 1 - keep)
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        if self.config.update == "ema":
            self.weights.lerp_(counts, 1 - keep)
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, index, _rows(z)), 1 - keep)
            total = self.weights.sum()
            smooth = (self.weights + EPS) * total / (total + EPS * len(self.weights))
            self.codes.copy_(self.sums / smooth[:, None])

    def figures(self) -> dict[str, Tensor]:
        """The share of codes in use, and the perplexity of their use: K if all are used equally."""
        shares = self.uses / self.uses.sum().clamp(min=1e-20)
        used = self.uses > (1 - self.config.decay) / math.e  # once in the time of the average
        return {
            "codes_in_use": used.float().mean(),
            "perplexity": torch.special.entr(shares).sum().exp(),
        }


def collapsed(codes_in_use: float) -> str:
    """A line for people on a codebook of which little is used, else ""."""
    if codes_in_use >= COLLAPSED:
        return ""
    return (
        f"the codebook has collapsed: {codes_in_use:.1%} of its codes are in use; "
        "codebook.revive_after = 100 moves the others, or choose fewer (vq.num_vq_embeddings)"
    )


def _rows(z: Tensor) -> Tensor:
    """Latents [B,C,h,w] → [B·h·w, C], float32."""
    return z.detach().float().movedim(1, -1).reshape(-1, z.shape[1])
