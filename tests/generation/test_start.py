"""What a pass is painted over, with a model whose latents are pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from painter import ColourPainter
from undust.diffusion.noise import BESIDE, START, normal
from undust.diffusion.process import PROCESSES, Process
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import sigmas
from undust.errors import UndustError
from undust.generation import loop
from undust.generation.start import StartState, prepared
from undust.networks.conditioning import CallOptions, Conditioning
from undust.pictures import from_image, to_images
from undust.recipe.files import ImageRef
from undust.recipe.recipe import Recipe

WIDTH, HEIGHT = 6, 4


@dataclass
class Painter(ColourPainter):
    """Paints the colour of its prompt, whatever it sees; notes what it saw beside the latent."""

    process: Process = field(default_factory=PROCESSES["scaled-linear"])
    extra_channels: int = 0
    low_res_process: Process | None = None
    downsampling_factor: int = 1
    hash: str = "painter"
    seen: list[Conditioning] = field(default_factory=list[Conditioning])

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (3, height // self.downsampling_factor, width // self.downsampling_factor)

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        self.seen.append(cond)
        return cond.text[:, 0, :, None, None].expand_as(x)

    def load_other(self, name_or_path: str, /) -> Painter:
        return Painter(extra_channels=int(name_or_path), hash="another")


def picture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def mask(columns: int) -> Image.Image:
    """White, which is painted anew, but for some columns at the left."""
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    image.paste(0, (0, 0, columns, HEIGHT))
    return image


def recipe(**fields: Any) -> Recipe:
    given = {name: ImageRef.of(fields.pop(name)) for name in ("init", "mask") if name in fields}
    plain = {"prompt": "red", "seed": 1, "width": WIDTH, "height": HEIGHT, "guidance": 1}
    return Recipe.read({**plain, "sampler": "euler", "steps": 4, **given, **fields})


def seen(image: Image.Image) -> Tensor:
    return from_image(image, image.size)[None].float() / 127.5 - 1


# Where a pass begins

PROCESS = PROCESSES["scaled-linear"]()
LATENT = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
START_NOISE = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
HALF = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 1.0]).expand(4, 6)


@given(st.floats(0.01, 150))
def test_a_picture_is_begun_from_under_its_dust(level: float):
    """x = x0 + σ·n; all noise is as strong as what the process comes to at that level."""
    sigma = torch.tensor(level, dtype=torch.float64)
    noise = PROCESS.start(START_NOISE, sigma)
    dusty = LATENT + level * START_NOISE
    for unknown in (None, HALF):
        under = StartState(LATENT, unknown).noised(START_NOISE, PROCESS, sigma, all_steps=False)
        torch.testing.assert_close(under, dusty)
    assert torch.equal(StartState().noised(START_NOISE, PROCESS, sigma, all_steps=True), noise)
    assert torch.equal(
        StartState(LATENT).noised(START_NOISE, PROCESS, sigma, all_steps=True), noise
    )
    under = StartState(LATENT, HALF).noised(START_NOISE, PROCESS, sigma, all_steps=True)
    torch.testing.assert_close(under, dusty + HALF * (noise - dusty))
    torch.testing.assert_close(under[..., :2], dusty[..., :2])
    torch.testing.assert_close(under[..., 3:], noise[..., 3:])


@pytest.mark.parametrize("name", PROCESSES)
def test_it_begins_at_finite_numbers_whatever_the_process(name: str):
    """Also where the process ends in noise alone."""
    process = PROCESSES[name]()
    levels = sigmas(process.default_schedule, process, 3)
    under = StartState(LATENT, HALF).noised(START_NOISE, process, levels[0], all_steps=True)
    assert under.isfinite().all()


# What is prepared of a recipe


def test_words_alone():
    start = prepared(Painter(), [recipe()])
    assert (start.init_latent, start.repaint_mask, start.extra_channels, start.init_image) == (
        None,
    ) * 4
    painted = torch.zeros(1, 3, HEIGHT, WIDTH)
    assert torch.equal(start.finished(painted), painted)


def test_a_picture_to_begin_from():
    start = prepared(Painter(), [recipe(init=picture())])
    assert start.init_latent is not None
    assert torch.equal(start.init_latent, seen(picture()))
    assert start.repaint_mask is None


def test_a_picture_of_which_a_part_is_known():
    start = prepared(Painter(), [recipe(init=picture(), mask=mask(2))])
    assert start.repaint_mask is not None and start.init_latent is not None
    assert torch.equal(start.repaint_mask, torch.tensor([0.0, 0, 1, 1, 1, 1]).expand(4, 6))
    painted = torch.zeros(2, 3, HEIGHT, WIDTH)
    after = start.finished(painted)
    assert torch.equal(after[..., :2], seen(picture())[..., :2].expand(2, -1, -1, -1))
    assert torch.equal(after[..., 2:], painted[..., 2:])


def test_a_model_that_sees_the_mask_needs_no_known_region():
    """Mask, and the picture with what is masked grey, in the order of the published models."""
    start = prepared(Painter(extra_channels=4), [recipe(init=picture(), mask=mask(2))])
    assert start.repaint_mask is None
    assert start.extra_channels is not None
    hole = torch.tensor([0.0, 0, 1, 1, 1, 1]).expand(1, 1, 4, 6)
    assert torch.equal(start.extra_channels, torch.cat([hole, seen(picture()) * (1 - hole)], 1))


@pytest.mark.parametrize("shade", [0, 127, 128, 255])
def test_such_a_model_sees_a_mask_of_two_shades(shade: int):
    image = Image.new("L", (WIDTH, HEIGHT), shade)
    start = prepared(Painter(extra_channels=4), [recipe(init=picture(), mask=image)])
    assert start.extra_channels is not None
    assert start.extra_channels[:, 0].unique().tolist() == [float(shade >= 128)]
    assert torch.equal(start.extra_channels[:, 1:], seen(picture()) * (shade < 128))


@pytest.mark.parametrize("fields", [{}, {"init": picture()}])
def test_such_a_model_paints_all_of_it_where_there_is_no_mask(fields: dict[str, Any]):
    start = prepared(Painter(extra_channels=4), [recipe(**fields)])
    assert start.extra_channels is not None
    assert torch.equal(start.extra_channels[:, :1], torch.ones(1, 1, 4, 6))
    assert torch.equal(start.extra_channels[:, 1:], torch.zeros(1, 3, 4, 6))


def test_its_refiner_does_not_see_the_mask():
    """So the known part is put back for both."""
    asked = recipe(init=picture(), mask=mask(2), refiner={"model": "0"})
    start = prepared(Painter(extra_channels=4), [asked])
    assert start.repaint_mask is not None


def test_a_model_of_channels_that_are_not_known():
    with pytest.raises(UndustError, match="the U-Net wants 2 channels beside the latent's 3"):
        prepared(Painter(extra_channels=2), [recipe()])


def test_a_picture_of_a_pass_before_is_painted_over():
    """Where it is smaller than the network can have it, its edge goes on, and is cut off again."""
    painted = torch.rand(2, 3, HEIGHT - 1, WIDTH - 2)
    start = prepared(Painter(), [recipe()] * 2, painted)
    assert start.init_latent is not None
    assert start.init_latent.shape == (2, 3, HEIGHT, WIDTH)
    assert torch.equal(start.init_latent[..., :-1, :-2], painted)
    assert torch.equal(start.init_latent[..., :-1, -1], painted[..., -1])
    assert torch.equal(start.init_latent[..., -1, :-2], painted[..., -1, :])
    assert torch.equal(start.finished(start.init_latent), painted)


# Pictures that are made larger


def test_a_small_picture_has_a_little_dust_of_its_own():
    """The process's own mixture, of numbers that no other noise of the picture shares."""
    process = PROCESSES["scaled-linear"]()
    painter = Painter(low_res_process=process, extra_channels=3, downsampling_factor=2)
    small = picture(3, 2)
    batch = [recipe(init=small, noise_level=250, seed=seed) for seed in (5, 6)]
    start = prepared(painter, batch)
    assert start.init_latent is None and start.extra_channels is not None
    assert start.noise_level == 250
    time = torch.tensor(250)
    for beside, seed in zip(start.extra_channels, (5, 6), strict=True):
        dust = normal(seed, (BESIDE, 0, 0), (3, 2, 3))
        expected = process.alpha(time) * seen(small)[0] + process.std(time) * dust
        torch.testing.assert_close(beside, expected)
        assert not torch.equal(dust, normal(seed, (START, 0, 0), (3, 2, 3)))
    *_, last = loop.sample_batch(painter, batch)
    cond = painter.seen[-1]
    assert cond.extra_channels is not None and cond.label is not None
    assert torch.equal(cond.extra_channels, start.extra_channels)
    assert cond.label.tolist() == [250, 250]
    assert last.x.shape == (2, 3, 2, 3)


def test_what_such_a_model_needs_and_what_others_do_not():
    larger = Painter(low_res_process=PROCESSES["scaled-linear"](), extra_channels=3)
    for asked in (recipe(), recipe(init=picture())):
        with pytest.raises(UndustError, match="give it one to begin from"):
            prepared(larger, [asked])
    with pytest.raises(UndustError, match=r"noise level: .*is no model that makes pictures larger"):
        prepared(Painter(), [recipe(init=picture(), noise_level=20)])
    short = Painter(low_res_process=PROCESSES["scaled-linear"](100), extra_channels=3)
    with pytest.raises(UndustError, match="noise level: 500 is outside"):
        prepared(short, [recipe(init=picture(), noise_level=500)])


# Painted to the end


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_leaves_what_is_known(sampler: str):
    batch = [recipe(init=picture(), mask=mask(2), sampler=sampler, seed=s) for s in (1, 2)]
    painter = Painter()
    *_, last = loop.sample_batch(painter, batch)
    for finished in loop.decode(batch, last):
        after = np.array(finished.image)
        assert (after[:, :2] == np.array(picture())[:, :2]).all()
        assert (after[:, 2:] == (255, 0, 0)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_every_sampler_paints_over_a_picture(sampler: str, strength: float):
    """With one picture to find, it is found from anywhere."""
    batch = [recipe(init=picture(), strength=strength, sampler=sampler, seed=s) for s in (1, 2)]
    painted = list(loop.sample_batch(Painter(), batch))
    assert painted[-1].index + 1 == painted[-1].total == batch[0].total_steps
    for image in to_images(painted[-1].x):
        assert image.getcolors() == [(WIDTH * HEIGHT, (255, 0, 0))]


def test_a_refiner_sees_no_more_than_it_can():
    asked = recipe(refiner={"model": "4", "after": 0.5})
    with pytest.raises(UndustError, match="needs 4 extra input channels"):
        list(loop.sample_batch(Painter(), [asked]))
    changed = recipe(refiner={"model": "0", "model_hash": "other", "after": 0.5})
    with pytest.raises(UndustError, match=r"refiner: 0 is another model \(another\) than it was"):
        list(loop.sample_batch(Painter(), [changed]))
