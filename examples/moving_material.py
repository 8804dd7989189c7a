"""Photographs and emoji, and the scenes that are drawn of them at random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from emoji_set import EmojiNames, EmojiRenderer
from moving_cameras import KINDS, REFERENCE, Depths, SpriteMotion, sprite_motion
from moving_scenes import FINE, Layer, visible_square
from PIL import Image, ImageOps
from torch import Tensor

from undust.conditioning.warp import Camera
from undust.errors import UndustError
from undust.pictures import from_image, read_image, suffixes

HELD_OUT = 8  # one of so many photographs and emoji is for tests alone
DETAIL = 15  # pixels of a photograph's shorter side, for each of a film's
WIDEST = 3.0  # greatest width of the background's picture, in widths of the first frame
CROP = (0.4, 1.0)  # of a photograph's shorter side
FINEST = 1.3  # least pixels of a photograph for one of a film
SPRITE = (14 / REFERENCE, 34 / REFERENCE)  # width in the first frame, of its width
APART = 1.12  # least ratio of two sprites' depths
CANVAS = 144  # pixels of a sprite's texture, with a transparent margin
SCIKIT_IMAGE: Mapping[str, str] = {
    "astronaut.png": "an astronaut",
    "brick.png": "bricks",
    "camera.png": "a cameraman",
    "chelsea.png": "a cat",
    "coffee.png": "coffee",
    "coins.png": "coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "rocket.jpg": "a rocket",
}
"""Photographs in scikit-image's package, and their names in captions."""


@dataclass(frozen=True, eq=False)
class Material:
    """The pictures of a data set's scenes: photographs by name, and emoji with their names."""

    photographs: Mapping[str, Image.Image]
    emoji: Mapping[str, str]

    def part(self, *, held_out: bool) -> Material:
        """Those for tests, or the others."""
        kept = [_part(names, held_out) for names in (self.photographs, self.emoji)]
        return Material(
            {name: self.photographs[name] for name in kept[0]},
            {text: self.emoji[text] for text in kept[1]},
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """Layers from the far to the near, the cameras of all frames, and the caption."""

    layers: Sequence[Layer]
    cameras: Sequence[Camera]
    text: str
    concept: str


class SceneMaker:
    """Draws scenes at random from pictures."""

    def __init__(self, material: Material, renderer: EmojiRenderer, size: int, frames: int) -> None:
        self.material, self.renderer = material, renderer
        self.size, self.frames = size, frames
        self._names, self._emoji = sorted(material.photographs), sorted(material.emoji)

    def scene(
        self,
        rng: np.random.Generator,
        kinds: Mapping[str, float],
        *,
        moving: float = 1 / 3,
        least: int = 1,
        factor: float = 1.0,
    ) -> Scene:
        """A scene; kinds: of camera motions, with their weights.

        moving: the probability that a sprite moves; least: number of sprites; factor: of speeds.
        """
        weights = np.array([*kinds.values()])
        kind = KINDS[str(rng.choice([*kinds], p=weights / weights.sum()))]
        background = float(rng.uniform(6, 9))
        count = max(least, int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.2, 0.15])))
        count = min(count, len(self._emoji))
        depths = background * _separate(rng, count, *kind.share)
        emoji = [self._emoji[i] for i in rng.choice(len(self._emoji), count, replace=False)]
        mover = int(rng.integers(count)) if rng.random() < moving else None
        own = None if mover is None else sprite_motion(rng, self.frames)
        camera = kind.drawn(rng, Depths(float(depths[-1]), background), self.frames, factor)
        cameras = camera.cameras(self.size)
        layer, about = self._background(rng, background, cameras)
        layers = [layer]
        for index, (text, depth) in enumerate(zip(emoji, depths, strict=True)):
            layers.append(self._sprite(rng, text, float(depth), own if index == mover else None))
        names = [self.material.emoji[text] for text in emoji]
        caption = f"{camera.text}: {_listed(names)} before {about}"
        if own is not None and mover is not None:
            caption += f"; {names[mover]} {own.text}"
        return Scene(layers, cameras, caption, f"{', '.join(names)} before {about}")

    def _background(
        self, rng: np.random.Generator, depth: float, cameras: Sequence[Camera]
    ) -> tuple[Layer, str]:
        """A photograph, a small part of one that is repeated in mirrors, or a gradient."""
        name = self._names[rng.integers(len(self._names))]
        kind = str(rng.choice(["photograph", "pattern", "gradient"], p=[0.81, 0.08, 0.11]))
        about = f"a {kind} of {name}"
        middle, half = visible_square(depth, cameras, self.size)
        half = min(half, WIDEST * depth / 2)  # beyond it the mirrors begin
        part = float(rng.uniform(*CROP))
        if kind == "pattern":
            half, part = half / 2, part / 2
        pixels = round(2 * half / depth * self.size * FINE)
        if kind == "gradient":
            texture, about = _gradient(rng, pixels), "a gradient"
        else:
            texture = _crop(rng, self.material.photographs[name], part, pixels)
        halves = torch.full((self.frames,), half, dtype=torch.float64)
        places = middle.expand(self.frames, 3)
        return Layer(texture, places, halves, 0 * halves, endless=True), about

    def _sprite(
        self, rng: np.random.Generator, text: str, depth: float, own: SpriteMotion | None
    ) -> Layer:
        """An emoji near the middle of the first frame."""
        low, high = SPRITE
        width = float(low * (high / low) ** rng.random())
        at = torch.from_numpy(rng.uniform(-0.34, 0.34, 2)).expand(self.frames, 2)
        sizes = torch.full((self.frames,), width / 2, dtype=torch.float64)
        angles = torch.full_like(sizes, float(rng.uniform(-0.15, 0.15)))
        if own is not None:
            at, sizes, angles = at + own.offsets, sizes * own.scales, angles + own.angles
        places = torch.cat([at * depth, torch.full((self.frames, 1), depth).double()], 1)
        pixels = min(CANVAS, 2 * round(width * self.size * FINE * float((sizes / sizes[0]).max())))
        return Layer(_emblem(self.renderer, text, pixels), places, sizes * depth, angles)


def read_photographs(folders: Sequence[Path], size: int) -> dict[str, Image.Image]:
    """All pictures below the folders, or without folders those of scikit-image, by name.

    A name is that of the file, up to "_by_"; of several pictures with one name the last is taken.
    Those with sides below `size` are left out, larger ones are made as small as films of that size
    need. Raises UndustError for folders without two photographs, a missing package and what cannot
    be read.
    """
    paths = _scikit_image() if not folders else {}
    for folder in folders:
        found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes()]
        paths |= {_words(path): path for path in sorted(found)}
    photographs: dict[str, Image.Image] = {}
    for name, path in sorted(paths.items()):
        picture = read_image(path)
        shorter = min(picture.size)
        if shorter >= size:
            part = min(1.0, DETAIL * size / shorter)
            sides = (round(picture.width * part), round(picture.height * part))
            photographs[name] = Image.fromarray(from_image(picture, sides).permute(1, 2, 0).numpy())
    if len(photographs) < 2:
        raise UndustError(
            f"{', '.join(map(str, folders))}: {len(photographs)} photographs of {size} pixels or "
            "more; two are needed, one of them for tests"
        )
    return photographs


def drawable_emoji(among: Iterable[str] | None = None) -> dict[str, str]:
    """Emoji and their English names, without flags, keycaps and variants of skin tone.

    among: by default all of them. Raises UndustError for a missing font or package.
    """
    names, renderer = EmojiNames(), EmojiRenderer()
    plain = (text for text in among or names if names.concept(text) == text)
    named = {text: names.caption(text, "en") for text in plain if renderer.can_draw(text)}
    return {t: name for t, name in named.items() if not name.startswith(("flag: ", "keycap: "))}


def _scikit_image() -> dict[str, Path]:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise UndustError(
            "scikit-image is not installed; `pip install scikit-image` brings photographs, and "
            "--photographs names folders of others"
        )
    folder = Path(found.origin).parent / "data"
    return {words: folder / name for name, words in SCIKIT_IMAGE.items()}


def _words(path: Path) -> str:
    """A file's name as words: "seeding" of seeding_by_Clements_Engelhardt.jpg."""
    if path.name in SCIKIT_IMAGE:
        return SCIKIT_IMAGE[path.name]
    stem = re.sub(r"_by_.*", "", path.stem)
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[-_]+", " ", stem).lower().split())


def _part(names: Mapping[str, object], held_out: bool) -> list[str]:
    """Names by their hashes: an eighth, at least one, is held out."""
    digests = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names}
    test = {name for name, digest in digests.items() if digest % HELD_OUT == 0}
    test = test or {min(digests, key=digests.__getitem__)}
    return [name for name in names if (name in test) == held_out]


def _separate(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """Depths from the far to the near, at least a ratio apart, or evenly where there is no room."""
    room = np.log(high / low)
    least = min(np.log(APART), room / count)
    free = np.sort(rng.uniform(0, room - least * (count - 1), count))
    return low * np.exp(free + least * np.arange(count))[::-1]


def _crop(rng: np.random.Generator, picture: Image.Image, part: float, pixels: int) -> Tensor:
    """A square part of a photograph at random, mirrored in half of the cases [4, n, n].

    part: its side, of the photograph's shorter one; more if that has too few pixels.
    """
    shorter = min(picture.size)
    side = min(shorter, max(part * shorter, pixels / FINE * FINEST))
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    box = (left, top, left + side, top + side)
    square = picture.resize((pixels, pixels), Image.Resampling.LANCZOS, box)
    if rng.random() < 0.5:
        square = ImageOps.mirror(square)
    return _texture(square)


def _gradient(rng: np.random.Generator, pixels: int) -> Tensor:
    """From one colour to another along a line of any direction [4, n, n]."""
    angle, colours = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, (2, 3))
    along = torch.linspace(-1, 1, pixels)
    slope = np.cos(angle) * along[None] + np.sin(angle) * along[:, None]
    part = (slope / 2**0.5 + 1) / 2
    first, last = torch.from_numpy(colours).float()[:, :, None, None]
    return torch.cat([first + (last - first) * part, torch.ones(1, pixels, pixels)])


def _emblem(renderer: EmojiRenderer, text: str, pixels: int) -> Tensor:
    """An emoji with a transparent margin, `pixels` wide, colours times opacity [4, n, n]."""
    ink = renderer.cut_out(text)
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return _texture(canvas.resize((pixels, pixels), Image.Resampling.LANCZOS))


def _texture(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1).float() / 255
    return torch.cat([pixels[:3] * pixels[3:], pixels[3:]])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
