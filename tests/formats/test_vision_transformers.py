"""CLIP and DINOv2 folders that transformers wrote: the same features; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from undust.errors import UndustError
from undust.formats import feature_networks
from undust.formats.feature_networks import load_features
from undust.formats.vision_transformers import load_clip_text

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x / 2 + 0.5 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def widened(network: nn.Module) -> nn.Module:
    """Weights that matter: freshly initialised ones leave the features near constant."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.2 * noise
    return network.eval()


def clip_model(act: str = "quick_gelu") -> nn.Module:
    part = {**SMALL, "intermediate_size": 48, "hidden_act": act}
    config = transformers.CLIPConfig(
        text_config={**part, "max_position_embeddings": 77},
        vision_config={**part, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return widened(transformers.CLIPModel(config))


def dinov2(gated: bool = False) -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**SMALL, **sizes, use_swiglu_ffn=gated)
    return widened(transformers.Dinov2Model(config))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    clip_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.inference_mode()
def test_clip_pictures_and_texts(act: str, tmp_path: Path):
    theirs = clip_model(act)
    theirs.save_pretrained(tmp_path)
    ours = load_features(str(tmp_path))
    assert ours.name.startswith(f"CLIP ({tmp_path.name}, ")
    expected = theirs.get_image_features(normalised(X, CLIP_MEAN, CLIP_STD)).pooler_output
    torch.testing.assert_close(ours.pooled(X), expected, rtol=1e-5, atol=1e-5)

    texts = load_clip_text(tmp_path)
    ids = texts.tokenizer(["a cat", "two dogs on a red sofa"])
    pooled = texts.captions(["a cat", "two dogs on a red sofa"])[1]
    expected = theirs.get_text_features(ids).pooler_output
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    assert (pooled[0] - pooled[1]).abs().max() > 0.1


@torch.inference_mode()
def test_clip_s_vision_part_alone(tmp_path: Path):
    sizes = {"image_size": 32, "patch_size": 8, "intermediate_size": 48, "projection_dim": 24}
    config = transformers.CLIPVisionConfig(**SMALL, **sizes)
    theirs = widened(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    expected = theirs(normalised(X, CLIP_MEAN, CLIP_STD)).image_embeds
    torch.testing.assert_close(
        load_features(str(tmp_path)).pooled(X), expected, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(UndustError, match="is not a CLIP model with text and vision parts"):
        load_clip_text(tmp_path)


@pytest.mark.parametrize("gated", [False, True])
@torch.inference_mode()
def test_dinov2(gated: bool, tmp_path: Path):
    theirs = dinov2(gated)
    theirs.save_pretrained(tmp_path)
    ours = load_features(str(tmp_path))
    expected = theirs(normalised(X, MEAN, STD)).pooler_output
    torch.testing.assert_close(ours.pooled(X), expected, rtol=1e-5, atol=1e-5)
    assert ours.name.startswith(f"DINOv2 ({tmp_path.name}, ")
    # Position embeddings are interpolated for another size; pictures are resized to its own.
    wide = F.interpolate(X, (40, 48), mode="bilinear")
    tokens = theirs(normalised(wide, MEAN, STD)).last_hidden_state[:, 1:]
    (patches,) = ours.maps(wide)
    assert patches.shape == (2, 32, 5, 6)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)
    resized = F.interpolate(wide, (32, 32), mode="bicubic", antialias=True)
    expected = theirs(normalised(resized, MEAN, STD)).pooler_output
    torch.testing.assert_close(ours.pooled(wide), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UndustError, match="does not classify pictures"):
        ours.probabilities(X)


class SmallInception(nn.Module):
    """The interface of the published program."""

    def forward(
        self,
        x: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        assert x.dtype == torch.uint8
        mean = x.float().mean((2, 3))
        if return_features:
            return mean
        return (mean if no_output_bias else mean + 1).softmax(1)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inception_is_run_only_if_it_is_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(SmallInception()).save(str(path))
    with pytest.raises(UndustError, match="is a TorchScript program; only inception-2015"):
        load_features(str(path))
    digest = feature_networks.safetensors_file.content_hash(path)
    monkeypatch.setattr(feature_networks, "INCEPTION", digest)
    network = load_features(str(path))
    expected = ((X + 1) * 127.5).round().mean((2, 3))
    torch.testing.assert_close(network.pooled(X), expected)
    torch.testing.assert_close(network.probabilities(X), expected.softmax(1))
    assert network.name == "Inception 2015-12-05"
    with pytest.raises(UndustError, match="no feature maps"):
        network.maps(X)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "vit"}, "of the type vit; known are clip and dinov2"),
        ({"vision_config": 3}, "vision_config has to be an object"),
        ({"vision_config": {"num_attention_heads": 5}}, "must divide hidden_size"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"projection_dim": 25}, "of another shape"),
    ],
)
def test_other_configurations(
    change: dict[str, object], reason: str, clip_folder: Path, tmp_path: Path
):
    fields = json.loads((clip_folder / "config.json").read_text())
    for key, value in change.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").hardlink_to(clip_folder / "model.safetensors")
    with pytest.raises(UndustError, match=reason):
        load_features(str(tmp_path))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_configurations_are_one_clear_line(
    data: st.DataObject, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    fields = json.loads((clip_folder / "config.json").read_text())
    part = data.draw(st.sampled_from([fields, fields["vision_config"], fields["text_config"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(values)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").hardlink_to(clip_folder / "model.safetensors")
    loaders: list[Callable[[], object]] = [
        lambda: load_features(str(folder)),
        lambda: load_clip_text(folder),
    ]
    for load in loaders:
        try:
            load()
        except UndustError as error:
            assert str(error).isprintable()
