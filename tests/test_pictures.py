"""Pictures to tensors and back."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.datasets import image_folder
from undust.errors import UndustError
from undust.pictures import (
    DATA,
    check_header,
    conversions,
    from_data,
    from_image,
    grey,
    grid,
    levels,
    read_image,
    resized,
    to_data,
    to_images,
    upright,
    upright_size,
)


def test_bytes_survive_the_way_there_and_back():
    x = torch.randint(0, 256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    images = to_images(x / 127.5 - 1)
    assert [image.size for image in images] == [(7, 5)] * 2
    assert torch.equal(torch.stack([from_image(image, (7, 5)) for image in images]), x.byte())


def test_values_are_rounded_and_clipped():
    x = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.999, 1.0, 9.0]).expand(1, 3, 1, 7)
    (image,) = to_images(x)
    assert from_image(image, (7, 1))[0, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),  # on white
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("L", 7, (7, 7, 7)),
        ("1", 0, (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_images_of_any_mode(mode: str, colour: int | tuple[int, ...], seen: tuple[int, ...]):
    x = from_image(Image.new(mode, (4, 4), colour), (4, 4))
    assert x[:, 2, 2].tolist() == list(seen)


def test_images_of_another_shape_are_cropped_at_the_sides():
    """A wide picture of three thirds: the middle one is left."""
    image = Image.new("RGB", (12, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    assert from_image(image, (4, 4))[:, 1:3, 1:3].flatten(1).unique(dim=1).tolist() == [
        [0],
        [0],
        [255],
    ]
    assert from_image(image, (6, 2)).shape == (3, 2, 6)


def test_a_grid_is_filled_row_by_row():
    images = [Image.new("RGB", (2, 3), colour) for colour in ("red", "lime", "blue")]
    sheet = grid(images, gap=1)
    assert sheet.size == (2 * 3 + 1, 2 * 4 + 1)
    seen = [sheet.getpixel(place) for place in ((1, 1), (4, 1), (1, 5), (4, 5), (0, 0), (3, 2))]
    white = (255, 255, 255)
    assert seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255), white, white, white]
    assert grid(images, columns=3, gap=0).size == (6, 3)


def test_a_mask_survives_in_a_text(tmp_path: Path):
    Image.new("RGBA", (8, 6), (255, 255, 255, 51)).save(tmp_path / "mask.png")
    mask = grey(read_image(tmp_path / "mask.png"))  # on black
    text = to_data(mask, (4, 3))
    assert text.startswith(DATA)
    assert text.isascii()
    assert to_data(from_data(text), (4, 3)) == text
    assert torch.equal(levels(from_data(text)), torch.full((3, 4), 0.2))


def test_pixels_of_a_mask_are_averaged():
    image = Image.new("L", (4, 2))
    image.putdata([255, 255, 0, 0, 255, 0, 0, 0])
    assert levels(from_data(to_data(image, (2, 1))))[0].tolist() == pytest.approx(
        [0.75, 0], abs=0.01
    )


@pytest.mark.parametrize("text", ["", DATA, DATA + "AAAA", "mask.png", DATA + "é"])
def test_a_text_that_is_no_picture(text: str):
    with pytest.raises(UndustError, match="the text is not a picture"):
        from_data(text)


def test_a_file_that_is_no_picture(tmp_path: Path):
    (tmp_path / "mask.png").write_text("white")
    for name in ("mask.png", "none.png", "x" * 300):
        with pytest.raises(UndustError, match="cannot be read as a picture"):
            read_image(tmp_path / name)
    with pytest.raises(UndustError, match="is a folder, not a file"):
        read_image(tmp_path)
    with pytest.raises(UndustError, match="is a damaged picture: embedded null byte"):
        read_image(tmp_path / "a\0b")


RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (kind, mode)
        for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP")
        for mode in ("RGB", "L", "1", "P")
        if (kind, mode) != ("PPM", "P")
    ],
)
def test_kinds_of_files_that_lose_nothing(tmp_path: Path, kind: str, mode: str):
    image = NOISE.quantize(8) if mode == "P" or kind == "GIF" else NOISE.convert(mode)
    image.save(tmp_path / "a", kind, **({"lossless": True} if kind == "WEBP" else {}))
    read = read_image(tmp_path / "a")
    assert read.mode == "RGBA"
    assert read.tobytes() == image.convert("RGB").convert("RGBA").tobytes()


def test_kinds_that_lose_a_little(tmp_path: Path):
    smooth = NOISE.resize((64, 48), Image.Resampling.BICUBIC)
    for mode in ("RGB", "CMYK", "L"):
        smooth.convert(mode).save(tmp_path / "a", "JPEG", quality=100)
        off = np.array(read_image(tmp_path / "a").convert("RGB")).astype(int)
        off -= np.array(smooth.convert(mode).convert("RGB"))
        assert np.abs(off).mean() < 3, mode


@pytest.mark.parametrize("kind", ["EPS", "PDF"])
def test_kinds_that_are_not_read(tmp_path: Path, kind: str):
    """PostScript among them, which Pillow would give to a program that runs it."""
    NOISE.save(tmp_path / "a", kind)
    with pytest.raises(
        UndustError, match=f"has the format {kind}; supported formats are PNG|cannot"
    ):
        read_image(tmp_path / "a")


def test_sixteen_bits_keep_their_shades(tmp_path: Path):
    """As depth maps have them; Pillow by itself makes white of all but the darkest 256th."""
    shades = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        Image.fromarray(shades).save(tmp_path / "a", kind)
        assert np.array(grey(read_image(tmp_path / "a"))).tolist() == [[0, 0, 1, 128, 255]]
    assert np.array(grey(upright(Image.fromarray(shades)))).tolist() == [[0, 0, 1, 128, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_the_camera_noted(tmp_path: Path, orientation: int):
    """EXIF 2.32, 4.6.4: where row 0 and column 0 of the stored picture are seen."""
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored[::-1].T,
        7: stored[::-1, ::-1].T,
        8: stored.T[::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (np.array(grey(read_image(tmp_path / "a.png"))) == seen[orientation]).all()
    with Image.open(tmp_path / "a.png") as image:  # as it is in memory
        assert (np.array(grey(upright(image))) == seen[orientation]).all()


def test_of_a_picture_that_moves_the_beginning_counts(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], **lossless)
        assert read_image(tmp_path / "a").getpixel((2, 2)) == (255, 0, 0, 255)


def test_what_is_clear_stays_clear(tmp_path: Path):
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 255, 0, 51))
    clear.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tobytes() == clear.tobytes()
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 8, 7])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").getpixel((0, 0)) == (9, 8, 7, 0)
    assert upright(Image.new("LA", (1, 1), (7, 51))).getpixel((0, 0)) == (7, 7, 7, 51)


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "HSV", "CMYK", "RGBX", "L", "1", "P"])
def test_what_has_no_alpha_is_there_altogether(mode: str):
    assert upright(Image.new(mode, (1, 1))).getchannel("A").tobytes() == bytes([255])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_what_has_no_colours(mode: str):
    with pytest.raises(UndustError, match=f"the picture has no colours but mode {mode}"):
        upright(Image.new(mode, (2, 2)))


def test_a_file_that_has_no_colours(tmp_path: Path):
    Image.new("F", (2, 2)).save(tmp_path / "a.tiff")
    with pytest.raises(UndustError, match=r"a\.tiff has no colours but mode F; make it RGB"):
        read_image(tmp_path / "a.tiff")


def png(width: int, height: int) -> bytes:
    """A PNG of that size by its header, with no pixels in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


@pytest.mark.parametrize("size", [(9460, 9459), (12_000, 8_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_not_unpacked(tmp_path: Path, size: tuple[int, int]):
    """Just above the limit, where Pillow warns; far above it; and where Pillow refuses."""
    (tmp_path / "a.png").write_bytes(png(*size))
    with (
        warnings.catch_warnings(),
        pytest.raises(UndustError, match=r"a\.png is too large.* 89,478,485 pixels at most"),
    ):
        warnings.simplefilter("error")
        read_image(tmp_path / "a.png")


def content(kind: str) -> bytes:
    file = io.BytesIO()
    NOISE.save(file, kind)
    return file.getvalue()


FILES = {kind: content(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}


@given(
    st.sampled_from(list(FILES)),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    st.integers(0, 2**16),
)
def test_any_bytes_are_a_picture_or_a_line(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[int, int]],
    length: int,
):
    damaged = bytearray(FILES[kind])
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / "any-picture"
    path.write_bytes(damaged[: max(1, length % (2 * len(damaged)))])
    try:
        assert read_image(path).mode == "RGBA"
    except UndustError as error:
        assert "any-picture" in str(error)
        assert "\n" not in str(error)


def test_what_pillow_trips_over_is_a_line(tmp_path: Path):
    """An embedded profile without an end, behind the pixels: Pillow raises IndexError."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    end = content.getvalue()[-12:]
    profile = b"iCCPname\0"
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    path = tmp_path / "a.png"
    path.write_bytes(content.getvalue()[:-12] + chunk + end)
    with Image.open(path) as image, pytest.raises(IndexError):
        image.load()
    with pytest.raises(UndustError, match="is a damaged picture"):
        read_image(path)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_pictures_are_resized_as_pillow_does_it(width: int, height: int, to: int, high: int):
    draw = torch.Generator().manual_seed(width * 10 + height)
    x = torch.randint(0, 256, (2, 3, height, width), generator=draw).float() / 127.5 - 1
    larger = resized(x, (to, high))
    assert larger.shape == (2, 3, high, to)
    for ours, image in zip(to_images(larger), to_images(x), strict=True):
        assert ours.tobytes() == image.resize((to, high), Image.Resampling.LANCZOS).tobytes()


def test_a_picture_of_its_own_size_stays_to_the_byte():
    x = torch.randint(0, 256, (1, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(x.float() / 127.5 - 1, (7, 5)), x.float() / 127.5 - 1)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "DDS", "PCX", "JPEG2000"])
def test_kinds_of_older_and_other_programs(tmp_path: Path, kind: str):
    NOISE.resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "a", kind)
    read = np.array(read_image(tmp_path / "a").convert("RGB"))
    assert read.shape == (32, 32, 3)
    lossless = {} if kind != "JPEG2000" else {"atol": 60}
    nearest = np.array(NOISE.resize((32, 32), Image.Resampling.NEAREST))
    assert np.allclose(read.astype(int), nearest, **lossless)


def test_a_frame_of_an_animation(tmp_path: Path):
    """The first one, of each kind that has several."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
        assert read_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_of_every_kind(tmp_path: Path, kind: str):
    shades = np.array([[0, 255, 256, 32768, 65535]] * 8, np.uint16)
    Image.fromarray(shades).save(tmp_path / "a", kind)
    assert np.array(grey(read_image(tmp_path / "a")))[0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_in_either_order(tmp_path: Path, order: str):
    """A TIFF by hand: one strip of 1×3 grey pixels."""
    mark, code = (b"II", "<") if order == "<u2" else (b"MM", ">")
    pixels = np.array([0, 32768, 65535], order).tobytes()
    tags = [(256, 4, 3), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 1), (279, 4, 6)]
    entries = b"".join(
        struct.pack(f"{code}HHI", tag, kind, 1)
        + (struct.pack(f"{code}HH", value, 0) if kind == 3 else struct.pack(f"{code}I", value))
        for tag, kind, value in tags
    )
    directory = struct.pack(f"{code}H", len(tags)) + entries + bytes(4)
    head = mark + struct.pack(f"{code}HI", 42, 14)
    (tmp_path / "a.tiff").write_bytes(head + pixels + directory)
    assert np.array(grey(read_image(tmp_path / "a.tiff"))).tolist() == [[0, 128, 255]]


def test_the_transparent_shade_of_sixteen_bits(tmp_path: Path):
    """PNG 1.2, 4.2.1.1: pixels of exactly that value are transparent, and no others."""
    shades = np.array([[0, 1, 200, 255, 256, 65535]], np.uint16)
    for clear in (0, 200, 65535):
        Image.fromarray(shades).save(tmp_path / "a.png", transparency=clear)
        alpha = np.array(read_image(tmp_path / "a.png"))[0, :, 3]
        assert alpha.tolist() == [0 if shade == clear else 255 for shade in shades[0].tolist()]


# Adobe RGB (1998), 4.3.1: its primaries in XYZ under D50 (Bradford's adaptation), its gamma.
ADOBE = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
GAMMA = 563 / 256


def icc(space: bytes, matrix: tuple[tuple[float, ...], ...] = (), gamma: float = GAMMA) -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04): of RGB by a matrix, or of grey by a curve."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    name = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78 + 2)
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"desc": name, b"cprt": b"text" + bytes(8)}
    if matrix:
        for letter, column in zip((b"r", b"g", b"b"), zip(*matrix, strict=True), strict=True):
            tags |= {letter + b"XYZ": xyz(column), letter + b"TRC": curve}
    else:
        tags[b"kTRC"] = curve
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", start + len(content), len(data))
        content += data
    size = start + len(content)
    head = struct.pack(">I", size) + bytes(4) + struct.pack(">I", 0x02400000) + b"mntr" + space
    head += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + xyz((0.9642, 1.0, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + content


def in_srgb(xyz: np.ndarray) -> list[int]:
    """XYZ under D50 as sRGB of 8 bits: IEC 61966-2-1, adapted by Bradford's matrix."""
    matrix = np.array(
        [[3.13406, -1.61739, -0.49066], [-0.97880, 1.91616, 0.03345], [0.07196, -0.22898, 1.40539]]
    )
    linear = (matrix @ xyz).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).tolist()


COLOUR = (200, 60, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_colours_of_another_space_are_converted(tmp_path: Path, name: str):
    profile = icc(b"RGB ", ADOBE)
    lossless = {"lossless": True} if name == "a.webp" else {}
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / name, icc_profile=profile, **lossless)
    stored = COLOUR if name != "a.jpg" else Image.open(tmp_path / name).getpixel((4, 4))
    right = in_srgb(np.array(ADOBE) @ (np.array(stored) / 255) ** GAMMA)
    read = read_image(tmp_path / name)
    assert read.getpixel((4, 4))[:3] == pytest.approx(right, abs=1.5)
    assert right[0] > COLOUR[0] + 20  # another red
    assert "icc_profile" not in read.info  # or it would be converted twice
    assert upright(read).tobytes() == read.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA"])
def test_transparency_and_palettes_are_converted_too(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (8, 8), (*COLOUR, 77)).convert("RGBA")
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    space = b"GRAY" if mode in ("L", "LA") else b"RGB "
    profile = icc(space, ADOBE if space == b"RGB " else (), gamma=1.0)
    image.save(tmp_path / "a.png", icc_profile=profile)
    read = read_image(tmp_path / "a.png").getpixel((4, 4))
    if space == b"RGB ":
        right = in_srgb(np.array(ADOBE) @ (np.array(COLOUR) / 255))
        assert read[3] == 77
    else:
        value = image.getpixel((4, 4))
        value = value[0] if isinstance(value, tuple) else value
        right = in_srgb(np.array([0.9642, 1.0, 0.8249]) * value / 255)
        assert read[3] == (77 if mode == "LA" else 255)
    assert read[:3] == pytest.approx(right, abs=2)


def test_profiles_that_change_nothing(tmp_path: Path):
    """sRGB itself, one of other pictures, and one that is no profile: the pixels as they are."""
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, icc(b"GRAY"), icc(b"CMYK", ADOBE), b"no profile", srgb[:200]):
        NOISE.save(tmp_path / "a.png", icc_profile=profile)
        assert read_image(tmp_path / "a.png").convert("RGB").tobytes() == NOISE.tobytes()
        assert conversions(tmp_path / "a.png") == []


def test_conversions_are_told(tmp_path: Path):
    """By `undust data check`, of a file's header alone."""
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / "a.png", icc_profile=icc(b"RGB ", ADOBE))
    Image.fromarray(np.full((8, 8), 4660, np.uint16)).save(tmp_path / "b.png")
    wide, deep = (conversions(tmp_path / name) for name in ("a.png", "b.png"))
    assert wide == ["an embedded colour profile, converted to sRGB"]
    assert deep == ["16-bit grey, of which the upper 8 bits are read"]
    assert image_folder.check(tmp_path).conversions == Counter([*wide, *deep])


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_profile_gives_a_picture(cut: bytes, place: int):
    profile = icc(b"RGB ", ADOBE)
    image = NOISE.copy()
    image.info["icc_profile"] = profile[:place] + cut + profile[place + len(cut) :]
    assert upright(image).size == NOISE.size


def test_a_photograph_of_some_size_is_read(tmp_path: Path):
    """50 megapixels, as cameras make them; before, 16.7 were the most."""
    Image.new("1", (8192, 6144)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (8192, 6144)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(12_000, 8_000), (20_000, 10_000)])
@pytest.mark.parametrize("ending", ["png", "tiff", "bmp", "pcx", "pbm", ""])
def test_a_picture_that_is_too_large_is_refused_with_its_size(
    tmp_path: Path, size: tuple[int, int], ending: str
):
    """Pillow itself warns of the first size and refuses the second, without a word on its sides."""
    path = tmp_path / f"a.{ending}".rstrip(".")
    Image.new("1", size).save(path, format=None if ending else "PNG")
    said = f"{path} is too large: {size[0]}x{size[1]}; 89,478,485 pixels at most"
    for read in (read_image, upright_size, check_header, conversions):
        with pytest.raises(UndustError) as error:
            read(path)
        assert str(error.value) == said
    assert image_folder.check(tmp_path).broken == [said]


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_size_of_an_upright_picture_is_in_its_header(
    tmp_path: Path, kind: str, orientation: int
):
    path, exif = tmp_path / f"a.{kind}", Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(path, exif=exif)
    assert upright_size(path) == read_image(path).size == ((4, 6) if orientation > 4 else (6, 4))
