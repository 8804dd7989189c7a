"""Which parts go together as one model."""

from __future__ import annotations

import pytest

from undust.errors import UndustError
from undust.formats.components import Components
from undust.formats.original.variants import VARIANTS
from undust.pipeline import LatentDiffusion
from variants import build


@pytest.fixture(scope="module")
def built() -> dict[str, LatentDiffusion]:
    return {name: build(name) for name in ("sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler")}


def parts(model: LatentDiffusion, **others: object) -> Components:
    names = ("autoencoder", "unet", "texts", "process", "prediction", "low_res_process")
    return Components(**{**{name: getattr(model, name) for name in names}, **others})  # pyright: ignore


def test_what_the_parts_of_each_variant_come_to():
    for name, known in VARIANTS.items():
        model = build(name)
        assert model.extra_channels == known.channels - 4
        assert model.downsampling_factor == 4
        sizes = {"sdxl": 6, "sdxl-inpainting": 6, "sdxl-refiner": 5}.get(name, 0)
        assert model.num_size_ids == sizes
        scale = 5.0 if sizes else 9.0 if known.low_res_process() else 7.5  # of diffusers' pipelines
        assert model.guidance == scale
        folders = [text.folder for text in known.texts]
        assert list(model.networks) == ["vae", "unet", *folders]


@pytest.mark.parametrize(
    ("unet", "texts", "said"),
    [
        ("sd1", "sd2", "width is 64 and the denoiser takes text of width 32"),
        ("sd2", "sd1", "width is 32 and the denoiser takes text of width 64"),
        ("sdxl", "sd1", "width is 32 and the denoiser takes text of width 96"),
        ("sd1", "sdxl", r"width is 32 \+ 64 and the denoiser takes text of width 32"),
    ],
)
def test_text_encoders_of_other_models(
    built: dict[str, LatentDiffusion], unet: str, texts: str, said: str
):
    with pytest.raises(UndustError, match=f"the components do not fit: the text encoders' {said}"):
        parts(built[unet], texts=built[texts].texts)


def test_first_stages_of_other_models(built: dict[str, LatentDiffusion]):
    from undust.networks.autoencoder import Autoencoder

    config = built["sd1"].autoencoder.config.model_copy(update={"latent_channels": 16})
    with pytest.raises(
        UndustError, match="a denoiser with 4 input and 4 output channels, for latents of 16"
    ):
        parts(built["sd1"], autoencoder=Autoencoder(config))


def test_an_upscaler_needs_its_dust_and_no_other_has_it(built: dict[str, LatentDiffusion]):
    with pytest.raises(UndustError, match="a denoiser with 7 input and 4 output"):
        parts(built["x4-upscaler"], low_res_process=None)
    with pytest.raises(UndustError, match="a denoiser with 4 input and 4 output"):
        parts(built["sd1"], low_res_process=built["sd1"].process)


def test_a_width_for_each_level(built: dict[str, LatentDiffusion]):
    """As some configurations have it; it has to be the same for all that is known."""
    from undust.networks.unet import UNet

    model = built["sd1"]
    both = model.unet.config.model_copy(update={"cross_attention_dim": (32, 32)})
    assert parts(model, unet=UNet(both)).extra_channels == 0
    uneven = model.unet.config.model_copy(update={"cross_attention_dim": (32, 64)})
    with pytest.raises(UndustError, match="the components do not fit"):
        parts(model, unet=UNet(uneven))
