"""Pictures and weights that a recipe names: there, gone, changed, or no such thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.errors import UndustError
from undust.formats.lora.file import IN_FOLDERS
from undust.formats.safetensors_file import save
from undust.latent.references import image_of, resolved_image, resolved_weights
from undust.recipe.files import DIGITS, ImageRef, WeightsRef
from undust.recipe.inputs import LoRA


def picture(seed: int = 0, size: tuple[int, int] = (6, 4), alpha: bool = False) -> Image.Image:
    shape = (size[1], size[0], 4 if alpha else 3)
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("name", ["a.png", "with space.png", "a=b:c@0.5.png", "고양이.png"])
def test_a_file_is_known_by_its_path_and_its_pixels(tmp_path: Path, name: str):
    picture().save(tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        told = resolved_image(ImageRef.of(path))
        assert told.path == str(tmp_path / name)
        assert len(told.hash) == DIGITS
        assert image_of(told).tobytes() == picture().convert("RGBA").tobytes()
    again = ImageRef.model_validate(told.model_dump())
    assert image_of(again).tobytes() == image_of(told).tobytes()


def test_the_hash_tells_pixels_and_not_how_they_are_written(tmp_path: Path):
    made: set[str] = set()
    for name, options in [
        ("a.png", {}),
        ("b.png", {"compress_level": 0}),
        ("c.bmp", {}),
        ("d.tiff", {}),
        ("e.webp", {"lossless": True}),
    ]:
        picture().save(tmp_path / name, **options)
        made.add(resolved_image(ImageRef.of(tmp_path / name)).hash)
    assert made == {resolved_image(ImageRef.of(picture())).hash}


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 255))
def test_every_pixel_counts(column: int, row: int, channel: int, by: int):
    image = picture(alpha=True)
    levels = np.array(image)
    levels[row, column, channel] ^= np.uint8(by)
    assert (
        resolved_image(ImageRef.of(Image.fromarray(levels))).hash
        != resolved_image(ImageRef.of(image)).hash
    )


def test_the_shape_counts_too():
    """The same bytes in another order of rows."""
    one, other = Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))
    assert resolved_image(ImageRef.of(one)).hash != resolved_image(ImageRef.of(other)).hash


def test_a_file_that_changed_or_went(tmp_path: Path):
    path = tmp_path / "a.png"
    picture().save(path)
    told = resolved_image(ImageRef.of(path)).model_dump()
    picture(1).save(path)
    with pytest.raises(UndustError, match=r"a\.png is not the picture any more that it was"):
        image_of(ImageRef.model_validate(told))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UndustError, match=r"a\.png"):
        image_of(ImageRef.model_validate(told))
    path.unlink()
    with pytest.raises(UndustError, match=r"a\.png cannot be read as a picture: .*No such file"):
        image_of(ImageRef.model_validate(told))
    picture().save(path)
    assert image_of(ImageRef.model_validate(told)).size == (6, 4)


def test_what_was_read_once_is_kept(tmp_path: Path):
    picture().save(tmp_path / "a.png")
    told = resolved_image(ImageRef.of(tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    assert image_of(told) is image_of(told)
    assert image_of(resolved_image(ImageRef.of(told))) is image_of(told)
    assert image_of(told.model_copy()) is image_of(told)


def test_a_path_alone_gets_its_hash(tmp_path: Path):
    """As it stands in what people write of a ControlNet."""
    picture().save(tmp_path / "a.png")
    bare = ImageRef(path=str(tmp_path / "a.png"))
    assert image_of(bare).size == (6, 4)
    assert resolved_image(ImageRef.of(bare)) == resolved_image(ImageRef.of(tmp_path / "a.png"))


def test_whether_it_has_been_read_makes_no_difference(tmp_path: Path):
    picture().save(tmp_path / "a.png")
    read = resolved_image(ImageRef.of(tmp_path / "a.png"))
    unread = ImageRef.model_validate(read.model_dump())
    assert read == unread
    assert hash(read) == hash(unread)
    picture(1).save(tmp_path / "b.png")
    assert read != resolved_image(ImageRef.of(tmp_path / "b.png"))
    assert read != read.path


def test_a_picture_in_memory_cannot_be_had_again():
    for image in (picture(), picture(alpha=True), picture().convert("L"), picture().quantize(4)):
        told = resolved_image(ImageRef.of(image))
        assert told.path == ""
        assert image_of(told).tobytes() == image.convert("RGBA").tobytes()
        with pytest.raises(UndustError, match="made from one in memory, not from a file"):
            image_of(ImageRef.model_validate(told.model_dump()))


def test_what_is_done_to_it_later_does_not_matter():
    image = picture().convert("RGBA")
    told = resolved_image(ImageRef.of(image))
    image.paste("black", (0, 0, 6, 4))
    assert image_of(told).tobytes() == picture().convert("RGBA").tobytes()


def test_a_camera_note_counts_in_memory_as_it_does_in_a_file(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        told = resolved_image(ImageRef.of(image))
    assert image_of(told).size == (4, 6)
    assert told.hash == resolved_image(ImageRef.of(tmp_path / "a.png")).hash


@pytest.mark.parametrize("path", ["", ".", "none.png", "x" * 300, "x/" * 2100, "a\0b", "\udcff"])
def test_paths_of_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UndustError):
        resolved_image(ImageRef.of(path))


def test_a_name_that_is_no_text_cannot_stand_in_a_recipe(tmp_path: Path):
    path = tmp_path / "\udcff.png"
    picture().save(path)
    with pytest.raises(UndustError, match="picture: path: has to be a valid string"):
        resolved_image(ImageRef.of(path))


@pytest.mark.parametrize(
    "given", [np.zeros((64, 64, 3), np.uint8), torch.zeros(3, 64, 64), 3, b"a.png", ["a.png"], None]
)
def test_what_is_neither_a_file_nor_an_image(given: object):
    with pytest.raises(UndustError, match="neither a file's path nor a PIL image") as caught:
        resolved_image(ImageRef.of(given))
    assert len(str(caught.value)) < 150


# Weights


def weights(path: Path, value: float = 1.0) -> Path:
    save(path, {"a": torch.full((3,), value)})
    return path


def test_a_file_of_weights_is_known_by_its_bytes(tmp_path: Path):
    path = weights(tmp_path / "a=b:c@1 .safetensors")
    told = resolved_weights(WeightsRef(path=str(path)))
    assert (told.path, len(told.hash)) == (str(path), DIGITS)
    assert resolved_weights(told) == told
    weights(tmp_path / "other.safetensors")
    assert resolved_weights(WeightsRef(path=str(tmp_path / "other.safetensors"))).hash == told.hash
    weights(path, 2.0)
    with pytest.raises(UndustError, match="is not the file any more that it was"):
        resolved_weights(told)
    path.unlink()
    with pytest.raises(UndustError, match=r"\.safetensors does not exist$"):
        resolved_weights(told)


def test_a_folder_of_weights_is_known_by_all_of_them(tmp_path: Path):
    for name in ("a", "b"):
        weights(tmp_path / f"{name}.safetensors")
    told = resolved_weights(WeightsRef(path=str(tmp_path)))
    (tmp_path / "readme.txt").write_text("no weights")
    assert resolved_weights(told) == told
    weights(tmp_path / "b.safetensors", 3.0)
    with pytest.raises(UndustError, match="not the file any more"):
        resolved_weights(told)


def test_a_folder_without_weights(tmp_path: Path):
    with pytest.raises(UndustError, match=r"no weights there \(\.safetensors\)"):
        resolved_weights(WeightsRef(path=str(tmp_path)))


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_a_lora_in_a_folder_is_its_file(tmp_path: Path, name: str):
    """As PEFT's `save_pretrained` and diffusers' `save_lora_weights` write it."""
    with pytest.raises(UndustError, match=rf"without a LoRA's {IN_FOLDERS[0]} or {IN_FOLDERS[1]}$"):
        resolved_weights(LoRA(path=str(tmp_path)))
    weights(tmp_path / "for-other-programs.safetensors")
    path = weights(tmp_path / name, 2.0)
    told = resolved_weights(LoRA(path=str(tmp_path), weight=0.5))
    assert told == resolved_weights(LoRA(path=str(path), weight=0.5))
    assert told.path == str(path)


@pytest.mark.parametrize("path", ["none", ".", "x" * 300, "a\0b"])
def test_paths_of_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UndustError):
        resolved_weights(WeightsRef(path=path))
