"""Pictures and maps in parallel folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from undust.datasets.image_folder import check, read, scan
from undust.datasets.pairs import paired


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return folder


def maps(folder: Path) -> dict[str, dict[str, str]]:
    return {
        sample.path.relative_to(folder).as_posix(): {
            column: path.relative_to(folder).as_posix() for column, path in sample.maps.items()
        }
        for sample in read(folder)
    }


def test_maps_have_the_name_of_their_picture(tmp_path: Path):
    pictures(tmp_path, "images/a.jpg", "images/sub/b.png", "images/c.png")
    pictures(tmp_path, "depth/a.png", "depth/sub/b.png", "depth/d.png", "seg/c.png")
    pictures(tmp_path, "others/x.png", "others/y.png", "others/a.png")
    assert maps(tmp_path) == {
        "images/a.jpg": {"depth": "depth/a.png"},
        "images/c.png": {"seg": "seg/c.png"},
        "images/sub/b.png": {"depth": "depth/sub/b.png"},
        **{f"others/{name}.png": {} for name in "axy"},  # only a third has a picture
    }
    found = scan(tmp_path)
    assert found.maps == {"depth": 2, "seg": 1}
    assert found.unpaired == ["depth/d.png"]
    assert found.unmapped["depth"][:1] == ["images/c.png"]
    assert "maps of 2 pictures, as column depth" in found.notes()
    (sample,) = [each for each in found.samples if each.path.name == "a.jpg"]
    with Image.open(tmp_path / "depth/a.png") as depth:
        assert sample.beside("depth").convert("RGB").tobytes() == depth.tobytes()


@pytest.mark.parametrize("form", ["{split}/{folder}/{name}", "{folder}/{split}/{name}"])
def test_splits_are_above_or_below(form: str, tmp_path: Path):
    names = [
        form.format(split=split, folder=folder, name=name)
        for split, name in (("train", "a.png"), ("val", "b.png"), ("val", "a.png"))
        for folder in ("images", "maps")
    ]
    samples = read(pictures(tmp_path, *names))
    assert [(sample.path.name, sample.split) for sample in samples] == [
        *(("a.png", "train"), ("a.png", "validation"), ("b.png", "validation")),
    ]
    assert all([*sample.maps] == ["maps"] for sample in samples)


def test_pictures_of_metadata_have_maps_too(tmp_path: Path):
    pictures(tmp_path, "images/a.png", "maps/a.png")
    (tmp_path / "images/metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    (sample,) = read(tmp_path)
    assert (sample.captions["text"], [*sample.maps]) == ("a", ["maps"])


def test_broken_maps_are_named(tmp_path: Path):
    pictures(tmp_path, "images/a.png", "images/b.png", "depth/a.png")
    (tmp_path / "depth/b.png").write_bytes(b"")
    (error,) = check(tmp_path).broken
    assert error.startswith(f"{tmp_path}/depth/b.png is an empty file, not a picture")


def test_classes_are_no_pairs(tmp_path: Path):
    pictures(tmp_path, "cat/0.png", "dog/0.png", "0.png")
    assert len(read(tmp_path)) == 3
    assert not paired(tmp_path, []).maps
