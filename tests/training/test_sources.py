"""Data sources: the folder of images, a registered one, and their digests."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from undust.datasets.image_folder import check
from undust.datasets.samples import Sample, Split
from undust.errors import UndustError
from undust.training.configs import DataConfig
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import train
from undust.training.sources import (
    SOURCES,
    ImageFolderSource,
    TrainingData,
    data_digest,
    groups,
    source,
    split_samples,
)

PLAIN = "1b8a8d6222a1a461f9c9f99d6b9055570afb77dbf96da2a5b17eb22821747722"
WITH_TEXT = "6ea4dc7adba7bc6866334f0895ef93f3bfc84ce046ff809e13d8c8ba0fe63c85"


def test_groups_are_pictures_or_concepts():
    samples = [Sample(Path(f"{k}.png"), {}, name) for k, name in enumerate("abacb")]
    assert groups(samples, range(5), "picture") == [[0], [1], [2], [3], [4]]
    assert groups(samples, range(5), "concept") == [[0, 2], [1, 4], [3]]
    assert groups(samples, [1, 3, 4], "concept") == [[1, 4], [3]]


def test_names_that_are_not_utf_8(recipe: Callable[..., DiffusionConfig], tmp_path: Path):
    """As of archives from other systems; they are escaped where a name is text, as of a class."""
    folder = tmp_path / "names"
    for name in (b"caf\xe9", b"caf\xe8"):
        (inside := folder / os.fsdecode(name)).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), "red").save(inside / os.fsdecode(b"\xff%d.png" % number))
    data = TrainingData(DataConfig(folder=folder, size=16, held_out=0.5), seed=0)
    assert len(data.train) + len(data.held_out) == 8
    assert data.samples[0].group == "caf\\xe8/\\xff0.png"
    assert {sample.column("folder") for sample in data.samples} == {"caf\\xe8", "caf\\xe9"}
    config = recipe("[labels]", f"data.folder={json.dumps(str(folder))}", "run.steps=1")
    train(config, tmp_path / "run")


def test_a_folder_gives_all_splits_and_a_run_draws_from_train(data: Path):
    table = DataConfig(folder=data, size=16)
    folder, split = ImageFolderSource(table), TrainingData(table, seed=3)
    samples = [folder.sample(index) for index in range(len(folder))]
    assert split.samples == samples
    assert [sample.split for sample in samples] == ["train"] * 10 + ["test"] * 2
    assert [sample.group for sample in samples] == [str(min(number, 6)) for number in range(12)]
    assert split.validation is not None
    drawn = [
        {sample for k in range(9) for sample in order.batch(k, 4).sample}
        for order in (split.order, split.validation)
    ]
    assert drawn == [set(range(10)), {10, 11}]
    other = TrainingData(table, seed=4)
    assert other.validation is not None
    assert split.order.batch(0, 10) != other.order.batch(0, 10)
    assert split.validation.batch(0, 10) == other.validation.batch(0, 10)
    assert samples[3].captions == {"text": "lilac near rust", "text_ko": "녹 옆 라일락"}
    with Image.open(data / "03.png") as expected:
        assert samples[3].image().convert("RGB").tobytes() == expected.tobytes()
    assert folder.notes == []


def test_digests_are_those_of_every_earlier_version(tmp_path: Path):
    """Computed with the code before there were data sources; a run is resumed by them."""
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 255\n\x01\x02\x03")
    (tmp_path / "a.txt").write_text("one")
    folder = ImageFolderSource(DataConfig(folder=tmp_path, size=16))
    images, samples = folder.digest([0]), [folder.sample(0)]
    assert images == "2c44f2d1cf1f5f25a0a3a81e8a66a2c11407bab471660764c846598c74e5fcaf"
    assert data_digest(samples, images) == PLAIN
    assert data_digest(samples, images, ["text", "none"]) == WITH_TEXT


def test_a_share_is_held_out_by_name(tmp_path: Path):
    """Whatever the order, and whatever else there is: a larger share holds out more of the same."""
    names = [f"{number:03}" for number in range(400)]
    samples = [Sample(tmp_path / name, {}, name) for name in names]

    def held_out(share: float, of: list[Sample]) -> set[str]:
        train, held = split_samples(of, share)
        assert {*train, *held} == {*range(len(of))}
        return {of[index].group for index in held}

    few, many = held_out(0.05, samples), held_out(0.2, samples)
    assert few < many
    # Binomial: four standard deviations.
    assert abs(len(many) - 80) < 4 * math.sqrt(400 * 0.2 * 0.8)
    assert held_out(0.2, samples[::-1]) == many
    assert held_out(0.2, samples[::2]) == many & set(names[::2])
    with pytest.raises(UndustError, match=r"holds out no picture of 2; 0\.\d+ would") as error:
        split_samples(samples[:2], 1e-6)
    least = float(str(error.value).split()[-2])
    assert split_samples(samples[:2], least)[1]


def test_validation_is_preferred_to_test(tmp_path: Path):
    splits: list[Split] = ["train", "test", "validation", "test"]
    samples = [Sample(tmp_path / str(k), {}, str(k), split) for k, split in enumerate(splits)]
    assert split_samples(samples, 0.0) == ([0], [2])
    _, held_out = split_samples([samples[0], samples[1], samples[3]], 0.0)
    assert sorted(held_out) == [1, 2]


@dataclass(frozen=True)
class Square:
    """A sample without a file."""

    captions: dict[str, str]
    group: str
    colour: str
    split: Split = "train"

    def image(self) -> Image.Image:
        return Image.new("RGB", (20, 20), self.colour)

    def size(self) -> tuple[int, int]:
        return self.image().size


class Squares:
    """A data source of coloured squares."""

    notes = ("squares: eight colours",)
    colours = ("red", "green", "blue", "white", "black", "gray", "pink", "orange")

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.colours)

    def sample(self, index: int, /) -> Square:
        colour = self.colours[index]
        return Square({"text": f"a {colour} square"}, colour, colour)

    def digest(self, indices: Sequence[int], /) -> str:
        return " ".join(self.colours[index] for index in indices)


@pytest.mark.parametrize("kind", ["first-stage", "diffusion"])
def test_a_registered_source_is_trained_on(
    kind: str,
    first_stage_recipe: Callable[..., FirstStageConfig],
    diffusion_recipe: Callable[..., DiffusionConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """From `data.source` alone; it has no files."""
    monkeypatch.setitem(SOURCES, "squares", Squares)
    made = first_stage_recipe if kind == "first-stage" else diffusion_recipe
    changes = ("data.source=squares", "data.folder=nowhere")
    assert train(made(*changes, "run.steps=2"), tmp_path / "out")
    assert train(made(*changes, "run.steps=3"), tmp_path / "out", resume=True)


def test_an_unknown_source_is_named(
    diffusion_recipe: Callable[..., DiffusionConfig], tmp_path: Path
):
    with pytest.raises(UndustError, match="unknown data source 'foldr'; did you mean 'folder'"):
        train(diffusion_recipe("data.source=foldr"), tmp_path)


def test_a_source_is_registered_under_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(SOURCES, "folder")
    assert source("folder")(ImageFolderSource) is ImageFolderSource
    assert SOURCES["folder"] is ImageFolderSource


def test_pictures_without_a_map_are_named_or_left_out(tmp_path: Path):
    for name in ("images/a.png", "images/b.png", "images/c.png", "depth/a.png", "depth/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    table = DataConfig(folder=tmp_path, size=16)
    wrong = r'1 of 3 pictures have no depth: images/b\.png; data\.on_error = "skip" trains without'
    with pytest.raises(UndustError, match=wrong):
        TrainingData(table, seed=0, maps=["depth"])
    with pytest.raises(
        UndustError,
        match=r"3 of 3 pictures have no deep; columns of the data: depth\. .* a folder deep beside",
    ):
        TrainingData(table, seed=0, maps=["deep"])
    skipping = table.model_copy(update={"on_error": "skip"})
    some = TrainingData(skipping, seed=0, maps=["depth"])
    assert [sample.group for sample in some.samples] == ["images/a.png", "images/c.png"]
    assert some.notes[-1] == "not trained on: 1 of 3 pictures have no depth: images/b.png"
    everything = ImageFolderSource(table)
    assert some.source.digest([1]) == everything.digest([2])
    assert len(some.source) == 2
    (tmp_path / "depth/c.png").write_bytes(b"")
    readable = TrainingData(skipping, seed=0, maps=["depth"])
    assert [sample.group for sample in readable.samples] == ["images/a.png"]
    assert readable.notes[-1].endswith(
        "2 of 3 pictures have no depth that can be read: images/b.png, images/c.png"
    )


def test_maps_of_other_proportions_are_told(tmp_path: Path):
    """As of photographs that were not turned upright for them; a pixel of rounding is none."""
    sizes = {"images": (40, 30), "depth": (20, 15)}
    for folder, size in sizes.items():
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB", size).save(tmp_path / folder / f"{number}.png")
    table = DataConfig(folder=tmp_path, size=16)
    (note,) = TrainingData(table, seed=0, maps=["depth"]).notes
    assert note.endswith("maps of 3 pictures, as column depth")
    Image.new("RGB", (13, 10)).save(tmp_path / "depth/0.png")
    Image.new("RGB", (30, 40)).save(tmp_path / "depth/2.png")
    said = (
        "maps: 1 of 3 pictures have a depth of other proportions, such as images/2.png, 40x30 with "
        "30x40; each is cropped by itself, so that the two may not fit"
    )
    assert TrainingData(table, seed=0, maps=["depth"]).notes[-1] == said
    found = check(tmp_path)
    assert found.conversions == {"a map in depth of other proportions than theirs": 1}
    (tmp_path / "depth/1.png").unlink()
    some = TrainingData(table.model_copy(update={"on_error": "skip"}), seed=0, maps=["depth"])
    assert [*map(len, (some.samples, some.train))] == [2, 2]
    assert some.notes[-2:] == [
        "not trained on: 1 of 3 pictures have no depth: images/1.png",
        said.replace("1 of 3", "1 of 2"),
    ]
