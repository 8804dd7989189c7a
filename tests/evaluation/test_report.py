"""The whole of `evaluate` with a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import undust
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.evaluation.first_stage import first_stage_figures
from undust.evaluation.pictures import PictureSet
from undust.evaluation.report import Evaluation, ModelReport, evaluate
from undust.pipeline import LatentDiffusion

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def write(folder: Path, pictures: list[Image.Image], rows: Rows) -> Path:
    """A data set; the rows lack their file names."""
    folder.mkdir()
    for number, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        row["file_name"] = f"{number:02}.png"
        picture.save(folder / row["file_name"])
    image_folder.write(folder, rows)
    return folder


@pytest.fixture
def data(tmp_path: Path, draw: Callable[[int], list[Image.Image]]) -> Path:
    """Ten concepts of two pictures each, in two languages, and four pictures held out."""
    rows = [
        {"text": f"thing {k}", "text_ko": f"물건 {k}", "concept": str(k // 2)} for k in range(24)
    ]
    for row in rows[20:]:
        row["split"] = "test"
    return write(tmp_path / "data", draw(24), rows)


def test_a_model_that_paints_the_right_pictures_is_told_so(
    model: LatentDiffusion, tmp_path: Path, draw: Callable[[int], list[Image.Image]]
):
    """The held-out pictures are the model's own: all are found, and none when they are mixed up."""
    captions = [f"picture {k}" for k in range(6)]
    own = [
        model.generate(caption, seed=7 + k, steps=2)[0].image for k, caption in enumerate(captions)
    ]
    others = [{"text": f"other {k}"} for k in range(20)]
    asked = [{"text": caption, "split": "test"} for caption in captions]
    right = write(tmp_path / "right", [*draw(20), *own], [*others, *asked])
    report = evaluate(model, right, captions=0, steps=2, seed=7)
    assert report.recall["held-out captions"].model_dump() == {
        "captions": 6,
        "top1": 1.0,
        "top5": 1.0,
    }
    wrong = write(tmp_path / "wrong", [*draw(20), *own[1:], own[0]], [*others, *asked])
    assert evaluate(model, wrong, captions=0, steps=2, seed=7).recall["held-out captions"].top1 == 0


def test_captions_are_put_into_a_template(
    model: LatentDiffusion, tmp_path: Path, draw: Callable[[int], list[Image.Image]]
):
    """What the model painted of "a picture of 3, please" is found where "3" is the caption."""
    own = [model.generate(f"a picture of {k}, please", seed=k, steps=2)[0].image for k in range(3)]
    rows = [{"text": str(k), "split": "test"} for k in range(3)]
    rows += [{"text": f"other {k}"} for k in range(20)]
    data = write(tmp_path / "data", [*own, *draw(20)], rows)
    report = evaluate(model, data, captions=0, steps=2, template="a picture of {}, please")
    assert report.recall["held-out captions"].top1 == 1
    assert report.template == "a picture of {}, please"
    with pytest.raises(UndustError, match="template: 'a picture' has no"):
        evaluate(model, data, template="a picture")


def test_training_captions_are_of_different_concepts_and_half_in_korean(
    model: LatentDiffusion, data: Path
):
    report = evaluate(model, data, captions=8, steps=1, fields=("text", "text_ko"))
    asked = {name: recall.captions for name, recall in report.recall.items()}
    assert asked == {
        "training captions": 8,
        "training captions, text": 4,
        "training captions, text_ko": 4,
        "held-out captions": 8,
        "held-out captions, text": 4,
        "held-out captions, text_ko": 4,
    }
    total = report.recall["training captions"]
    halves = [report.recall[f"training captions, {field}"] for field in ("text", "text_ko")]
    assert total.top5 == sum(half.top5 for half in halves) / 2


def test_no_more_are_asked_than_there_are_concepts(model: LatentDiffusion, data: Path):
    recall = evaluate(model, data, steps=1).recall
    assert recall["training captions"].captions == 10
    assert recall["held-out captions"].captions == 4
    assert "held-out captions, text" not in recall


def test_the_report_is_a_function_of_the_seed(model: LatentDiffusion, data: Path):
    def figures(seed: int) -> dict[str, object]:
        report = evaluate(model, data, captions=6, steps=1, seed=seed)
        return report.model_dump(exclude={"seconds"})

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_the_report_says_what_it_depends_on(model: LatentDiffusion, data: Path):
    report = evaluate(model, data, captions=2, steps=3, guidance=1.5, seed=4)
    assert (report.model, report.model_hash) == ("tiny", model.hash)
    assert (report.data, report.pictures, report.seed) == (str(data), 24, 4)
    assert (report.steps, report.guidance) == (3, 1.5)
    assert report.first_stage.pictures == 4
    assert report.first_stage_on == "held-out pictures"
    assert ModelReport.model_validate_json(report.model_dump_json()) == report
    table = report.rows()
    assert len(table) == 2 * len(report.recall) + 2
    assert (
        "first stage: PSNR",
        f"{report.first_stage.psnr:.2f} dB",
        "4 held-out pictures, 32x32",
    ) in table


def test_captions_are_read_of_the_named_columns(
    model: LatentDiffusion, tmp_path: Path, draw: Callable[[int], list[Image.Image]]
):
    """As in training: of any column, or the names of folders; a data set's own one by default."""

    def asked(**fields: tuple[str, ...]) -> set[str]:
        planned = Evaluation.plan(model, data, captions=3, **fields)
        return {query.caption for query in planned.figures[0][1].queries}

    data = write(tmp_path / "data", draw(3), [{"prompt": f"p{k}", "note": "n"} for k in range(3)])
    assert asked() == {"p0", "p1", "p2"}
    assert asked(fields=("note",)) == {"n"}
    assert asked(fields=("folder",)) == {"data"}
    with pytest.raises(UndustError, match="has no captions in text; it has note, prompt"):
        asked(fields=("text",))


def test_progress_counts_up_to_the_end(model: LatentDiffusion, data: Path):
    told: list[tuple[int, int]] = []
    evaluate(model, data, captions=3, steps=2, observe=lambda *now: told.append(now))
    assert told == [(7, 14), (14, 14)]


def test_without_a_test_split_all_pictures_count(
    model: LatentDiffusion, tmp_path: Path, draw: Callable[[int], list[Image.Image]]
):
    data = write(tmp_path / "all", draw(3), [{"text": f"thing {k}"} for k in range(3)])
    report = evaluate(model, data, steps=1)
    assert list(report.recall) == ["training captions"]
    assert (report.first_stage.pictures, report.first_stage_on) == (3, "pictures")


def test_pictures_without_captions_cannot_be_asked_for(model: LatentDiffusion, drawn: list[Path]):
    with pytest.raises(UndustError, match="has no captions; they belong in"):
        evaluate(model, drawn[0].parent)
    with pytest.raises(UndustError, match="captions: has to be at least 0, not -1"):
        evaluate(model, drawn[0].parent, captions=-1)


def test_the_first_stage_is_measured_picture_by_picture(model: LatentDiffusion, drawn: list[Path]):
    """The mean of the PSNRs, each computed in numpy from what the parts give."""
    ratios: list[float] = []
    for path in drawn[:3]:
        bytes_ = np.array(Image.open(path).convert("RGB"))
        x = torch.from_numpy(bytes_).permute(2, 0, 1)[None] / 127.5 - 1
        y = model.autoencoder.decode(model.autoencoder.encode(x).mean).clamp(-1, 1)
        error = ((x - y).double().numpy() ** 2).mean()
        ratios.append(float(10 * np.log10(4 / error)))
    pictures = PictureSet.of_files(drawn[:3], (32, 32))
    ratio, likeness = first_stage_figures(model.autoencoder, pictures)
    assert ratio.name == "PSNR, 3 pictures, 32x32"
    assert ratio.value == pytest.approx(np.mean(ratios), rel=1e-5)
    assert -1 < likeness.value < 1
