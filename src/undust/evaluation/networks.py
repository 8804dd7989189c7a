"""The networks that figures depend on, and the features of a set of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.evaluation.distributions import (
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from undust.evaluation.figure import Figure, with_features
from undust.evaluation.pictures import PictureSet
from undust.formats.feature_networks import (
    PACKAGES,
    installed,
    load_features,
    load_heads,
)
from undust.formats.locate import find_network
from undust.formats.vision_transformers import load_clip_text
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.perceptual import PerceptualDistance

SETS, PERCEPTUAL = "efficientnet-lite0", "vgg16"  # the default networks
DEFAULTS = {SETS: "distances of sets", PERCEPTUAL: "the perceptual distance"}
AT_ONCE = 4 * 224**2  # pixels; more make a CPU wait for memory: 75 ms a picture instead of 46


class FeatureSet:
    """The features of pictures that are added batch by batch.

    classes: whether the probabilities of classes are kept too, which is a second pass.
    """

    def __init__(self, network: FeatureNetwork, *, classes: bool = False) -> None:
        self.network, self.classes = network, classes
        self._pooled: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    @torch.inference_mode()
    def add(self, x: Tensor) -> None:
        """Adds pictures [B,3,H,W] in [-1,1]."""
        side = self.network.side or max(x.shape[-2:])
        for part in x.split(max(1, AT_ONCE // side**2)):
            part = part.to(_device(self.network))
            self._pooled.append(self.network.pooled(part).float().cpu())
            if self.classes:
                self._probabilities.append(self.network.probabilities(part).float().cpu())

    @property
    def pooled(self) -> Tensor:
        """Their features [N,D]."""
        return torch.cat(self._pooled)

    @property
    def probabilities(self) -> Tensor:
        """Their classes' probabilities [N,K]."""
        return torch.cat(self._probabilities)


def set_figures(
    real: FeatureSet, generated: FeatureSet, pictures: PictureSet, seed: int | None
) -> list[Figure]:
    """Figures of generated pictures against real ones, by the features of both.

    pictures: the real ones. Precision and recall are left out for fewer than four pictures.
    """
    network = generated.network
    x, y = real.pooled, generated.pooled

    def figure(
        quantity: str,
        value: float,
        error: float | None = None,
        *,
        unit: str = "",
        own: bool = False,
    ) -> Figure:
        return Figure.model_validate(
            {
                **with_features(quantity, network),
                "value": value,
                "error": error,
                "unit": unit,
                "count": len(y),
                "of": "generated pictures",
                "references": None if own else len(x),
                "among": pictures.of,
                "size": pictures.size,
                "seed": seed,
            }
        )

    found = [
        figure("Fréchet distance", frechet_distance(x, y)),
        figure("kernel distance", *kernel_distance(x, y)),
    ]
    if min(len(x), len(y)) > 3:
        both = precision_recall(x, y)
        found.append(figure("precision", both.precision, unit="%"))
        found.append(figure("recall", both.recall, unit="%"))
    if generated.classes:
        score = classifier_score(generated.probabilities)
        found.append(figure("classifier score", score, own=True))
    return found


class ClipScore:
    """100 · max(cos, 0) of CLIP's embeddings of a picture and its caption (Hessel et al. 2021)."""

    def __init__(self, folder: Path) -> None:
        """Raises UndustError for a folder that is not a CLIP with both parts."""
        self.vision, self.texts = load_features(str(folder)), load_clip_text(folder)

    @torch.inference_mode()
    def __call__(self, x: Tensor, captions: Sequence[str]) -> Tensor:
        """Pictures [B,3,H,W] in [-1,1] and their captions → [B]."""
        pictures = self.vision.pooled(x.to(_device(self.vision)))
        _, words = self.texts.captions(captions)
        if words is None:
            raise UndustError("the text encoder has no projection to CLIP's space")
        return 100 * F.cosine_similarity(pictures, words).clamp_min(0).cpu()


@dataclass(frozen=True)
class FigureNetworks:
    """Those that an evaluation uses; a figure without its network is left out.

    features: of distances of sets; perceptual: between a picture and its reconstruction; clip: of
    the CLIP score. notes: for people, on figures that are left out.
    """

    features: FeatureNetwork | None = None
    perceptual: PerceptualDistance | None = None
    clip: ClipScore | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        features: str | None = None,
        perceptual: str | None = None,
        heads: str | None = None,
        clip: str | None = None,
    ) -> Self:
        """By names or paths as for `load_features`; None: as installed, "none": left out.

        heads: a file of the package lpips; clip: a folder; both may be on the hub. Raises
        UndustError for what does not exist, and for heads without the network that they belong to.
        """
        if heads and perceptual in (None, "none"):
            raise UndustError("heads: name their network too, such as torchvision's VGG16 by path")
        network, trunk = _named(features, SETS), _named(perceptual, PERCEPTUAL)
        missing = [
            default
            for name, default in ((features, SETS), (perceptual, PERCEPTUAL))
            if name is None and not installed(default)
        ]
        weights = load_heads(heads) if heads else None
        return cls(
            network,
            PerceptualDistance(trunk, weights) if trunk else None,
            ClipScore(find_network(clip)) if clip else None,
            _notes(missing),
        )

    def to(self, device: torch.device) -> Self:
        """Moves all of them to a device."""
        parts = [self.features, self.perceptual]
        if self.clip:
            parts += [self.clip.vision, self.clip.texts.encoder]
        for part in parts:
            if part is not None:
                part.to(device)
        return self


def _named(name: str | None, default: str) -> FeatureNetwork | None:
    """The network of that name or path, or the default one if it is installed."""
    if name == "none" or (name is None and not installed(default)):
        return None
    return load_features(name or default)


def _notes(missing: Sequence[str]) -> tuple[str, ...]:
    """A line on the figures that are left out for want of default networks."""
    if not missing:
        return ()
    left_out = " and ".join(f"{DEFAULTS[name]} (needs {name})" for name in missing)
    # Installing VGG16 installs the other network too.
    return (f"left out: {left_out}; to install: {PACKAGES[missing[-1]].install}",)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters(), torch.empty(0)).device
