"""The first stage of models that work on pixels: none."""

from __future__ import annotations

from torch import Tensor

from undust.networks.base import DiagonalGaussian, FirstStageNetwork


class IdentityFirstStage(FirstStageNetwork):
    """Pictures as their own latents, for diffusion in pixel space (Ho et al. 2020).

    It has no weights and no folder: a model without a first stage has this one.
    """

    def __init__(self, channels: int = 3, size: tuple[int, int] = (64, 64)) -> None:
        """channels: of the pictures; size: width and height that the model was trained on."""
        super().__init__()
        self._channels, self._size = channels, size

    @property
    def image_channels(self) -> int:
        """The channels of the pictures."""
        return self._channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the pictures that the model was trained on."""
        return self._size

    @property
    def latent_channels(self) -> int:
        """The channels of the pictures."""
        return self._channels

    @property
    def downsampling_factor(self) -> int:
        """1."""
        return 1

    def encode(self, x: Tensor, *, streamed: bool = False) -> DiagonalGaussian:  # noqa: ARG002
        """Pictures [B,C,H,W] → themselves, without noise."""
        return DiagonalGaussian(x, x.new_full(x.shape, -float("inf")))

    def decode(self, z: Tensor, *, streamed: bool = False) -> Tensor:  # noqa: ARG002
        """Pictures [B,C,H,W] → themselves."""
        return z
