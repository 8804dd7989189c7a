"""A model from a folder, a single file or a pickle, and into a folder or a single file.

Between `opened` and `write` it lies in memory: mapped, as long as nothing changes a weight.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from undust.conditioning.clip import clip
from undust.diffusion.process import VP, Process
from undust.errors import UndustError, shown
from undust.formats import model_folder, pickles, safetensors_file
from undust.formats.files import atomic, atomic_folder
from undust.formats.folder import INDEX, STEMS, read_json, read_model_index, save_component
from undust.formats.networks import load_autoencoder
from undust.formats.original import model as original_model
from undust.formats.original.checkpoint import Checkpoint, original, survey
from undust.formats.original.variants import (
    ADDED,
    V_MARK,
    V_PREDICTION,
    VARIANTS,
    ZERO_SNR_MARK,
    Variant,
    detect,
)
from undust.formats.parts import Parts
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import NetworkConfig, UNetConfig

LAYOUTS = ("folder", "single-file")
SUFFIX = ".safetensors"
VAE = "AutoencoderKL"
# What pickled weights of a component are called, and what they become.
PICKLED = {
    "diffusion_pytorch_model.bin": f"{STEMS[0]}{SUFFIX}",
    "pytorch_model.bin": f"{STEMS[1]}{SUFFIX}",
}
# What of a configuration plays a part in what a network computes and is in none of its modules.
FIELDS = ("flip_sin_to_cos", "freq_shift", "scaling_factor", "shift_factor")
Model = Parts | Autoencoder
T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """A model in memory, or a first stage alone; notes: what was there and is not in it."""

    model: Model
    notes: list[str] = field(default_factory=list[str])


def check(source: Path, target: Path, layout: str) -> None:
    """Raises UndustError if `target` cannot become the copy of `source` in one of `LAYOUTS`.

    Such as when it is there already and is anything but a model, or if the two lie in each other:
    what is replaced would be lost with what is only in it.
    """
    if layout not in LAYOUTS:
        raise UndustError(f"{layout!r:.40} is no layout; possible are {' and '.join(LAYOUTS)}")
    old, new = source.resolve(), target.resolve()
    if old == new or old in new.parents or new in old.parents:
        raise UndustError(f"{target} and {source} are the same or lie in each other")
    if not new.parent.is_dir():
        raise UndustError(f"cannot write {target}: the folder {target.parent} does not exist")
    if layout == "folder":
        there = new.exists() and not (new.is_dir() and (_is_model(new) or not any(new.iterdir())))
    else:
        if new.suffix != SUFFIX:
            raise UndustError(f"{target}: the name of a single file ends in {SUFFIX}")
        there = new.exists() and not _is_checkpoint(new)
    if there:
        raise UndustError(f"{target} is there already and is not a model; it is left as it is")


@contextmanager
def opened(path: Path, scratch: Path, *, ema: bool = False) -> Generator[Opened]:
    """The model at a path, each of its weights in the precision that it is stored in.

    A diffusers folder of a model or of a first stage, a checkpoint in one file, or either of them
    pickled; `scratch` is a folder on a disk with room for what is unpacked. ema: as `survey`.
    Raises UndustError for anything else.
    """
    with tempfile.TemporaryDirectory(prefix=".undust-", dir=scratch) as name:
        if path.is_dir():
            if ema:
                raise UndustError(f"{path} is a folder, which holds no moving averages")
            yield _from_folder(path, Path(name))
        else:
            yield _from_file(path, Path(name), ema=ema)


def write(
    model: Model,
    path: Path,
    layout: str,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> list[str]:
    """Writes the model in one of `LAYOUTS`, whole or not at all; what it cannot tell its reader.

    dtype, wrote: as `safetensors_file.save`. What is there is replaced: `check` comes first. Raises
    UndustError for a model that the layout cannot hold without becoming another one.
    """
    if isinstance(model, Autoencoder):
        return _write_first_stage(model, path, layout, dtype, wrote)
    if layout == "folder":
        model_folder.write(model, path, dtype, wrote)
        return []
    variant = variant_of(model)
    tensors, unsaid = _named(variant, model), list(_unsaid(variant, model))
    with atomic(path) as temporary:
        safetensors_file.save(temporary, tensors, {"format": "pt"}, dtype=dtype, wrote=wrote)
        _compare(survey(temporary), _networks(model, variant))
    return unsaid


def size(model: Model, dtype: torch.dtype | None = None) -> int:
    """How many bytes its weights come to."""
    if isinstance(model, Autoencoder):
        networks: list[nn.Module] = [model]
    else:
        networks = [model.autoencoder, model.unet, *(words.encoder for words in model.texts)]
    return sum(
        tensor.numel() * (dtype or tensor.dtype).itemsize
        for network in networks
        for tensor in network.state_dict().values()
    )


def variant_of(parts: Parts) -> Variant:
    """The variant of which a single file with such parts would be; UndustError if of none."""
    config = parts.unet.config
    added = {"text_time": ADDED[0], "text": "text"}.get(config.addition_embed_type or "", "")
    added = added or (ADDED[1] if config.num_class_embeds else "")
    seen = [(w.penultimate, w.pooled, w.encoder.config.hidden_act) for w in parts.texts]
    fits = [
        variant
        for variant in VARIANTS.values()
        if (variant.channels, variant.added) == (config.in_channels, added)
        and [(t.penultimate, t.pooled, t.activation) for t in variant.texts] == seen
    ]
    if not fits:
        raise UndustError(
            f"no single file holds such a model: a U-Net of {config.in_channels} channels with "
            f"{len(seen)} text encoders ({', '.join(kind for *_, kind in seen)}); "
            f"known are {', '.join(VARIANTS)}"
        )
    named = next((one for one in fits if one.prediction == parts.prediction), fits[0])
    for zero_snr in (False, True):
        variant = replace(named, prediction=parts.prediction, zero_snr=zero_snr)
        if _same(variant.process(), parts.process):
            return variant
    raise UndustError(
        f"the noise that the model was trained on is not {named.title}'s, and a single file has no "
        "place to say so"
    )


def _from_folder(folder: Path, scratch: Path) -> Opened:
    if _is_first_stage(folder):
        return Opened(load_autoencoder(_safe(folder, scratch), None))
    index = read_model_index(folder)
    parts = {name: folder / name for name in index if (folder / name).is_dir()}
    safe = {
        name: _safe(part, scratch / "parts") if name in model_folder.KINDS else part
        for name, part in parts.items()
    }
    source = folder
    if safe != parts:
        source = scratch / "model"
        source.mkdir()
        shutil.copy(folder / INDEX, source)
        for name, part in safe.items():
            (source / name).symlink_to(part.resolve())
    model = _blamed(folder, source, lambda: model_folder.read(source, None))
    return Opened(model, [f"left out: {name}" for name in model_folder.SPARE if name in index])


def _from_file(path: Path, scratch: Path, *, ema: bool) -> Opened:
    source, left = path, list[str]()
    if pickles.is_pickle(path):
        source = scratch / f"weights{SUFFIX}"
        pickles.unpack(path, source)
        left.append(safetensors_file.header(source).metadata.get(pickles.LEFT_OUT, ""))
    found = _blamed(path, source, lambda: survey(source, ema=ema))
    left += [f"{what} ({number} tensors)" for what, number in found.spare.items()]
    notes = [f"left out: {what}" for what in left if what]
    if found.variant is not None:
        load = original_model.load
        return Opened(_blamed(path, source, lambda: load(source, None, ema=ema)), notes)
    if ema:
        raise UndustError(f"{path} is a first stage alone, which has no moving averages")
    first_stage = cast(Autoencoder, found.load(None)["vae"])
    scale = first_stage.config.scaling_factor
    notes.append(
        f"a first stage alone does not tell its latents' scale: {scale:g} is taken, Stable "
        "Diffusion 1 and 2's"
    )
    return Opened(first_stage, notes)


def _blamed(path: Path, copy: Path, read: Callable[[], T]) -> T:
    """What `read` gives; its errors name the path that was given, not its safe copy."""
    try:
        return read()
    except UndustError as error:
        raise UndustError(str(error).replace(str(copy), str(path))) from error


def _safe(component: Path, scratch: Path) -> Path:
    """The component's folder, or a copy of one that has its weights as a pickle only."""
    found = [name for name in PICKLED if (component / name).is_file()]
    if not found or any(component.glob(f"*{SUFFIX}")):
        return component
    copy = scratch / component.name
    copy.mkdir(parents=True)
    shutil.copy(component / "config.json", copy)
    pickles.unpack(component / found[0], copy / PICKLED[found[0]])
    return copy


def _write_first_stage(
    model: Autoencoder,
    path: Path,
    layout: str,
    dtype: torch.dtype | None,
    wrote: Callable[[int], object],
) -> list[str]:
    if layout == "folder":
        with atomic_folder(path, replace=path.is_dir() and _is_first_stage(path)) as building:
            save_component(building, model, VAE, dtype, wrote)
        return []
    tensors = original(None, {"vae": (model.config, model.state_dict())})
    with atomic(path) as temporary:
        safetensors_file.save(temporary, tensors, {"format": "pt"}, dtype=dtype, wrote=wrote)
        found = survey(temporary)
        scale = model.config.scaling_factor
        # Alone, it has no variant that would know this.
        _compare(found, {"vae": model}, but=("scaling_factor", "shift_factor"))
    return [f"the file of a first stage alone does not tell its latents' scale, {scale:g}"]


def _named(variant: Variant, parts: Parts) -> dict[str, Tensor]:
    """The tensors of a single file, from which the model is told again."""
    tensors = original(
        variant,
        {
            name: (cast(NetworkConfig, network.config), network.state_dict())
            for name, network in _networks(parts, variant).items()
        },
    )
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found, _ = detect(shapes, tensors.__getitem__)
    if found.prediction != variant.prediction:
        if variant.prediction != V_PREDICTION:
            raise UndustError(
                f"a model that predicts {shown(variant.prediction)} would be taken for one of "
                f"{found.prediction} from a single file"
            )
        tensors[V_MARK] = torch.empty(0)
    if variant.zero_snr:
        tensors[ZERO_SNR_MARK] = torch.empty(0)
    return tensors


def _networks(parts: Parts, variant: Variant) -> dict[str, nn.Module]:
    """The networks under the names of their places in the original's parts."""
    texts = zip(variant.texts, parts.texts, strict=True)
    return {
        **{text.part: words.encoder for text, words in texts},
        "unet": parts.unet,
        "vae": parts.autoencoder,
    }


def _unsaid(variant: Variant, parts: Parts) -> Generator[str]:
    """What a reader of the single file will take otherwise than the folder says."""
    for text, words in zip(variant.texts, parts.texts, strict=True):
        usual, own = clip(text.padding), words.tokenizer
        if (own.vocabulary, own.merges) != (usual.vocabulary, usual.merges):
            raise UndustError("the tokenizer is not CLIP's, and a single file has no place for it")
        if own.padding != usual.padding:
            yield (
                f"the file does not tell that prompts are padded with {shown(own.padding)}: "
                f"a {variant.title}'s are with {usual.padding}"
            )
    if parts.zeros_for_nothing != variant.zeros_for_nothing:
        yield (
            f"the file does not tell that {model_folder.ZEROS} is {parts.zeros_for_nothing}: "
            f"a {variant.title}'s is not"
        )


def _compare(found: Checkpoint, networks: Mapping[str, nn.Module], but: Iterable[str] = ()) -> None:
    """Raises UndustError if what is read from a file computes something else than was written."""
    for name, network in networks.items():
        own, other = _traits(network), _traits(found.parts[name].network)
        for trait in sorted(own.keys() | other.keys()):
            if own.get(trait) != other.get(trait) and trait not in but:
                raise UndustError(
                    f"a single file has no place to say that the {name}'s {trait} is "
                    f"{own.get(trait)}: it would be read as {other.get(trait)}"
                )


def _traits(network: nn.Module) -> dict[str, Any]:
    """All of a network that decides what it computes and is not a tensor."""
    config = cast(NetworkConfig, network.config)
    traits: dict[str, Any] = {name: getattr(config, name, None) for name in FIELDS}
    if isinstance(config, UNetConfig):
        traits["addition_time_embed_dim"] = config.addition_time_embed_dim
    for name, module in network.named_modules():
        traits[name] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | tuple) and key not in ("training", "config"):
                traits[f"{name}.{key}"] = value
    return traits


def _same(one: Process, other: Process) -> bool:
    """Whether two processes are told by the same table of β."""
    if not isinstance(one, VP) or not isinstance(other, VP) or one.steps != other.steps:
        return False
    return torch.allclose(one.betas, other.betas, rtol=1e-6, atol=0)


def _is_first_stage(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == VAE


def _is_model(folder: Path) -> bool:
    return (folder / INDEX).is_file() or _is_first_stage(folder)


def _is_checkpoint(path: Path) -> bool:
    try:
        survey(path)
    except UndustError:
        return False
    return True
