"""Putting on and taking off: what is left is what was there, to the bit."""

from __future__ import annotations

import gc
import math
import weakref
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters import families
from adapters.families import MATRICES, NORMS, draw, example, net, prefixed
from undust.adapters.worn import Live, Merged
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.folder import load_into
from undust.formats.lora.file import Lora, load

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WARDROBE = {  # the files, and which family changes which modules in them
    "low": dict.fromkeys(MATRICES, families.lora),
    "dora": dict.fromkeys(MATRICES, families.dora),
    "mixed": {
        "linear": families.loha,
        "conv": families.lokr_tucker,
        "pixel": families.full_with_bias,
        **dict.fromkeys(NORMS, families.norm),
    },
    "few": {"conv": families.lora_mid, "strided": families.bias_alone},
}


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory) -> list[Lora]:
    folder = tmp_path_factory.mktemp("loras")
    network = net()
    return [write(folder, name, network) for name in WARDROBE]


def write(folder: Path, name: str, network: nn.Module) -> Lora:
    tensors = {}
    for seed, (module, family) in enumerate(WARDROBE[name].items()):
        shape = tuple(network.get_submodule(module).weight.shape)
        tensors |= prefixed(f"lora_unet_{module}", family(shape, draw(len(name) + seed)))
    path = folder / f"{name}.safetensors"
    safetensors_file.save(path, tensors)
    return load(path, {"unet": network})


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def outputs(network: nn.Module) -> dict[str, torch.Tensor]:
    """Of every module alone."""
    return {
        module: network.get_submodule(module)(example(module).to(network.linear.weight.dtype))
        for module in (*MATRICES, *NORMS)
    }


SETS = st.lists(
    st.tuples(st.integers(0, len(WARDROBE) - 1), st.sampled_from([0.0, 1.0, -0.6, 0.25])),
    max_size=5,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Merged, Live])
@given(history=st.lists(SETS, min_size=1, max_size=4))
def test_any_history_is_forgotten(kind, dtype, wardrobe, history):
    network = net().to(dtype)
    before, given_out = state(network), outputs(network)
    worn = kind({"unet": network})
    for chosen in history:
        worn.wear([(wardrobe[index], weight) for index, weight in chosen])
        if kind is Live:
            assert same(state(network), before)
    fresh = net().to(dtype)
    kind({"unet": fresh}).wear([(wardrobe[index], weight) for index, weight in history[-1]])
    assert same(state(network), state(fresh))
    assert same(outputs(network), outputs(fresh))
    worn.wear(())
    assert same(state(network), before)
    assert same(outputs(network), given_out)
    assert worn.outfit == ()


@pytest.mark.parametrize("kind", [Merged, Live])
def test_the_order_makes_no_difference(kind, wardrobe):
    found = []
    for order in permutations(zip(wardrobe, (1.0, -0.6, 0.3, 0.7), strict=True)):
        network = net()
        kind({"unet": network}).wear(order)
        found.append(outputs(network))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", [Merged, Live])
def test_weight_0_is_as_if_not_there(kind, wardrobe):
    network = net()
    before, given_out = state(network), outputs(network)
    worn = kind({"unet": network})
    worn.wear([(lora, 0.0) for lora in wardrobe])
    assert same(outputs(network), given_out)
    assert same(state(network), before)
    assert worn.outfit == ()
    worn.wear([(wardrobe[0], 1.0), (wardrobe[1], 0.0)])
    alone = net()
    kind({"unet": alone}).wear([(wardrobe[0], 1.0)])
    assert same(outputs(network), outputs(alone))


@pytest.mark.parametrize("kind", [Merged, Live])
def test_the_same_again_does_nothing(kind, wardrobe, monkeypatch):
    network = net()
    worn = kind({"unet": network})
    worn.wear([(wardrobe[0], 1.0), (wardrobe[1], 0.5)])
    weight = network.conv.weight.data_ptr()
    monkeypatch.setattr(worn, "_change", lambda outfit: pytest.fail("nothing was to be done"))
    worn.wear([(wardrobe[1], 0.5), (wardrobe[0], 1.0), (wardrobe[2], 0.0)])
    assert network.conv.weight.data_ptr() == weight
    assert set(worn.outfit) == {(wardrobe[0], 1.0), (wardrobe[1], 0.5)}


def test_what_is_left_is_the_very_weight(wardrobe, tmp_path):
    """The file's own pages: not a copy of them."""
    path = tmp_path / "network.safetensors"
    safetensors_file.save(path, net().state_dict())
    network = net()
    load_into(network, safetensors_file.load(path), path)
    network.requires_grad_(False)
    parameters = dict(network.named_parameters())
    pages = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    worn = Merged({"unet": network})
    worn.wear([(lora, 0.7) for lora in wardrobe])
    changed = dict(network.named_parameters())
    assert all(changed[name] is parameter for name, parameter in parameters.items())
    assert changed["conv.weight"].data_ptr() != pages["conv.weight"]
    assert not any(parameter.requires_grad for parameter in changed.values())
    worn.wear(())
    assert {name: p.data_ptr() for name, p in network.named_parameters()} == pages
    assert same(state(network), safetensors_file.load(path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_memory_format_stays(dtype, wardrobe):
    network = net().to(dtype).to(memory_format=torch.channels_last)
    strides = {name: parameter.stride() for name, parameter in network.named_parameters()}
    assert not network.conv.weight.is_contiguous()
    worn = Merged({"unet": network})
    for outfit in ([(wardrobe[0], 1.0), (wardrobe[2], 1.0)], []):
        worn.wear(outfit)
        assert {n: p.stride() for n, p in network.named_parameters()} == strides
        assert {p.dtype for p in network.parameters()} == {dtype}


def test_a_model_in_another_precision_since_is_put_back_in_it(wardrobe):
    network = net()
    expected = state(net().to(torch.bfloat16))
    worn = Merged({"unet": network})
    worn.wear([(wardrobe[0], 1.0)])
    network.to(torch.bfloat16)
    worn.wear(())
    assert same(state(network), expected)


def test_in_inference_mode(wardrobe):
    """As a model paints; what is worn then can still be changed."""
    network = net()
    before = state(network)
    worn = Merged({"unet": network})
    with torch.inference_mode():
        worn.wear([(wardrobe[0], 1.0)])
    network.conv.weight.data.mul_(1)
    assert not network.conv.weight.is_inference()
    worn.wear(())
    assert same(state(network), before)


@pytest.mark.parametrize("kind", [Merged, Live])
def test_nothing_is_kept_of_what_was_taken_off(kind, tmp_path):
    network = net()
    worn = kind({"unet": network})
    gone = []
    for turn in range(3):
        lora = write(tmp_path, "low", network)
        worn.wear([(lora, 1.0 + turn)])
        gone.append(weakref.ref(lora))
        del lora
        worn.wear(())
    gc.collect()
    assert not any(reference() for reference in gone)
    hooks = sum(len(module._forward_hooks) for module in network.modules())
    assert hooks == 0


@pytest.mark.parametrize("kind", [Merged, Live])
def test_if_it_fails_nothing_is_worn(kind, wardrobe, monkeypatch):
    network = net()
    before, given_out = state(network), outputs(network)
    worn = kind({"unet": network})
    worn.wear([(wardrobe[2], 1.0)])

    calls = 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return original(*arguments)

    from undust.adapters import worn as module

    original = module.delta
    monkeypatch.setattr(module, "delta", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worn.wear([(wardrobe[1], 1.0)])
    assert same(state(network), before)
    assert same(outputs(network), given_out)
    assert worn.outfit == ()


@pytest.mark.parametrize("kind", [Merged, Live])
@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_is_a_number(kind, weight, wardrobe):
    network = net()
    worn = kind({"unet": network})
    worn.wear([(wardrobe[0], 1.0)])
    before = outputs(network)
    with pytest.raises(UndustError, match=f"the weight of the LoRA dora is {weight}, no number"):
        worn.wear([(wardrobe[1], weight)])
    assert same(outputs(network), before)
    assert worn.outfit == ((wardrobe[0], 1.0),)


def test_weights_change_live_without_work(wardrobe, monkeypatch):
    """Between pictures only the number changes: no matrix is made again."""
    from undust.adapters import worn as module

    network = net()
    worn = Live({"unet": network})
    worn.wear([(wardrobe[1], 1.0)])
    monkeypatch.setattr(module, "delta", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(module, "low_rank", lambda *_: pytest.fail("made again"))
    worn.wear([(wardrobe[1], 0.5)])
    plain, whole, half = net(), net(), network
    x = example("conv")
    monkeypatch.undo()
    Live({"unet": whole}).wear([(wardrobe[1], 1.0)])
    middle = (plain.conv(x) + whole.conv(x)) / 2
    assert (half.conv(x) - middle).norm() < 1e-6 * middle.norm()
