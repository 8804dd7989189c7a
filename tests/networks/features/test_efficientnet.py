"""EfficientNet-Lite0 against transformers' EfficientNet-B0 with squeezes of factor 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import EfficientNetConfig, EfficientNetModel

from undust.networks.features.efficientnet import EfficientNetLite0

NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
OUTER = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}


def theirs_of(ours: EfficientNetLite0) -> nn.Module:
    network = EfficientNetModel(
        EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280
        )
    ).eval()
    weights: dict[str, Tensor] = {}
    for key, value in ours.state_dict().items():
        first, *rest = key.split(".")
        if first == "_blocks":
            number, layer, kind = rest
            weights[f"encoder.blocks.{number}.{NAMES[layer]}.{kind}"] = value
        elif first in OUTER:
            weights[f"{OUTER[first]}.{rest[0]}"] = value
    for key, value in network.state_dict().items():
        if "squeeze_excite" in key:  # sigmoid(100) is 1
            weights[key] = torch.full_like(value, 100.0 if key.endswith("expand.bias") else 0.0)
    network.load_state_dict(weights)
    return network


@torch.inference_mode()
def test_transformers_efficientnet_without_squeezes():
    torch.manual_seed(0)
    ours = EfficientNetLite0()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.5)
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    their = theirs_of(ours)(((x + 1) * 127.5 - 127) / 128, output_hidden_states=True)
    maps = ours.maps(x)
    assert [tuple(each.shape[1:]) for each in maps] == [
        *((16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3))
    ]
    ours.side = None
    torch.testing.assert_close(ours.pooled(x), their.pooler_output, rtol=1e-4, atol=1e-5)
    assert their.pooler_output.std() > 0.1
    torch.testing.assert_close(ours.probabilities(x).sum(1), torch.ones(2))
