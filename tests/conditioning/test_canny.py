"""Edges where theory puts them, and where OpenCV does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from undust.conditioning.canny import canny_edges
from undust.errors import UndustError

# cv2.Canny(picture, 100, 1000) of opencv-python-headless 4.14.0 and 5.0.0 for the picture that
# `patterns` makes: 32 rows of 40 bits.
OPENCV = (
    "000000000000000000000000000000000000000100007f0001000180c0020006003002000c001804"
    "0018000c0c001000040800200002100020000230004000026000400000c000400003000040000e00"
    "0040003800004000e200004007820000200c02000020b802000006600400fff8400c00000d801803"
    "000700300c0007ffc130000c0003000018000e000010003800002006600000601880000043e08001"
)


def patterns() -> np.ndarray:
    y, x = np.mgrid[:32, :40]
    disc = 200 * ((x - 20) ** 2 + (y - 15) ** 2 < 120)
    colours = [(x * x + 3 * y * y) // 6 % 256, (5 * x * y + y * y) // 9 % 256, disc]
    return np.stack(colours, axis=-1).astype(np.uint8)


def grey(levels: Tensor) -> Tensor:
    """A picture of 8-bit levels [H,W]."""
    return levels.float().expand(3, -1, -1) / 255


def pixels(found: Tensor) -> Tensor:
    """Which pixels are edges, [H,W]; they are white on black."""
    assert found.dtype == torch.float32
    assert ((found == 0) | (found == 1)).all()
    assert (found == found[:1]).all()
    return found[0] == 1


def disc(size: int, radius: float) -> tuple[Tensor, Tensor]:
    """A white disc, and how far every pixel is from its rim."""
    place = torch.arange(size) - size / 2 + 0.3
    distance = (place[:, None] ** 2 + place[None] ** 2).sqrt() - radius
    return grey(255 * (distance < 0)), distance


def test_the_same_as_opencv() -> None:
    expected = np.unpackbits(np.frombuffer(bytes.fromhex(OPENCV), np.uint8)).reshape(32, 40)
    found = canny_edges(Image.fromarray(patterns()), 100, 1000)
    assert np.array_equal(pixels(found).numpy(), expected.astype(bool))
    # All parts of the method decide something here.
    everywhere, strong = (
        canny_edges(Image.fromarray(patterns())),
        canny_edges(Image.fromarray(patterns()), 1000, 1000),
    )
    assert strong.sum() < found.sum() < everywhere.sum()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("step", "seen"), [(50, False), (51, True), (255, True)])
def test_a_step_is_one_line_where_it_is_steep_enough(step, seen, turned) -> None:
    levels = torch.zeros(12, 20, dtype=torch.int32)
    levels[:, 7:] = step  # Sobel's kernel makes 4 · step of it, which has to be over 200
    found = pixels(canny_edges(grey(levels.T if turned else levels)))
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[:, 6] = seen
    assert torch.equal(found.T if turned else found, expected)


def test_a_discs_rim_is_thin_closed_and_in_its_place() -> None:
    picture, distance = disc(64, 20.5)
    found = pixels(canny_edges(picture))
    assert distance[found].abs().max() < 1.01
    # Nowhere two wide: no four pixels together are edges.
    assert not (found[1:, 1:] & found[1:, :-1] & found[:-1, 1:] & found[:-1, :-1]).any()
    # Water poured in at the corner does not reach the middle.
    wet = torch.zeros_like(found)
    wet[0, 0] = True
    for _ in range(found.numel()):
        spread = wet.clone()
        spread[1:] |= wet[:-1]
        spread[:-1] |= wet[1:]
        spread[:, 1:] |= wet[:, :-1]
        spread[:, :-1] |= wet[:, 1:]
        spread &= ~found
        if torch.equal(spread, wet):
            break
        wet = spread
    assert wet[0, -1]
    assert not wet[32, 32]


def test_what_hangs_together_with_a_strong_edge_stays() -> None:
    # A step that grows from nothing to 100 down the picture: steep enough by itself from 50 on.
    levels = torch.zeros(51, 24)
    levels[:, 8:] = 2.0 * torch.arange(51)[:, None]
    found = pixels(canny_edges(grey(levels)))
    rows = found.any(1).nonzero()[:, 0]
    # It goes on up to where 4 · 2 · row falls under 100, in the column before the step.
    assert rows.tolist() == [*range(rows[0], 51)]
    assert 4 * 2 * rows[0] == pytest.approx(100, abs=8)
    # The same weak edge alone is none.
    assert not canny_edges(grey(levels[:25])).any()
    assert pixels(canny_edges(grey(levels[:25]), 100, 150)).any()


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_each_colour_counts(channel) -> None:
    picture, _ = disc(32, 9.0)
    only = torch.zeros_like(picture)
    only[channel] = picture[channel]
    assert torch.equal(canny_edges(only), canny_edges(picture))


def test_images_and_tensors_are_the_same_picture() -> None:
    image = Image.fromarray(patterns())
    picture = torch.from_numpy(patterns()).permute(2, 0, 1) / 255
    assert canny_edges(image).shape == (3, 32, 40)
    assert torch.equal(canny_edges(image), canny_edges(picture))
    # What is transparent is white.
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert not canny_edges(clear).any()
    clear.paste((0, 0, 0, 255), (4, 4, 12, 12))
    assert canny_edges(clear).any()


@pytest.mark.parametrize(("low", "high"), [(-1, 10), (20, 10), (float("nan"), 3)])
def test_thresholds_that_make_no_sense(low, high) -> None:
    with pytest.raises(UndustError, match="thresholds 0 <= low <= high"):
        canny_edges(torch.zeros(3, 4, 4), low, high)


@settings(max_examples=50)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    thresholds=st.lists(st.integers(0, 800), min_size=3, max_size=3).map(sorted),
    seed=st.integers(0, 99),
)
def test_higher_thresholds_leave_less(size, thresholds, seed) -> None:
    noise = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    low, middle, high = thresholds
    whole = pixels(canny_edges(noise, low, middle))
    assert whole.shape == size
    assert (pixels(canny_edges(noise, low, high)) <= whole).all()
    assert (pixels(canny_edges(noise, middle, middle)) <= whole).all()
    assert (pixels(canny_edges(noise, middle, high)) <= pixels(canny_edges(noise, low, high))).all()
