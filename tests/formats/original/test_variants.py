"""Which model a file is, by what it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from undust.errors import UndustError
from undust.formats.original.checkpoint import scan_checkpoint
from undust.formats.original.detect import detect
from undust.formats.original.variants import UNET, VARIANTS


def nothing(key: str) -> torch.Tensor:
    raise AssertionError(f"{key} need not be read")


def test_names_are_those_of_the_registry_and_no_two_look_alike_but_those_that_v_parts():
    assert all(name == variant.name for name, variant in VARIANTS.items())
    looks: dict[object, list[str]] = {}
    for name, variant in VARIANTS.items():
        texts = frozenset(text.prefix for text in variant.texts)
        looks.setdefault((variant.channels, variant.added, texts), []).append(name)
    assert [names for names in looks.values() if len(names) > 1] == [["sd2", "sd2-v"]]
    assert {VARIANTS[name].prediction for name in ("sd2", "sd2-v")} == {"epsilon", "v_prediction"}


@pytest.mark.parametrize(
    ("variant", "sigma_max"),
    [("sd1", 14.6146), ("sdxl", 14.6146), ("x4-upscaler", 45.0)],
)
def test_processes_end_where_the_published_ones_do(variant, sigma_max):
    """14.6146 is the σ that every tool knows; the other is √(1/ᾱ − 1) of β from 1e-4 to 0.02."""
    betas = torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    if variant == "x4-upscaler":
        left = (1 - betas).prod()
        sigma_max = ((1 - left) / left).sqrt().item()
    assert VARIANTS[variant].process().sigma_max == pytest.approx(sigma_max, rel=1e-5)


@pytest.mark.parametrize(("deviation", "variant"), [(0.085, "sd2"), (0.095, "sd2-v")])
def test_stable_diffusion_2_is_told_by_its_last_bias(deviation, variant, published):
    shapes = published("sd2")
    read: list[str] = []

    def tensor(key: str) -> torch.Tensor:
        read.append(key)
        signs = torch.ones(shapes[key]).cumsum(0) % 2 * 2 - 1
        return (deviation * signs).half()

    found, evidence = detect(shapes, tensor)
    assert found == VARIANTS[variant]
    assert read == [f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"]
    assert evidence[-1].where == read[0]


@pytest.mark.parametrize("variant", ["sd1", "sdxl", "sdxl-refiner", "x4-upscaler"])
def test_no_tensor_is_read_where_none_needs_to_be(variant, published):
    found, evidence = detect(published(variant), nothing)
    assert found == VARIANTS[variant]
    assert len({fact.where for fact in evidence}) == len(evidence) >= 4


@pytest.mark.parametrize("variant", ["sd1", "sd2", "sdxl"])
def test_nine_channels_are_inpainting(variant, published):
    shapes = published(variant)
    first = f"{UNET}input_blocks.0.0.weight"
    shapes[first] = (shapes[first][0], 9, 3, 3)
    found, evidence = detect(shapes, nothing)
    assert found == VARIANTS[f"{variant}-inpainting"]
    assert evidence[0].says == "U-Net of 9 input channels"


@pytest.mark.parametrize("variant", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    "said", ["v", "v_prediction", "V-Prediction", "vpred", "epsilon", "eps", "sample"]
)
def test_trainers_write_what_they_trained(variant, said, published):
    def tensor(key: str) -> torch.Tensor:
        return torch.zeros(8)  # as of ε

    told = {"modelspec.prediction_type": said}
    found, evidence = detect(published(variant), tensor, told)
    assert found.prediction == ("v_prediction" if said[0] in "vV" else "epsilon")
    assert (evidence[-1].where == "modelspec.prediction_type") == (said != "sample")
    if variant == "sd2":
        assert found == VARIANTS["sd2-v" if said[0] in "vV" else "sd2"]


def test_a_mark_of_v_counts_alone(published):
    """Zero terminal SNR beside ε is left over: from noise alone ε does not tell the picture."""
    found, _ = detect({**published("sdxl"), "ztsnr": (0,)}, nothing)
    assert found == VARIANTS["sdxl"]


def test_marks_change_what_was_trained(published):
    found, evidence = detect({**published("sdxl"), "v_pred": (0,), "ztsnr": (0,)}, nothing)
    assert found == replace(VARIANTS["sdxl"], prediction="v_prediction", zero_snr=True)
    assert [fact.where for fact in evidence[-2:]] == ["v_pred", "ztsnr"]
    assert found.process().ends_in_noise


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"], "a LoRA"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a part of a model folder"),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder alone"),
        (["image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter; found"),
        (["taesd_decoder.1.weight", "taesd_encoder.2.conv.0.weight"], r"first stage \(TAESD\)"),
        (["1.weight", "3.conv.2.bias"], r"a tiny first stage \(TAESD\), which is read from its"),
        (
            ["a.b", "a.c", "d"],
            r"it is not a known model: found a \(2 tensors\), d \(1 tensors\); known: sd1",
        ),
        ([], "found no tensors"),
    ],
)
def test_a_file_that_is_no_model_is_told_what_it_is(names, said, hollow):
    with pytest.raises(UndustError, match=said) as error:
        scan_checkpoint(hollow(dict.fromkeys(names, (1,))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 5, 8, 12])
def test_other_channels_are_no_known_model(channels, published, hollow):
    shapes = published("sd1")
    first = f"{UNET}input_blocks.0.0.weight"
    shapes[first] = (320, channels, 3, 3)
    with pytest.raises(UndustError, match=f"found U-Net of {channels} input channels, text width"):
        scan_checkpoint(hollow(shapes))


@pytest.mark.parametrize(
    ("variant", "prefix", "said"),
    [
        (
            "sd1",
            "cond_stage_model.",
            "found U-Net of 4 input channels, text width 768, first stage",
        ),
        ("sdxl", "conditioner.embedders.0.", "text encoder of OpenCLIP, first stage; known:"),
        ("sd1", "first_stage_model.encoder.", r"the first stage has no encoder\.down\.0"),
        ("sd1", UNET, r"it has no U-Net \(model.diffusion_model.…\); found text encoder of CLIP"),
        ("sdxl", UNET, r"it has no U-Net \(model.diffusion_model.…\); found text encoder of CLIP"),
    ],
)
def test_a_model_without_one_of_its_parts(variant, prefix, said, published, hollow):
    shapes = {key: s for key, s in published(variant).items() if not key.startswith(prefix)}
    with pytest.raises(UndustError, match=said):
        scan_checkpoint(hollow(shapes))


@pytest.mark.parametrize("marks", [("edm_mean", "edm_std"), ("edm_vpred.sigma_max",)])
def test_edms_process_is_refused_by_its_marks(marks, published, hollow):
    marked = {**published("sdxl"), **dict.fromkeys(marks, (1, 4, 1, 1))}
    with pytest.raises(UndustError, match=f"EDM's noise process, which {marks[0]} shows"):
        scan_checkpoint(hollow(marked))


@pytest.mark.parametrize("said", ["sample", "v", "flow\nmatching", ""])
def test_an_unknown_prediction_in_the_metadata_is_told(said, tiny, save, recwarn):
    path = save(tiny("sd1").original(), {"modelspec.prediction_type": said})
    found = scan_checkpoint(path)
    assert found.variant.prediction == ("v_prediction" if said == "v" else "epsilon")
    told = [str(each.message) for each in recwarn]
    if said in ("v", ""):
        assert told == []
    else:
        [line] = told
        assert line.startswith(f"{path}: its modelspec.prediction_type is {said!r}, none of v, ")
        assert line.endswith("it is read as a model that predicts epsilon")
