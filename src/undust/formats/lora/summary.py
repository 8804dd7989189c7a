"""A summary of a LoRA file from its header, without a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from undust.formats import safetensors_file
from undust.formats.lora import kinds, peft_config
from undust.formats.lora.names import split

# A role of a tensor → the kind of file; the first match counts.
KINDS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "lora_down": "LoRA",
    "diff": "full difference",
}
DORA = ("dora_scale", "magnitude")


@dataclass(frozen=True)
class LoraSummary:
    """The kind of the factors, the number of modules, and rank → the number of modules.

    model: the model that it is for, "" if unknown; supported: whether `load_lora` reads the kind.
    """

    kind: str
    modules: int
    ranks: dict[int, int]
    model: str
    supported: bool = True


def summarize(path: Path) -> LoraSummary | None:
    """The summary of a file; None if it is not a LoRA.

    Raises UndustError as `header` and `peft_config.read` do.
    """
    header = safetensors_file.header(path)
    entries = header.tensors
    configs = peft_config.read(path, entries.keys(), header.metadata)
    roles = {key: split(key) for key in entries}
    modules = {module for module, role in roles.values() if role}
    found = {role for _, role in roles.values()}
    shapes = {key: entry.shape for key, entry in entries.items()}
    if kind := kinds.unsupported(shapes, configs):
        return LoraSummary(kind, len(modules), {}, kinds.model(shapes), supported=False)
    kind = next((name for role, name in KINDS.items() if role in found), "")
    if not kind:
        return None
    downs = {
        module: entries[key].shape
        for key, (module, role) in roles.items()
        if role == "lora_down" and len(entries[key].shape) >= 2
    }
    ranks = Counter(shape[0] for shape in downs.values())
    dora = not found.isdisjoint(DORA)
    name = f"DoRA ({kind})" if dora else kind
    return LoraSummary(name, len(modules), dict(sorted(ranks.items())), kinds.model(shapes))
