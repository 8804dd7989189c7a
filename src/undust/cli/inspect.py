"""`undust inspect`: a description of a picture, a film, a model, weights or a training run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli import console, picture
from undust.errors import UndustError
from undust.formats import toml_text

if TYPE_CHECKING:
    from undust.diffusion.process import Process
    from undust.formats.original.checkpoint import Checkpoint
    from undust.pipeline import LatentDiffusion

SUFFIX = ".safetensors"
DIGITS = 10  # shown of a hash, as in web UIs
MAX_NAMES = 20  # of classes
Facts = dict[str, Any]


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A picture, film, model or part of one, weights, a training run."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Describe a picture, a film, a model, a weights file or a training run."""
    facts = describe(path)
    if as_json:
        typer.echo(console.as_json(facts, indent=2))
        return
    command = facts.pop("command", None)
    plain = {name: value for name, value in facts.items() if not isinstance(value, dict | list)}
    console.facts({name: _readable(name, value) for name, value in plain.items()})
    for name, value in facts.items():
        if not value or name in plain:
            continue
        typer.echo()
        if isinstance(value, dict):
            console.facts({name: "", **{key: _entry(own) for key, own in value.items()}})
        elif name == "notes":
            console.facts({name: ""})
            for note in value:
                console.line(note)
        else:
            _table(value)
    if command:
        console.summary("closest command here, with other noise:")
        typer.echo(command, err=True)


def describe(path: Path) -> Facts:
    """Facts about a path or a built-in model: text, numbers, lists and tables of them.

    Raises UndustError for a path that does not exist, is damaged or of no known kind.
    """
    if not path.exists():
        from undust.formats.locate import BUILT_IN, built_in

        if str(path) not in built_in():
            raise UndustError(f"{path} does not exist")
        path = BUILT_IN / path
    if path.is_dir():
        return _folder(path)
    if path.suffix == SUFFIX:
        return _weights(path)
    from undust.formats.metadata.containers import is_mp4
    from undust.formats.pickles import is_pickle
    from undust.pictures import kind_of

    if is_mp4(path):
        return picture.describe(path, "MP4")
    if kind := kind_of(path):
        return picture.describe(path, kind)
    if is_pickle(path):
        raise UndustError(f"{path} is a pickle: convert it with undust convert to inspect it")
    raise UndustError(f"{path} is not a picture, a {SUFFIX} file, a model folder or a training run")


def _folder(path: Path) -> Facts:
    from undust.formats.film import FRAME, FRAMES

    for name, look in {
        "model_index.json": _model,
        "config.json": _component,
        "checkpoints": _run,
        "state.json": _checkpoint,
    }.items():
        if (path / name).exists():
            return look(path)
    if frames := sorted(path.glob(FRAMES)):
        facts = picture.describe(frames[0], "PNG")
        facts.get("recipe", {}).pop(FRAME, None)
        return {**facts, "path": str(path), "kind": "film", "frames": len(frames)}
    if (path / "metadata.jsonl").is_file():
        raise UndustError(f"{path} is a data set: inspect it with undust data check")
    if runs := sorted(str(found.parent) for found in path.glob("*/checkpoints")):
        raise UndustError(f"{path} has several training runs: inspect one of {', '.join(runs)}")
    raise UndustError(
        f"{path} is not a model (no model_index.json), a component of one (no config.json) or a "
        "training run (no checkpoints); undust data check inspects folders of pictures"
    )


def _weights(path: Path) -> Facts:
    from undust.formats.original.checkpoint import scan_checkpoint
    from undust.formats.original.video import is_video_file, scan_video_file
    from undust.formats.safetensors_file import content_hash, header

    facts: Facts = {"path": str(path), "kind": "weights"}
    try:
        scan = scan_video_file if is_video_file(path) else scan_checkpoint
        facts |= _single_file(scan(path))
    except UndustError as error:
        other = _adapter(path)
        facts |= other or {"not a whole model": str(error).removeprefix(f"{path}: ")}
    return {
        **facts,
        **_numbers([path]),
        "sha256": content_hash(path),
        "metadata": header(path).metadata,
    }


def _adapter(path: Path) -> Facts:
    """Facts about a LoRA, a ControlNet or a textual inversion; {} for any other file."""
    from undust.formats import controlnet, textual_inversion
    from undust.formats.lora.kinds import refusal
    from undust.formats.lora.summary import summarize

    if lora := summarize(path):
        ranks = ", ".join(f"{rank} (of {count})" for rank, count in lora.ranks.items())
        return {
            "kind": lora.kind,
            **({} if lora.supported else {"cannot be used": str(refusal(lora.kind))}),
            "for": lora.model or None,
            "modules": lora.modules,
            "ranks": ranks or None,
        }
    try:
        words = textual_inversion.words(path)
        vectors = textual_inversion.load(path, words[0])
    except UndustError:
        pass
    else:
        shapes = {name or "vectors": "x".join(map(str, t.shape)) for name, t in vectors.items()}
        return {"kind": "textual inversion", "words": ", ".join(words) or None, **shapes}
    try:
        config = controlnet.load(path, None).config
    except UndustError:
        return {}
    return {
        "kind": "ControlNet",
        "text width": config.cross_attention_dim,
        "channels": "-".join(map(str, config.block_out_channels)),
    }


def _single_file(checkpoint: Checkpoint) -> Facts:
    """Facts about a checkpoint in a single file, and the tensors that show them."""
    variant = checkpoint.variant
    facts: Facts = {"kind": "checkpoint", "variant": "first stage"}
    texts: list[Facts] = []
    if variant:
        facts |= {
            "variant": variant.name,
            "name": variant.title,
            "pixels": f"{variant.size}x{variant.height or variant.size}",
            "process": _process(variant.process(), variant.prediction),
            "prediction": variant.prediction,
            "latent scale": variant.scaling_factor,
        }
        texts = [
            {
                "text": text.folder,
                "seen": "last layer but one" if text.penultimate else "last layer and norm",
                "pooled": "yes" if text.pooled else "no",
                "padding": text.padding,
            }
            for text in variant.texts
        ]
    return {
        **facts,
        "evidence": [fact._asdict() for fact in checkpoint.evidence],
        "parts": [
            {"part": name, "class": type(part.network).__name__, "parameters": part.parameters}
            for name, part in checkpoint.parts.items()
        ],
        "texts": texts,
        "beside": checkpoint.ignored,
    }


def _component(path: Path) -> Facts:
    from undust.formats.folder import read_json

    config = read_json(path / "config.json")
    return {
        "path": str(path),
        "kind": "part of a model",
        "class": config.pop("_class_name", None) or config.get("architectures", ["unknown"])[0],
        **_numbers(_files(path)),
        "hash": _hash(_files(path)),
        "configuration": config,
    }


def _model(path: Path) -> Facts:
    from undust.formats.folder import read_model_index
    from undust.formats.video_folder import is_video_folder
    from undust.latent.video import VideoModel
    from undust.pipeline import load

    parts: list[Facts] = []
    files: list[Path] = []
    for name, (_, kind) in sorted(read_model_index(path).items()):
        if own := _files(path / name):
            parts.append({"part": name, "class": kind, **_numbers(own), "hash": _hash(own)})
            files += own
    facts: Facts = {"path": str(path), "kind": "model", "name": path.resolve().name}
    try:
        model = VideoModel.load(path, engine="torch") if is_video_folder(path) else load(path)
    except UndustError as error:
        facts["cannot be used"] = str(error)
    else:
        width, height = model.size
        facts |= {
            "hash": model.hash,
            "pixels": f"{width}x{height}",
            "latent": "x".join(map(str, model.latent_shape(width, height))),
            "process": _process(model.process, model.prediction),
            "prediction": model.prediction,
        }
        if isinstance(model, VideoModel):
            facts |= {"kind": "model of films", "frames": model.unet.config.num_frames}
        else:
            facts |= _of_pictures(model)
    return {**facts, **_numbers(files), "parts": parts}


def _of_pictures(model: LatentDiffusion) -> Facts:
    """Facts about the conditions of a model of pictures."""
    facts: Facts = {}
    if model.texts:
        tokenizer = model.texts[0].tokenizer
        facts |= {"tokens": tokenizer.length, "vocabulary": len(tokenizer.vocabulary)}
    if model.classes:
        names = ", ".join(model.classes[:MAX_NAMES])
        facts["classes"] = names + (", …" if len(model.classes) > MAX_NAMES else "")
    if model.self_conditioned:
        facts["self-conditioned"] = "yes"
    if model.maps:
        facts["maps"] = ", ".join(kind.kind for kind in model.maps)
    return facts


def _run(path: Path) -> Facts:
    from undust.training import checkpoints
    from undust.training.log import recent_loss

    rows: list[Facts] = []
    recipe: Facts = {}
    step = 0
    for folder in sorted((path / "checkpoints").glob("step-*")):
        try:
            found = checkpoints.load(folder)
            step, recipe = found.step, found.config
            state = {"step": found.step, "state": "whole"}
        except UndustError as error:
            state = {"step": None, "state": str(error)}
        files = (file for file in folder.rglob("*") if file.is_file())
        rows.append({"checkpoint": folder.name, "bytes": _bytes(files), **state})
    model = path / "model"
    loss, logged = recent_loss(path, step)
    return {
        "path": str(path),
        "kind": "training run",
        "trains": recipe.get("kind"),
        "step": step,
        "steps": recipe.get("run", {}).get("steps"),
        "loss": loss and round(loss, 6),
        "loss is": f"the mean of the last {logged} logged" if logged else None,
        "model": str(model) if model.is_dir() else None,
        "recipe": recipe,
        "checkpoints": rows,
    }


def _checkpoint(path: Path) -> Facts:
    from undust.training import checkpoints

    found = checkpoints.load(path)
    files = sorted(path.glob(f"*{SUFFIX}"))
    return {
        "path": str(path),
        "kind": "checkpoint",
        "step": found.step,
        "parameters": sum(tensor.numel() for tensor in found.weights.values()),
        "bytes": _bytes(files),
        "recipe": found.config,
    }


def _process(process: Process, prediction: str) -> str:
    from undust.formats.scheduler import scheduler_config

    config = scheduler_config(process, prediction)
    levels = f"σ {process.sigma_min:.3g} … {process.sigma_max:.3g}"
    own = "own betas" if "trained_betas" in config else type(process).__name__
    return f"{config.get('beta_schedule', own)}, {levels}"


def _files(folder: Path) -> list[Path]:
    """The weights files of a component: as in loading, those of full precision if there are any."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    return [path for path in found if "." not in path.stem] or found


def _numbers(files: Sequence[Path]) -> Facts:
    """Totals from the headers of weights files."""
    from undust.formats.safetensors_file import header

    entries = [entry for path in files for entry in header(path).tensors.values()]
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[str(entry.dtype).removeprefix("torch.")] += math.prod(entry.shape)
    return {
        "tensors": len(entries),
        "parameters": counts.total(),
        "precision": ", ".join(name for name, _ in counts.most_common()),
        "bytes": _bytes(files),
    }


def _hash(files: Sequence[Path]) -> str:
    from undust.formats.safetensors_file import files_hash

    return files_hash(files)[:DIGITS]


def _bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _readable(name: str, value: object) -> object:
    """Large counts with a unit."""
    if name == "bytes" and isinstance(value, int):
        return f"{console.amount(value)}B"
    return console.amount(value) if name == "parameters" and isinstance(value, int) else value


def _entry(value: object) -> object:
    """A table or list of a recipe or a configuration, as TOML; other values as they are."""
    return toml_text.value(value) if isinstance(value, dict | list) else value


def _table(rows: Sequence[Facts]) -> None:
    names = list(rows[0])
    columns = [f"{name}>" if isinstance(rows[0][name], int) else name for name in names]
    console.table(columns, [[_readable(name, row[name]) for name in names] for row in rows])
