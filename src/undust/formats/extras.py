"""Extra files for a model: LoRAs, ControlNets and textual inversions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from undust.errors import UndustError
from undust.formats import controlnet, pickles, safetensors_file, textual_inversion
from undust.formats.folder import read_json
from undust.formats.lora import peft_config
from undust.formats.lora.kinds import refusal
from undust.formats.lora.names import PEFT
from undust.formats.lora.summary import summarize

CONTROLNET, LORA, EMBEDDING = "a ControlNet", "a LoRA", "a textual inversion"
CONTROLS = {p + key for p in controlnet.PREFIXES for key in (controlnet.OURS, controlnet.THEIRS)}


@dataclass(frozen=True, eq=False)
class ExtraFile:
    """The tensors and metadata of a LoRA or a textual inversion; kind: `LORA` or `EMBEDDING`."""

    kind: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def kind_of(path: Path) -> str:
    """The kind of an extra file; "" for any other file.

    Raises UndustError as `summarize` does, and for a LoRA of a kind that is not supported.
    """
    keys = safetensors_file.header(path).tensors.keys()
    if not CONTROLS.isdisjoint(keys):
        return CONTROLNET
    if lora := summarize(path):
        if not lora.supported:
            raise UndustError(f"{path}: {refusal(lora.kind)}")
        return LORA
    try:
        textual_inversion.words(path)
    except UndustError:
        return ""
    return EMBEDDING


def read(path: Path, kind: str, beside: Path) -> ExtraFile:
    """The contents of a LoRA's or a textual inversion's file; the tensors are memory-mapped.

    beside: the file that it was unpacked from, or itself. The scales in PEFT's adapter_config.json
    beside that are added to the metadata. Raises UndustError if that file is damaged.
    """
    tensors = safetensors_file.load(path)
    metadata = {"format": "pt", **safetensors_file.header(path).metadata}
    metadata.pop(pickles.LEFT_OUT, None)
    scales = beside.with_name(peft_config.FILE_NAME)
    if scales.exists() and any(key.startswith(PEFT) for key in tensors):
        metadata.setdefault(peft_config.METADATA, json.dumps(read_json(scales)))
    return ExtraFile(kind, tensors, metadata)
