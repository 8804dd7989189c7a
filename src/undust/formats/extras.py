"""What belongs into a model and has a file of its own: LoRAs, ControlNets, learnt words."""

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

CONTROLNET, LORA, WORD = "a ControlNet", "a LoRA", "a textual inversion"
CONTROLS = {p + key for p in controlnet.PREFIXES for key in (controlnet.OURS, controlnet.THEIRS)}


@dataclass(frozen=True, eq=False)
class ExtraFile:
    """A LoRA or a learnt word: what is in its file, as it is there. kind: `LORA` or `WORD`."""

    kind: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def kind_of(path: Path) -> str:
    """Which of the three a file is; "" if none.

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
    return WORD


def read(path: Path, kind: str, beside: Path) -> ExtraFile:
    """What is in a LoRA's or a learnt word's file; its tensors are pages of the file, not copies.

    beside: where the file lies that it is a copy of. The scales that PEFT keeps in a file next to
    that come along. Raises UndustError if they are damaged.
    """
    tensors = safetensors_file.load(path)
    metadata = {"format": "pt", **safetensors_file.header(path).metadata}
    metadata.pop(pickles.LEFT_OUT, None)
    scales = beside.with_name(peft_config.BESIDE)
    if scales.exists() and any(key.startswith(PEFT) for key in tensors):
        metadata.setdefault(peft_config.METADATA, json.dumps(read_json(scales)))
    return ExtraFile(kind, tensors, metadata)
