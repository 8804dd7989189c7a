"""The denoiser of a batch of recipes: its conditions, guidance, ControlNets and refiner."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undust.adapters.control import AppliedControlNet
from undust.conditioning.canny import canny_edges
from undust.diffusion.guidance import (
    CLOSE,
    ClassifierFree,
    ConditionedDenoiser,
    GuidedRun,
    KnownRegion,
    PromptSchedule,
    Scale,
)
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError
from undust.formats.files import expanded
from undust.generation.start import StartState, prepared
from undust.latent.conditioner import ConditionInputs
from undust.latent.model import LatentModel
from undust.latent.references import image_of
from undust.networks.attention import Perturbation
from undust.networks.conditioning import CallOptions, Conditioning
from undust.networks.deep_cache import DeepCache
from undust.pictures import DATA, from_data, from_image, grey, levels, read_image, to_data
from undust.recipe.guidance import GuidanceSettings
from undust.recipe.inputs import Refiner
from undust.recipe.recipe import Recipe


class BatchContext:
    """The denoisers of one batch, whose recipes have the same `settings`: a `GuidanceContext`."""

    def __init__(
        self,
        model: LatentModel,
        batch: Sequence[Recipe],
        sigmas: Tensor,
        start: StartState,
        controls: Iterable[AppliedControlNet] = (),
    ) -> None:
        self.model, self.batch, self.sigmas, self.start = model, batch, sigmas, start
        self.controls = tuple(controls)
        self.scale: Scale = batch[0].guidance
        self._network = model
        self._perturbation: Perturbation | None = None
        self._root = self  # of the copies for other models and perturbations
        self._building = ""  # name of the guidance that is being built
        self.negative = self._conditioned([recipe.negative for recipe in batch], negative=True)
        self._empty = None if any(recipe.negative for recipe in batch) else self.negative
        self._prompts()

    @property
    def empty(self) -> Denoise:
        """The estimate for no prompt; the same as `negative` if there are no negative prompts."""
        root = self._root
        if root._empty is None:
            root._empty = root._conditioned([None] * len(root.batch), negative=True)
        return root._empty

    def conditioned_on(self, prompt: str) -> Denoise:
        """The same model for another prompt, the same for all pictures."""
        return self._conditioned([prompt] * len(self.batch))

    def perturbed(self, perturbation: Callable[..., Tensor]) -> Denoise:
        """As `positive`, with the middle block's self-attention replaced."""
        other = copy.copy(self)
        other._perturbation = perturbation
        return other._prompts()

    def other_model(self, name_or_path: str, model_hash: str) -> Denoise:
        """As `positive`, by another model."""
        loaded = other_model(self.model, name_or_path, model_hash, f"guide {self._building}")
        other = copy.copy(self)
        other._network = with_fitting_adapters(loaded, self.batch[0])
        return other._prompts()

    def sigma_after(self, share: float) -> float:
        """The noise level at which that share of the steps is done."""
        steps = self.batch[0].rounded(share * (len(self.sigmas) - 1))
        return self.sigmas[math.ceil(steps)].item()

    def guided(self) -> Denoise:
        """The prompts with the guidance of the recipes."""
        for guidance in self._of_role("scale"):
            self.scale = self._built(guidance)
        self.denoise = ClassifierFree(self.positive, self.negative, self.scale)
        for guidance in (*self._of_role("mix"), *self._of_role("around")):
            self.denoise = self._built(guidance)
        return self.denoise

    def _prompts(self) -> Denoise:
        """The pictures' prompts, with the guidance that changes them: `positive` from then on."""
        toward = [each.toward.prompt if each.toward else each.prompt for each in self.batch]
        prompts = [each.prompt for each in self.batch]
        self.denoise = self._conditioned(prompts, toward if toward != prompts else ())
        self.positive = self.denoise
        for guidance in self._of_role("prompt"):
            self.denoise = self._built(guidance)
        self.positive = self.denoise
        return self.denoise

    def _of_role(self, role: str) -> Iterator[GuidanceSettings]:
        return (each for each in self.batch[0].guides if each.method.role == role)

    def _built(self, guidance: GuidanceSettings) -> Any:
        self._building = guidance.name
        masks = {name: self._mask(guidance, name) for name in guidance.method.masks}
        return guidance.method.build(self, guidance.settings | masks)

    def _mask(self, guidance: GuidanceSettings, name: str) -> Tensor:
        """A mask [h, w] of the latent."""
        mask, recipe = levels(from_data(guidance.settings[name])), self.batch[0]
        if mask.shape != self.model.latent_shape(recipe.width, recipe.height)[1:]:
            raise UndustError(
                f"guide {guidance.name}: its {name} is not for {recipe.width}x{recipe.height}"
            )
        return mask

    def _conditioned(
        self, prompts: Sequence[str | None], toward: Sequence[str] = (), *, negative: bool = False
    ) -> Denoise:
        """The network for these prompts.

        toward: the prompts that the pictures are interpolated to, if they are; negative: whether
        they are negative prompts.
        """
        network = self._network
        names = network.conditioner.inputs
        fields = {name: [getattr(recipe, name) for recipe in self.batch] for name in names}
        cond = network.conditioner(ConditionInputs(prompts, fields, negative))
        if toward:
            other = network.conditioner(ConditionInputs(toward, fields, negative))
            cond = cond.toward(other, parts(self.batch))
        cond = self._with_start(cond)
        # Another model's U-Net has skips of other widths.
        controls = self.controls if network is self.model else ()
        if controls:
            cond = replace(cond, negative=torch.full((len(cond),), negative))
        options = CallOptions((self._perturbation,) * len(cond), controls, self._deep(len(cond)))
        return ConditionedDenoiser(
            network.denoise, cond, options, self_conditioned=network.self_conditioned
        )

    def _deep(self, count: int) -> tuple[DeepCache, ...]:
        """The cache of a branch's deep features for `count` pictures, if there is one."""
        interval = self.batch[0].deep_cache or 1
        if interval == 1:
            return ()
        return (DeepCache(count, tuple(self.sigmas[:-1:interval].tolist())),)

    def _with_start(self, cond: Conditioning) -> Conditioning:
        """With the extra channels and the noise level of the start."""
        network, count = self._network, len(cond)
        if network.extra_channels:
            channels = self.start.extra_channels
            if channels is None or channels.shape[1] != network.extra_channels:
                raise UndustError(
                    f"{network.name} cannot be used here: its U-Net needs {network.extra_channels} "
                    "extra input channels, which this task does not provide"
                )
            cond = cond.beside(channels.expand(count, -1, -1, -1))
        if network.low_res_process is not None and self.start.noise_level is not None:
            cond = replace(cond, label=torch.full((count,), self.start.noise_level))
        return cond


def parts(batch: Sequence[Recipe]) -> Tensor:
    """The interpolation weight of each picture [B], 0 without interpolation."""
    return torch.tensor([each.toward.part if each.toward else 0.0 for each in batch])


def controls(model: LatentModel, recipe: Recipe, sigmas: Tensor) -> Iterator[AppliedControlNet]:
    """The ControlNets of a recipe, each with its map and the noise levels between which it acts."""
    steps = len(sigmas) - 1
    for control in recipe.controls:
        during = [
            step
            for step in range(steps)
            if step / steps >= control.start and (step + 1) / steps <= control.end
        ]
        if not during:
            raise UndustError(
                f"control: {control.start:g} to {control.end:g} is shorter than one of {steps} "
                "steps"
            )
        size = recipe.width, recipe.height
        hint = from_image(image_of(control.picture), size).float() / 255
        hint = canny_edges(hint) if control.edges else hint
        # A little more on either side: samplers evaluate at levels rounded to float32.
        high = math.inf if during[0] == 0 else float(sigmas[during[0]]) * (1 + CLOSE)
        low = 0.0 if during[-1] == steps - 1 else float(sigmas[during[-1]]) * (1 - CLOSE)
        yield AppliedControlNet(model.control(control), hint[None], control.weight, low, high)


def other_model(model: LatentModel, name_or_path: str, model_hash: str, use: str) -> LatentModel:
    """Another model beside this one; UndustError, which names the use, if its hash is another."""
    other = model.load_other(name_or_path)
    if model_hash not in ("", other.hash):
        raise UndustError(
            f"{use}: {name_or_path} is another model ({other.hash}) than it was ({model_hash})"
        )
    return other


def refiner_model(model: LatentModel, refiner: Refiner) -> LatentModel:
    """The model of the last steps. Raises UndustError if its latents are not the model's."""
    other = other_model(model, refiner.model, refiner.model_hash, "refiner")
    if other.latents != model.latents:
        raise UndustError(
            f"refiner: {refiner.model} has other latents: channels, factor, scale and shift are "
            f"{other.latents}, not {model.latents}"
        )
    return other


def resolve_guidance(
    guidance: GuidanceSettings, model: LatentModel, size: tuple[int, int]
) -> GuidanceSettings:
    """The settings for pictures of (width, height), with the contents of the files they name.

    Masks are read and resized to the latent's size; the hash of another model is filled in. Raises
    UndustError for files that cannot be read, and for a model with latents of another shape.
    """
    _, height, width = model.latent_shape(*size)
    found: dict[str, str] = {}
    for name in guidance.method.masks:
        text: str = guidance.settings[name]
        mask = from_data(text) if text.startswith(DATA) else grey(read_image(expanded(text)))
        found[name] = to_data(mask, (width, height))
    if "model_hash" in guidance.settings:
        path, digits = guidance.settings["model"], guidance.settings["model_hash"]
        other = other_model(model, path, digits, f"guide {guidance.name}")
        if other.latent_shape(*size) != model.latent_shape(*size):
            raise UndustError(f"guide {guidance.name}: {path} has latents of another shape")
        found["model_hash"] = other.hash
    return guidance.model_copy(update=found)


def with_adapters(model: LatentModel, recipe: Recipe) -> LatentModel:
    """The model with the adapters of a recipe, as `LatentModel.with_adapters`."""
    merging = recipe.token_merging or 0.0
    return model.with_adapters(recipe.loras, recipe.embeddings, token_merging=merging)


def with_fitting_adapters(other: LatentModel, recipe: Recipe) -> LatentModel:
    """Another model with the adapters of a recipe, or if they do not fit, the embeddings alone.

    A RuntimeWarning names LoRAs that are left out.
    """
    try:
        return with_adapters(other, recipe)
    except UndustError:
        if not recipe.loras:
            raise
    adapted = with_adapters(other, recipe.model_copy(update={"loras": ()}))
    note = f"the LoRAs do not fit {other.name}: it is used without them"
    warnings.warn(note, RuntimeWarning, stacklevel=2)
    return adapted


def guided(
    model: LatentModel, batch: Sequence[Recipe], sigmas: Tensor, start: StartState | None = None
) -> GuidedRun:
    """The denoiser of a batch, whose recipes have the same `settings`, for one run."""
    start = prepared(model, batch) if start is None else start
    shown = controls(model, batch[0], sigmas)
    denoise = BatchContext(model, batch, sigmas, start, shown).guided()
    refiner = batch[0].refiner
    if refiner is not None:
        other = with_fitting_adapters(refiner_model(model, refiner), batch[0])
        # It takes over below this time step, as an ensemble of two experts (Podell et al. 2023).
        first, last = model.process.time_range
        turn = round(last + 1 - refiner.after * (last + 1 - first)) - 0.5
        level = float(model.process.sigma(turn))
        refined = BatchContext(other, batch, sigmas, start).guided()
        denoise = PromptSchedule(denoise, [(level, refined)])
    if start.repaint_mask is not None and start.init_latent is not None:
        denoise = KnownRegion(denoise, start.init_latent, start.repaint_mask)
    return GuidedRun(denoise)
