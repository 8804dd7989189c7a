"""SHA-256 of tensors, pictures and plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    return (
        f"{plain.dtype}{list(plain.shape)}".encode()
        + plain.flatten().view(torch.uint8).numpy().tobytes()
    )


def pixel_bytes(image: Image.Image) -> bytes:
    return f"{image.mode}{image.size}".encode() + image.tobytes()


def tensors_hash(paths: Iterable[Path]) -> str:
    """Of the tensors in files, whatever stands beside them."""
    found = {
        f"{path.name}:{key}": value for path in paths for key, value in load_file(path).items()
    }
    return sha(*(key.encode() + tensor_bytes(value) for key, value in sorted(found.items())))


def canonical(value: Any) -> bytes:
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if key != "undust"}  # the version
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
