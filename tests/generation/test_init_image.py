"""Pictures on a canvas that a network can have, and off it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from undust.errors import UndustError
from undust.generation.start import InitImage, init_image, size_for
from undust.pictures import from_image, to_images
from undust.recipe.files import ImageRef
from undust.recipe.recipe import Recipe

FACTORS = st.sampled_from([1, 3, 4, 8])
SIDES = st.none() | st.tuples(*[st.integers(0, 9)] * 4).filter(any)


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(levels)


def recipe(image: Image.Image, size: tuple[int, int], **fields: Any) -> Recipe:
    asked: dict[str, Any] = {"prompt": "a", "seed": 1, "width": size[0], "height": size[1]}
    if mask := fields.pop("mask", None):
        asked["mask"] = ImageRef.of(mask)
    return Recipe.read({**asked, "init": ImageRef.of(image), **fields})


def fitting(image: Image.Image, factor: int, **fields: Any) -> InitImage:
    """The init image of the size that `size_for` says."""
    size = size_for(image, fields.get("extend"), factor)
    made = init_image(recipe(image, size, **fields), factor)
    assert made is not None
    return made


def painted(made: InitImage, count: int = 2) -> torch.Tensor:
    """Anything that a model may have painted over it."""
    shape = (count, *made.pixels.shape)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)) / 127.5 - 1


@given(st.integers(1, 40), st.integers(1, 40), FACTORS, SIDES)
def test_the_canvas_is_the_smallest_that_the_network_can_have(
    width: int, height: int, factor: int, extend: tuple[int, ...] | None
):
    left, top, right, bottom = extend or (0, 0, 0, 0)
    image = noise(width, height)
    size = size_for(image, extend, factor)
    for side, needed in zip(size, (width + left + right, height + top + bottom), strict=True):
        assert side % factor == 0
        assert 0 <= side - needed < factor
    made = fitting(image, factor, extend=extend)
    assert made.pixels.shape == (3, size[1], size[0])
    assert made.pixels.dtype == torch.uint8
    # What is there lies where it belongs, and all around it its own edge goes on.
    inside = made.pixels[:, top : top + height, left : left + width]
    assert torch.equal(inside, from_image(image, image.size))
    rows = (torch.arange(size[1]) - top).clamp(0, height - 1)
    columns = (torch.arange(size[0]) - left).clamp(0, width - 1)
    assert torch.equal(made.pixels, inside[:, rows][:, :, columns])


@given(st.integers(1, 30), st.integers(1, 30), FACTORS, SIDES, st.booleans(), st.integers(0, 99))
def test_what_stays_comes_back_to_the_byte_and_the_rest_as_it_was_painted(
    width: int,
    height: int,
    factor: int,
    extend: tuple[int, ...] | None,
    masked: bool,
    seed: int,
):
    image = noise(width, height)
    hole = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8) * 255
    mask = Image.fromarray(hole) if masked else None
    made = fitting(image, factor, extend=extend, mask=mask)
    over = painted(made)
    left, top, right, bottom = extend or (0, 0, 0, 0)
    anew = np.full((height + top + bottom, width + left + right), 255, np.uint8)
    if masked or extend:
        anew[top : top + height, left : left + width] = hole if masked else 0
    for ours, plain in zip(to_images(made.finished(over)), to_images(over), strict=True):
        assert ours.size == (width + left + right, height + top + bottom)
        got, free = np.array(ours), np.array(plain)[: ours.height, : ours.width]
        kept = np.array(image)[np.arange(ours.height).clip(top, top + height - 1) - top]
        kept = kept[:, np.arange(ours.width).clip(left, left + width - 1) - left]
        assert (got == np.where(anew[..., None] == 255, free, kept)).all()


def test_without_a_mask_all_of_it_is_only_a_beginning():
    made = fitting(noise(6, 5), 4)
    assert made.repaint_mask is None
    assert torch.equal(made.finished(painted(made)), painted(made)[..., :5, :6])


def test_grey_masks_blend():
    shades = np.array([[0, 51, 102, 204, 255]], np.uint8).repeat(2, 0)
    image = noise(5, 2)
    made = fitting(image, 1, mask=Image.fromarray(shades))
    over = painted(made)
    known = from_image(image, (5, 2)).float() / 127.5 - 1
    share = torch.tensor([0, 0.2, 0.4, 0.8, 1])
    torch.testing.assert_close(made.finished(over), known + share * (over - known))


def test_what_is_clear_is_white_in_a_picture_and_black_in_a_mask():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    made = fitting(clear, 4, mask=clear)
    assert made.pixels.unique().tolist() == [255]
    assert made.repaint_mask is not None
    assert made.repaint_mask.unique().tolist() == [0]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_a_place_of_the_latent_is_as_unknown_as_the_most_of_its_pixels(
    width: int, height: int, factor: int, seed: int
):
    image = noise(width * factor, height * factor)
    mask = noise(width * factor, height * factor, 1, seed)
    made = fitting(image, factor, mask=mask)
    blocks = np.array(mask).reshape(height, factor, width, factor).max((1, 3)) / 255
    found = made.latent_mask((height, width))
    torch.testing.assert_close(found, torch.tensor(blocks).float())


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((16, 16), False),  # the picture's own
        ((19, 17), False),  # less than 4 more: filled up
        ((20, 16), True),
        ((16, 20), True),
        ((12, 16), True),
        ((15, 16), True),
        ((8, 24), True),
    ],
)
def test_when_a_picture_is_resized(size: tuple[int, int], fits: bool):
    image, mask = noise(16, 16), noise(16, 16, 1)
    made = init_image(recipe(image, size, mask=mask), 4)
    assert made is not None and made.repaint_mask is not None
    assert made.pixels.shape[1:] == made.repaint_mask.shape == size[::-1]
    if not fits:
        assert made.crop == (0, 0, size[0] - 16, size[1] - 16)
        assert torch.equal(made.pixels[:, :16, :16], from_image(image, (16, 16)))
        return
    assert made.crop == (0, 0, 0, 0)
    assert torch.equal(made.pixels, from_image(image, size))
    expected = np.array(ImageOps.fit(mask, size, Image.Resampling.BOX))
    assert torch.equal(made.repaint_mask, torch.tensor(expected) / 255)
    assert made.finished(painted(made)).shape[-2:] == size[::-1]


def test_a_resized_picture_is_extended_all_the_same():
    made = init_image(recipe(noise(16, 16), (32, 24), extend=(8, 0, 0, 8)), 4)
    assert made is not None and made.repaint_mask is not None
    assert made.pixels.shape == (3, 24, 32)
    assert made.repaint_mask[:16, 8:].max() == 0
    assert made.repaint_mask[16:].min() == made.repaint_mask[:, :8].min() == 1


def test_nothing_to_begin_from():
    asked = Recipe.read({"prompt": "a", "seed": 1, "width": 8, "height": 8})
    assert init_image(asked, 8) is None


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (16, 16), (1, 1)])
def test_a_mask_is_as_large_as_its_picture(size: tuple[int, int]):
    with pytest.raises(UndustError, match=rf"mask: it has {size[0]}x{size[1]} .*8x8"):
        fitting(noise(8, 8), 4, mask=noise(*size))


@pytest.mark.parametrize("extend", [(8, 0, 0, 0), (4, 0, 4, 0), (0, 5, 0, 5), (100, 0, 0, 0)])
def test_what_is_added_leaves_room_for_the_picture(extend: tuple[int, ...]):
    with pytest.raises(UndustError, match="extend: 8x8 leaves no room for the picture"):
        init_image(recipe(noise(4, 4), (8, 8), extend=extend), 4)
