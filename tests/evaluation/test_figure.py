"""The name of a figure says all that it depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from undust.evaluation.figure import Figure, with_features
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.efficientnet import EfficientNetLite0
from undust.networks.features.inception import ReferenceInception
from undust.networks.features.vgg import VGG16

BASE: dict[str, Any] = {"value": 12.345, "count": 50, "of": "generated pictures", "size": (64, 32)}
PUBLISHED_NAMES = ("FID", "KID", "inception score")


def test_a_name_has_number_size_resize_seed_and_network():
    fields = with_features("Fréchet distance", EfficientNetLite0("EfficientNet-Lite0 (1.0)"))
    figure = Figure(**BASE, **fields, references=70, among="held-out pictures", seed=3)
    assert figure.name == (
        "Fréchet distance, EfficientNet-Lite0 (1.0), 50 generated pictures against "
        "70 held-out pictures, 64x32 resized to 224x224 (bicubic, antialiased), seed 3"
    )
    assert figure.model_dump()["name"] == figure.name
    assert Figure.model_validate_json(figure.model_dump_json()) == figure


@pytest.mark.parametrize(
    ("field", "value"),
    [("count", 51), ("references", 71), ("size", (64, 64)), ("resizing", "x"), ("seed", 4)],
)
def test_figures_that_depend_on_other_things_have_other_names(field: str, value: object):
    figure = Figure(**BASE, **with_features("KID", VGG16()), references=70, seed=3)
    assert figure.model_copy(update={field: value}).name != figure.name


@pytest.mark.parametrize(
    ("quantity", "published"),
    [
        ("Fréchet distance", "FID"),
        ("Fréchet distance of reconstructions", "rFID"),
        ("kernel distance", "KID"),
        ("classifier score", "inception score"),
    ],
)
def test_only_the_published_network_gives_figures_of_published_names(quantity: str, published: str):
    networks: list[FeatureNetwork] = [VGG16(), EfficientNetLite0()]
    for network in networks:
        assert with_features(quantity, network)["quantity"] == quantity
    inception = ReferenceInception(torch.nn.Identity())
    assert with_features(quantity, inception)["quantity"] == published
    assert with_features("precision", inception)["quantity"] == "precision"


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({}, "12.35"),
        ({"unit": "dB"}, "12.35 dB"),
        ({"unit": "%", "value": 0.125}, "12.5%"),
        ({"error": 0.21}, "12.35 ± 0.2"),
        ({"error": float("nan")}, "12.35"),
        ({"value": 0.000123456}, "0.0001235"),
    ],
)
def test_values_as_people_read_them(more: dict[str, Any], shown: str):
    assert Figure(**{**BASE, **more}, quantity="x").shown == shown


def test_a_network_that_does_not_resize_says_nothing_of_it():
    class Plain(FeatureNetwork):
        name, side = "plain", None

        def maps(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x,)

        def pooled(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    figure = Figure(**BASE, **with_features("Fréchet distance", Plain()))
    assert figure.name == "Fréchet distance, plain, 50 generated pictures, 64x32"
