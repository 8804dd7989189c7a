"""Pictures that are kept: an evaluation that was killed, or split, gives the same figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import undust
from undust.errors import UndustError
from undust.evaluation.sampling import SampledPictures
from undust.generation import loop
from undust.pipeline import LatentDiffusion

Draw = Callable[[int], list[Image.Image]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three pictures."""
    monkeypatch.setattr(loop, "MAX_BATCH_PIXELS", 3 * 32 * 32)


def sampled(model: LatentDiffusion, folder: Path | None, count: int = 8) -> SampledPictures:
    recipes = [recipe for k in range(count) for recipe in model.recipes(f"{k}", seed=k, steps=2)]
    return SampledPictures(model, recipes, folder)


def everything(pictures: SampledPictures) -> torch.Tensor:
    return torch.cat([x for _, x in pictures.pictures()])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("few")
def test_parts_of_several_processes_are_the_pictures_of_one(model: LatentDiffusion, tmp_path: Path):
    whole = everything(sampled(model, None))
    assert whole.shape == (8, 3, 32, 32)
    assert sampled(model, tmp_path / "kept").sample((1, 2)) == 3  # of three batches, the second
    assert len(files(tmp_path / "kept")) == 5
    assert sampled(model, tmp_path / "kept").sample((2, 2)) == 0
    steps: list[tuple[int, int]] = []
    kept = sampled(model, tmp_path / "kept")
    together = torch.cat([x for _, x in kept.pictures(lambda *now: steps.append(now))])
    assert torch.equal(together, whole)
    assert steps == [(6, 16), (12, 16), (16, 16)]  # nothing was sampled again


@pytest.mark.usefixtures("few")
def test_what_is_missing_or_damaged_is_sampled_again(model: LatentDiffusion, tmp_path: Path):
    folder = tmp_path / "kept"
    sampled(model, folder).sample((1, 1))
    before = files(folder)
    (folder / "000001.png").unlink()
    (folder / "000004.png").write_bytes(before["000004.png"][:99])
    assert torch.equal(everything(sampled(model, folder)), everything(sampled(model, None)))
    assert files(folder) == before


@pytest.mark.usefixtures("few")
def test_more_pictures_keep_those_of_whole_batches(model: LatentDiffusion, tmp_path: Path):
    sampled(model, tmp_path / "kept", 8).sample((1, 1))
    steps: list[tuple[int, int]] = []
    more = sampled(model, tmp_path / "kept", 11)
    pictures = torch.cat([x for _, x in more.pictures(lambda *now: steps.append(now))])
    assert torch.equal(pictures, everything(sampled(model, None, 11)))


def test_pictures_of_another_evaluation_are_refused(model: LatentDiffusion, tmp_path: Path):
    sampled(model, tmp_path / "kept", 2).sample((1, 1))
    other = [recipe for k in range(2) for recipe in model.recipes(f"{k}", seed=k, steps=3)]
    with pytest.raises(UndustError, match="another evaluation: its steps is 2, not 3; choose"):
        SampledPictures(model, other, tmp_path / "kept").sample((1, 1))
    with pytest.raises(UndustError, match="part: 3/2 is not one of 1/2 to 2/2"):
        sampled(model, tmp_path / "kept").sample((3, 2))
    with pytest.raises(UndustError, match="a folder is needed"):
        sampled(model, None).sample((1, 2))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_lies_in_the_folder(data: st.DataObject, model: LatentDiffusion, tmp_path: Path):
    """A file with changed bytes is sampled again or refused in one line."""
    folder = tmp_path / "kept"
    pictures = sampled(model, folder, 2)
    whole = everything(sampled(model, None, 2))
    (folder / "000000.png").unlink(missing_ok=True)
    pictures.sample((1, 1))
    content = bytearray((folder / "000000.png").read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.sampled_from([1, 20, len(content)]))
    content[start : start + length] = data.draw(st.binary(max_size=20))
    (folder / "000000.png").write_bytes(content)
    try:
        assert torch.equal(everything(sampled(model, folder, 2)), whole)
    except UndustError as error:
        assert str(error).isprintable()
