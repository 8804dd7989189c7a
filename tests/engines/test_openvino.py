"""Networks converted by OpenVINO: the same results, converted once, and never a missing picture."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import undust
from undust.engines import conversion, conversion_cache, registry
from undust.engines.converted import KEPT, Converted, for_openvino
from undust.errors import UndustError
from undust.networks import stored
from undust.networks.conditioning import Conditioning
from undust.networks.config import (
    ControlNetConfig,
    DiTConfig,
    JiTConfig,
    PixArtConfig,
    UNet2DConfig,
    UNetConfig,
)
from undust.networks.controlnet import ControlNet
from undust.networks.dit import DiT, PixArt
from undust.networks.jit import JiT
from undust.networks.unet import UNet, UNet2D

pytestmark = [
    pytest.mark.skipif(bool(conversion.missing()), reason="OpenVINO is not installed"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # nothing else takes its place
]

N = TypeVar("N", bound=nn.Module)
PROMPTS = ["a smiling cat", "빨간 하트"]
STEPS = {"steps": 4, "seed": 1}
TRANSFORMER = {"sample_size": 8, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
ENCODER = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
WITH_TEXT = {**ENCODER, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
# With a single level, for what is the same at all of them: converted in half the time.
SMALL = {
    **WITH_TEXT,
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
WITHOUT_TEXT = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "in_channels": 3,
    "out_channels": 3,
}
XL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 12 + 5 * 6,
}
PIXELS = {"sample_size": 16, "patch_size": 4, "hidden_size": 32, "bottleneck_dim": 8}


def text(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, 12)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, Callable[[], dict[str, Tensor]]]] = {
    "text": (lambda: UNet(UNetConfig(**WITH_TEXT)), 4, lambda: {"text": text()}),
    "text as one vector too": (
        lambda: UNet(
            UNetConfig(**SMALL, addition_embed_type="text", addition_embed_type_num_heads=2)
        ),
        4,
        lambda: {"text": text()},
    ),
    "pooled text and sizes": (
        lambda: UNet(UNetConfig(**SMALL, **XL)),
        4,
        lambda: {
            "text": text(),
            "pooled": torch.randn(2, 12),
            "size_ids": torch.tensor([[1024.0, 768, 0, 32, 6], [512, 512, 4, 0, 2.5]]),
        },
    ),
    "class labels and maps": (
        lambda: UNet(UNetConfig(**SMALL, in_channels=7, num_class_embeds=9)),
        4,
        lambda: {
            "text": text(),
            "label": torch.tensor([1, 8]),
            "extra_channels": torch.randn(2, 3, 8, 8),
        },
    ),
    "nothing": (lambda: UNet2D(UNet2DConfig(**WITHOUT_TEXT)), 3, dict),
    "scaled residual blocks": (
        lambda: UNet2D(UNet2DConfig(**WITHOUT_TEXT, resnet_time_scale_shift="scale_shift")),
        3,
        dict,
    ),
    "DiT": (
        lambda: DiT(DiTConfig.read({**TRANSFORMER, "num_embeds_ada_norm": 5})),
        4,
        lambda: {"label": torch.tensor([1, 5])},
    ),
    "PixArt": (
        lambda: PixArt(PixArtConfig.read({**TRANSFORMER, "caption_channels": 12})),
        4,
        lambda: {"text": text()},
    ),
    "JiT": (
        lambda: JiT(JiTConfig(**PIXELS, num_layers=2, num_attention_heads=4, num_classes=5)),
        3,
        lambda: {"label": torch.tensor([1, 5])},
    ),
    "ControlNet": (lambda: ControlNet(ControlNetConfig(**ENCODER)), 4, lambda: {"text": text()}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def entries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of converted networks, one for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    torch.manual_seed(0)
    return folder / "undust" / "openvino"


def built(name: str) -> nn.Module:
    return filled(NETWORKS[name][0]())


def filled(network: N) -> N:
    network.eval().requires_grad_(False)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    return network


def inputs(name: str, size: tuple[int, int] = (8, 8)) -> tuple[Any, ...]:
    """The arguments of a call of that network, for two pictures."""
    _, channels, cond = NETWORKS[name]
    hint = [torch.rand(1, 3, 8 * size[0], 8 * size[1])] if name == "ControlNet" else []
    x, timestep = torch.randn(2, channels, *size), torch.tensor([3.0, 999.0])
    return x, timestep, Conditioning(2, **cond()), *hint


@pytest.fixture
def network() -> UNet:
    """For the inputs of "text"."""
    return filled(UNet(UNetConfig(**SMALL)))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many networks were converted so far in this test."""
    count, convert = 0, conversion.converted

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return convert(*args)

    monkeypatch.setattr(conversion, "converted", counted)
    return lambda: count


def apart(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """The largest relative difference of the outputs."""
    ours, theirs = ([each] if isinstance(each, Tensor) else each for each in (found, expected))
    pairs = [*zip(ours, theirs, strict=True)]
    return max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_the_same(name: str):
    network, args = built(name), inputs(name)
    found, expected = for_openvino(network)(*args), network(*args)
    assert 0 < apart(found, expected) < 1e-5
    assert type(network) is type(built(name))


@pytest.mark.parametrize("name", ["text", "DiT"])
def test_bfloat16_is_as_near_to_float32_as_torch_is(name: str):
    exact, args = built(name), inputs(name)
    network = copy.deepcopy(exact).bfloat16()
    for weight, rounded in zip(exact.parameters(), network.parameters(), strict=True):
        weight.copy_(rounded)
    x, timestep, cond = args
    half = x.bfloat16(), timestep, cond.to(x.device, torch.bfloat16)
    ours, theirs, expected = for_openvino(network)(*half), network(*half), exact(*args)
    assert ours.dtype == torch.bfloat16
    assert 1e-4 < apart(ours, expected) < 2 * apart(theirs, expected)


def test_weights_that_stay_in_16_bits(monkeypatch: pytest.MonkeyPatch, network: UNet):
    monkeypatch.setattr(stored, "LARGE", 64)
    short = network.bfloat16()
    stored.keep_stored(short)
    args = inputs("text")
    assert apart(for_openvino(short)(*args), short(*args)) < 1e-5


def test_weights_are_shared_and_the_network_is_of_its_class(network: UNet):
    fast = for_openvino(network)
    assert isinstance(fast, Converted) and isinstance(fast, UNet)
    assert fast.config is network.config or fast.config == network.config
    for ours, theirs in zip(fast.parameters(), network.parameters(), strict=True):
        assert ours is theirs
    assert fast.state_dict().keys() == network.state_dict().keys()


def test_each_shape_is_converted_once(network: UNet, conversions: Callable[[], int]):
    fast, odd = for_openvino(network), inputs("text", (7, 9))
    one = (odd[0][:1], odd[1][:1], odd[2][:1])
    for args in (odd, one, odd, one):
        assert apart(fast(*args), network(*args)) < 1e-5
    assert conversions() == 2


def test_few_compiled_networks_are_kept(network: UNet, monkeypatch: pytest.MonkeyPatch):
    class Echo:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, given: dict[str, Tensor]) -> list[Tensor]:
            return [given["x"]]

    monkeypatch.setattr("undust.engines.converted.Compiled", Echo)
    monkeypatch.setattr(conversion_cache, "find", lambda _: Path())
    fast = for_openvino(network)
    seen: list[str] = []
    for width in (8, 9, 10, 8, 11):
        fast(*inputs("text", (8, width)))
        seen += fast.conversions._compiled.keys() - {*seen}  # type: ignore[union-attr]
    first, second, third, last = seen
    assert KEPT == 3
    assert [*fast.conversions._compiled] == [third, first, last] and second  # type: ignore[union-attr]


def test_controlnets_change_the_unet():
    network, args = built("text"), inputs("ControlNet")
    control = [0.5 * part for part in built("ControlNet")(*args)]
    fast, args = for_openvino(network), args[:3]
    found = fast(*args, control=control)
    assert apart(found, network(*args, control=control)) < 1e-5
    assert apart(found, fast(*args)) > 1e-3


def test_a_weight_that_changes_is_converted_again(network: UNet, conversions: Callable[[], int]):
    fast, args = for_openvino(network), inputs("text", (8, 6))
    before = fast(*args)
    with torch.no_grad():
        network.conv_in.weight.mul_(2)
    assert apart(fast(*args), before) > 1e-2
    assert apart(fast(*args), network(*args)) < 1e-5
    assert conversions() == 2


def perturbation(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
    return v


def test_perturbed_attention_and_gradients_are_torchs(
    network: UNet, conversions: Callable[[], int]
):
    fast, (x, timestep, cond) = for_openvino(network), inputs("text", (8, 4))
    found = fast(x, timestep, cond, perturbed=(perturbation, None))
    assert torch.equal(found, network(x, timestep, cond, perturbed=(perturbation, None)))
    x.requires_grad_()
    assert fast(x, timestep, cond).requires_grad
    assert conversions() == 0
    fast(x.detach(), timestep, cond, perturbed=(None, None))
    assert conversions() == 1


def test_errors_are_those_of_the_network():
    labels = built("class labels and maps")
    fast, (x, timestep, cond) = for_openvino(labels), inputs("class labels and maps")
    with pytest.raises(UndustError, match="class labels are 0 to 8, not 9"):
        fast(x, timestep, dataclasses.replace(cond, label=torch.tensor([0, 9])))
    with pytest.raises(UndustError, match="needs a class label"):
        fast(x, timestep, dataclasses.replace(cond, label=None))
    with pytest.raises(UndustError, match="the control has 1 tensors"):
        fast(x, timestep, cond, control=[x])


def test_what_it_cannot_convert_is_left_to_the_engine_cpu(network: UNet):
    stage = undust.load("emoji", engine="torch").autoencoder
    hooked = copy.deepcopy(network)
    hooked.conv_in.register_forward_hook(lambda *_: None)
    half = copy.deepcopy(network).half()
    for each in (stage, hooked, half):
        assert not isinstance(for_openvino(each), Converted)


def test_a_conversion_that_fails_is_said_once(network: UNet, monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> None:
        raise RuntimeError("\n  no such operation\nand more")

    monkeypatch.setattr(conversion, "converted", failing)
    fast, args = for_openvino(network), inputs("text", (4, 8))
    with pytest.warns(RuntimeWarning, match="openvino fails: RuntimeError: no such operation; cpu"):
        assert torch.equal(fast(*args), network(*args))
    assert torch.equal(fast(*args), network(*args))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    reason = r"OpenVINO is not installed: pip install 'undust\[openvino\]'"
    with pytest.warns(RuntimeWarning, match=f"openvino is not used: {reason}; cpu takes its place"):
        assert undust.load("emoji", engine="openvino").engine == "cpu"


def test_a_package_that_does_not_fit_the_system(monkeypatch: pytest.MonkeyPatch):
    def failing() -> None:
        raise ImportError("libm.so.7: no such file")

    monkeypatch.setattr(conversion, "imported", failing)
    with pytest.warns(RuntimeWarning, match="OpenVINO cannot be imported: ImportError: libm.so.7"):
        assert undust.load("emoji", engine="openvino").engine == "cpu"


@pytest.fixture
def saved(entries: Path) -> tuple[Converted, tuple[Any, ...], Path]:
    """A network, inputs that it was converted for, and the entry."""
    fast, args = for_openvino(built("DiT")), inputs("DiT")  # the one that is converted soonest
    assert isinstance(fast, Converted)
    fast(*args)
    fast.conversions._compiled.clear()
    key = fast.conversions._key(conversion.named_inputs(*args))
    return fast, args, entries / key


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("network.xml", "shorter"),
        ("network.bin", "shorter"),
        ("network.bin", "changed"),
        ("hashes.json", "absent"),
    ],
)
def test_a_damaged_entry_is_converted_again(
    name: str, damage: str, saved: tuple[Any, ...], conversions: Callable[[], int]
):
    fast, args, entry = saved
    expected, path = fast(*args), entry / name
    content, middle = path.read_bytes(), path.stat().st_size // 2
    assert conversions() == 0
    fast.conversions._compiled.clear()
    if damage == "absent":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(content[:middle])
    else:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert torch.equal(fast(*args), expected)
    assert conversions() == 1
    assert conversion_cache.find(entry.name)


def test_a_folder_that_cannot_be_written_is_no_error(
    network: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: Callable[[], int]
):
    (tmp_path / "undust").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    args = inputs("text")
    assert apart(for_openvino(network)(*args), network(*args)) < 1e-5
    assert conversions() == 1


def test_the_least_recently_used_entries_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conversion_cache, "LIMIT", 2500)
    keys = [letter * 64 for letter in "abcd"]

    def save(path: Path) -> None:
        for name in conversion_cache.FILES:
            path.with_name(name).write_bytes(bytes(400))

    found = conversion_cache._entries()
    for age, key in enumerate(keys[:2]):
        conversion_cache.keep(key, save)
        os.utime(found / key, (age, age))
    (found / "notes").mkdir()
    assert conversion_cache.find(keys[0])  # and so it is newer than the other
    conversion_cache.keep(keys[2], save)
    assert {each.name for each in found.iterdir()} == {keys[0], keys[2], "notes"}
    monkeypatch.setattr(conversion_cache, "LIMIT", 0)
    assert conversion_cache.keep(keys[3], save)
    assert {each.name for each in found.iterdir()} == {keys[3], "notes"}


def test_entries_do_not_name_places_of_this_machine(saved: tuple[Any, ...], folder: Path):
    for name in (conversion_cache.NETWORK, conversion_cache.HASHES):
        content = (saved[2] / name).read_text("utf-8")
        assert str(folder) not in content and str(Path(undust.__file__).parent) not in content


def pictures(model: Any, **options: object) -> np.ndarray:
    """Of the prompts, as whole numbers."""
    found = model.generate(PROMPTS, **STEPS, **options)
    assert {each.recipe.engine for each in found} == {model.engine}
    return np.stack([np.asarray(each.image, int) for each in found])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {engine: undust.load("emoji", engine=engine) for engine in ("torch", "openvino")}


def test_pictures_are_the_same_to_one_level(models: dict[str, Any]):
    ours, theirs = (pictures(model) for model in models.values())
    assert np.abs(ours - theirs).max() <= 1


def test_a_network_ends_when_nothing_else_uses_it():
    """Its prepared copy, which is kept as long as it, does not refer to it."""
    prepared, network = registry.Prepared("openvino"), built("text")
    assert isinstance(prepared(network), Converted)
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("merge", [True, False])
def test_loras_are_applied(merge: bool, tmp_path: Path, models: dict[str, Any]):
    lora: dict[str, Tensor] = {}
    for name, layer in models["torch"].unet.named_modules():
        if name.endswith("to_q"):
            shape, key = layer.weight.shape, f"unet.{name}.lora"
            lora[f"{key}_A.weight"] = torch.randn(2, shape[1]) / shape[1] ** 0.5
            lora[f"{key}_B.weight"] = torch.randn(shape[0], 2)
    save_file(lora, tmp_path / "lora.safetensors")
    both = [undust.load("emoji", engine=engine, merge_loras=merge) for engine in models]
    ours, theirs = (pictures(model, loras=[tmp_path / "lora.safetensors"]) for model in both)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - pictures(models["openvino"])).max() > 10


def generate(home: Path, *args: str) -> str:
    """What `undust` prints in a process of its own in which nothing can be converted."""
    code = """
import sys
from undust.cli import main
from undust.engines import conversion
def failing(*_): raise RuntimeError("converted")
if sys.argv.pop(1) == "once": conversion.converted = failing
code = main(sys.argv[1:])
print(*sorted({"openvino", "openvino_telemetry"} & set(sys.modules)))
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *args],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(undust.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_does_not_convert_again_and_gives_the_same_bytes(
    tmp_path: Path, tiny_model: Path
):
    """Nor does either send events or write to the home folder."""
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    home = tmp_path / "home"
    home.mkdir()
    options = ("--steps", "4", "--seed", "1", "--engine", "openvino", "--model", str(tiny_model))
    printed = generate(home, "first", "generate", PROMPTS[0], *options, "--out", str(first))
    assert printed.splitlines()[-1] == "openvino"
    generate(home, "once", "rerun", str(first), "--out", str(again))
    assert first.read_bytes() == again.read_bytes()
    assert not any(home.iterdir())


def run_here(code: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that can import this file, in a process of its own."""
    places = [str(Path(undust.__file__).parents[1]), str(Path(__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_conversion_sends_nothing_after_another_program_imported_it():
    code = """
import openvino_telemetry
class Telemetry:
    def __init__(self, *_, **__): ...
    def send_event(self, *event, **_): print(*event)
    def start_session(self, *event, **_): print(*event)
    def end_session(self, *event, **_): print(*event)
openvino_telemetry.Telemetry = Telemetry
import openvino
print("-")
from engines.test_openvino import built, inputs
from undust.engines import conversion
conversion.converted(built("DiT"), conversion.named_inputs(*inputs("DiT")))
"""
    done = run_here(code)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("-\n")
    assert "general_import" in before and not after


def test_ctrl_c_is_no_crash_after_a_network_is_gone():
    code = """
import faulthandler, gc, os, signal
faulthandler.enable()
signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
from engines.test_openvino import built, inputs
from undust.engines import conversion
given = conversion.named_inputs(*inputs("DiT"))
model = conversion.converted(built("DiT"), given)
first, second = (conversion.Compiled(model, conversion.WIDE) for _ in range(2))
del first
gc.collect()
del second, model
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""
    done = run_here(code)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def test_auto_does_not_import_it(tmp_path: Path):
    printed = generate(
        tmp_path, "once", "generate", PROMPTS[0], "--steps", "1", "--out", str(tmp_path / "a.png")
    )
    assert printed.splitlines()[-1] == ""
