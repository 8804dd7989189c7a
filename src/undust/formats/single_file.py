"""What a single file of the original layout holds of a model, and whether that is all of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from undust.conditioning.clip import clip
from undust.diffusion.process import VP, Process
from undust.errors import UndustError, printable
from undust.formats import controlnet, model_folder
from undust.formats.components import Components, type_of
from undust.formats.original.checkpoint import original, scan_checkpoint
from undust.formats.original.detect import V_MARK, ZERO_SNR_MARK, detect
from undust.formats.original.variants import CLASSES, SIZES, V_PREDICTION, VARIANTS, Variant
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.config import DenoiserConfig, NetworkConfig, UNetConfig
from undust.networks.controlnet import ControlNet

# What of a configuration plays a part in what a network computes and is in none of its modules.
FIELDS = (
    *("flip_sin_to_cos", "freq_shift", "scaling_factor", "shift_factor"),
    *("latents_mean", "latents_std"),
)
Model = Components | FirstStageNetwork | ControlNet


def variant_of(parts: Components) -> Variant:
    """The variant of which a single file with such parts would be; UndustError if of none."""
    config = parts.unet.config
    kinds = type_of(parts.unet).class_name, type_of(parts.autoencoder).class_name
    seen = [(w.penultimate, w.pooled, w.encoder.config.hidden_act) for w in parts.texts]
    fits = [
        variant
        for variant in VARIANTS.values()
        if (variant.network.class_name, variant.first_stage.class_name) == kinds
        and (variant.channels, variant.added) == (config.in_channels, _added(config))
        and [(t.penultimate, t.pooled, t.activation) for t in variant.texts] == seen
    ]
    if not fits:
        raise UndustError(
            f"no single file holds such a model: {kinds[0]} of {config.in_channels} channels with "
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


def tensors(model: Model) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a single file, and what they cannot tell its reader.

    Raises UndustError for a model that a single file cannot hold without becoming another one.
    """
    match model:
        case ControlNet():
            return controlnet.original(model), []
        case Autoencoder():
            scale = f"{model.config.scaling_factor:g}"
            unsaid = f"the file of a first stage alone does not tell its latents' scale, {scale}"
            return original(None, {"vae": (model.config, model.state_dict())}), [unsaid]
        case FirstStageNetwork():
            raise UndustError(f"no single file holds a first stage {type_of(model).class_name}")
        case Components():
            variant = variant_of(model)
            return _named(variant, model), list(_unsaid(variant, model))


def check(path: Path, model: Model, target: Path) -> None:
    """Raises UndustError if what is read from a file computes something else than was written.

    target: where the file will lie; a configuration beside that counts.
    """
    if isinstance(model, ControlNet):
        read = controlnet.load(path, None, beside=target)
        _compare({"ControlNet": model}, {"ControlNet": read})
        return
    found = {name: part.network for name, part in scan_checkpoint(path).parts.items()}
    if isinstance(model, FirstStageNetwork):
        # Alone, it has no variant that would know this.
        _compare({"vae": model}, found, but=("scaling_factor", "shift_factor"))
    else:
        _compare(_networks(model, variant_of(model)), found)


def _named(variant: Variant, parts: Components) -> dict[str, Tensor]:
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
                f"a model that predicts {printable(variant.prediction)} would be taken for one of "
                f"{found.prediction} from a single file"
            )
        tensors[V_MARK] = torch.empty(0)
    if variant.zero_snr:
        tensors[ZERO_SNR_MARK] = torch.empty(0)
    return tensors


def _networks(parts: Components, variant: Variant) -> dict[str, nn.Module]:
    """The networks under the names of their places in the original's parts."""
    texts = zip(variant.texts, parts.texts, strict=True)
    return {
        **{text.folder: words.encoder for text, words in texts},
        "unet": parts.unet,
        "vae": parts.autoencoder,
    }


def _unsaid(variant: Variant, parts: Components) -> Generator[str]:
    """What a reader of the single file will take otherwise than the folder says."""
    for text, words in zip(variant.texts, parts.texts, strict=True):
        usual, own = clip(text.padding), words.tokenizer
        if (own.vocabulary, own.merges) != (usual.vocabulary, usual.merges):
            raise UndustError("the tokenizer is not CLIP's, and a single file has no place for it")
        if own.added:
            words = ", ".join(printable(word.content) for word in [*own.added.values()][:3])
            raise UndustError(
                f"words were learnt, and a single file has no place for them: {words}"
            )
        if own.padding != usual.padding:
            yield (
                f"the file does not tell that prompts are padded with {printable(own.padding)}: "
                f"a {variant.title}'s are with {usual.padding}"
            )
    latent, usual = parts.unet.config.sample_size or 64, variant.size // parts.downsampling_factor
    if latent not in (usual, (usual, usual)):
        yield (
            f"the file does not tell the size of the pictures, {variant.size}x{variant.size} if "
            f"none is asked for: the folder's latents are {latent}, not {usual}"
        )
    if parts.force_zeros_for_empty_prompt != variant.force_zeros_for_empty_prompt:
        yield (
            "the file does not tell that "
            f"{model_folder.ZEROS} is {parts.force_zeros_for_empty_prompt}: "
            f"a {variant.title}'s is not"
        )


def _added(config: DenoiserConfig) -> str:
    """The tensor of what a network adds to the time embedding, "" for nothing."""
    if config.takes_pooled_text:
        return SIZES
    if not isinstance(config, UNetConfig):
        return ""
    return config.addition_embed_type or (CLASSES if config.num_class_embeds else "")


def _compare(
    networks: Mapping[str, nn.Module], found: Mapping[str, nn.Module], but: Iterable[str] = ()
) -> None:
    for name, network in networks.items():
        own, other = _traits(network), _traits(found[name])
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
                traits[f"{name}.{key}".removeprefix(".")] = value
    return traits


def _same(one: Process, other: Process) -> bool:
    """Whether two processes are the same, but for the rounding of a table of β."""
    if not isinstance(one, VP) or not isinstance(other, VP):
        return one == other
    return one.steps == other.steps and torch.allclose(one.betas, other.betas, rtol=1e-6, atol=0)
