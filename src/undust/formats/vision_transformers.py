"""CLIP and DINOv2 from folders in the format of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from undust.conditioning.clip import clip
from undust.conditioning.text import TextConditioner
from undust.errors import UndustError, printable
from undust.formats import hub, safetensors_file, tokenizer_files
from undust.formats.files import make_folder, read_whole
from undust.formats.folder import load_into, load_weights, read_json, write_json
from undust.formats.networks import empty_network
from undust.networks.config.base import Length, NetworkConfig
from undust.networks.config.text_encoder import TextEncoderConfig
from undust.networks.features.base import IMAGENET
from undust.networks.features.vision_transformer import VisionTransformer, VisionTransformerShape
from undust.networks.text_encoder import TextEncoder

CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Side = Annotated[int, Field(gt=0, le=4096)]


class VisionConfig(NetworkConfig):
    """The fields that CLIP's and DINOv2's configurations share; others change nothing."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: Length = Field(default=768, description="channels of the tokens")
    num_hidden_layers: Length = Field(default=12, description="number of layers")
    num_attention_heads: Length = Field(
        default=12, description="attention heads; they divide hidden_size"
    )
    num_channels: Literal[3] = Field(default=3, description="colour channels of the picture")
    image_size: Side = Field(default=224, description="pixels along a side of the picture")
    patch_size: Side = Field(
        default=32, description="pixels along a side of a patch, which is a token"
    )
    layer_norm_eps: float = Field(default=1e-5, description="ε of the normalisations")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads must divide hidden_size")
        if self.patch_size > self.image_size:
            raise ValueError("patch_size must not exceed image_size")
        return self

    def shape(self, **parts: Any) -> VisionTransformerShape:
        """The shape of the network; parts: the fields that depend on its kind."""
        return VisionTransformerShape(
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            image_size=self.image_size,
            patch=self.patch_size,
            eps=self.layer_norm_eps,
            **parts,
        )


class CLIPVisionConfig(VisionConfig):
    """transformers' configuration of CLIP's vision part, with its defaults."""

    intermediate_size: Length = Field(
        default=3072, description="channels inside of a feed-forward part"
    )
    projection_dim: Length = Field(default=512, description="channels of the embedding")
    hidden_act: Literal["quick_gelu", "gelu"] = Field(
        default="quick_gelu", description="activation of a feed-forward part"
    )


class Dinov2Config(VisionConfig):
    """transformers' configuration of DINOv2, with its defaults."""

    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4
    patch_size: Side = 14
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: Literal[True] = True
    use_swiglu_ffn: bool = False


# Names in files, as patterns → ours.
CLIP_NAMES = {
    r"vision_model\.embeddings\.class_embedding": "token",
    r"vision_model\.embeddings\.patch_embedding\.(\w+)": r"patches.\1",
    r"vision_model\.embeddings\.position_embedding\.weight": "positions",
    r"vision_model\.pre_layrnorm\.(\w+)": r"pre_norm.\1",
    r"vision_model\.post_layernorm\.(\w+)": r"norm.\1",
    r"visual_projection\.(\w+)": r"projection.\1",
    r"vision_model\.encoder\.layers\.(\d+)\.layer_norm(.+)": r"layers.\1.norm\2",
    r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.(\w+)_proj(.+)": r"layers.\1.\2\3",
    r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(.+)": r"layers.\1.mlp.\2",
}
DINO_NAMES = {
    r"embeddings\.cls_token": "token",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patches.\1",
    r"embeddings\.position_embeddings": "positions",
    r"layernorm\.(\w+)": r"norm.\1",
    r"encoder\.layer\.(\d+)\.norm(.+)": r"layers.\1.norm\2",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(.)\w+(\..+)": r"layers.\1.\2\3",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense(.+)": r"layers.\1.out\2",
    r"encoder\.layer\.(\d+)\.layer_(scale\d)\.lambda1": r"layers.\1.\2",
    r"encoder\.layer\.(\d+)\.mlp\.weights_in(.+)": r"layers.\1.mlp.fc1\2",
    r"encoder\.layer\.(\d+)\.mlp\.weights_out(.+)": r"layers.\1.mlp.fc2\2",
    r"encoder\.layer\.(\d+)\.mlp\.(fc.+)": r"layers.\1.mlp.\2",
}
CLIP_KEYS = {  # our names, as patterns → those in files
    "token": "vision_model.embeddings.class_embedding",
    "positions": "vision_model.embeddings.position_embedding.weight",
    r"patches\.(.+)": r"vision_model.embeddings.patch_embedding.\1",
    r"pre_norm\.(.+)": r"vision_model.pre_layrnorm.\1",
    r"norm\.(.+)": r"vision_model.post_layernorm.\1",
    r"projection\.(.+)": r"visual_projection.\1",
    r"layers\.(\d+)\.norm(.+)": r"vision_model.encoder.layers.\1.layer_norm\2",
    r"layers\.(\d+)\.mlp\.(.+)": r"vision_model.encoder.layers.\1.mlp.\2",
    r"layers\.(\d+)\.(q|k|v|out)\.(.+)": r"vision_model.encoder.layers.\1.self_attn.\2_proj.\3",
}
UNUSED = ("text_model.", "text_projection.", "logit_scale", "embeddings.mask_token")


def load_vision_transformer(
    folder: Path, dtype: torch.dtype | None = torch.float32
) -> VisionTransformer:
    """The vision part of a CLIP folder, or a DINOv2 folder.

    dtype: of the weights, None for that of each in the file. Raises UndustError for a folder of
    another model, and for one that is not whole.
    """
    return read_whole(folder, lambda: _load(folder, dtype))


def new_clip_vision(config: CLIPVisionConfig) -> VisionTransformer:
    """CLIP's vision part with random weights and a projection, to be trained."""
    network = VisionTransformer(_of_clip(config, config.projection_dim), "CLIP, new")
    for embeddings in (network.token, network.positions):
        nn.init.normal_(embeddings, std=0.02)
    return network


def save_clip_vision(
    folder: Path,
    network: VisionTransformer,
    dtype: torch.dtype | None = None,
    wrote: Callable[[int], object] = int,
) -> None:
    """Writes CLIP's vision part as transformers' CLIPVisionModelWithProjection does.

    dtype, wrote: as `safetensors_file.save`.
    """
    shape = network.shape
    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch,
        layer_norm_eps=shape.eps,
        projection_dim=shape.projection or 0,
        hidden_act="quick_gelu" if shape.quick_gelu else "gelu",
    )
    header = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"]}
    make_folder(folder)
    write_json(folder / "config.json", {**header, **config.model_dump(mode="json")})
    tensors = {_renamed(key, CLIP_KEYS): value for key, value in network.state_dict().items()}
    path = folder / "model.safetensors"
    safetensors_file.save(path, tensors, {"format": "pt"}, dtype=dtype, wrote=wrote)


def load_clip_text(folder: Path) -> TextConditioner:
    """The text part of a CLIP folder, with its projection; without tokenizer files with OpenAI's.

    Raises UndustError for a folder that is not a CLIP with both parts.
    """
    fields = read_json(folder / "config.json")
    if fields.get("model_type") != "clip":
        raise UndustError(f"{folder} is not a CLIP model with text and vision parts")
    own: dict[str, Any] = dict(_part(fields, "text_config"))
    known = own.keys() & TextEncoderConfig.model_fields.keys()
    config = TextEncoderConfig.read(
        {
            **{key: own[key] for key in known},
            "architectures": ("CLIPTextModelWithProjection",),
            "projection_dim": fields.get("projection_dim", 512),
        }
    )
    tensors = load_weights(folder, torch.float32)
    text = {key: value for key, value in tensors.items() if key.startswith("text_")}
    encoder = empty_network(TextEncoder, config)
    load_into(encoder, text, folder)
    own_tokenizer = any((folder / name).exists() for name in ("vocab.json", "tokenizer.json"))
    length = config.max_position_embeddings
    tokenizer = tokenizer_files.load(folder, length) if own_tokenizer else clip()
    return TextConditioner(tokenizer, encoder.eval().requires_grad_(False), pooled=True)


def _load(folder: Path, dtype: torch.dtype | None) -> VisionTransformer:
    fields = read_json(folder / "config.json")
    kind = fields.get("model_type")
    if kind not in ("clip", "clip_vision_model", "dinov2"):
        raise UndustError(
            f"{folder} holds a model of the type {printable(kind)}; known are clip and dinov2"
        )
    tensors = load_weights(folder, dtype)
    if kind == "dinov2":
        title, shape, names = "DINOv2", _dinov2_shape(fields), DINO_NAMES
    else:
        title, shape, names = "CLIP", _clip_shape(fields, tensors), CLIP_NAMES
    digest = safetensors_file.files_hash(sorted(folder.glob("*.safetensors")))[:8]
    name = f"{title} ({hub.title(folder)}, {digest})"
    network = empty_network(lambda _: VisionTransformer(shape, name), NetworkConfig())
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(UNUSED):
            ours = _renamed(key, names)
            # CLIP's class token is [D]; DINOv2's is [1,1,D], and its positions are [1,N,D].
            renamed[ours] = tensor.squeeze() if ours in ("token", "positions") else tensor
    load_into(network, renamed, folder)
    return network.eval().requires_grad_(False)


def _clip_shape(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VisionTransformerShape:
    if fields.get("model_type") == "clip":
        projection = {"projection_dim": fields.get("projection_dim", 512)}
        fields = {**_part(fields, "vision_config"), **projection}
    config = CLIPVisionConfig.read(fields)
    return _of_clip(
        config, config.projection_dim if "visual_projection.weight" in tensors else None
    )


def _of_clip(config: CLIPVisionConfig, projection: int | None) -> VisionTransformerShape:
    return config.shape(
        hidden=config.intermediate_size,
        quick_gelu=config.hidden_act == "quick_gelu",
        pre_norm=True,
        projection=projection,
        colours=CLIP_COLOURS,
    )


def _dinov2_shape(fields: Mapping[str, Any]) -> VisionTransformerShape:
    config = Dinov2Config.read(fields)
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:  # two thirds, rounded up to a multiple of 8
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return config.shape(
        hidden=hidden,
        gated=config.use_swiglu_ffn,
        scaled=True,
        patch_bias=True,
        colours=IMAGENET,
    )


def _part(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = fields.get(name, {})
    if not isinstance(part, Mapping):
        raise UndustError(f"config.json: {name} has to be an object")
    return cast("Mapping[str, Any]", part)


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Our name of a tensor; its own where it has none, which `load_into` refuses."""
    for theirs, ours in names.items():
        if found := re.fullmatch(theirs, key):
            return found.expand(ours)
    return key
