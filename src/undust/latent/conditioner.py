"""The conditioner: prompts and the other inputs of a picture to the conditioning of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from undust.adapters.offload import Offload
from undust.conditioning.maps import MapKind
from undust.conditioning.text import TextConditioner, joined
from undust.errors import UndustError
from undust.formats.components import Components
from undust.latent.references import image_of
from undust.networks.conditioning import Conditioning
from undust.recipe.files import ImageRef
from undust.recipe.inputs import SizeConditioning


@dataclass(frozen=True)
class ConditionInputs:
    """The inputs of a batch of pictures.

    prompts: None for no prompt; fields: the other inputs, by the names of a recipe's fields, one
    entry for each picture; negative: whether this is the condition that guidance leads away from;
    captions: whether the prompts are captions, without prompt syntax; encoded: the states [B, T, D]
    and pooled state [B, P] of the prompts, None encoded as "", if they are known.
    """

    prompts: Sequence[str | None]
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    negative: bool = False
    captions: bool = False
    encoded: tuple[Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def shared(self, name: str) -> Any:
        """A field that all pictures of a batch share; None if it is not given."""
        return self.fields[name][0] if self.fields.get(name) else None


class Embedder(ABC):
    """One kind of condition.

    inputs: the fields of a recipe that it reads beside the prompt.
    """

    inputs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def of(cls, model: Components, offload: Offload) -> Self | None:
        """The embedder of a model, or None if its denoiser takes no such condition."""

    @abstractmethod
    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """Its fields of the conditioning."""


class TextEmbedder(Embedder):
    """Text encoders whose states are concatenated."""

    inputs = ("clip_skip",)

    def __init__(
        self, texts: Sequence[TextConditioner], offload: Offload, *, force_zeros: bool = False
    ) -> None:
        """force_zeros: whether no prompt is encoded as zeros and not as the empty prompt."""
        self.texts, self._offload, self._force_zeros = tuple(texts), offload, force_zeros

    @classmethod
    def of(cls, model: Components, offload: Offload) -> Self | None:
        """With all text encoders of a model."""
        zeros = model.force_zeros_for_empty_prompt
        return cls(model.texts, offload, force_zeros=zeros) if model.texts else None

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """Text [B, T, D] and pooled [B, P]; errors as `TextConditioner`.

        The one negative prompt of a batch is encoded once.
        """
        text, pooled = inputs.encoded or self._encoded(inputs)
        if self._force_zeros:
            given = torch.tensor([each is not None for each in inputs.prompts], device=text.device)
            text = torch.where(given[:, None, None], text, 0)
            pooled = None if pooled is None else torch.where(given[:, None], pooled, 0)
        return Conditioning(len(inputs), text, pooled)

    def _encoded(self, inputs: ConditionInputs) -> tuple[Tensor, Tensor | None]:
        strings = [prompt or "" for prompt in inputs.prompts]
        if inputs.negative and len(strings) > 1 and len({*strings}) == 1:
            text, pooled = self._encoded(replace(inputs, prompts=strings[:1]))
            rows = len(strings), -1
            return text.expand(*rows, -1), None if pooled is None else pooled.expand(rows)
        skip = inputs.shared("clip_skip") or 0
        return joined(
            [
                self._offload.run(
                    own.encoder,
                    partial(own.captions, strings)
                    if inputs.captions
                    else partial(own, strings, skip),
                )
                for own in self.texts
            ]
        )


class SizeEmbedder(Embedder):
    """The size conditioning of Stable Diffusion XL (Podell et al. 2023, section 2.2)."""

    inputs = ("width", "height", "framing")

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        """count: of the numbers that the network takes, 6, or 5 for the refiner; size: default."""
        self.count, self.size = count, size

    @classmethod
    def of(cls, model: Components, offload: Offload) -> Self | None:  # noqa: ARG003
        """For a network that takes size ids, with the training size of the model."""
        return cls(model.num_size_ids, model.size) if model.num_size_ids else None

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """size_ids [B, N], heights before widths.

        In place of the target size the refiner takes an aesthetic score: 6, or 2.5 for a negative
        prompt, as in diffusers.
        """
        size = inputs.shared("width") or self.size[0], inputs.shared("height") or self.size[1]
        given: Sequence[SizeConditioning | None]
        given = inputs.fields.get("framing") or [None] * len(inputs)
        rows: list[list[float]] = []
        for framing in given:
            own = framing or SizeConditioning()
            original, target = own.original or size, own.target or size
            last = [2.5 if inputs.negative else 6.0] if self.count == 5 else target[::-1]
            rows.append([*original[::-1], *own.crop[::-1], *last])
        ids = torch.tensor(rows)
        return Conditioning(len(inputs), size_ids=ids)


class LabelEmbedder(Embedder):
    """Classes by number; the number after the last is no class (Ho & Salimans 2022)."""

    inputs = ("label",)

    def __init__(self, model: Components) -> None:
        self._number, self._no_class = model.class_number, len(model.classes)

    @classmethod
    def of(cls, model: Components, offload: Offload) -> Self | None:  # noqa: ARG003
        """For a model with classes."""
        return cls(model) if model.classes else None

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """The label [B], of names of classes or None; UndustError for an unknown name."""
        given = [None] * len(inputs) if inputs.negative else inputs.fields["label"]
        numbers = [self._no_class if name is None else self._number(name) for name in given]
        return Conditioning(len(inputs), label=torch.tensor(numbers))


class MapEmbedder(Embedder):
    """Maps as further channels of the denoiser's input."""

    inputs = ("maps", "width", "height")

    def __init__(self, kinds: Sequence[MapKind], size: tuple[int, int], factor: int) -> None:
        """size: default width and height of pictures; factor: of the first stage."""
        self.kinds, self.size, self.factor = tuple(kinds), size, factor

    @classmethod
    def of(cls, model: Components, offload: Offload) -> Self | None:  # noqa: ARG003
        """For a model with maps."""
        return cls(model.maps, model.size, model.downsampling_factor) if model.maps else None

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """extra_channels [B, C, h, w], of a sequence of maps for each picture.

        A map is a file, or bytes [1 or 3, H, W] as `MapKind.read` gives them; None is its absence,
        zeros in all its channels. Raises UndustError for another number of maps.
        """
        size = inputs.shared("width") or self.size[0], inputs.shared("height") or self.size[1]
        given: Sequence[Sequence[ImageRef | Tensor | None]] = inputs.fields["maps"]
        for maps in given:
            if len(maps) != len(self.kinds):
                names = ", ".join(kind.kind for kind in self.kinds)
                raise UndustError(
                    f"maps: the model needs {len(self.kinds)} ({names}), {len(maps)} given"
                )
        channels = [
            torch.stack(
                [
                    self._encoded(kind, each, size, absent=inputs.negative and kind.guided)
                    for each in column
                ]
            )
            for kind, column in zip(self.kinds, zip(*given, strict=True), strict=True)
        ]
        return Conditioning(len(inputs), extra_channels=torch.cat(channels, 1))

    def _encoded(
        self, kind: MapKind, given: ImageRef | Tensor | None, size: tuple[int, int], *, absent: bool
    ) -> Tensor:
        height, width = size[1] // self.factor, size[0] // self.factor
        if given is None or absent:
            return torch.zeros(kind.channels, height, width)
        pixels = given if isinstance(given, Tensor) else kind.read(image_of(given), size)
        return kind.encode(pixels[None], (height, width))[0]


EMBEDDERS: tuple[type[Embedder], ...] = (TextEmbedder, SizeEmbedder, LabelEmbedder, MapEmbedder)
"""All kinds, in the order in which they are evaluated."""


class Conditioner:
    """The embedders of a model."""

    def __init__(self, model: Components, offload: Offload | None = None) -> None:
        """offload: moves each encoder to its device; None to leave them in place."""
        own = (kind.of(model, offload or Offload(None)) for kind in EMBEDDERS)
        self.embedders = tuple(embedder for embedder in own if embedder is not None)
        self._texts = model.texts

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of a recipe that it reads beside the prompt."""
        return tuple(name for embedder in self.embedders for name in embedder.inputs)

    def token_count(self, prompt: str | None) -> int:
        """The number of tokens of a prompt, a multiple of the tokenizer's length."""
        return self._texts[0].token_count(prompt or "") if self._texts else 0

    def __call__(self, inputs: ConditionInputs) -> Conditioning:
        """The conditioning of B pictures, with the fields of all embedders; their errors too."""
        cond = Conditioning(len(inputs))
        for embedder in self.embedders:
            cond = cond.merged(embedder(inputs))
        return cond
