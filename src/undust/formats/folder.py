"""The diffusers folder: `model_index.json`, and per component a folder of config and weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from undust.errors import UndustError, printable
from undust.formats import safetensors_file
from undust.formats.files import atomic_write
from undust.regular import LIMIT, read_text

TOKENIZER_LIMIT = 4 * 2**20  # bytes of a file; CLIP's has 3.6 million
MAX_BRACKETS = 100_000  # in a file; CLIP's tokenizer has 49,000
INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model")  # diffusers' name for weights, and transformers'
PICKLES = (".bin", ".ckpt")
OTHER_FORMATS = re.compile(r"openvino_|rust_model\.ot|.*optimizer|.*scheduler|training_args")
# Names of an autoencoder's attention in diffusers before 0.16, as in SD 1.5's files → today's.
OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def read_json(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The object in a JSON file. Raises UndustError with the path and place of an error in it."""
    try:
        text = read_text(path, limit)
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise UndustError(f"{path} has over {MAX_BRACKETS:,} brackets: not a configuration")
        content = json.loads(text)
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UndustError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UndustError(f"{path} is a JSON {type(content).__name__}; expected an object")
    return cast("dict[str, Any]", content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON; errors as for `files.atomic`."""
    atomic_write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_model_index(folder: Path) -> dict[str, tuple[str, str]]:
    """Component → (library, class) of a model folder, without components that are null.

    Raises UndustError for a path that is not a model folder, with a guess of what it is.
    """
    if not (folder / INDEX).exists():
        raise UndustError(f"{folder} is not a model folder (no {INDEX}): {_description(folder)}")
    components: dict[str, tuple[str, str]] = {}
    for name, entry in read_json(folder / INDEX).items():
        match entry:
            case [str(library), str(kind)] if not name.startswith("_"):
                if Path(name).name != name:
                    raise UndustError(
                        f"{folder / INDEX}: {printable(name)} is not a component's name"
                    )
                components[name] = (library, kind)
            case _:
                pass  # _class_name, a component that is [null, null], or a pipeline's flag
    return components


def load_weights(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of a component: its folder, in one file or several, or a file.

    The full-precision file is preferred to an fp16 one. dtype: as `safetensors_file.load`. Raises
    UndustError for missing, damaged or pickled weights.
    """
    if folder.is_file():
        return _published_names(safetensors_file.load(folder, dtype))
    for variant in ("", ".fp16"):
        for stem in STEMS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.exists():
                return _published_names(safetensors_file.load(whole, dtype))
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if index.exists():
                return _published_names(_load_parts(index, dtype))
    if not folder.is_dir():
        raise UndustError(f"{folder} does not exist")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in names if name.endswith(PICKLES) and not OTHER_FORMATS.match(name)]
    if pickles:
        raise UndustError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which can run code; "
            "undust convert reads it safely"
        )
    raise UndustError(
        f"{folder} has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, but "
        f"{', '.join(map(printable, names[:4])) or 'no files'}"
    )


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Replaces the parameters of a module by `tensors`.

    where: their source, for errors. Raises UndustError for missing and unknown names, for other
    shapes and for integers, before anything is changed.
    """
    own = cast("dict[str, Tensor]", module.state_dict())
    # Constants that older transformers saved among the weights.
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own or not name.endswith("position_ids")
    }
    faults = [
        *summarize_names("missing", own.keys() - given.keys()),
        *summarize_names("unknown", given.keys() - own.keys()),
        *summarize_names(
            "of another shape",
            (
                f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
                for name in own.keys() & given.keys()
                if own[name].shape != given[name].shape
            ),
        ),
        *summarize_names(
            "no weights",
            (
                f"{name} of {given[name].dtype}"
                for name in own.keys() & given.keys()
                if own[name].is_floating_point() and not given[name].is_floating_point()
            ),
        ),
    ]
    if faults:
        raise UndustError(f"{where} does not fit its configuration: {'; '.join(faults)}")
    module.load_state_dict(given, assign=True)


def _load_parts(index: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(file, str) and Path(file).name == file for file in places.values())
    ):
        raise UndustError(f"{index} has no 'weight_map' of tensor names to files beside it")
    places = cast("dict[str, str]", places)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        part = safetensors_file.load(index.with_name(file), dtype)
        promised = {name for name, place in places.items() if place == file}
        faults = [
            *summarize_names("missing", promised - part.keys()),
            *summarize_names("unknown", part.keys() - promised),
        ]
        if faults:
            raise UndustError(f"{index.with_name(file)} contradicts {index.name}: {faults[0]}")
        tensors |= part
    return tensors


def _published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our networks' names, from those of older diffusers and of transformers 5."""
    # transformers 5 leaves this prefix off; every text encoder published before has it.
    prefix = "text_model." if "embeddings.token_embedding.weight" in tensors else ""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts[:-2]:
            parts[-2] = OLD_ATTENTION.get(parts[-2], parts[-2])
        renamed[prefix + ".".join(parts)] = tensor
    return renamed


def summarize_names(what: str, names: Iterable[str], first: int = 3) -> list[str]:
    """A list such as ["2 missing: a, b"], with the first few names; [] without names."""
    found = [printable(name) for name in sorted(names)]
    more = f" and {len(found) - first} more" if len(found) > first else ""
    return [f"{len(found)} {what}: {', '.join(found[:first])}{more}"] if found else []


def _description(path: Path) -> str:
    """A description, for an error, of a path that is not a model folder."""
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file"
    if (path / "scheduler_config.json").is_file():
        return "it is a scheduler's folder; give the folder above it"
    if (path / "config.json").is_file():
        return "it is one component of a model; give the folder above it"
    if (path / "metadata.jsonl").is_file():
        return "it is a data set"
    if (path / "state.json").is_file() or (path / "checkpoints").is_dir():
        model = path / "model"
        published = f", {model}" if model.is_dir() else ""
        return f"it belongs to a training run; give the model that the run published{published}"
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    weights = [name for name in names if name.endswith((".safetensors", ".ckpt"))]
    if weights:
        return f"it holds single-file weights ({weights[0]}), not a folder of components"
    return (
        f"it holds {', '.join(names[:4])}{', …' if names[4:] else ''}" if names else "it is empty"
    )
