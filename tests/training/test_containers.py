"""Runs from tars and Parquet files are those from the folder, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from containers import parquet_of, tar_of, web_dataset
from undust.datasets import image_folder
from undust.training.configs import DataConfig
from undust.training.diffusion import DiffusionConfig
from undust.training.run import train
from undust.training.sources import TrainingData

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def packed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures and captions in each kind of source."""
    out, samples = tmp_path_factory.mktemp("packed"), image_folder.read(data)
    pytest.importorskip("pyarrow")
    return {
        "folder": data,
        "tar": tar_of(data, out / "all.tar"),
        "shards": web_dataset(samples, out / "shards", 3),
        "pattern": out / "shards/{000..002}.tar",
        "parquet": parquet_of(samples, out / "parquet", 2),
    }


def test_every_source_has_the_same_samples_and_digests(packed: dict[str, Path]):
    found = {
        name: TrainingData(DataConfig(folder=path, size=16), seed=1, caption_fields=["text"])
        for name, path in packed.items()
    }
    folder = found.pop("folder")
    for name, other in found.items():
        assert other.inputs == folder.inputs, name
        assert (other.train, other.held_out) == (folder.train, folder.held_out)
        assert other.order.batch(5, 7) == folder.order.batch(5, 7)
        for own, expected in zip(other.samples, folder.samples, strict=True):
            assert own.image().tobytes() == expected.image().tobytes()
            assert dict(own.captions) == dict(expected.captions)


def test_a_run_is_the_same_to_the_bit(
    diffusion_recipe: Callable[..., DiffusionConfig],
    packed: dict[str, Path],
    contents: Contents,
    tmp_path: Path,
):
    """Weights, latents, losses and previews, of a run that is resumed from another source twice."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    assert train(diffusion_recipe(f"data.folder={packed['folder']}", "run.steps=3"), folder)
    for steps, name in enumerate(("shards", "parquet", "tar"), 1):
        changes = f"data.folder={packed[name]}", f"run.steps={steps}"
        assert train(diffusion_recipe(*changes), other, resume=steps > 1)
    expected, found = contents(folder), contents(other)
    same = [
        path
        for path in expected
        if path.startswith(("model/", "samples/000003")) or path.endswith("latents.safetensors")
    ]
    assert len(same) > 8
    assert [path for path in same if found[path] != expected[path]] == []
    assert _losses(found["log.jsonl"]) == _losses(expected["log.jsonl"])


def _losses(log: bytes) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in log.splitlines()]
    return [(row["step"], row["loss"]) for row in rows]
