"""A latent diffusion model, loaded, used and saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import model_folder
from undust.formats.files import expanded
from undust.generation import loop
from undust.generation.loop import Picture, Step
from undust.generation.options import recipes
from undust.latent.model import LatentModel
from undust.recipe.recipe import Recipe
from undust.recipe.request import Request


class LatentDiffusion(LatentModel):
    """A latent diffusion model that generates pictures, as returned by `undust.load`."""

    def recipes(self, prompts: str | Sequence[str], **options: Unpack[Request]) -> list[Recipe]:
        """A recipe for each picture: every prompt with the seeds `seed` … `seed + count − 1`.

        Raises UndustError for no prompts and for invalid values.
        """
        return recipes(self, prompts, options)

    def steps(
        self,
        prompts: str | Sequence[str],
        *,
        noise: Tensor | None = None,
        **options: Unpack[Request],
    ) -> Iterator[Step]:
        """Generates all pictures in one batch and yields each step."""
        return loop.sample_batch(self, self._batch(self.recipes(prompts, **options), noise), noise)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        noise: Tensor | None = None,
        exact: bool = False,
        **options: Unpack[Request],
    ) -> list[Picture]:
        """A picture for each prompt and each of `count` seeds; for the options see `Request`.

        noise: unit-variance start [C, h, w] or [B, C, h, w] in place of the seeds' noise; exact:
        batches of one picture, for results that are equal to the byte in any batch. Raises
        UndustError for invalid values.
        """
        prepared = self.recipes(prompts, **options)
        if noise is not None:
            batches: Iterable[list[Recipe]] = [self._batch(prepared, noise)]
        else:
            batches = loop.batches(self, prepared, exact=exact)
        pictures: list[Picture] = []
        for batch in batches:
            *_, last = loop.sample_batch(self, batch, noise)
            pictures += loop.decode(batch, last)
        return pictures

    def rerun(self, recipe: Recipe) -> Picture:
        """Reproduces the picture of a recipe to the byte, by its engine.

        Where that has nothing to offer, as on another device, by torch's layers, with a
        RuntimeWarning. Errors as for `rerun_batch`.
        """
        batch = self.rerun_batch(recipe)
        model = self if recipe.engine == self.engine else self.with_engine(recipe.engine)
        *_, last = loop.sample_batch(model, batch)
        return loop.decode(batch, last)[recipe.place]

    def rerun_batch(self, recipe: Recipe) -> list[Recipe]:
        """The batch that reproduces a picture. Raises UndustError for another model's picture."""
        batch = loop.rerun_batch(recipe)
        if recipe.model_hash != self.hash:
            raise UndustError(
                f"the picture was made with another model: {recipe.model} ({recipe.model_hash}), "
                f"not {self.name} ({self.hash})"
            )
        was, now = (vae.hash if vae else "its own" for vae in (recipe.vae, self.vae))
        if was != now:
            raise UndustError(f"the picture was made with another first stage: {was}, not {now}")
        if recipe.precision != self.precision:
            raise UndustError(
                f"the picture was made in {recipe.precision}; the model is in {self.precision}"
            )
        return batch

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Writes the model as a diffusers folder, completely or not at all, replacing a model.

        dtype: of the weights in the files; None keeps their dtypes. Raises UndustError, without a
        change, for a folder that contains anything but a model, and for LoRAs that are not merged.
        """
        if self._lora_names and not self.merge_loras:
            raise UndustError(
                "save: its LoRAs are not merged into the weights; load the model with "
                "merge_loras=True"
            )
        model_folder.write(self, expanded(folder), dtype)

    def _batch(self, recipes: list[Recipe], noise: Tensor | None) -> list[Recipe]:
        given = {"batch": len(recipes), "given_noise": noise is not None}
        return [
            Recipe.read({**dict(recipe), **given, "place": k}) for k, recipe in enumerate(recipes)
        ]


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    vae: str | Path | None = None,
    merge_loras: bool = True,
    engine: str = "auto",
    low_memory: bool | None = None,
    live: bool | None = None,
) -> LatentDiffusion:
    """A built-in model by name, or a diffusers folder or single-file checkpoint by path.

    With the extra `hub` also org/name or org/name@revision on the Hugging Face hub; the commit is
    the cached one.

    dtype: of the weights in memory, float32 by default; also by name, such as "fp16" or "float16",
    and "auto" for the faster of float32 and bfloat16 here; device: the CPU by default; vae: a first
    stage in place of the model's own, a file, a folder or a model's folder; merge_loras: as for
    `LatentModel`; engine: how networks are computed, "auto" for the fastest exact one here, "torch"
    for PyTorch's own layers; low_memory: whether large weights stay in the 16 bits of their file
    and are converted at each use, for the same pictures in float32, None for models with files of
    1 GiB or more; live: deprecated, the opposite of merge_loras. Raises UndustError for an unknown
    name and for an incomplete model.
    """
    if live is not None:
        merge_loras = not live
        warnings.warn(f"load: live is now merge_loras={merge_loras}", FutureWarning, stacklevel=2)
    return LatentDiffusion.load(
        name_or_path,
        dtype=dtype,
        device=device,
        vae=vae,
        merge_loras=merge_loras,
        engine=engine,
        low_memory=low_memory,
    )
