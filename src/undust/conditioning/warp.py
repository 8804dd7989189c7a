"""Views of a picture from other cameras, by its depth map: the known views of NVS-Solver.

You et al. 2025 (NVS-Solver) lead a video model along a camera path: each pixel is moved to where
the frame's camera sees it, and what no pixel reaches is a hole that the model fills. The pixels
are splatted forward with bilinear shares and weights that fall with the depth, so that near ones
cover far ones, as in softmax splatting (Niklaus & Liu 2020).

Coordinates: a camera's x axis points right in its picture, y down and z into the scene; the pixel
in row v and column u is the point (u, v). Depths are distances along z, in the unit of the
cameras' positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.errors import UndustError

FOCAL, SIZE = 260.0, (1024, 576)  # pixels, of NVS-Solver's camera
SHARPNESS = 50.0  # of the cover of far pixels by near ones
# The largest weight of a valid pixel. One splatted pixel has more only if log(1 + d) is below 1 %
# of the largest, as at d < 0.066 with depths up to 500: nothing is valid on surfaces that touch
# the camera. The depths of 8-bit disparities, 39 to 500, have at most 2e-13.
LARGEST_WEIGHT = 0.6
DILATION = 5  # pixels; side of the square by which holes grow
HOLE = 0.2  # the share of holes from which a pixel of the latent is one
ROUNDING = 1e-9  # a pixel's share below it is a rounding error
DISPARITY, NEAREST, FARTHEST = 10_000.0, 1e-4, 500.0
ORTHONORMAL = 1e-6  # deviation of a rotation's products from 0 and 1


def _facing() -> Tensor:
    return torch.eye(3, dtype=torch.float64)


def _origin() -> Tensor:
    return torch.zeros(3, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    focal: length in pixels; centre: of the picture, where the z axis meets it (column, row);
    rotation: its columns are the camera's x, y and z axes in the world [3, 3]; position: in the
    world [3]. By default that of NVS-Solver at 1024×576, in the origin: 260 pixels are a field of
    view of 126°. Raises UndustError for other shapes, numbers that are not finite and a matrix that
    is no rotation.
    """

    focal: float = FOCAL
    centre: tuple[float, float] = (SIZE[0] / 2, SIZE[1] / 2)
    rotation: Tensor = field(default_factory=_facing)
    position: Tensor = field(default_factory=_origin)

    def __post_init__(self) -> None:
        if not (0 < self.focal < math.inf and all(map(math.isfinite, self.centre))):
            raise UndustError(
                f"camera: a focal length of {self.focal:g} pixels and the centre {self.centre}; "
                "they are finite, and the length is above 0"
            )
        if self.position.shape != (3,) or not bool(self.position.isfinite().all()):
            raise UndustError(
                f"camera: its position is 3 finite numbers, not {self.position.tolist()}"
            )
        axes = self.rotation.double()
        if axes.shape != (3, 3) or not (
            bool(((axes.T @ axes - _facing().to(axes)).abs() < ORTHONORMAL).all())
            and axes.det() > 0
        ):
            raise UndustError(
                f"camera: {[*axes.shape]} {axes.flatten().tolist()} is no rotation; three columns "
                "of length 1 at right angles are, with determinant 1"
            )

    @classmethod
    def for_size(
        cls, width: int, height: int, rotation: Tensor | None = None, position: Tensor | None = None
    ) -> Camera:
        """A camera for pictures of that size, with the default one's horizontal field of view.

        The focal length is scaled with the width: 260 pixels for 1024. The centre is the picture's.
        """
        return cls(
            FOCAL * width / SIZE[0],
            (width / 2, height / 2),
            _facing() if rotation is None else rotation,
            _origin() if position is None else position,
        )


def orbit(
    count: int,
    degrees: float,
    *,
    major: float = 60.0,
    minor: float = 70.0,
    size: tuple[int, int] = SIZE,
) -> list[Camera]:
    """Cameras on an ellipse, which look at a point in its middle; the first is the picture's.

    count: of frames, `degrees` / (count − 1) apart, which NVS-Solver has 1° of; major, minor:
    half-axes of the ellipse across the first camera's view and along it, in the unit of the depths;
    size: width and height of the picture.

    In the world x points right, y up and z towards the viewer. A frame's camera is at (major·sin θ,
    0, minor·cos θ) and looks at the origin, which is at depth `minor` in the middle of the picture.
    With θ > 0 the camera goes to the right: in the picture what is nearer than the origin goes left
    and what is farther goes right. Raises UndustError for fewer than 2 frames, numbers that are not
    finite and half-axes that are not above 0.
    """
    if count < 2:
        raise UndustError(f"orbit: {count} frames are too few; the first is the picture's own")
    if not (math.isfinite(degrees) and 0 < major < math.inf and 0 < minor < math.inf):
        raise UndustError(
            f"orbit: {degrees:g}° on an ellipse with half-axes {major:g} and {minor:g}; they are "
            "finite, and the half-axes above 0"
        )
    cameras: list[Camera] = []
    for frame in range(count):
        angle = math.radians(degrees) * frame / (count - 1)
        x, z = major * math.sin(angle), minor * math.cos(angle)
        sine, cosine = x / math.hypot(x, z), z / math.hypot(x, z)
        axes = [[cosine, 0, -sine], [0, -1, 0], [-sine, 0, -cosine]]
        rotation = torch.tensor(axes, dtype=torch.float64)
        position = torch.tensor([x, 0, z], dtype=torch.float64)
        cameras.append(Camera.for_size(*size, rotation, position))
    return cameras


def positions_of(cameras: Sequence[Camera]) -> Tensor:
    """The cameras' positions, float64 [F, 3], for `lambda_tables.distances_along`."""
    return torch.stack([camera.position.double() for camera in cameras])


def warp(picture: Tensor, depth: Tensor, source: Camera, target: Camera) -> tuple[Tensor, Tensor]:
    """The picture [3, H, W] as another camera sees it, and where that is known: bool [H, W].

    depth: of the picture's pixels [H, W]; source, target: the picture's camera and the other one.

    A pixel at depth d before the target is shared bilinearly by the four pixels around its place,
    with the weight exp(−50·log(1 + d)/log(1 + d_max)), d_max the largest d of the picture. A pixel
    of the result is the mean of what it got, and 0 where that is nothing. It is valid if its
    weights sum to above 0 and at most `LARGEST_WEIGHT`; holes are then dilated by 5×5 pixels, but
    not from outside of the picture.
    Computed in float64 and returned in the picture's precision.

    The cover is soft: the ratio of two surfaces' weights is that of 1 + d to the power of
    50/log(1 + d_max), 8 for 500. One at 70 has 17 times the weight of one at 100.
    Where a surface is stretched by more than 2, as at the edge of a wide view, it has cracks: they
    are holes, or show what is behind.

    Raises UndustError for a depth map of another size, and as `check_depth` does.
    """
    check_depth(depth)
    height, width = depth.shape
    if picture.ndim != 3 or picture.shape[1:] != depth.shape:
        raise UndustError(
            f"depth map: {width}x{height} pixels do not fit a picture of {[*picture.shape]}, which "
            "is [3, H, W]"
        )
    places, away = _projected(depth.double(), source, target)
    before = away > 0
    logs = away.clamp(min=0).log1p()
    nearness = (-SHARPNESS * logs / logs.max().clamp(min=1e-300)).exp()
    colours = torch.cat([picture.double(), torch.ones_like(depth).double()[None]]).flatten(1)
    sums = torch.zeros_like(colours)
    limits = torch.tensor([[width], [height]], device=depth.device)
    for corner in product((0, 1), repeat=2):
        at = places.floor() + torch.tensor(corner, device=depth.device)[:, None]
        share = (1 - (places - at).abs()).prod(0)
        reached = before & ((at >= 0) & (at < limits)).all(0) & (share > ROUNDING)
        index = (at[1] * width + at[0]).where(reached, 0).long()
        weights = (share * nearness).where(reached, 0)
        sums.scatter_add_(1, index.expand_as(colours), colours * weights)
    total = sums[-1]
    warped = (sums[:-1] / total).where(total > 0, 0).reshape(picture.shape)
    valid = (total > 0) & (total <= LARGEST_WEIGHT)
    return warped.to(picture), _without_margin(valid.reshape(height, width))


def warped_views(
    pictures: Tensor, depths: Tensor, cameras: Sequence[Camera]
) -> Iterator[tuple[Tensor, Tensor]]:
    """A film's known views, frame by frame: pictures [3, H, W] and where they are known [H, W].

    pictures, depths: of the first frame, or of the first and the last [1 or 2, 3, H, W] and
    [1 or 2, H, W], with depths in one unit; cameras: of all frames. A frame is warped from the
    nearer known picture, by the distance between the cameras' positions, and from the first one if
    both are as near. The known frames are the pictures themselves. Raises UndustError for other
    numbers of pictures and frames, and as `warp` does.
    """
    known = len(pictures)
    if known not in (1, 2) or len(depths) != known or len(cameras) < known + 1:
        raise UndustError(
            f"known views: {known} pictures with {len(depths)} depth maps for {len(cameras)} "
            "frames; 1 or 2 pictures with a depth map each are needed, and at least one more frame"
        )
    sources = {0: 0} if known == 1 else {0: 0, len(cameras) - 1: 1}  # frame: picture
    places = positions_of(cameras)
    for frame, camera in enumerate(cameras):
        if frame in sources:
            own = sources[frame]
            check_depth(depths[own])
            yield pictures[own], torch.ones_like(depths[own], dtype=torch.bool)
        else:
            away = {end: float((places[frame] - places[end]).norm()) for end in sources}
            near = min(away, key=away.__getitem__)  # the first of equal ones
            yield warp(pictures[sources[near]], depths[sources[near]], cameras[near], camera)


def latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """Where latents are known, bool [..., H/factor, W/factor], of a mask of pixels [..., H, W].

    A pixel of the latent is a hole if at least 0.2 of its pixels are. Raises UndustError for a size
    that is not divisible.
    """
    height, width = mask.shape[-2:]
    if height % factor or width % factor:
        raise UndustError(f"mask: {width}x{height} pixels are not divisible by {factor}")
    cells = (mask == 0).unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    return cells.sum((-3, -1)) < HOLE * factor**2


def depth_of_disparity(disparity: Tensor) -> Tensor:
    """Depths of relative disparities, 0 (far) to 255 (near), as NVS-Solver has them: 39.2 to 500.

    10000/disparity, clipped to 0.0001 … 500, float64 of the same shape.
    """
    return (DISPARITY / disparity.double()).clamp(NEAREST, FARTHEST)


def check_depth(depth: Tensor) -> None:
    """Raises UndustError if depths are not [H, W], or one is not finite or not above 0."""
    if depth.ndim != 2 or not depth.numel():
        raise UndustError(f"depth map: its shape is {[*depth.shape]}; it has to be [H, W]")
    wrong = ~(depth.isfinite() & (depth > 0))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise UndustError(
            f"depth map: row {row}, column {column} is {depth[row, column].item():g}; depths are "
            "finite and above 0"
        )


def _projected(depth: Tensor, source: Camera, target: Camera) -> tuple[Tensor, Tensor]:
    """Where the target sees the source's pixels, (column, row) [2, H·W], and their depths [H·W].

    Places far outside of the picture, and of what is behind the target, are anywhere outside.
    """
    height, width = depth.shape
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=depth.dtype, device=depth.device),
        torch.arange(width, dtype=depth.dtype, device=depth.device),
        indexing="ij",
    )
    x, y = columns - source.centre[0], rows - source.centre[1]
    points = torch.stack([x / source.focal, y / source.focal, torch.ones_like(depth)]) * depth
    turn = (target.rotation.double().T @ source.rotation.double()).to(depth.device)
    shift = target.rotation.double().T @ (source.position.double() - target.position.double())
    seen = turn @ points.flatten(1) + shift[:, None].to(depth.device)
    away = seen[2]
    places = target.focal * seen[:2] / away.where(away > 0, 1)
    places += torch.tensor(target.centre, dtype=depth.dtype, device=depth.device)[:, None]
    return places.clamp(-2, max(width, height) + 1), away


def _without_margin(valid: Tensor) -> Tensor:
    """Valid pixels [H, W] that are not within 2 pixels of a hole."""
    holes = (~valid)[None, None].float()
    return F.max_pool2d(holes, DILATION, 1, DILATION // 2)[0, 0] == 0
