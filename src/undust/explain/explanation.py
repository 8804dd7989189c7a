"""An explanation: the parts of a model, each with its figures and effects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from undust.errors import UndustError, unknown
from undust.explain.parts import PARTS
from undust.explain.result import PartResult
from undust.explain.setup import Setup
from undust.explain.texts import Language, Translation
from undust.latent.model import LatentModel
from undust.pictures import from_image, is_picture, read_image
from undust.pipeline import LatentDiffusion

EMOJI = "emoji"  # the built-in model
PROMPTS = (  # of the built-in model; the last one varies the most with the seed
    "smiling face with sunglasses",
    "red heart",
    "bird",
    "house with garden",
    "rocket",
    "person",
)
PICTURES = Path(__file__).parent / "pictures" / "emoji.png"
MAX_PICTURES = 16
LAYERED = ("torch", "cpu")  # engines that call the layers of a U-Net one by one
STEPS, SEEDS, GUIDANCE = 10, 6, 4.0


@dataclass(frozen=True)
class ExplainedPart:
    """A part by name, its number in seed 000, what it came to, and the seconds that it took."""

    name: str
    number: int
    result: PartResult
    seconds: float


@dataclass(frozen=True)
class Explanation:
    """Parts in order, and what they were shown on."""

    setup: Setup
    parts: Sequence[ExplainedPart]


def explain_model(
    model: LatentDiffusion,
    names: Sequence[str] = (),
    *,
    prompt: str | None = None,
    language: Language = "en",
    pictures: Path | None = None,
    seeds: int = SEEDS,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    observe: Callable[[int, int], object] | None = None,
) -> Explanation:
    """Shows parts of latent diffusion on a model, each alone and removed, in figures and numbers.

    names: of the parts, all by default; prompt: of all pictures, by default several of the built-in
    model; pictures: a folder of real ones, by default emoji; seeds: their number, from 0 on;
    observe: called after each part with their number done and of all. Raises UndustError for
    unknown names, for a model without a U-Net or text, and without a prompt for a model other than
    the built-in one.
    """
    check_parts(names)
    if seeds < 2:
        raise UndustError(f"seeds: at least 2 are needed for a spread, not {seeds}")
    if model.engine not in LAYERED:
        raise UndustError(
            f"explain: the engine {model.engine} computes the network as a whole; load the model "
            f"with {' or '.join(LAYERED)}"
        )
    if not model.texts:
        raise UndustError(f"explain: {model.name} takes no prompts; it needs a model that does")
    setup = Setup(
        model,
        _prompts(model, prompt, seeds),
        range(seeds),
        real_pictures(model, pictures),
        Translation(language),
        steps,
        guidance,
    )
    wanted = [name for name in PARTS if name in names or not names]
    done: list[ExplainedPart] = []
    for name in wanted:
        began = time.monotonic()
        result = PARTS[name](setup)
        number = [*PARTS].index(name) + 1
        done.append(ExplainedPart(name, number, result, time.monotonic() - began))
        if observe:
            observe(len(done), len(wanted))
    return Explanation(setup, done)


def check_parts(names: Sequence[str]) -> None:
    """Raises UndustError for a name that no part has."""
    for name in names:
        if name not in PARTS:
            raise unknown("part", name, PARTS)


def real_pictures(model: LatentModel, folder: Path | None) -> Tensor:
    """Up to 16 pictures [N, 3, H, W] in [-1, 1], of the size that the model was trained on.

    Of a folder the first by name; without one, emoji of Noto Color Emoji (Google, Apache-2.0).
    Raises UndustError for less than two.
    """
    if folder is None:
        sheet = read_image(PICTURES)
        side = sheet.height
        images = [sheet.crop((left, 0, left + side, side)) for left in range(0, sheet.width, side)]
    else:
        if not folder.is_dir():
            raise UndustError(f"{folder} is not a folder of pictures")
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and is_picture(path)]
        if len(paths) < 2:
            raise UndustError(f"{folder} has {len(paths)} pictures; at least 2 are needed")
        images = [read_image(path) for path in paths[:MAX_PICTURES]]
    return torch.stack([from_image(image, model.size) for image in images]).float() / 127.5 - 1


def _prompts(model: LatentModel, prompt: str | None, seeds: int) -> list[str]:
    """A prompt for each seed."""
    if prompt is not None:
        return [prompt] * seeds
    if model.name != EMOJI:
        raise UndustError(f"explain: {model.name} needs a prompt of what it can draw")
    return [PROMPTS[seed % len(PROMPTS)] for seed in range(seeds)]
