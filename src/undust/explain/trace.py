"""A generation with what happens in it: noise, estimates, guidance and the maps of the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor

from undust.adapters.capture import RecordedCall, recording
from undust.conditioning.text import PromptWord
from undust.errors import UndustError
from undust.explain.word_maps import Layers, unrepeated, word_maps
from undust.generation import loop
from undust.generation.guided import with_adapters
from undust.generation.loop import Picture
from undust.latent.conditioner import ConditionInputs
from undust.latent.model import LatentModel
from undust.networks.conditioning import Conditioning
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe
from undust.recipe.request import Request

LAYERED = ("torch", "cpu", "int8")  # engines that call the layers of a U-Net one by one
ONE_PASS = ("upscale", "refiner")  # options of a second pass or network


@dataclass(frozen=True, eq=False)
class TraceStep:
    """One step of a trace, in x = x0 + σ·n.

    sigma: the level of its first network call; x: the noisy latent [C, h, w] of that call; x0: the
    guided estimate of the clean one; guidance: the estimate for the prompt minus that for the
    negative prompt [C, h, w], None where one of them was not asked for; maps: of the words
    [W, h, w], the mean over the step's network calls, 0 where the prompt was not asked for.
    """

    index: int
    sigma: float
    x: Tensor
    x0: Tensor
    guidance: Tensor | None
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """A picture, the words of its prompt, and each step on the way to it.

    decode: latents [B, C, h, w] to pictures [B, 3, H, W] in [-1, 1].
    """

    picture: Picture
    words: tuple[PromptWord, ...]
    steps: tuple[TraceStep, ...]
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def maps(self) -> Tensor:
        """The maps of the words [W, h, w], the mean over all steps."""
        return torch.stack([step.maps for step in self.steps]).mean(0)


@torch.inference_mode()
def trace(
    model: LatentDiffusion,
    prompt: str,
    *,
    observe: Callable[[int, int], object] | None = None,
    layers: Layers = "all",
    **options: Unpack[Request],
) -> Trace:
    """Generates one picture, the same as `model.generate` does, and records how.

    observe: called with the number of steps done and of all; layers: those that count in the
    maps.
    Raises UndustError as `generate` does, for a prompt without words, several pictures, an option
    of a second pass, an engine that computes the network as a whole, and a network without
    cross-attention over pixels.
    """
    if model.engine not in LAYERED:
        raise UndustError(
            f"trace: the engine {model.engine} computes the network as a whole, without its "
            f"attention; load the model with one of {', '.join(LAYERED)}"
        )
    for name in ONE_PASS:
        if options.get(name) is not None:
            raise UndustError(f"trace: not possible with {name}")
    recipe, *more = model.recipes(prompt, **options)
    if more:
        raise UndustError(f"trace: it is of one picture, not {1 + len(more)}")
    adapted = with_adapters(model, recipe)
    words = adapted.texts[0].prompt_words(recipe.prompt) if adapted.texts else []
    if not words:
        raise UndustError("trace: the prompt has no words")
    recorder = _Recorder(adapted, recipe, words, layers)
    traced = model.with_network(lambda network: recording(network, recorder.entries, recorder))
    steps: list[TraceStep] = []
    last = None
    for last in loop.sample_batch(traced, [recipe]):
        steps.append(recorder.step(last.index, last.x0[0]))
        if observe:
            observe(last.index + 1, last.total)
    assert last is not None
    (picture,) = loop.decode([recipe], last)
    return Trace(picture, tuple(words), tuple(steps), last.decode)


class _Recorder:
    """The network calls since the last step, reduced to what a `TraceStep` has of them."""

    def __init__(
        self, model: LatentModel, recipe: Recipe, words: Sequence[PromptWord], layers: Layers
    ) -> None:
        self._model, self._words = model, words
        self._layers: Layers = layers
        self._positive = _text(model, recipe, recipe.prompt, negative=False)
        self._negative = _text(model, recipe, recipe.negative, negative=True)
        self._calls: list[TraceStep] = []
        self._latest = self._calls

    def entries(self, cond: Conditioning) -> list[int]:
        """The entry of a batch that is for the prompt; none if another is asked at this step."""
        return _matching(cond, self._positive)[:1]

    def __call__(self, call: RecordedCall) -> None:
        """Keeps one network call."""
        process = self._model.process
        sigma = process.sigma_at(call.timestep[0].cpu())
        place = next(iter(call.entries), 0)
        tokens = self._positive.shape[1]
        attention = {name: unrepeated(own[0], tokens).cpu() for name, own in call.attention.items()}
        x = call.x[place].float().cpu() / process.input_scale(sigma).float()
        maps = word_maps(attention, self._words, (x.shape[1], x.shape[2]), self._layers)
        difference = self._difference(call, sigma)
        self._calls.append(TraceStep(0, sigma.item(), x, x, difference, maps))

    def step(self, index: int, x0: Tensor) -> TraceStep:
        """The step of the calls since the last one; of the last calls if it made none."""
        calls = self._latest = self._calls or self._latest
        self._calls, first = [], calls[0]
        maps = torch.stack([call.maps for call in calls]).mean(0)
        return TraceStep(index, first.sigma, first.x, x0, first.guidance, maps)

    def _difference(self, call: RecordedCall, sigma: Tensor) -> Tensor | None:
        """The estimate for the prompt minus that for the negative prompt.

        x0 = skip·x + scale·output, and x is the same for both.
        """
        others = [
            place for place in _matching(call.cond, self._negative) if place not in call.entries
        ]
        if not call.entries or not others:
            return None
        outputs = call.output.float().cpu()
        scale = self._model.denoise.prediction.scale(sigma).float()
        return scale * (outputs[call.entries[0]] - outputs[others[0]])


def _text(model: LatentModel, recipe: Recipe, prompt: str | None, *, negative: bool) -> Tensor:
    """The states [1, T, D] of a prompt, as the recipe's batch has them."""
    fields = {name: [getattr(recipe, name)] for name in model.conditioner.inputs}
    text = model.conditioner(ConditionInputs([prompt], fields, negative)).text
    assert text is not None
    return text


def _matching(cond: Conditioning, text: Tensor) -> list[int]:
    """The entries of a batch with this text [1, T, D], which may be repeated along T."""
    given = cond.text
    if given is None or given.shape[1] % text.shape[1]:
        return []
    repeated = text.to(given).repeat(1, given.shape[1] // text.shape[1], 1)
    return [*torch.nonzero((given == repeated).flatten(1).all(1))[:, 0].tolist()]
