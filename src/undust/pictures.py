"""Pictures: reading, conversion to and from tensors, masks, grids."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from undust.errors import UndustError
from undust.regular import Opener, open_regular

LARGEST = 4096 * 4096  # pixels of a generated picture
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")  # of the others' pages or layers the first is a picture
MAX_PIXELS = 89_478_485  # width × height of a file that is read; above it Pillow warns
# Formats that Pillow decodes itself. It runs a program for PostScript; the others are documents,
# videos or measurements.
KINDS = (
    *("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("TGA", "PCX", "DDS", "PSD", "QOI", "ICO", "ICNS", "SGI", "SUN", "XBM", "XPM"),
)
POINTER = b"version https://git-lfs.github.com/spec/"  # first bytes of Git LFS's
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations
DATA = "data:image/png;base64,"  # prefix of a picture in a text (RFC 2397)


def from_image(image: Image.Image, size: tuple[int, int], place: float = 0.5) -> Tensor:
    """An image on white, resized to cover (width, height) and cropped: bytes [3, H, W].

    place: of the crop along the side that is too long, from 0, left or top, to 1.
    """
    image = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if flat.size != size:
        flat = ImageOps.fit(flat, size, Image.Resampling.LANCZOS, centering=(place, place))
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).contiguous()


def to_images(x: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as 8-bit images; values outside are clipped."""
    bytes_ = (x.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in bytes_]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] resized to (width, height) by Pillow's Lanczos filter."""
    bigger = [image.resize(size, Image.Resampling.LANCZOS) for image in to_images(x)]
    return torch.stack([from_image(image, size) for image in bigger]).float() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """The images in a grid on white, row by row; columns: None for a nearly square grid."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width = max(image.width for image in images) + gap
    height = max(image.height for image in images) + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image, (gap + column * width, gap + row * height))
    return sheet


def read_image(path: Path, opened: Opener = open_regular) -> Image.Image:
    """A picture file converted by `upright`; the first frame of an animation.

    Raises UndustError for a file that is not a picture, too large, damaged or of another format.
    """
    with _opened(path, opened) as image:
        return upright(image, path)


def animation(path: Path, opened: Opener = open_regular) -> tuple[int, float]:
    """The number of frames in a picture file, and how long the first one lasts, in milliseconds.

    Of kinds that are not `ANIMATED` it is 1, whatever pages or layers there are. A PNG's picture
    for programs that do not animate is no frame. The second is 0 for a file that does not tell it.
    Raises UndustError as `read_image`.
    """
    with _opened(path, opened) as image:
        first = _first_frame(image)
        count = getattr(image, "n_frames", 1) - first if image.format in ANIMATED else 1
        if count == 1:
            return 1, 0.0
        image.seek(first)
        image.load()
        return count, float(image.info.get("duration", 0) or 0)


def read_frames(path: Path, opened: Opener = open_regular) -> list[Image.Image]:
    """All frames of a picture file, as `animation` counts them, each converted by `upright`.

    Raises UndustError as `read_image`, and for frames that are too large together.
    """
    with _opened(path, opened) as image:
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > MAX_PIXELS:
            raise _too_large(path, f": {count} frames of {image.width}x{image.height}")
        frames = islice(ImageSequence.Iterator(image), _first_frame(image), None)
        return [upright(frame.copy(), path) for frame in frames]


def _first_frame(image: Image.Image) -> int:
    """The number of the first frame: 1 in an animated PNG whose default image is not a frame."""
    return 1 if getattr(image, "default_image", False) else 0


def grey_numbers(path: Path, opened: Opener = open_regular) -> np.ndarray:
    """The numbers of a grey picture file as they are stored: uint8 or uint16 [H, W].

    Neither a colour profile nor the EXIF orientation is applied. Raises UndustError for a picture
    in colours or with transparency, and as `read_image` does.
    """
    with _opened(path, opened) as image:
        image.load()
        if _is_deep(image.mode, image.format):
            return np.array(image).astype(np.uint16)
        if image.mode in ("L", "RGB", "P", "1"):
            pixels = np.array(image.convert("RGB"))
            if (pixels == pixels[..., :1]).all():
                return pixels[..., 0]
        raise UndustError(
            f"{path} has colours, transparency or other numbers (mode {image.mode}); it has to be "
            "a grey picture of 8 or 16 bits"
        )


def upright_size(path: Path, opened: Opener = open_regular) -> tuple[int, int]:
    """Width and height of `read_image`, from the header of the file; its errors too."""
    with _opened(path, opened) as image:
        stored = getattr(image, "tag_v2", {})  # of a TIFF, whose size Pillow turns by its own tag
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in QUARTER_TURNS
        if turned and ExifTags.Base.Orientation not in stored:
            return image.height, image.width
        return image.size


def check_header(path: Path, opened: Opener = open_regular) -> None:
    """Raises the errors of `read_image` that are found in a file's header."""
    with _opened(path, opened):
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


def conversions(path: Path, opened: Opener = open_regular) -> list[str]:
    """The colour conversions of `read_image` for a file, by its header."""
    with _opened(path, opened) as image:
        deep, profile = _is_deep(image.mode, image.format), image.info.get("icc_profile")
        found = _to_srgb(profile) if isinstance(profile, bytes) else None
        converted = found is not None and _is_for(found[0], "L" if deep else image.mode)
    notes = {
        "16-bit grey, of which the upper 8 bits are read": deep,
        "an embedded colour profile, converted to sRGB": converted,
    }
    return [note for note, applies in notes.items() if applies]


@contextmanager
def _opened(path: Path, opened: Opener) -> Generator[Image.Image]:
    """An opened picture file, with its header read."""
    try:
        with opened(path) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f": {image.width}x{image.height}")
            if image.format not in KINDS:
                raise UndustError(
                    f"{path} has the format {image.format}; "
                    f"supported formats are {', '.join(KINDS)}"
                )
            yield image
    except UndustError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, _size_by_header(path, opened)) from error
    except UnidentifiedImageError as error:
        raise UndustError(f"{path} {_instead(path, opened)}") from error
    except OSError as error:
        reason = error.strerror or error
        raise UndustError(f"{path} cannot be read as a picture: {reason}") from error
    except Exception as error:  # IndexError, struct.error, …: any, depending on the decoder
        raise UndustError(f"{path} is a damaged picture: {error}") from error


def _too_large(path: Path, size: str) -> UndustError:
    return UndustError(f"{path} is too large{size}; {MAX_PIXELS:,} pixels at most")


def _instead(path: Path, opened: Opener) -> str:
    """What a file is that is no picture, in words."""
    with suppress(Exception), opened(path) as file:
        if not (start := file.read(len(POINTER))):
            return "is an empty file, not a picture"
        if start == POINTER:
            return "is a pointer of Git LFS, not the picture itself, which git lfs pull fetches"
    return f"cannot be read as a picture: it is none of {', '.join(KINDS)}"


def _size_by_header(path: Path, opened: Opener) -> str:
    """The size, ": WIDTHxHEIGHT", of a picture that Pillow refuses for it; "" if unknown."""
    with suppress(Exception), opened(path) as file:
        start = file.read(16)
        for factory, accept in (Image.OPEN[kind] for kind in Image.ID if kind in KINDS):
            if accept is None or accept(start) is True:
                file.seek(0)
                with suppress(SyntaxError), factory(file, "") as image:  # of another kind
                    return f": {image.width}x{image.height}"
    return ""


@cache
def suffixes() -> frozenset[str]:
    """The file name extensions of the formats that are read, in lower case, with the dot."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in KINDS)


def is_picture(path: Path, opened: Opener = open_regular) -> bool:
    """Whether a file's content begins like a picture, for a name without extension."""
    Image.init()
    kinds = [kind for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF") if kind in Image.OPEN]
    try:
        with opened(path) as file, Image.open(file, formats=kinds):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:
        return False


def upright(image: Image.Image, name: object = "the picture") -> Image.Image:
    """An image as 8-bit RGBA in sRGB, with its EXIF orientation applied.

    Colours of an embedded ICC profile are converted; 16-bit values lose their lower 8 bits. Raises
    UndustError for modes without a range of values (I, F).
    """
    kind, image = image.format, ImageOps.exif_transpose(image)
    if _is_deep(image.mode, kind):
        image = _upper_bits(image)
    if image.mode in ("I", "F"):
        raise UndustError(f"{name} has no colours but mode {image.mode}; make it RGB or grey")
    if image.mode == "La":
        image = image.convert("LA")
    profile = image.info.pop("icc_profile", None)
    # Via RGB: a direct conversion from modes such as LAB would give an arbitrary alpha.
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
    """Whether a profile of a colour space, "RGB", "L" or "CMYK", applies to images of this mode."""
    if space == "CMYK":
        return mode == "CMYK"
    return mode in ("1", "L", "LA") if space == "L" else mode not in ("CMYK", "LAB")


def _is_deep(mode: str, kind: str | None) -> bool:
    """Whether an image is 16-bit grey."""
    return mode.startswith("I;16") or (mode == "I" and kind == "PPM")


def _upper_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow would clip it at 255."""
    values, info = np.asarray(image), dict(image.info)
    upper = Image.fromarray((values >> 8).astype(np.uint8))
    clear = info.pop("transparency", None)  # the one value that is transparent
    if isinstance(clear, int):
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)
        upper = Image.merge("LA", (upper, Image.fromarray(alpha)))
    upper.info = info
    return upper


def grey(picture: Image.Image) -> Image.Image:
    """A picture in grey, on black."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("L")


def transparency(picture: Image.Image) -> Image.Image:
    """The transparency of a picture as a grey image: white where it is fully transparent."""
    return ImageOps.invert(picture.convert("RGBA").getchannel("A"))


def has_hole(picture: Image.Image) -> bool:
    """Whether a part of a picture, but not all of it, is fully transparent."""
    least, most = transparency(picture).getextrema()
    return most == 255 and cast("int", least) < 255


def is_drawn_mask(picture: Image.Image) -> bool:
    """Whether it is only white (and black), with transparent corners: a mask from an editor."""
    pixels = np.array(picture.convert("RGBA"))
    seen = pixels[pixels[..., 3] > 0][:, :3]
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3]
    plain = ((seen == 255).all(1) | (seen == 0).all(1)).all()
    return bool(plain and (seen == 255).any() and not corners.any())


def to_data(image: Image.Image, size: tuple[int, int]) -> str:
    """A grey image resized to (width, height) as a data URL."""
    file = io.BytesIO()
    (image if image.size == size else image.resize(size, Image.Resampling.BOX)).save(file, "PNG")
    return DATA + base64.b64encode(file.getvalue()).decode()


def from_data(text: str) -> Image.Image:
    """The grey image of a data URL made by `to_data`. Raises UndustError for other texts."""
    try:
        content = base64.b64decode(text.removeprefix(DATA), validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("L")
    except (OSError, ValueError) as error:
        raise UndustError("the text is not a picture as written into recipes by undust") from error


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The image mode of an ICC profile and the transform to sRGB.

    None for a profile that is damaged or of another colour space, and for sRGB itself, recognised
    by a change of all colours of at most 1 of 255.
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
    """A grey image as [H, W] from 0 (black) to 1."""
    return torch.from_numpy(np.array(image)).float() / 255
