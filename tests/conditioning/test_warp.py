"""Warped views against closed forms of the geometry, and splatting against a loop over pixels."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undust.conditioning.warp import (
    Camera,
    check_depth,
    depth_of_disparity,
    latent_mask,
    orbit,
    positions_of,
    warp,
    warped_views,
)
from undust.diffusion import lambda_tables
from undust.errors import UndustError

WIDTH, HEIGHT = 24, 16
MARGIN = 2  # pixels that a hole grows by


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def plane(depth: float, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.full((height, width), depth, dtype=torch.float64)


def camera(x: float = 0, y: float = 0, z: float = 0, focal: float = 20, turn: float = 0) -> Camera:
    """One in the middle of the pixels, turned about its z axis."""
    sine, cosine = math.sin(turn), math.cos(turn)
    axes = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    centre = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    return Camera(focal, centre, axes, torch.tensor([x, y, z]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [camera(), camera(3, -2, 5), orbit(3, 40, size=(WIDTH, HEIGHT))[1]])
def test_the_same_camera_sees_the_same_picture(at: Camera, dtype: torch.dtype):
    """At any depths: rounding does not let a near pixel cover a far one beside it."""
    depth = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 400 + 40
    given_ = picture().to(dtype)
    warped, mask = warp(given_, depth, at, at)
    assert warped.dtype == dtype
    torch.testing.assert_close(warped, given_, rtol=0, atol=1e-6)
    assert mask.dtype == torch.bool
    assert mask.all()


@pytest.mark.parametrize("shift", [-5, -1, 3, 7])
@pytest.mark.parametrize("down", [False, True])
def test_a_camera_that_moves_sideways_shifts_a_plane(shift: int, down: bool):
    """By focal·distance/depth against the movement: here by 20·t/10."""
    moved = -shift * 10 / 20
    target = camera(y=moved) if down else camera(x=moved)
    warped, mask = warp(picture(), plane(10), camera(), target)
    axis, length = (1, HEIGHT) if down else (2, WIDTH)
    expected = picture().roll(shift, axis)
    index = torch.arange(length)
    known = (index >= shift) & (index < length + shift)
    known = (known[:, None] if down else known).expand(HEIGHT, WIDTH)
    torch.testing.assert_close(warped, expected * known, rtol=0, atol=1e-9)
    inner = (index >= shift + MARGIN) if shift > 0 else (index < length + shift - MARGIN)
    assert torch.equal(mask, (inner[:, None] if down else inner).expand(HEIGHT, WIDTH))


def test_half_a_pixel_is_the_mean_of_two():
    warped, _ = warp(picture(), plane(10), camera(), camera(x=0.25))
    expected = (picture()[:, :, :-1] + picture()[:, :, 1:]) / 2
    torch.testing.assert_close(warped[:, :, :-1], expected, rtol=0, atol=1e-9)


def test_a_turn_about_the_axis():
    """180° flips both sides; 90° of a square picture turns it."""
    warped, mask = warp(picture(), plane(7), camera(), camera(turn=math.pi))
    torch.testing.assert_close(warped, picture().flip(1, 2), rtol=0, atol=1e-6)
    assert mask.all()
    square = picture(height=WIDTH)
    middle = ((WIDTH - 1) / 2,) * 2
    turned = Camera(20, middle, camera(turn=math.pi / 2).rotation)
    warped, mask = warp(square, plane(7, WIDTH), Camera(20, middle), turned)
    # The camera turns clockwise, from x to y in its picture, and so the picture the other way.
    torch.testing.assert_close(warped, square.rot90(1, (1, 2)), rtol=0, atol=1e-6)
    assert mask.all()


def test_twice_as_near_is_twice_as_large():
    """A plane at 10 from 5 before it: each pixel's neighbours on both sides are its own now."""
    warped, mask = warp(picture(), plane(10), camera(), camera(z=5))
    middle = picture()[:, HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4]
    expected = middle.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(warped, expected, rtol=0, atol=1e-9)
    assert mask.all()


def test_stretched_by_more_than_two_it_has_cracks():
    """The pixels that are 1 or more from all places, 10/3.9 apart."""
    warped, mask = warp(picture(), plane(10), camera(), camera(z=6.1))
    stretched = torch.tensor([(k + 0.5) * 10 / 3.9 + 11.5 for k in range(5)])
    reached = (stretched[:, None] - torch.arange(12, WIDTH)).abs().lt(1).any(0)
    assert not reached.all()
    assert torch.equal(warped[0, HEIGHT // 2, 12:] != 0, reached)
    assert not mask.all()


def test_what_is_near_hides_what_is_far():
    """A square at 10 before a wall at 40: it moves by 4 pixels, and the wall by 1."""
    depth, given_ = plane(40), picture()
    depth[4:12, 8:14] = 10
    given_[:, 4:12, 8:14] = 1
    warped, mask = warp(given_, depth, camera(), camera(x=-2))
    expected = given_.roll(1, 2)
    expected[:, 4:12, 9:15] = 0  # where the square was
    expected[:, 4:12, 12:18] = 1
    expected[:, :, 0] = 0
    torch.testing.assert_close(warped, expected, rtol=0, atol=1e-6)
    holes = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    holes[:, : 1 + MARGIN] = True
    holes[4 - MARGIN : 12 + MARGIN, 9 - MARGIN : 12 + MARGIN] = True
    assert torch.equal(mask, ~holes)


def test_the_cover_is_the_power_that_is_documented():
    depth = plane(500)
    depth[:, 8:], depth[:, 16:] = 100, 70
    colours = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    colours[:, :, 16:] = 1
    # Moved so that the plane at 70 lies by 3 more pixels to the left than the one at 100.
    moved = 3 / (20 / 70 - 20 / 100)
    warped, _ = warp(colours, depth, camera(), camera(x=moved))
    column = round(16 - 20 * moved / 70)
    assert 20 * moved / 70 == pytest.approx(10)
    near, far = (math.exp(-50 * math.log1p(d) / math.log1p(500)) for d in (70, 100))
    assert near / far == pytest.approx(17, abs=0.3)
    assert warped[0, 3, column].item() == pytest.approx(near / (near + far))


@given(st.integers(0, 2**32), st.floats(-1, 1))
def test_a_constant_picture_stays_constant(seed: int, level: float):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(HEIGHT, WIDTH, generator=generator, dtype=torch.float64) * 50 + 1
    x, y, z = (torch.rand(3, generator=generator) * 4 - 2).tolist()
    constant = torch.full((3, HEIGHT, WIDTH), level, dtype=torch.float64)
    warped, mask = warp(constant, depth, camera(), camera(x, y, z - 1.5, turn=x))
    assert bool(((warped - level).abs() < 1e-9).logical_or(warped == 0).all())
    assert bool(((warped - level).abs() < 1e-9)[:, mask].all())


def test_away_and_back_on_a_plane():
    away = camera(x=1, y=-1.5)
    there, mask = warp(picture(), plane(10), camera(), away)
    back, _ = warp(there, plane(10), away, camera())
    _, again = warp(mask.double().expand(3, -1, -1), plane(10), away, camera())
    inner = again & (back[0] != 0)
    assert inner.sum() > HEIGHT * WIDTH / 2
    torch.testing.assert_close(back[:, inner], picture()[:, inner], rtol=0, atol=1e-9)


def test_nothing_behind_the_camera_is_seen():
    warped, mask = warp(picture(), plane(5), camera(), camera(z=6))
    assert not warped.any()
    assert not mask.any()
    depth = plane(5)
    depth[:, 12:] = 50
    _, mask = warp(picture(), depth, camera(), camera(z=5))  # on it
    assert 0 < mask.sum() < mask.numel()


def slowly(colours: Tensor, depth: Tensor, target: Camera) -> tuple[Tensor, Tensor]:
    """Splatting pixel by pixel from a camera in the origin."""
    _, height, width = colours.shape
    first = camera()
    seen: list[tuple[float, float, float, Tensor]] = []
    for row, column in itertools.product(range(height), range(width)):
        d = depth[row, column].item()
        x = (column - first.centre[0]) / first.focal * d - target.position[0].item()
        y = (row - first.centre[1]) / first.focal * d - target.position[1].item()
        z = d - target.position[2].item()
        turned = [
            sum(target.rotation[i, k].item() * p for i, p in enumerate((x, y, z))) for k in range(3)
        ]
        if turned[2] > 0:
            u, v = (target.focal * turned[k] / turned[2] + target.centre[k] for k in (0, 1))
            seen.append((u, v, turned[2], colours[:, row, column]))
    total = torch.zeros(height, width, dtype=torch.float64)
    result = torch.zeros_like(colours)
    largest = max((math.log(1 + d) for _, _, d, _ in seen), default=1.0)
    for u, v, d, colour in seen:
        for row, column in itertools.product(range(height), range(width)):
            share = max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
            if share > 1e-9:
                weight = share / math.exp(50 * math.log(1 + d) / largest)
                total[row, column] += weight
                result[:, row, column] += weight * colour
    valid = (total > 0) & (total <= 0.6)
    mask = torch.ones_like(valid)
    for row, column in itertools.product(range(height), range(width)):
        around = valid[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        mask[row, column] = around.all()
    return torch.where(total > 0, result / total, 0), mask


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.floats(-2, 2).map(lambda x: round(x, 3)),
    st.floats(-2, 2).map(lambda x: round(x, 3)),
    st.floats(-3, 3).map(lambda x: round(x, 3)),
    st.floats(-0.5, 0.5),
    st.sampled_from([0.003, 1.0, 40.0]),
)
def test_splatting_equals_a_loop_over_pixels(
    seed: int, x: float, y: float, z: float, turn: float, scale: float
):
    """scale: of all lengths; at the smallest the weights are above the largest valid one, too."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(6, 7, generator=generator, dtype=torch.float64).square() * 9 + 0.01
    target = camera(x * scale, y * scale, z * scale, turn=turn)
    warped, mask = warp(picture(seed, 6, 7), depth * scale, camera(), target)
    expected, known = slowly(picture(seed, 6, 7), depth * scale, target)
    torch.testing.assert_close(warped, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(mask, known)


def test_only_surfaces_at_the_camera_are_above_the_largest_weight():
    """With depths up to 500 those below 0.066; the depths of disparities are far from it."""
    for near, valid in ((0.07, True), (0.06, False), (0.001, False)):
        depth = plane(500)
        depth[4:12, 6:18] = near
        _, mask = warp(picture(), depth, camera(), camera())
        assert mask[8, 12] == valid
        assert mask[0, 0]
    nearest = depth_of_disparity(torch.tensor([255.0])).item()
    assert math.exp(-50 * math.log1p(nearest) / math.log1p(500)) < 2e-13


def test_depths_of_disparities():
    found = depth_of_disparity(torch.tensor([0.0, 10, 20, 100, 255, 1e12]))
    expected = [500, 500, 500, 100, 10000 / 255, 1e-4]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("degrees", [24.0, -24.0])
def test_an_orbit(degrees: float):
    cameras = orbit(25, degrees)
    places = positions_of(cameras)
    angles = torch.arange(25, dtype=torch.float64) * math.copysign(math.pi / 180, degrees)
    expected = torch.stack([60 * angles.sin(), torch.zeros(25), 70 * angles.cos()], 1)
    torch.testing.assert_close(places, expected)
    for camera_ in cameras:
        assert (camera_.focal, camera_.centre) == (260, (512, 288))
        # The origin is in the middle of the picture, and the camera level.
        local = camera_.rotation.T @ -camera_.position
        torch.testing.assert_close(local[:2], torch.zeros(2, dtype=torch.float64))
        assert local[2] == pytest.approx(camera_.position.norm())
        assert camera_.rotation[1].tolist() == [0, -1, 0]
        assert camera_.rotation.det().item() == pytest.approx(1)
    distances = lambda_tables.distances_along(places)
    assert distances[0] == 0
    assert distances[-1] == 1
    assert bool((distances.diff() > 0).all())


def test_the_camera_goes_to_the_right():
    """Then the near goes to the left and the far to the right; the origin stays."""
    first, second = orbit(2, 2, size=(512, 288))
    middle, row = 256, 144
    for depth, moves in ((40.0, -1), (70.0, 0), (300.0, 1)):
        colours = torch.full((3, 288, 512), -1.0)
        colours[:, row - 1 : row + 2, middle - 1 : middle + 2] = 1
        warped, _ = warp(colours, plane(depth, 288, 512), first, second)
        bright = (warped[0, row, middle - 40 : middle + 40] + 1) / 2
        moved = ((bright * torch.arange(-40, 40)).sum() / bright.sum()).item()
        assert abs(moved) < 0.2 if moves == 0 else moved * moves > 1


def test_the_camera_scales_with_the_width():
    half = Camera.for_size(512, 320)
    assert (half.focal, half.centre) == (130, (256, 160))
    assert [(c.focal, c.centre) for c in orbit(2, 1, size=(512, 320))] == [(130, (256, 160))] * 2
    assert Camera().focal == Camera.for_size(1024, 576).focal == 260


def test_frames_between_two_pictures_come_from_the_nearer():
    cameras = [camera(x=x) for x in (0, 0.5, 1, 2, 3)]
    pictures = torch.stack([picture(0), picture(1)])
    depths = torch.stack([plane(10), plane(20)])
    found = [*warped_views(pictures, depths, cameras)]
    assert torch.equal(found[0][0], pictures[0])
    assert torch.equal(found[4][0], pictures[1])
    assert found[0][1].all()
    assert found[4][1].all()
    for frame, end in ((1, 0), (2, 0), (3, 1)):
        alone = warp(pictures[end], depths[end], cameras[4 * end], cameras[frame])
        assert torch.equal(found[frame][0], alone[0])
        assert torch.equal(found[frame][1], alone[1])
    single = [*warped_views(pictures[:1], depths[:1], cameras)]
    assert torch.equal(single[4][0], warp(pictures[0], depths[0], cameras[0], cameras[4])[0])
    assert not single[4][1].all()


def test_the_first_of_two_that_are_as_near():
    cameras = [camera(x=x) for x in (0, 1, 2)]
    pictures, depths = torch.stack([picture(0), picture(1)]), torch.stack([plane(10)] * 2)
    middle = [*warped_views(pictures, depths, cameras)][1]
    assert torch.equal(middle[0], warp(pictures[0], depths[0], cameras[0], cameras[1])[0])


def test_masks_of_latents():
    mask = torch.ones(2, 16, 24, dtype=torch.bool)
    mask[0, 0, :8], mask[0, 1, :4] = False, False  # 12 of 64
    mask[0, 8, 16:], mask[0, 9, 16:21] = False, False  # 13 of 64, above 12.8
    expected = torch.ones(2, 2, 3, dtype=torch.bool)
    expected[0, 1, 2] = False
    assert torch.equal(latent_mask(mask), expected)
    assert torch.equal(latent_mask(mask.float()), expected)
    fifth = torch.ones(5, 5)
    fifth[0, :5] = 0
    assert not latent_mask(fifth, 5).any()  # exactly 0.2
    assert torch.equal(latent_mask(mask, 1), mask)
    with pytest.raises(UndustError, match="24x16 pixels are not divisible by 5"):
        latent_mask(mask, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.0])
def test_what_is_no_depth(value: float):
    depth = plane(10)
    depth[3, 5] = value
    with pytest.raises(UndustError, match=rf"row 3, column 5 is {value:g}; depths are finite"):
        warp(picture(), depth, camera(), camera())
    with pytest.raises(UndustError, match=r"its shape is \[1, 16, 24\]"):
        check_depth(plane(1)[None])
    with pytest.raises(UndustError, match=r"24x16 pixels do not fit a picture of \[3, 16, 23\]"):
        warp(picture()[:, :, 1:], plane(1), camera(), camera())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"focal": 0.0}, "a focal length of 0 pixels"),
        ({"focal": math.inf}, "a focal length of inf"),
        ({"centre": (math.nan, 0)}, "the centre"),
        ({"position": torch.tensor([0, math.nan, 0])}, "its position is 3 finite numbers"),
        ({"position": torch.zeros(2)}, "its position is 3 finite numbers"),
        ({"rotation": torch.eye(2)}, "is no rotation"),
        ({"rotation": 2 * torch.eye(3)}, "is no rotation"),
        ({"rotation": torch.diag(torch.tensor([1.0, 1, -1]))}, "is no rotation"),
    ],
)
def test_what_is_no_camera(changed: dict[str, object], said: str):
    with pytest.raises(UndustError, match=said):
        Camera(**changed)


@pytest.mark.parametrize(
    ("count", "degrees", "axes", "said"),
    [
        (1, 10, (60, 70), "1 frames are too few"),
        (5, math.nan, (60, 70), "nan°"),
        (5, 10, (0, 70), "half-axes 0 and 70"),
        (5, 10, (60, math.inf), "half-axes 60 and inf"),
    ],
)
def test_what_is_no_orbit(count: int, degrees: float, axes: tuple[float, float], said: str):
    with pytest.raises(UndustError, match=said):
        orbit(count, degrees, major=axes[0], minor=axes[1])


def test_other_numbers_of_pictures():
    pictures, depths = torch.stack([picture()] * 3), torch.stack([plane(1)] * 3)
    for known, maps, frames in ((3, 3, 5), (1, 2, 5), (2, 2, 2), (1, 1, 1)):
        path = [camera(x=x) for x in range(frames)]
        with pytest.raises(UndustError, match=f"{known} pictures with {maps} depth maps"):
            next(warped_views(pictures[:known], depths[:maps], path))
