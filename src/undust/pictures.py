"""Pictures to tensors and back, and many pictures to one."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from undust.errors import UndustError
from undust.regular import open_regular

LARGEST = 4096 * 4096  # pixels of a picture that is made
MOST_PIXELS = 89_478_485  # width × height of a file that is read; above it Pillow warns
# Kinds of files that Pillow decodes by itself. It runs a program for PostScript; the others are
# pages, films or measurements.
KINDS = (
    *("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("TGA", "PCX", "DDS", "PSD", "QOI", "ICO", "ICNS", "SGI", "SUN", "XBM", "XPM"),
)
DATA = "data:image/png;base64,"  # what a small picture inside a text begins with (RFC 2397)


def from_image(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An image on white, resized and centre-cropped to (width, height): bytes [3, H, W]."""
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if flat.size != size:
        flat = ImageOps.fit(flat, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).contiguous()


def to_images(x: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as 8-bit images; values outside are clipped."""
    bytes_ = (x.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in bytes_]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] at another (width, height), as Pillow's Lanczos does it."""
    bigger = [image.resize(size, Image.Resampling.LANCZOS) for image in to_images(x)]
    return torch.stack([from_image(image, size) for image in bigger]).float() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """The images side by side on white, row by row; as square as can be unless told."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width = max(image.width for image in images) + gap
    height = max(image.height for image in images) + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image, (gap + column * width, gap + row * height))
    return sheet


def read_image(path: Path) -> Image.Image:
    """A picture file, as `upright` gives it; the first frame of an animation.

    Raises UndustError if it is no picture, is too large or damaged, or of a kind that is not read.
    """
    with _opened(path) as image:
        return upright(image, path)


def check_header(path: Path) -> None:
    """Raises UndustError, as `read_image` does, as far as the beginning of a file shows it."""
    with _opened(path):
        pass


def kind_of(path: Path) -> str | None:
    """The kind of a picture file, as Pillow calls it, of whatever size; None for another file.

    Raises UndustError for a damaged picture.
    """
    with open_regular(path) as file:
        if file.read(4) == b"\x89PNG":
            return "PNG"
    try:
        with _measured(path) as image:
            return image.format
    except UnidentifiedImageError:
        return None
    except Exception:
        read_image(path)  # its error says what is wrong
        raise


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture file. Raises UndustError, as `read_image`, for a damaged one.

    One that is larger than `LARGEST`, as others' upscaled ones are, is measured but not decoded.
    """
    with suppress(Exception), _measured(path) as image:
        if image.width * image.height > LARGEST:
            return image.size
    return read_image(path).size


@contextmanager
def _measured(path: Path) -> Generator[Image.Image]:
    """A picture file of which only the header is read, in Pillow's own errors, without warnings."""
    with warnings.catch_warnings(), open_regular(path) as file:
        warnings.simplefilter("ignore")
        with Image.open(file) as image:
            yield image


def conversions(path: Path) -> list[str]:
    """What `read_image` converts of a file's colours, as far as its header shows it."""
    with _opened(path) as image:
        deep, profile = _is_deep(image.mode, image.format), image.info.get("icc_profile")
        found = _to_srgb(profile) if isinstance(profile, bytes) else None
        converted = found is not None and _is_for(found[0], "L" if deep else image.mode)
    notes = {
        "16-bit grey, of which the upper 8 bits are read": deep,
        "an embedded colour profile, converted to sRGB": converted,
    }
    return [note for note, applies in notes.items() if applies]


@contextmanager
def _opened(path: Path) -> Generator[Image.Image]:
    """A picture file of which the header was read."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _too_large(path, f": {image.width}x{image.height}")
            if image.format not in KINDS:
                raise UndustError(
                    f"{path} is a picture of the kind {image.format}; "
                    f"those that are read are {', '.join(KINDS)}"
                )
            yield image
    except UndustError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(KINDS)
        raise UndustError(f"{path} cannot be read as a picture: it is none of {kinds}") from error
    except OSError as error:
        reason = error.strerror or error
        raise UndustError(f"{path} cannot be read as a picture: {reason}") from error
    except Exception as error:  # IndexError, struct.error, …: each reader trips in its own way
        raise UndustError(f"{path} is a damaged picture: {error}") from error


def _too_large(path: Path, size: str = "") -> UndustError:
    return UndustError(f"{path} is too large{size}; {MOST_PIXELS:,} pixels at most")


@cache
def suffixes() -> frozenset[str]:
    """The endings of names of picture files that are read, in lower case, with the point."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in KINDS)


def is_picture(path: Path) -> bool:
    """Whether the content of a file whose name does not tell begins as that of a picture."""
    Image.init()
    kinds = [kind for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF") if kind in Image.OPEN]
    try:
        with open_regular(path) as file, Image.open(file, formats=kinds):
            return True
    except Exception:
        return False


def upright(image: Image.Image, name: object = "the picture") -> Image.Image:
    """An image as RGBA of 8 bits in sRGB, turned as its camera noted.

    Colours of an embedded ICC profile are converted; of 16 bits the upper ones are kept. Raises
    UndustError for pixels that are no colours but numbers of any size.
    """
    kind, image = image.format, ImageOps.exif_transpose(image)
    if _is_deep(image.mode, kind):
        image = _upper_bits(image)
    if image.mode in ("I", "F"):
        raise UndustError(f"{name} has no colours but mode {image.mode}; make it RGB or grey")
    if image.mode == "La":
        image = image.convert("LA")
    profile = image.info.pop("icc_profile", None)
    # Through RGB, for in one step from the likes of LAB the alpha would be anything.
    plain = (image if image.has_transparency_data else image.convert("RGB")).convert("RGBA")
    if isinstance(profile, bytes) and (found := _to_srgb(profile)):
        space, transform = found
        if _is_for(space, image.mode):
            source = image if space == "CMYK" else plain.convert(space)
            converted = ImageCms.applyTransform(source, transform)
            assert converted is not None  # None is the result of a transform in place
            converted.info.pop("icc_profile", None)
            converted.putalpha(plain.getchannel("A"))
            return converted
    return plain


def _is_for(space: str, mode: str) -> bool:
    """Whether a profile of a space, "RGB", "L" or "CMYK", is for images of this mode."""
    if space == "CMYK":
        return mode == "CMYK"
    return mode in ("1", "L", "LA") if space == "L" else mode not in ("CMYK", "LAB")


def _is_deep(mode: str, kind: str | None) -> bool:
    """Whether an image has grey of 16 bits."""
    return mode.startswith("I;16") or (mode == "I" and kind == "PPM")


def _upper_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, of which Pillow would make white above 255."""
    values, info = np.asarray(image), dict(image.info)
    upper = Image.fromarray((values >> 8).astype(np.uint8))
    clear = info.pop("transparency", None)  # the one value that is transparent
    if isinstance(clear, int):
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)
        upper = Image.merge("LA", (upper, Image.fromarray(alpha)))
    upper.info = info
    return upper


def grey(picture: Image.Image) -> Image.Image:
    """A picture in shades of grey, on black."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("L")


def transparency(picture: Image.Image) -> Image.Image:
    """How transparent a picture is, in shades of grey: white where nothing of it is seen."""
    return ImageOps.invert(picture.convert("RGBA").getchannel("A"))


def has_hole(picture: Image.Image) -> bool:
    """Whether a part of a picture, and not all of it, is fully transparent."""
    least, most = transparency(picture).getextrema()
    return most == 255 and cast("int", least) < 255


def is_drawn_mask(picture: Image.Image) -> bool:
    """Whether it is white, or white and black, on transparent ground that reaches all corners."""
    pixels = np.array(picture.convert("RGBA"))
    seen = pixels[pixels[..., 3] > 0][:, :3]
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3]
    plain = ((seen == 255).all(1) | (seen == 0).all(1)).all()
    return bool(plain and (seen == 255).any() and not corners.any())


def to_data(image: Image.Image, size: tuple[int, int]) -> str:
    """A grey image resized to (width, height), as text: a data URL."""
    file = io.BytesIO()
    (image if image.size == size else image.resize(size, Image.Resampling.BOX)).save(file, "PNG")
    return DATA + base64.b64encode(file.getvalue()).decode()


def from_data(text: str) -> Image.Image:
    """The grey image in a text that `to_data` made. Raises UndustError for another text."""
    try:
        content = base64.b64decode(text.removeprefix(DATA), validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("L")
    except (OSError, ValueError) as error:
        raise UndustError("the text is no picture as undust writes them into recipes") from error


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode of the images that an ICC profile is for, and the transform of them to sRGB.

    None for a profile that is damaged or of other images, and for one of sRGB itself, of which
    each colour comes back as it is but for rounding: 1 of 255.
    """
    try:
        source = ImageCms.core.profile_frombytes(profile)
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.xcolor_space.strip()]
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
        if mode == "CMYK":
            return mode, transform
        values = np.mgrid[0:256:15, 0:256:15, 0:256:15].reshape(3, 1, -1).T.astype(np.uint8)
        colours = Image.fromarray(values if mode == "RGB" else values[..., 0])
        converted = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int)
        same = np.abs(converted - np.asarray(colours.convert("RGB"))).max() <= 1
        return None if same else (mode, transform)
    except (ImageCms.PyCMSError, KeyError, OSError):
        return None


def levels(image: Image.Image) -> Tensor:
    """A grey image as [H, W] between 0, black, and 1."""
    return torch.from_numpy(np.array(image)).float() / 255
