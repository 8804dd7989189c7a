"""ControlNets and the U-Nets that they steer: parity with diffusers, and what fits what."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import ControlNetConfig, UNetConfig
from undust.networks.controlnet import ControlNet, check_fits, from_unet
from undust.networks.unet import UNet

COMMON = {"cross_attention_dim": 24, "norm_num_groups": 8}
SD1 = {**COMMON, "block_out_channels": (16, 32, 48, 48), "attention_head_dim": 4}
SD2 = {
    **SD1,
    "attention_head_dim": (2, 4, 6, 8),
    "use_linear_projection": True,
    "upcast_attention": True,
}
XL = {
    **COMMON,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 12 + 6 * 6,
}
HALVES = {"sd1": SD1, "sd2": SD2, "sdxl": XL}
UPS = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")  # of the SDXL-like one
HINTS = {
    "as published": {},
    "blue first": {"controlnet_conditioning_channel_order": "bgr"},
    "the same at every pixel": {"global_pool_conditions": True},
    "four times smaller": {"conditioning_embedding_out_channels": (4, 6, 8)},
    "no transformers but their projections": {"transformer_layers_per_block": 0},
}
# The fields of huggingface.co/lllyasviel/control_v11p_sd15_canny, and what thibaud/
# controlnet-sd21-canny-diffusers and diffusers/controlnet-canny-sdxl-1.0 say otherwise.
SD15 = {
    "_class_name": "ControlNetModel",
    "_diffusers_version": "0.16.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "class_embed_type": None,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}
SD21 = {
    **SD15,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL = {
    **SD21,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "conditioning_channels": 3,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "global_pool_conditions": False,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "upcast_attention": None,
}
PUBLISHED = {"sd 1.5": SD15, "sd 2.1": SD21, "sdxl": SDXL}


def whole(half: str) -> dict:
    """The fields of a U-Net whose encoder half this is."""
    return {**HALVES[half], **({"up_block_types": UPS} if half == "sdxl" else {})}


def nets(shake, half: str, **hint) -> SimpleNamespace:
    """Of each kind ours and theirs, with the same random weights."""
    found = SimpleNamespace(
        their_unet=UNet2DConditionModel(**whole(half)).eval(),
        their_net=ControlNetModel(**{**HALVES[half], **hint}).eval(),
    )
    for theirs in (found.their_unet, found.their_net):
        shake(theirs)
    found.unet = UNet(UNetConfig.read(dict(found.their_unet.config)))
    found.net = ControlNet(ControlNetConfig.read(dict(found.their_net.config)))
    found.unet.load_state_dict(found.their_unet.state_dict())
    found.net.load_state_dict(found.their_net.state_dict())
    return found


def inputs(half: str, size: tuple[int, int], scale: int = 8, batch: int = 2):
    """x, time step, condition, hint; what else theirs are told."""
    height, width = size
    x, context = torch.randn(batch, 4, height, width), torch.randn(batch, 7, 24)
    timestep = torch.tensor([1.0, 981.0])[-batch:]
    hint = torch.rand(batch, 3, scale * height, scale * width)
    told, theirs = {}, {}
    if half == "sdxl":
        sizes = torch.tensor([[1024.0, 768, 0, 32, 9, 9], [512, 512, 4, 0, 8, 8]])[-batch:]
        told = {"pooled": torch.randn(batch, 12), "size_ids": sizes}
        added = {"text_embeds": told["pooled"], "time_ids": sizes}
        theirs = {"added_cond_kwargs": added}
    return x, timestep, Conditioning(batch, context, **told), hint, theirs


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_parity_of_both_with_diffusers(half, size, shake, assert_close) -> None:
    found = nets(shake, half)
    x, timestep, cond, hint, theirs = inputs(half, size)
    down, middle = found.their_net(x, timestep, cond.text, hint, return_dict=False, **theirs)
    control = found.net(x, timestep, cond, hint)
    assert len(control) == len(down) + 1
    for ours, expected in zip(control, [*down, middle], strict=True):
        assert_close(ours, expected)
    expected = found.their_unet(
        x,
        timestep,
        encoder_hidden_states=cond.text,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **theirs,
    ).sample
    steered = found.unet(x, timestep, cond, control=control)
    assert_close(steered, expected)
    alone = found.unet(x, timestep, cond)
    assert (steered - alone).norm() > 1e-2 * alone.norm()


@pytest.mark.parametrize("changes", HINTS.values(), ids=HINTS)
def test_parity_of_other_hints(changes, shake, assert_close) -> None:
    found = nets(shake, "sd1", **changes)
    scale = 4 if "conditioning_embedding_out_channels" in changes else 8
    assert found.net.scale == scale
    x, timestep, cond, hint, _ = inputs("sd1", (8, 8), scale)
    down, middle = found.their_net(x, timestep, cond.text, hint, return_dict=False)
    for ours, expected in zip(found.net(x, timestep, cond, hint), [*down, middle], strict=True):
        assert_close(ours, expected.expand_as(ours))


def test_one_hint_serves_all(shake, assert_close) -> None:
    net = nets(shake, "sd1").net
    x, timestep, cond, hint, _ = inputs("sd1", (8, 8))
    once = net(x, timestep, cond, hint[:1])
    for ours, expected in zip(
        once, net(x, timestep, cond, hint[:1].expand(2, -1, -1, -1)), strict=True
    ):
        assert_close(ours, expected)


def test_no_control_changes_no_bit(shake) -> None:
    unet = nets(shake, "sd1").unet
    x, timestep, cond, _, _ = inputs("sd1", (8, 8))
    alone = unet(x, timestep, cond)
    assert torch.equal(unet(x, timestep, cond, control=()), alone)
    zeros = [torch.zeros_like(part) for part in from_unet(unet)(*inputs("sd1", (8, 8))[:4])]
    assert torch.equal(unet(x, timestep, cond, control=zeros), alone)


@pytest.mark.parametrize("half", HALVES)
def test_a_new_one_is_the_unet_and_says_nothing(half, shake) -> None:
    found = nets(shake, half)
    ours, theirs = from_unet(found.unet), ControlNetModel.from_unet(found.their_unet)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        # The hint's convolutions start at random in both.
        if not name.startswith("controlnet_cond_embedding") or "conv_out" in name:
            assert torch.equal(ours.state_dict()[name], tensor)
    x, timestep, cond, hint, _ = inputs(half, (8, 8))
    assert not any(part.any() for part in ours(x, timestep, cond, hint))
    # Nothing is shared: training it leaves the U-Net as it was.
    before = found.unet.conv_in.weight.clone()
    ours.conv_in.weight.zero_()
    assert torch.equal(found.unet.conv_in.weight, before)


def test_gradients_reach_every_weight(shake) -> None:
    net = nets(shake, "sd1").net
    x, timestep, cond, hint, _ = inputs("sd1", (16, 16))
    with torch.enable_grad():
        sum(part.square().mean() for part in net(x, timestep, cond, hint)).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_full_size_has_the_published_keys(fields) -> None:
    with torch.device("meta"):
        ours = ControlNet(ControlNetConfig.read(fields)).state_dict()
        theirs = ControlNetModel.from_config(fields).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_written_is_what_diffusers_asks_for(fields) -> None:
    config = ControlNetConfig.read(fields)
    written = config.model_dump(mode="json")
    assert written.keys() == inspect.signature(ControlNetModel).parameters.keys()
    assert ControlNetConfig.read(written) == config
    said = {name: value for name, value in fields.items() if not name.startswith("_")}
    changed = {name for name, value in said.items() if written[name] != value}
    assert changed <= {"upcast_attention"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("global_pool_conditions", "yes, please"),
        ("conditioning_channels", 1),
        ("controlnet_conditioning_channel_order", "grb"),
        ("conditioning_embedding_out_channels", []),
        ("transformer_layers_per_block", [1, -1, 1, 1]),
        ("num_control_type", 6),
        ("class_embed_type", "projection"),
        ("down_block_types", ["AttnDownBlock2D"]),
    ],
)
def test_what_is_not_built_is_refused_by_name(field, value) -> None:
    with pytest.raises(UndustError, match=field):
        ControlNetConfig.read({field: value})


def test_a_control_of_another_form_is_refused(shake) -> None:
    found = nets(shake, "sd1")
    x, timestep, cond, hint, _ = inputs("sd1", (8, 8))
    control = found.net(x, timestep, cond, hint)
    with pytest.raises(UndustError, match="has 12 tensors; this U-Net takes 13"):
        found.unet(x, timestep, cond, control=control[:-1])
    with pytest.raises(UndustError, match=r"tensor 3 .* \[2, 16, 1, 1\].* takes \[2, 16, 4, 4\]"):
        pooled = control[3].mean((2, 3), keepdim=True)
        found.unet(x, timestep, cond, control=[*control[:3], pooled, *control[4:]])


@pytest.mark.parametrize("shape", [(2, 3, 64, 72), (2, 4, 64, 64), (3, 3, 64, 64), (2, 3, 8, 8)])
def test_a_hint_of_another_size_is_refused(shape, shake) -> None:
    x, timestep, cond, _, _ = inputs("sd1", (8, 8))
    with pytest.raises(UndustError, match=r"which take \[2, 3, 64, 64\]"):
        nets(shake, "sd1").net(x, timestep, cond, torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cross_attention_dim": 32}, r"texts as wide as \[32\], this U-Net \[24\]"),
        ({"block_out_channels": (16, 32, 48, 64)}, "levels as wide as"),
        ({"layers_per_block": 1}, "levels as wide as"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 6,
                "projection_class_embeddings_input_dim": 48,
            },
            "pooled text and size ids of 48, this U-Net None",
        ),
    ],
)
def test_what_was_made_for_another_model_is_refused(changes, says) -> None:
    unet = UNet(UNetConfig(**SD1))
    check_fits(ControlNet(ControlNetConfig(**SD1)), unet)
    with pytest.raises(UndustError, match=says):
        check_fits(ControlNet(ControlNetConfig(**{**SD1, **changes})), unet)


def test_one_without_attention_fits_any_text() -> None:
    net = ControlNet(ControlNetConfig(**{**SD1, "transformer_layers_per_block": 0}))
    check_fits(net, UNet(UNetConfig(**{**SD1, "cross_attention_dim": 8})))


@torch.no_grad()
def test_a_new_ones_hint_reaches_its_last_convolution(shake) -> None:
    """Of noise of variance 1; with torch's own initialisation 0.2 % would."""
    torch.manual_seed(0)
    net = from_unet(nets(shake, "sd1").unet, 4)
    assert net.scale == 4
    seen: list[torch.Tensor] = []
    net.controlnet_cond_embedding.conv_out.register_forward_hook(
        lambda _module, given, _output: seen.append(given[0])
    )
    assert not net.controlnet_cond_embedding(torch.randn(2, 3, 64, 64)).any()
    assert 0.1 < seen[0].std() < 1
    with pytest.raises(UndustError, match="2, 4, 8, … times smaller, not 3"):
        from_unet(nets(shake, "sd1").unet, 3)
