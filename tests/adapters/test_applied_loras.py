"""Views of networks with LoRAs applied: none shows in another, and the network stays as it is."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters import families
from adapters.families import MATRICES, NORMS, draw, example, net, prefixed
from undust.adapters import applied_loras
from undust.adapters.applied_loras import LoraSet, merge
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.folder import load_into
from undust.formats.lora.file import Lora, load_lora

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FILES = {  # the files, and which family changes which modules in them
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
def loras(tmp_path_factory) -> list[Lora]:
    folder = tmp_path_factory.mktemp("loras")
    network = net()
    return [write(folder, name, network) for name in FILES]


def write(folder: Path, name: str, network: nn.Module) -> Lora:
    tensors = {}
    for seed, (module, family) in enumerate(FILES[name].items()):
        shape = tuple(network.get_submodule(module).weight.shape)
        tensors |= prefixed(f"lora_unet_{module}", family(shape, draw(len(name) + seed)))
    path = folder / f"{name}.safetensors"
    safetensors_file.save(path, tensors)
    return load_lora(path, {"unet": network})


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
    st.tuples(st.integers(0, len(FILES) - 1), st.sampled_from([0.0, 1.0, -0.6, 0.25])),
    max_size=5,
)


KINDS = pytest.mark.parametrize("merged", [True, False], ids=["merged", "beside"])


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@settings(max_examples=25)
@given(history=st.lists(SETS, min_size=1, max_size=4))
def test_views_depend_on_their_loras_alone(merged, dtype, loras, history):
    network = net().to(dtype)
    before, plain = state(network), outputs(network)
    applied = LoraSet({"unet": network}, merge=merged)
    views = [applied.applied([(loras[index], w) for index, w in chosen]) for chosen in history]
    for chosen, view in zip(history, views, strict=True):
        alone = LoraSet({"unet": net().to(dtype)}, merge=merged)
        fresh = alone.applied([(loras[index], w) for index, w in chosen])["unet"]
        assert same(state(view["unet"]), state(fresh))
        assert same(outputs(view["unet"]), outputs(fresh))
        if not merged:
            assert same(state(fresh), before)
    assert same(state(network), before)
    assert same(outputs(network), plain)


@KINDS
def test_the_order_makes_no_difference(merged, loras):
    found = []
    for order in permutations(zip(loras, (1.0, -0.6, 0.3, 0.7), strict=True)):
        found.append(outputs(LoraSet({"unet": net()}, merge=merged).applied(order)["unet"]))
    assert all(same(found[0], other) for other in found[1:])


@KINDS
def test_weight_0_is_no_lora(merged, loras):
    network = net()
    applied = LoraSet({"unet": network}, merge=merged)
    assert applied.applied([(lora, 0.0) for lora in loras])["unet"] is network
    one = applied.applied([(loras[0], 1.0), (loras[1], 0.0)])
    assert applied.applied([(loras[0], 1.0)]) is one


@KINDS
def test_the_same_again_does_nothing(merged, loras, monkeypatch):
    """Nor does another in between, as long as somebody holds the first."""
    applied = LoraSet({"unet": net()}, merge=merged)
    first = applied.applied([(loras[0], 1.0), (loras[1], 0.5)])
    other = applied.applied([(loras[2], 1.0)])
    monkeypatch.setattr(applied, "_made", lambda active: pytest.fail("nothing was to be done"))
    assert applied.applied([(loras[1], 0.5), (loras[0], 1.0), (loras[2], 0.0)]) is first
    assert applied.applied([(loras[2], 1.0)]) is other


def test_weights_that_do_not_change_are_shared(loras, tmp_path):
    """The file's own pages: not a copy of them."""
    path = tmp_path / "network.safetensors"
    safetensors_file.save(path, net().state_dict())
    network = net()
    load_into(network, safetensors_file.load(path), path)
    network.requires_grad_(False)
    own = dict(network.named_parameters())
    view = LoraSet({"unet": network}).applied([(loras[3], 0.7)])["unet"]
    found = dict(view.named_parameters())
    changed = {name for name, parameter in found.items() if parameter is not own[name]}
    assert changed == {f"{module}.{kind}" for module, kind in CHANGED_BY_FEW}
    assert not any(parameter.requires_grad for parameter in found.values())
    assert same(state(network), safetensors_file.load(path))


CHANGED_BY_FEW = (("conv", "weight"), ("strided", "bias"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_memory_format_stays(dtype, loras):
    network = net().to(dtype).to(memory_format=torch.channels_last)
    strides = {name: parameter.stride() for name, parameter in network.named_parameters()}
    assert not network.conv.weight.is_contiguous()
    view = LoraSet({"unet": network}).applied([(loras[0], 1.0), (loras[2], 1.0)])["unet"]
    assert {n: p.stride() for n, p in view.named_parameters()} == strides
    assert {p.dtype for p in view.parameters()} == {dtype}


def test_in_inference_mode(loras):
    """As a model paints; the view can still be saved and changed."""
    with torch.inference_mode():
        view = LoraSet({"unet": net()}).applied([(loras[0], 1.0)])["unet"]
    view.conv.weight.data.mul_(1)
    assert not view.conv.weight.is_inference()


@KINDS
def test_nothing_is_kept_of_what_nobody_holds(merged, tmp_path):
    """But of the latest."""
    network = net()
    applied = LoraSet({"unet": network}, merge=merged)
    gone = []
    for turn in range(4):
        lora = write(tmp_path, "low", network)
        gone.append(weakref.ref(applied.applied([(lora, 1.0 + turn)])["unet"]))
        del lora
    gc.collect()
    assert [reference() is None for reference in gone] == [True, True, True, False]
    assert not any(module._forward_hooks for module in network.modules())


@KINDS
def test_if_it_fails_there_is_no_view(merged, loras, monkeypatch):
    network = net()
    before = state(network)
    applied = LoraSet({"unet": network}, merge=merged)
    calls = 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return original(*arguments)

    original = applied_loras.delta
    monkeypatch.setattr(applied_loras, "delta", interrupted)
    with pytest.raises(KeyboardInterrupt):
        applied.applied([(loras[1], 1.0)])
    monkeypatch.undo()
    assert same(state(network), before)
    fresh = LoraSet({"unet": net()}, merge=merged).applied([(loras[1], 1.0)])["unet"]
    assert same(outputs(applied.applied([(loras[1], 1.0)])["unet"]), outputs(fresh))


@KINDS
@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_is_a_number(merged, weight, loras):
    with pytest.raises(UndustError, match=f"the weight of the LoRA dora is {weight}, not a finite"):
        LoraSet({"unet": net()}, merge=merged).applied([(loras[1], weight)])


def test_weights_change_without_work_beside_the_modules(loras, monkeypatch):
    """Between pictures only the number changes: no matrix is made again."""
    applied = LoraSet({"unet": net()}, merge=False)
    whole = applied.applied([(loras[1], 1.0)])["unet"]
    monkeypatch.setattr(applied_loras, "delta", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(applied_loras, "low_rank", lambda *_: pytest.fail("made again"))
    half = applied.applied([(loras[1], 0.5)])["unet"]
    x = example("conv")
    middle = (net().conv(x) + whole.conv(x)) / 2
    assert (half.conv(x) - middle).norm() < 1e-6 * middle.norm()


@KINDS
def test_threads_get_their_own(merged, loras):
    """Each of four threads asks for another LoRA again and again, and never sees the others'."""
    applied = LoraSet({"unet": net()}, merge=merged)
    expected = [
        outputs(LoraSet({"unet": net()}, merge=merged).applied([(lora, 1.0)])["unet"])
        for lora in loras
    ]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(20):
            view = applied.applied([(loras[index], 1.0)])["unet"]
            if not same(outputs(view), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(loras))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_merging_for_good(loras):
    network = net()
    asked = [(loras[0], 0.7), (loras[2], -0.4)]
    expected = state(LoraSet({"unet": net()}).applied(asked)["unet"])
    merge({"unet": network}, asked)
    assert same(state(network), expected)
