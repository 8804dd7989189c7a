"""Configurations of PEFT and diffusers, with scales that are not among the tensors."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from undust.errors import UndustError, printable
from undust.formats.folder import read_json
from undust.formats.lora.names import PEFT, Target

METADATA = "lora_adapter_metadata"  # diffusers': the configurations of all parts in one
FILE_NAME = "adapter_config.json"  # PEFT's, beside its adapter_model.safetensors
NAME = re.compile(r"[\w.]*")
MAX_NUMBER = 2**31  # of any alpha
METHODS = ("LORA", "LOHA", "LOKR")  # peft_type of the supported ones
# init_lora_weights for which PEFT trains beside another base: W less the adapter as it began, or W
# quantised. For every other value (true, false, gaussian, eva, orthogonal, mica) the base is W.
OTHER_BASE = {
    "pissa": "PiSSA",
    "corda": "CorDA",
    "olora": "OLoRA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}
# Options with which an adapter is more than two factors (PEFT 0.21's variants of LoRA).
VARIANTS = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True)
class PeftConfig:
    """The scale of each module; 1 without an alpha.

    alphas: a module's name, or the end of one after a dot, → its own alpha; content: all that was
    read, and where.
    """

    alpha: float | None = None
    alphas: dict[str, float] = field(default_factory=dict[str, float])
    rank_stabilised: bool = False
    content: Mapping[str, Any] = field(default_factory=dict[str, Any])
    where: str = ""

    def scale(self, module: str, rank: int) -> float:
        """alpha/rank, or alpha/√rank (rsLoRA, Kalajdzievski 2023).

        rank: as the tensors show it; 0 if they do not. Raises UndustError if nothing tells it.
        """
        alpha = _own(self.alphas, module, self.alpha)
        if alpha is None:
            return 1.0
        divisor = rank or self._rank(module)
        return alpha / (math.sqrt(divisor) if self.rank_stabilised else divisor)

    def _rank(self, module: str) -> float:
        """The rank of a module whose tensors do not show it."""
        where = Path(self.where).name
        ranks = _pattern(self.content, "rank_pattern", where)
        rank = _own(ranks, module, _number(self.content.get("r"), f"{where}: r"))
        if not rank or rank < 0:
            raise UndustError(f"{where}: r is {rank}, not a positive number")
        return rank


Configs = Mapping[str, PeftConfig]
"""A network's name → its configuration; "" for networks without one of their own."""


def read(path: Path, keys: Collection[str], metadata: Mapping[str, str]) -> Configs:
    """The configurations for a file: in its metadata, or beside it if PEFT wrote it.

    Raises UndustError for configurations that are damaged or say what no file here can hold.
    """
    if METADATA in metadata:
        where = METADATA  # the path stands before the error already
        try:
            content = json.loads(metadata[METADATA])
        except (ValueError, RecursionError) as error:
            raise UndustError(f"{where} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UndustError(f"{where} is not a JSON object")
        return _parts(cast("dict[str, Any]", content), where)
    beside = path.with_name(FILE_NAME)
    if beside.exists() and any(key.startswith(PEFT) for key in keys):
        return {"": _config(read_json(beside), str(beside))}
    return {}


def unsupported(configs: Configs) -> str:
    """An unsupported kind that only the configuration shows, such as "PiSSA", or ""."""
    for content in (config.content for config in configs.values()):
        method = content.get("peft_type")
        if isinstance(method, str) and method.upper() not in METHODS:
            return f"PEFT's {printable(method.upper())}"
        began = str(content.get("init_lora_weights")).lower()
        for value, kind in OTHER_BASE.items():
            if began == value or began.startswith(f"{value}_niter_"):
                return kind
        for option, kind in VARIANTS.items():
            if content.get(option):
                return kind
    return ""


def for_only_encoder(configs: Configs) -> Configs:
    """Configurations with the first text encoder's for the second too, unless it has its own."""
    first = configs.get("text_encoder")
    return configs if first is None else {"text_encoder_2": first, **configs}


def scale(configs: Configs, target: Target, rank: int) -> float:
    """The scale of a module's change that has no alpha in the file, as `PeftConfig.scale`."""
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
    return PeftConfig(
        None if alpha is None else _number(alpha, f"{where}: alpha"),
        _pattern(content, "alpha_pattern", where),
        content.get("use_rslora") is True,
        content,
        where,
    )


def _pattern(content: Mapping[str, Any], field: str, where: str) -> dict[str, float]:
    """A pattern field: the name of a module → a number."""
    found = content.get(field) or {}
    if not isinstance(found, dict):
        raise UndustError(f"{where}: {field} is not an object")
    for name in cast("dict[str, Any]", found):
        if not NAME.fullmatch(name):
            raise UndustError(
                f"{where}: {field} has {printable(name)}, which is not a module's name; "
                "regular expressions are not supported"
            )
    known = cast("dict[str, Any]", found).items()
    return {name: _number(value, f"{where}: {field}") for name, value in known}


def _own(pattern: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
    """The first number whose name is the module's or the end of it."""
    fitting = (
        number for name, number in pattern.items() if module == name or module.endswith(f".{name}")
    )
    return next(fitting, otherwise)


def _number(value: object, where: str) -> float:
    if type(value) in (int, float) and abs(cast(float, value)) < MAX_NUMBER:
        return float(cast(float, value))
    raise UndustError(f"{where} is {printable(value)}, not a valid number")
