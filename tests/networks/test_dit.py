"""The diffusion transformers, compared with diffusers' of the same weights."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

from undust.errors import UndustError
from undust.formats.components import load_component, save_component
from undust.networks.base import DenoiserNetwork
from undust.networks.conditioning import Conditioning
from undust.networks.config import DiTConfig, PixArtConfig
from undust.networks.dit import DiT, PixArt

TINY = {"sample_size": 8, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
DITS = {
    "as published": {"num_embeds_ada_norm": 5},
    "a learnt variance, larger patches": {"out_channels": 8, "patch_size": 4},
    "no biases, another ε": {"attention_bias": False, "norm_eps": 1e-3, "patch_size": 1},
}
PIXARTS = {
    "as published": {"caption_channels": 12},
    "text of the width, interpolated": {"interpolation_scale": 2.0, "out_channels": 4},
    "other text, no projection": {"cross_attention_dim": 20},
}


def inputs(config: DiTConfig, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, config.in_channels, 8, width), torch.tensor([10.0, 900.0])


@pytest.mark.parametrize("layout", DITS)
def test_dit_is_diffusers(layout, shake, assert_close) -> None:
    ours = DiT(DiTConfig.read({**TINY, **DITS[layout]}))
    shake(ours)
    theirs = DiTTransformer2DModel.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    label = torch.tensor([1, ours.config.num_embeds_ada_norm])
    x, timestep = inputs(ours.config)
    expected = theirs(x, timestep, class_labels=label).sample[:, :4]  # as DiTPipeline cuts it
    assert_close(ours(x, timestep, Conditioning(2, label=label)), expected)
    none = torch.full((2,), ours.config.num_embeds_ada_norm)
    without = theirs(x, timestep, class_labels=none).sample[:, :4]
    assert_close(ours(x, timestep, Conditioning(2)), without)


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("layout", PIXARTS)
def test_pixart_is_diffusers(layout, width, shake, assert_close) -> None:
    ours = PixArt(PixArtConfig.read({**TINY, **PIXARTS[layout]}))
    shake(ours)
    theirs = PixArtTransformer2DModel.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    (channels,) = ours.config.text_widths
    text = torch.randn(2, 7, channels)
    x, timestep = inputs(ours.config, width)
    expected = theirs(x, encoder_hidden_states=text, timestep=timestep).sample[:, :4]
    assert_close(ours(x, timestep, Conditioning(2, text)), expected)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [(DiTConfig, DiTTransformer2DModel), (PixArtConfig, PixArtTransformer2DModel)],
)
def test_the_defaults_are_those_of_diffusers(config, theirs) -> None:
    published = {
        name: parameter.default
        for name, parameter in inspect.signature(theirs.__init__).parameters.items()
        if name != "self"
    }
    pixart = {"use_additional_conditions": False} if config is PixArtConfig else {}
    derived = {"out_channels": published["out_channels"] or published["in_channels"]}
    assert config.read(pixart).model_dump() == {**published, **derived, **pixart}


@pytest.mark.parametrize(
    ("network", "theirs"),
    [
        (lambda: DiT(DiTConfig.read(TINY)), DiTTransformer2DModel),
        (
            lambda: PixArt(PixArtConfig.read({**TINY, **PIXARTS["as published"]})),
            PixArtTransformer2DModel,
        ),
    ],
)
def test_a_saved_folder_opens_in_both(network, theirs, tmp_path, shake) -> None:
    ours = network()
    shake(ours)
    save_component(tmp_path, ours)
    again, opened = load_component(tmp_path, DenoiserNetwork), theirs.from_pretrained(tmp_path)
    assert again.config == ours.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
        assert torch.equal(opened.state_dict()[name], weight)


def test_training_starts_at_zero_with_identities() -> None:
    x, timestep = inputs(DiTConfig.read(TINY))
    cond = Conditioning(2, torch.randn(2, 7, 12), label=torch.tensor([0, 1000]))
    for network in (
        DiT(DiTConfig.read(TINY)),
        PixArt(PixArtConfig.read({**TINY, **PIXARTS["as published"]})),
    ):
        network.start_at_zero()
        assert network(x, timestep, cond).abs().max() == 0
        # The last layer alone holds it at zero: it learns from the first step on.
        with torch.enable_grad():
            network(x, timestep, cond).sum().backward()
        assert network.last.weight.grad.abs().max() > 0
    network = DiT(DiTConfig.read(TINY))
    network.start_at_zero()
    tokens = torch.randn(2, 16, 32)
    block = network.transformer_blocks[0]
    modulation = block.norm1(torch.randn(2, 256), torch.tensor([0, 1]))
    assert torch.equal(block(tokens, modulation, None), tokens)


def test_perturbation_reaches_the_middle_for_its_rows(shake) -> None:
    ours = DiT(DiTConfig.read(TINY))
    shake(ours)
    (x, timestep), cond = inputs(ours.config), Conditioning(2)
    seen = []

    def values(q, k, v, *, attend, shape):
        seen.append(shape)
        return v

    plain = ours(x, timestep, cond)
    changed = ours(x, timestep, cond, perturbed=(None, values))
    assert torch.allclose(changed[0], plain[0], atol=1e-5)
    assert (changed[1] - plain[1]).abs().max() > 1e-3
    assert seen == [(4, 4)]


def test_extra_channels_stand_beside_the_latents(shake, assert_close) -> None:
    ours = DiT(DiTConfig.read({**TINY, "in_channels": 7, "out_channels": 4}))
    shake(ours)
    x, timestep = inputs(ours.config)
    theirs = DiTTransformer2DModel.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict())
    cond = Conditioning(2, label=torch.tensor([0, 1]), extra_channels=x[:, 4:])
    expected = theirs(x, timestep, class_labels=cond.label).sample
    assert_close(ours(x[:, :4], timestep, cond), expected)


def test_errors_name_what_is_missing_or_does_not_fit() -> None:
    ours = DiT(DiTConfig.read(TINY))
    x, timestep = inputs(ours.config)
    with pytest.raises(UndustError, match="class labels are 0 to 1000, not 1001"):
        ours(x, timestep, Conditioning(2, label=torch.tensor([0, 1001])))
    with pytest.raises(UndustError, match="divisible by 2, its patch, not 7×8"):
        ours(x[..., :7], timestep, Conditioning(2))
    with pytest.raises(UndustError, match="ControlNet"):
        ours(x, timestep, Conditioning(2), control=[x])
    text = PixArt(PixArtConfig.read({**TINY, "caption_channels": 12}))
    with pytest.raises(UndustError, match="needs text"):
        text(x, timestep, Conditioning(2))
    for fields, message in (
        ({"sample_size": 7}, "sample_size has to be one number that patch_size divides"),
        ({"norm_type": "ada_norm_single"}, "norm_type has to be ada_norm_zero"),
        ({"attention_head_dim": 7, "num_attention_heads": 1}, "divisible by 4"),
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
    ):
        with pytest.raises(UndustError, match=message):
            DiTConfig.read({**TINY, **fields})
    with pytest.raises(UndustError, match="sample_size of 128"):
        PixArtConfig.read({"sample_size": 128})
    with pytest.raises(UndustError, match="has to be 32, the width"):
        PixArtConfig.read({**TINY, "caption_channels": 12, "cross_attention_dim": 20})
