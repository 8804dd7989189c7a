"""Writing a model as a single file of the original layout, and checking that nothing is lost."""

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
from undust.formats.original.checkpoint import scan_checkpoint, to_original
from undust.formats.original.detect import V_MARK, ZERO_SNR_MARK, detect
from undust.formats.original.variants import CLASSES, SIZES, V_PREDICTION, VARIANTS, Variant
from undust.networks.autoencoder import Autoencoder
from undust.networks.base import FirstStageNetwork
from undust.networks.config import DenoiserConfig, NetworkConfig, UNetConfig
from undust.networks.controlnet import ControlNet

# Fields of a configuration that change the network's output and are in none of its modules.
CONFIG_FIELDS = (
    *("flip_sin_to_cos", "freq_shift", "scaling_factor", "shift_factor"),
    *("latents_mean", "latents_std"),
)
Model = Components | FirstStageNetwork | ControlNet


def variant_of(parts: Components) -> Variant:
    """The variant that a single file of the model would have; UndustError if none."""
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
            f"this model cannot be a single file: no variant has a {kinds[0]} with "
            f"{config.in_channels} input channels and {len(seen)} text encoders "
            f"({', '.join(kind for *_, kind in seen)}); known: {', '.join(VARIANTS)}"
        )
    named = next((one for one in fits if one.prediction == parts.prediction), fits[0])
    for zero_snr in (False, True):
        variant = replace(named, prediction=parts.prediction, zero_snr=zero_snr)
        if _same(variant.process(), parts.process):
            return variant
    raise UndustError(
        f"the model's noise process is not that of {named.title}, and a single file cannot store "
        "another"
    )


def tensors(model: Model) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a single file, and notes on settings that the file cannot store.

    Raises UndustError for a model that a single file cannot store completely.
    """
    match model:
        case ControlNet():
            return controlnet.to_original(model), []
        case Autoencoder():
            scale = f"{model.config.scaling_factor:g}"
            note = (
                f"the file of a first stage alone does not store the scale of its latents, {scale}"
            )
            return to_original(None, {"vae": (model.config, model.state_dict())}), [note]
        case FirstStageNetwork():
            raise UndustError(f"a first stage {type_of(model).class_name} cannot be a single file")
        case Components():
            variant = variant_of(model)
            return _tensors(variant, model), list(_not_stored(variant, model))


def check_read_back(path: Path, model: Model, target: Path) -> None:
    """Raises UndustError if a model read from the file would differ from the one written.

    target: the final place of the file; a config.json beside it counts.
    """
    if isinstance(model, ControlNet):
        read = controlnet.load(path, None, beside=target)
        _compare({"ControlNet": model}, {"ControlNet": read})
        return
    found = {name: part.network for name, part in scan_checkpoint(path).parts.items()}
    if isinstance(model, FirstStageNetwork):
        # A first stage alone has no variant that decides these.
        _compare({"vae": model}, found, but=("scaling_factor", "shift_factor"))
    else:
        _compare(_networks(model, variant_of(model)), found)


def _tensors(variant: Variant, parts: Components) -> dict[str, Tensor]:
    """The tensors of a single file, with marks where detection would be wrong without them."""
    tensors = to_original(
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
                f"a single file cannot store that the model predicts "
                f"{printable(variant.prediction)}: it would be read as {found.prediction}"
            )
        tensors[V_MARK] = torch.empty(0)
    if variant.zero_snr:
        tensors[ZERO_SNR_MARK] = torch.empty(0)
    return tensors


def _networks(parts: Components, variant: Variant) -> dict[str, nn.Module]:
    """The networks by the names of the variant's parts."""
    texts = zip(variant.texts, parts.texts, strict=True)
    return {
        **{text.folder: words.encoder for text, words in texts},
        "unet": parts.unet,
        "vae": parts.autoencoder,
    }


def _not_stored(variant: Variant, parts: Components) -> Generator[str]:
    """Notes on settings that a reader of the file will assume to be the variant's."""
    for text, words in zip(variant.texts, parts.texts, strict=True):
        usual, own = clip(text.padding), words.tokenizer
        if (own.vocabulary, own.merges) != (usual.vocabulary, usual.merges):
            raise UndustError("the tokenizer is not CLIP's, and a single file cannot store another")
        if own.added:
            words = ", ".join(printable(word.content) for word in [*own.added.values()][:3])
            raise UndustError(
                f"the tokenizer has added words, which a single file cannot store: {words}"
            )
        if own.padding != usual.padding:
            yield (
                f"not stored: prompts are padded with {printable(own.padding)}; a reader assumes "
                f"{usual.padding}, as for {variant.title}"
            )
    latent, usual = parts.unet.config.sample_size or 64, variant.size // parts.downsampling_factor
    if latent not in (usual, (usual, usual)):
        yield (
            f"not stored: the size of latents trained on, {latent}; a reader assumes {usual}, for "
            f"pictures of {variant.size}x{variant.size}"
        )
    if parts.force_zeros_for_empty_prompt != variant.force_zeros_for_empty_prompt:
        yield (
            f"not stored: {model_folder.ZEROS} is {parts.force_zeros_for_empty_prompt}; a reader "
            f"assumes {variant.force_zeros_for_empty_prompt}, as for {variant.title}"
        )


def _added(config: DenoiserConfig) -> str:
    """The key of what a network adds to the time embedding, "" for nothing."""
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
                    f"a single file cannot store that the {name}'s {trait} is {own.get(trait)}: "
                    f"it would be read as {other.get(trait)}"
                )


def _traits(network: nn.Module) -> dict[str, Any]:
    """All settings of a network that change its output and are not tensors."""
    config = cast(NetworkConfig, network.config)
    traits: dict[str, Any] = {name: getattr(config, name, None) for name in CONFIG_FIELDS}
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
