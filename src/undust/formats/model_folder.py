"""Whole models as diffusers folders, which diffusers' pipelines can open."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from undust.conditioning.maps import MapKind
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import END
from undust.diffusion.process import Process
from undust.diffusion.schedules import listed
from undust.errors import UndustError, demand, naming, printable, quoted
from undust.formats import sampling, tokenizer_files
from undust.formats.components import (
    DEFAULT_GUIDANCE,
    MAX_NOISE_LEVEL,
    Components,
    SamplingDefaults,
    load_component,
    load_first_stage,
    save_component,
    type_of,
    types_of,
)
from undust.formats.files import atomic_folder
from undust.formats.folder import INDEX, read_json, read_model_index, write_json
from undust.formats.known_hashes import known_hash
from undust.formats.original.variants import SD1, SDXL, UPSCALER
from undust.formats.scheduler import read_scheduler, scheduler_config
from undust.networks.base import DenoiserNetwork, FirstStageNetwork
from undust.networks.identity import IdentityFirstStage
from undust.networks.text_encoder import LEGACY_END, TextEncoder

# Components that a model folder may have and that generation does without.
IGNORED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
TEXTS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
DENOISERS = tuple({known.folder: None for known in types_of(DenoiserNetwork).values()})
FIRST_STAGES = ("vae", "vqvae")
NETWORKS = {
    **dict.fromkeys(FIRST_STAGES, FirstStageNetwork),
    **dict.fromkeys(DENOISERS, DenoiserNetwork),
    **dict.fromkeys(TEXTS, TextEncoder),
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
PARTS = (*NETWORKS, *TEXTS.values(), "scheduler", "low_res_scheduler")  # subfolders of a model
ZEROS, NOISE = "force_zeros_for_empty_prompt", "max_noise_level"  # in a model's index
# Of ours; diffusers ignores entries with "_". DiTPipeline has the classes without it.
GUIDANCE, CLASSES, MAPS = "_guidance_scale", "id2label", "_maps"
SCHEDULES = "_schedules"
SELF_CONDITIONED = "_self_conditioned"
MAX_CLASSES = 100_000
_MAPS = TypeAdapter(tuple[MapKind, ...])
VERSION = "0.42.0"  # of diffusers; some of its pipelines need one
CLIP_VOCABULARY = 49408  # entries (Radford et al. 2021)
VIDEO_PIPELINE = "StableVideoDiffusionPipeline"
UPSCALER_SCALE = 0.08333  # of latents; diffusers takes it whatever the folder says


def read(folder: Path, dtype: torch.dtype | None) -> Components:
    """The model in a folder, its weights as `dtype`, or None: each as it is.

    Raises UndustError, naming the file, for a folder that is not a whole model.
    """
    index, flags = read_model_index(folder), read_json(folder / INDEX)
    if flags.get("_class_name") == VIDEO_PIPELINE:
        raise UndustError(f"{folder} is a model of films; use it with `undust animate`")
    texts = {name: tokens for name, tokens in TEXTS.items() if name in index or tokens in index}
    denoiser = next((name for name in DENOISERS if name in index), DENOISERS[0])
    kind = types_of(DenoiserNetwork).get(index.get(denoiser, ("", ""))[1])
    if kind and kind.needs_text and not texts:
        texts = {"text_encoder": "tokenizer"}
    first_stage = next((name for name in FIRST_STAGES if name in index), None)
    if first_stage is None and kind and kind.needs_text and flags.get("vae") != [None, None]:
        first_stage = "vae"
    for name in (*filter(None, [first_stage]), denoiser, *texts, *texts.values()):
        found = index.get(name, ("", "none"))[1]
        wanted = types_of(NETWORKS[name]) if name in NETWORKS else TOKENIZERS
        if found not in wanted:
            raise UndustError(
                f"{folder} is not supported: its {name} is {printable(found)}, "
                f"not {' or '.join(wanted)}"
            )
    known = {*PARTS, *IGNORED} - {*DENOISERS} | {denoiser}
    if unknown := sorted(index.keys() - known):
        raise UndustError(f"{folder} is not supported: it has a {printable(unknown[0])}")
    place = folder / denoiser
    with naming(place):
        kind = index[denoiser][1]
        unet = load_component(place, DenoiserNetwork, dtype, class_name=kind, **_size(place))
    fixed = flags.get("_class_name") == "StableDiffusionUpscalePipeline"
    scale = {"scaling_factor": UPSCALER_SCALE} if fixed else {}
    if first_stage is None:
        autoencoder: FirstStageNetwork = IdentityFirstStage(unet.config.out_channels)
    else:
        place = folder / first_stage
        with naming(place):
            autoencoder = load_first_stage(place, dtype, index[first_stage][1], **scale)
    large = unet.config.takes_pooled_text
    process, prediction = _scheduler(folder / "scheduler")
    steps = _sampling(folder, flags)
    small = folder / "low_res_scheduler"
    zeros = _flag(folder, flags, ZEROS, default=True)
    most = flags.get(NOISE, MAX_NOISE_LEVEL)
    if type(most) is not int or most < 0:
        raise UndustError(f"{folder / INDEX}: {NOISE} is {quoted(most)}, not a number of steps")
    with naming(folder):
        conditioners = tuple(
            _text_conditioner(folder / name, folder / tokens, index[name][1], dtype, large=large)
            for name, tokens in texts.items()
        )
        return Components(
            autoencoder,
            unet,
            conditioners,
            process,
            prediction,
            force_zeros_for_empty_prompt=zeros and large,
            low_res_process=_scheduler(small)[0] if "low_res_scheduler" in index else None,
            max_noise_level=most,
            guidance=_guidance(folder, flags, conditioners, large=large, distilled=bool(steps)),
            sampling=steps,
            classes=_classes(folder, flags),
            maps=_maps(folder, flags),
            self_conditioned=_flag(folder, flags, SELF_CONDITIONED, default=False),
            schedules=_schedules(folder, flags),
        )


def read_texts(folder: Path) -> tuple[TextConditioner, ...]:
    """The text encoders of a model's folder, in float32, with their last states.

    Raises UndustError for a folder without any, and as `read`.
    """
    index = read_model_index(folder)
    texts = {name: tokens for name, tokens in TEXTS.items() if name in index}
    if not texts:
        raise UndustError(f"{folder} has no text encoder")
    with naming(folder):
        return tuple(
            _text_conditioner(
                folder / name, folder / tokens, index[name][1], torch.float32, large=False
            )
            for name, tokens in texts.items()
        )


def write(
    parts: Components,
    folder: Path,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> None:
    """Writes the folder atomically, replacing an existing model.

    dtype: of the weights in the files; None keeps each as it is; wrote: as `safetensors_file.save`.
    Raises UndustError, and changes nothing, if the folder exists and is not a model.
    """
    index = _index(parts)
    upscaler, large = parts.low_res_process is not None, parts.unet.config.takes_pooled_text
    if parts.guidance != _family_guidance(parts.texts, upscaler=upscaler, large=large):
        index[GUIDANCE] = parts.guidance
    first_stage = first_stage_folder(parts)
    with atomic_folder(folder, replace=(folder / INDEX).is_file()) as building:
        if first_stage:
            save_component(building / first_stage, parts.autoencoder, dtype, wrote)
        save_component(building / type_of(parts.unet).folder, parts.unet, dtype, wrote)
        for text in parts.texts:
            save_component(building / text.name, text.encoder, dtype, wrote)
            tokenizer_files.save(building / TEXTS[text.name], text.tokenizer)
        for name, process, prediction in (
            ("scheduler", parts.process, parts.prediction),
            ("low_res_scheduler", parts.low_res_process, "epsilon"),
        ):
            if process is not None:
                (building / name).mkdir()
                config = scheduler_config(process, prediction)
                if name == "scheduler":
                    config = sampling.scheduler(config, parts.sampling)
                write_json(building / name / "scheduler_config.json", config)
                index[name] = ["diffusers", config["_class_name"]]
        write_json(building / INDEX, index)


def weights_hash(path: Path) -> str:
    """A hash of the weights in a folder, 10 digits."""
    hashes = "".join(
        known_hash(file)
        for name in (*TEXTS, *DENOISERS, *FIRST_STAGES)
        for file in sorted((path / name).glob("*.safetensors"))
    )
    return hashlib.sha256(hashes.encode()).hexdigest()[:10]


def _size(unet: Path) -> dict[str, int]:
    """The sample_size that diffusers assumes where folders from before 0.9.0 have a wrong one."""
    config = read_json(unet / "config.json")
    size, version = config.get("sample_size"), str(config.get("_diffusers_version"))
    old = re.match(r"0\.[0-8](\.|$)", version) and isinstance(size, int) and size < 64
    return {"sample_size": 64} if old else {}


def _guidance(
    folder: Path,
    index: Mapping[str, Any],
    texts: Sequence[TextConditioner],
    *,
    large: bool,
    distilled: bool,
) -> float:
    """The default guidance scale: our own entry of the index, or that of the published family.

    1 for a distilled model, which has learnt its guidance.
    Raises UndustError for an entry that is no number of at least 0.
    """
    family = _family_guidance(texts, upscaler="low_res_scheduler" in index, large=large)
    given = index.get(GUIDANCE, 1.0 if distilled else family)
    if type(given) not in (int, float) or not 0 <= given < math.inf:
        raise UndustError(f"{folder / INDEX}: {GUIDANCE} is {quoted(given)}, not a number")
    return float(given)


def _flag(folder: Path, index: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """An entry that is true or false. Raises UndustError for another."""
    given = index.get(name, default)
    if not isinstance(given, bool):
        raise UndustError(f"{folder / INDEX}: {name} is {quoted(given)}, not true or false")
    return given


def _classes(folder: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, by number; () without any. UndustError if one is missing."""
    given: object = index.get(CLASSES, index.get(f"_{CLASSES}")) or {}
    if not isinstance(given, dict) or len(given := cast("dict[str, object]", given)) > MAX_CLASSES:
        raise UndustError(f"{folder / INDEX}: {CLASSES} is not the names of classes by number")
    names = [given.get(str(number)) for number in range(len(given))]
    if not all(isinstance(name, str) for name in names):
        raise UndustError(f"{folder / INDEX}: {CLASSES} is not numbered from 0, each with a name")
    return tuple(map(str, names))


def _schedules(folder: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists of σ; () without any. Raises UndustError for another entry."""
    given: object = index.get(SCHEDULES, [])
    try:
        if isinstance(given, list):
            texts = [str(each) for each in cast("list[object]", given)]
            if all(listed(text) is not None for text in texts):
                return tuple(texts)
    except UndustError as error:
        raise UndustError(f"{folder / INDEX}: {SCHEDULES}: {error}") from error
    raise UndustError(f"{folder / INDEX}: {SCHEDULES} is {quoted(given)}, not lists of σ")


def _maps(folder: Path, index: Mapping[str, Any]) -> tuple[MapKind, ...]:
    """The kinds of maps; () without any. Raises UndustError for others than `MapKind`s."""
    try:
        return _MAPS.validate_python(index.get(MAPS, ()))
    except ValidationError as error:
        reason = demand(error.errors()[0])
        raise UndustError(f"{folder / INDEX}: {MAPS}: {reason}") from None


def _family_guidance(texts: Sequence[TextConditioner], *, upscaler: bool, large: bool) -> float:
    """The default of diffusers' pipelines; other vocabularies than CLIP's are models of ours."""
    if not texts or len(texts[0].tokenizer.vocabulary) != CLIP_VOCABULARY:
        return DEFAULT_GUIDANCE
    if upscaler:
        return UPSCALER.guidance
    return SDXL.guidance if large else SD1.guidance


def _text_conditioner(
    encoder: Path, tokenizer: Path, class_name: str, dtype: torch.dtype | None, *, large: bool
) -> TextConditioner:
    with naming(encoder):
        network = load_component(encoder, TextEncoder, dtype, class_name=class_name)
    with naming(tokenizer):
        pieces = tokenizer_files.load(tokenizer, network.config.max_position_embeddings)
    if pieces.added and network.config.eos_token_id == LEGACY_END:
        # With added words the end token no longer has the largest number.
        end = {"eos_token_id": pieces.vocabulary[END]}
        network.config = network.config.model_copy(update=end)
    pooled = large and network.text_projection is not None
    return TextConditioner(pieces, network, penultimate=large, pooled=pooled, name=encoder.name)


def _sampling(folder: Path, index: Mapping[str, Any]) -> SamplingDefaults | None:
    with naming(folder / INDEX):
        return sampling.read(index, read_json(folder / "scheduler" / "scheduler_config.json"))


def _scheduler(folder: Path) -> tuple[Process, str]:
    path = folder / "scheduler_config.json"
    return read_scheduler(read_json(path), path)


def _index(parts: Components) -> dict[str, Any]:
    """model_index.json without the schedulers."""
    large, aesthetic = parts.num_size_ids > 0, parts.num_size_ids == 5
    index: dict[str, Any] = {
        "_class_name": pipeline(parts),
        "_diffusers_version": VERSION,
        first_stage_folder(parts) or "vae": _first_stage(parts),
        type_of(parts.unet).folder: _named(parts.unet),
        **{name: [None, None] for name in (*TEXTS, *TEXTS.values()) if large},
    }
    for text in parts.texts:
        index[text.name] = _named(text.encoder)
        index[TEXTS[text.name]] = ["transformers", "CLIPTokenizer"]
    flags: dict[str, Any] = {}
    if large:
        flags = {ZEROS: parts.force_zeros_for_empty_prompt}
        if aesthetic or parts.extra_channels:
            flags |= {"requires_aesthetics_score": aesthetic}
    elif parts.low_res_process is not None:
        flags = {NOISE: parts.max_noise_level}
    elif parts.texts:
        flags = {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    if parts.classes:
        name = CLASSES if index["_class_name"] == "DiTPipeline" else f"_{CLASSES}"
        flags[name] = {str(number): label for number, label in enumerate(parts.classes)}
    if parts.self_conditioned:
        flags[SELF_CONDITIONED] = True
    if parts.sampling:
        flags[sampling.ENTRY] = sampling.entry(parts.sampling)
    if parts.schedules:
        flags[SCHEDULES] = [*parts.schedules]
    if parts.maps:
        flags[MAPS] = _MAPS.dump_python(parts.maps, mode="json")
    return index | flags


def first_stage_folder(parts: Components) -> str | None:
    """The folder of the first stage, as diffusers' pipeline has it; None in pixel space."""
    if isinstance(parts.autoencoder, IdentityFirstStage):
        return None
    return "vqvae" if pipeline(parts) == "LDMPipeline" else "vae"


def _first_stage(parts: Components) -> list[str] | list[None]:
    return _named(parts.autoencoder) if first_stage_folder(parts) else [None, None]


def _named(network: nn.Module) -> list[str]:
    """A network's entry of model_index.json."""
    kind = type_of(network)
    return [kind.library, kind.class_name]


def pipeline(parts: Components) -> str:
    """The class of the diffusers pipeline for such a model; DiffusionPipeline if there is none.

    diffusers then opens its components, each alone.
    """
    denoiser = type_of(parts.unet)
    pixels = isinstance(parts.autoencoder, IdentityFirstStage)
    crossed = denoiser.class_name == "UNet2DConditionModel"
    if not crossed or pixels or parts.maps or parts.classes or parts.self_conditioned:
        plain = not (parts.texts or parts.maps or parts.extra_channels or parts.self_conditioned)
        if denoiser.class_name == "DiTTransformer2DModel" and plain and not pixels:
            return "DiTPipeline"
        if denoiser.class_name == "UNet2DModel" and plain and not parts.classes:
            return "DDPMPipeline" if pixels else "LDMPipeline"
        return "DiffusionPipeline"
    family = "StableDiffusionXL" if parts.num_size_ids else "StableDiffusion"
    if parts.low_res_process is not None:
        scaled = float(parts.autoencoder.scale(torch.zeros(1))[0]) == UPSCALER_SCALE
        return "StableDiffusionUpscalePipeline" if scaled else "DiffusionPipeline"
    if parts.extra_channels:
        return f"{family}InpaintPipeline"
    return f"{family}Img2ImgPipeline" if parts.num_size_ids == 5 else f"{family}Pipeline"
