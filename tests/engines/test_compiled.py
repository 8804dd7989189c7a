"""Networks compiled by torch.compile: the same results, and torch's layers where it fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor

import undust
from undust.engines import compiled, registry
from undust.engines.compiled import for_compile
from undust.errors import UndustError
from undust.networks.conditioning import Conditioning
from undust.networks.config import UNet2DConfig
from undust.networks.deep_cache import DeepFeatures
from undust.networks.unet import UNet2D

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_type": None,
    "in_channels": 4,
    "out_channels": 4,
}
can_compile = pytest.mark.skipif(bool(compiled.missing()), reason="there is no C++ compiler")


@pytest.fixture
def unet() -> UNet2D:
    torch.manual_seed(0)
    return UNet2D(UNet2DConfig(**SMALL)).eval().requires_grad_(False)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation fails, at its last step."""
    torch._dynamo.reset()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        yield
    torch._dynamo.reset()


def inputs() -> tuple[Tensor, Tensor, Conditioning]:
    return torch.randn(2, 4, 8, 8), torch.tensor([10.0, 900.0]), Conditioning(2)


@can_compile
@pytest.mark.filterwarnings("error::RuntimeWarning")
@torch.inference_mode()
def test_results_are_the_same(unet: UNet2D):
    fast, given = for_compile(unet), inputs()
    assert (fast(*given) - unet(*given)).norm() < 1e-5 * unet(*given).norm()
    assert fast.conv_in.weight is unet.conv_in.weight
    kept, ours = DeepFeatures(), DeepFeatures()  # computed by its layers
    assert torch.equal(fast(*given, deep=kept), unet(*given, deep=ours))
    assert torch.equal(fast(*given, deep=kept), unet(*given, deep=ours))


@pytest.mark.usefixtures("no_compiler")
@torch.inference_mode()
def test_a_failure_is_a_warning(unet: UNet2D):
    fast, given = for_compile(unet), inputs()
    with pytest.warns(RuntimeWarning, match=r"^the engine compile fails: .*; torch takes"):
        assert torch.equal(fast(*given), unet(*given))
    assert torch.equal(fast(*given), unet(*given))


@pytest.mark.usefixtures("no_compiler")
@torch.inference_mode()
def test_errors_of_the_network_are_its_own(unet: UNet2D):
    with pytest.raises(UndustError, match="the control has 1 tensors"):
        for_compile(unet)(*inputs(), control=(torch.zeros(1),))


def test_first_stages_and_networks_with_hooks_are_not_compiled(unet: UNet2D):
    unet.conv_in.register_forward_hook(lambda layer, inputs, output: output)
    for network in (unet, nn.Conv2d(4, 4, 3)):
        assert "forward" not in vars(for_compile(network))


def test_without_a_compiler_the_next_engine_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(RuntimeWarning, match=r"C\+\+ compiler, and there is no g\+\+; (cpu|torch)"):
        assert undust.load("emoji", engine="compile").engine in ("cpu", "torch")


@can_compile
def test_it_is_for_other_devices_too(unet: UNet2D):
    elsewhere = torch.device("meta")
    assert registry.chosen("compile", [unet], elsewhere).name == "compile"
    assert registry.chosen("auto", [unet], elsewhere).name == "torch"
