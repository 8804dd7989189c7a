"""The kinds of training, and their recipes: TOML files → configurations."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from undust.errors import UndustError
from undust.regular import read_text
from undust.training.config_keys import RENAMED, fault, renamed
from undust.training.consistency import ConsistencyConfig
from undust.training.controlnet import ControlNetTrainingConfig
from undust.training.diffusion import DiffusionConfig
from undust.training.film import FilmConfig
from undust.training.finetune import FinetuneConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.lora import LoraConfig
from undust.training.textual_inversion import TextualInversionConfig

AnyTrainingConfig = (
    FirstStageConfig
    | DiffusionConfig
    | FinetuneConfig
    | LoraConfig
    | TextualInversionConfig
    | ControlNetTrainingConfig
    | ConsistencyConfig
    | FilmConfig
)
"""Every kind of training, chosen by the key `kind`; to add one, add its class here."""

KINDS = {
    str(kind): config
    for config in get_args(AnyTrainingConfig)
    for kind in get_args(config.model_fields["kind"].annotation)
}
_ADAPTER = TypeAdapter[AnyTrainingConfig](Annotated[AnyTrainingConfig, Field(discriminator="kind")])


def read(
    path: Path, changes: Sequence[str] = (), note: Callable[[str], object] = lambda _: None
) -> AnyTrainingConfig:
    """The recipe in a TOML file, with changes such as "run.steps=100" applied.

    note: called with a line for each key under its former name. Raises UndustError for an absent or
    broken file, an unknown key and a value of the wrong type.
    """
    try:
        tree = tomllib.loads(read_text(path))
    except OSError as error:
        raise UndustError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:  # such as a picture or a zip file
        raise UndustError(
            f"{path} is not text in UTF-8, so it is no recipe; pictures are given as a folder, a "
            ".tar or a .parquet file"
        ) from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise UndustError(f"{path} is not TOML: {error}") from error
    former = RENAMED.keys() & {*tree, *(re.split(r"[.=]", change)[0].strip() for change in changes)}
    for key in sorted(former):
        note(f"{key} in a recipe is now called {RENAMED[key]}; the former name still works")
    tree = renamed(tree)
    for change in changes:
        _apply(tree, change)
    return parse(tree, str(path))


def parse(tree: Mapping[str, Any], where: str) -> AnyTrainingConfig:
    """The recipe in a tree of plain values; `where` names it in errors."""
    tree = renamed(tree)
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise UndustError(f"{where}: {fault(error, tree, KINDS)}") from error


def _apply(tree: dict[str, object], change: str) -> None:
    """Sets one dotted key of the tree; the value is TOML, or else plain text."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UndustError(f"--set {change!r}: expected key=value, such as run.steps=1000")
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    first, *others = key.strip().split(".")
    *tables, name = RENAMED.get(first, first), *others
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UndustError(f"--set {change!r}: {table!r} is a value, not a table")
        tree = inner
    tree[name] = value
