"""The known views of a film: one or two pictures warped along an orbit, or a folder of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from torch import Tensor

from undust.conditioning.warp import latent_mask, orbit, positions_of, warped_views
from undust.diffusion import lambda_tables
from undust.diffusion.guidance import LambdaGuidance
from undust.diffusion.samplers.registry import Denoise
from undust.errors import UndustError, quoted
from undust.formats.depth_maps import read_depth
from undust.formats.known_hashes import known_hash
from undust.formats.known_views import check_known_views, read_known_views, view_files
from undust.formats.lambda_files import read_table
from undust.latent.references import image_of, resolved_image
from undust.latent.video import VideoModel
from undust.pictures import from_image
from undust.recipe.files import DIGITS
from undust.recipe.film import FileRef, FilmRecipe, KnownViews
from undust.recipe.plain import reason

DISPARITY_DISTANCE = 70.0  # of the orbit's centre, in the unit of depths that are made of disparity
ACROSS = 6 / 7  # the half-axis across the view, over the distance: 60 and 70 in NVS-Solver


@dataclass(frozen=True)
class SceneViews:
    """views [F, 3, H, W] in [-1, 1]; masks: where they are known, bool [F, H, W].

    distances: of the cameras from the nearest known one, 0 … 1 [F], or None if they are not known;
    known: how many of the frames are pictures, 1 or 2.
    """

    views: Tensor
    masks: Tensor
    distances: Tensor | None
    known: lambda_tables.Views = 1


def resolved_views(
    given: KnownViews | Mapping[str, Any], picture: Image.Image, frames: int | None = None
) -> KnownViews:
    """With the hashes of its files, and the distance of the orbit's centre.

    That is 70 for disparities and else the depth in the middle of the first picture. frames: of
    the film, if their number is known. Raises UndustError for invalid values, for files that are
    absent, have changed or are no depth map of their picture, for a last picture of another size
    and for a folder without the views of all frames.
    """
    if not isinstance(cast("object", given), KnownViews | Mapping):
        raise UndustError(
            f"known: {quoted(given)} is neither a KnownViews nor a dict of its fields, such as "
            "{'depth': 'depth.npy'}"
        )
    try:
        known = given if isinstance(given, KnownViews) else KnownViews.model_validate(dict(given))
    except ValidationError as error:
        raise UndustError(f"known views: {reason(error)}") from None
    if known.table is not None:
        known = known.model_copy(update={"table": _hashed(known.table)})
    if known.folder is not None:
        # With a hash its content was checked before, when it was given that.
        check = view_files if known.folder.hash else check_known_views
        check(Path(known.folder.path), frames)
        return known.model_copy(update={"folder": _hashed(known.folder)})
    assert known.depth is not None
    depth = read_depth(Path(known.depth.path), picture.size, known.numbers)
    middle = depth[depth.shape[0] // 2, depth.shape[1] // 2].item()
    usual = DISPARITY_DISTANCE if known.numbers == "disparity" else middle
    found: dict[str, Any] = {
        "depth": _hashed(known.depth),
        "distance": known.distance or usual,
        **_resolved_last(known, picture.size),
    }
    return known.model_copy(update=found)


def _resolved_last(known: KnownViews, size: tuple[int, int]) -> dict[str, Any]:
    """The fields of the last picture with their hashes; size: of the first picture."""
    if known.last is None or known.last_depth is None:
        return {}
    last = resolved_image(known.last)
    if (found := image_of(last).size) != size:
        raise UndustError(
            f"{last.path or 'the last picture'}: it has {found[0]}x{found[1]} pixels, and the "
            f"first picture {size[0]}x{size[1]}; the two have to be of one size"
        )
    read_depth(Path(known.last_depth.path), size, known.numbers)
    return {"last": last, "last_depth": _hashed(known.last_depth)}


def known_views(recipe: FilmRecipe, picture: Tensor) -> SceneViews:
    """The known views of a film; picture: the first frame [1, 3, H, W] in [-1, 1].

    Raises UndustError for files that have changed, and for views of another size or number.
    """
    known, size = recipe.known, (recipe.width, recipe.height)
    assert known is not None
    if known.folder is not None:
        folder = Path(_hashed(known.folder).path)
        views, masks = read_known_views(folder, recipe.frames)
        if (views.shape[3], views.shape[2]) != size:
            raise UndustError(
                f"{folder}: its views have {views.shape[3]}x{views.shape[2]} pixels, and the film "
                f"{size[0]}x{size[1]}"
            )
        return SceneViews(views, masks, None)
    assert known.depth is not None
    pictures, depths = [picture], [_fitted(known.depth, known, image_of(recipe.picture).size, size)]
    if known.last is not None and known.last_depth is not None:
        last = image_of(known.last)
        pictures.append(from_image(last, size)[None].float() / 127.5 - 1)
        depths.append(_fitted(known.last_depth, known, last.size, size))
    away = known.distance or DISPARITY_DISTANCE
    cameras = orbit(recipe.frames, known.degrees, major=ACROSS * away, minor=away, size=size)
    pairs = [*warped_views(torch.cat(pictures), torch.stack(depths), cameras)]
    views, masks = (torch.stack(part) for part in zip(*pairs, strict=True))
    count: lambda_tables.Views = 2 if len(pictures) == 2 else 1
    places = positions_of(cameras)
    distances = lambda_tables.distances_along(places, count) if known.degrees else None
    return SceneViews(views, masks, distances, count)


def led(
    denoise: Denoise, model: VideoModel, known: KnownViews, given: SceneViews, levels: Tensor
) -> LambdaGuidance:
    """The denoiser, led by the known views with the λ of a table.

    It is the one in `known.table`, or else what a search finds for these levels.
    """
    if known.table is not None:
        table = read_table(Path(_hashed(known.table).path), levels, len(given.views))
    else:
        table = lambda_tables.search(
            levels,
            len(given.views),
            views=given.known,
            distances=given.distances,
            derived=known.derived,
        )
    latents = torch.cat([model.first_stage.encode(view).mean for view in given.views.split(1)])
    masks = latent_mask(given.masks, model.autoencoder.downsampling_factor).float()
    form = "blend" if known.form == "blend" else "quantile"
    return LambdaGuidance(denoise, table, latents, masks, form, known.weight_clamp)


def _fitted(
    ref: FileRef, known: KnownViews, before: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """A depth map [H, W], resized and cropped as its picture, without averages of depths."""
    depth = read_depth(Path(_hashed(ref).path), before, known.numbers)
    if before == size:
        return depth
    whole = Image.fromarray(depth.numpy().astype(np.float32))
    return torch.from_numpy(np.array(ImageOps.fit(whole, size, Image.Resampling.NEAREST))).double()


def _hashed(ref: FileRef) -> FileRef:
    """The reference with its hash; UndustError if the content is absent or has changed."""
    path = Path(ref.path)
    content = "".join(known_hash(file) for file in _files(path))
    found = hashlib.sha256(content.encode()).hexdigest()[:DIGITS]
    if ref.hash not in ("", found):
        raise UndustError(f"{ref.path} is not any more what it was")
    return ref.model_copy(update={"hash": found})


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for pattern in ("view-*", "mask-*"):
        yield from sorted(path.glob(pattern))
