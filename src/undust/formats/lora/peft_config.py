"""The scales that PEFT and diffusers write beside the tensors, and not among them."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from undust.errors import UndustError, shown
from undust.formats.folder import read_json
from undust.formats.lora.names import PEFT, Target

METADATA = "lora_adapter_metadata"  # diffusers': the configurations of all parts in one
BESIDE = "adapter_config.json"  # PEFT's, beside its adapter_model.safetensors
NAME = re.compile(r"[\w.]*")
LARGEST = 2**31  # of any alpha


@dataclass(frozen=True)
class PeftConfig:
    """What alpha is for each module; without an alpha a change is taken as it stands.

    alphas: a module's name, or the end of one after a dot, → its own alpha.
    """

    alpha: float | None = None
    alphas: dict[str, float] = field(default_factory=dict[str, float])
    rank_stabilised: bool = False

    def scale(self, module: str, rank: int) -> float:
        """alpha/rank, or alpha/√rank (rsLoRA, Kalajdzievski 2023)."""
        own = (
            alpha
            for name, alpha in self.alphas.items()
            if module == name or module.endswith(f".{name}")
        )
        alpha = next(own, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


Configs = Mapping[str, PeftConfig]
"""A part's name → its configuration; "" is for parts that have none of their own."""


def read(path: Path, keys: Collection[str], metadata: Mapping[str, str]) -> Configs:
    """The configurations for a file: in its metadata, or beside it if PEFT wrote it.

    Raises UndustError for configurations that are damaged or say what no file here can hold.
    """
    if METADATA in metadata:
        where = f"{path}: {METADATA}"
        try:
            content = json.loads(metadata[METADATA])
        except (ValueError, RecursionError) as error:
            raise UndustError(f"{where} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UndustError(f"{where} is no JSON object")
        return _parts(cast("dict[str, Any]", content), where)
    beside = path.with_name(BESIDE)
    if beside.exists() and any(key.startswith(PEFT) for key in keys):
        return {"": _config(read_json(beside), str(beside))}
    return {}


def scale(configs: Configs, target: Target, rank: int) -> float:
    """The scale of a module's change that has no alpha in the file."""
    config = configs.get(target.part, configs.get("", PeftConfig()))
    return config.scale(target.module, rank)


def _parts(content: dict[str, Any], where: str) -> Configs:
    """{"unet.r": 4, …} → a configuration for each part."""
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in content.items():
        part, _, option = name.rpartition(".")
        parts[part][option] = value
    return {part: _config(options, where) for part, options in parts.items()}


def _config(content: Mapping[str, Any], where: str) -> PeftConfig:
    alpha = content.get("lora_alpha", content.get("alpha"))
    alphas = content.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise UndustError(f"{where}: alpha_pattern is no object")
    for name in cast("dict[str, Any]", alphas):
        if not NAME.fullmatch(name):
            raise UndustError(
                f"{where}: alpha_pattern has {shown(name)}, which is no module's name; "
                "expressions are not understood here"
            )
    return PeftConfig(
        None if alpha is None else _number(alpha, where),
        {name: _number(value, where) for name, value in cast("dict[str, Any]", alphas).items()},
        content.get("use_rslora") is True,
    )


def _number(value: object, where: str) -> float:
    if type(value) in (int, float) and abs(cast(float, value)) < LARGEST:
        return float(cast(float, value))
    raise UndustError(f"{where}: an alpha is {shown(value)}, which cannot be")
