"""Locating a model or network by name: built in, on the disk, or on the Hugging Face hub."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from undust.errors import UndustError, unknown
from undust.formats import hub, pickles
from undust.formats.files import expanded
from undust.formats.folder import INDEX

BUILT_IN = Path(__file__).parents[1] / "models"
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".h5")  # not of hub names


def built_in() -> list[str]:
    """Names of the models that come with undust."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{INDEX}"))


def find(name_or_path: str | Path) -> Path:
    """The folder or file of a model: a built-in name, a path, or org/name[@revision] on the hub.

    Raises UndustError for a model that does not exist, for a pickle, and as `hub.fetch`.
    """
    name, path = str(name_or_path), expanded(name_or_path)
    if name in built_in():
        return BUILT_IN / name
    if fetched := _on_hub(name, hub.fetch):
        return fetched
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise UndustError(f"there is no model at {path}: it does not exist")
        raise unknown("model", name, built_in())
    if not path.is_dir() and pickles.is_pickle(path):
        raise UndustError(
            f"{path} is a pickle, which can run code; convert it to a safe format: "
            f"undust convert {shlex.quote(str(path))} {shlex.quote(path.stem)} --to folder"
        )
    return path


def weights_size(path: Path) -> int:
    """The bytes of the files of weights of a model: a file, or all in a folder."""
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def find_network(name_or_path: str | Path) -> Path:
    """The folder or file of a single network: a path, or org/name[@revision] on the hub.

    A path may not exist. Raises UndustError as `hub.fetch_network`.
    """
    return _on_hub(str(name_or_path), hub.fetch_network) or expanded(name_or_path)


def _on_hub(name: str, fetch: Callable[[str, str | None], Path]) -> Path | None:
    """The folder of a name on the hub; None for a path and for other names."""
    given, _, revision = name.partition("@")
    path = expanded(name)
    if hub.is_name(given) and path.suffix not in WEIGHT_SUFFIXES and not path.exists():
        return fetch(given, revision or None)
    return None
