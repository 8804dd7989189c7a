"""How figures of distances depend on the number of pictures, the resize and the network.

    python benchmarks/figures_by_number.py DATA [--side 64]

Two halves of one data set are compared: their true distance is 0. The table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.datasets import image_folder
from undust.evaluation.distributions import frechet_distance, kernel_distance, precision_recall
from undust.evaluation.networks import FeatureSet
from undust.evaluation.pictures import PictureSet, in_unit_range
from undust.formats.feature_networks import load_features
from undust.networks.features.base import FeatureNetwork

NUMBERS = (50, 100, 200, 500, 1000)
SUBSET = 400  # pictures of the comparison of resizes and networks


def features(network: FeatureNetwork, x: Tensor) -> Tensor:
    found = FeatureSet(network)
    for part in x.split(32):
        found.add(part)
    return found.pooled


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("data")
    asked.add_argument("--side", type=int, default=64)
    given = asked.parse_args()
    paths = [sample.path for sample in image_folder.read(given.data)]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(len(paths), 2 * NUMBERS[-1])
    pictures = PictureSet.of_files([paths[k] for k in order[:count]], (given.side, given.side))
    x = in_unit_range(torch.cat(list(pictures.batches())))
    network = load_features("efficientnet-lite0")
    found = features(network, x)
    print(f"{network.name}: two random sets of the same {len(paths)} pictures")
    print("pictures  Fréchet distance  kernel distance  precision  recall")
    for number in NUMBERS:
        if 2 * number > count:
            break
        one, other = found[:number], found[number : 2 * number]
        kernel, error = kernel_distance(one, other)
        both = precision_recall(one, other)
        print(
            f"{number:8}  {frechet_distance(one, other):16.2f}  {kernel:+.4f} ± {error:.4f}  "
            f"{both.precision:9.1%}  {both.recall:6.1%}"
        )
    half = min(SUBSET, count) // 2
    one, other = x[:half], x[half : 2 * half]
    blurred = F.avg_pool2d(F.pad(other, (1, 1, 1, 1), mode="replicate"), 3, 1)
    nearest = F.interpolate(blurred, (224, 224), mode="nearest")
    bilinear = F.interpolate(blurred, (224, 224), mode="bilinear", antialias=False)
    print(f"\n{half} pictures against {half} others, blurred (3x3 mean)")
    for name, asked_network, y in (
        ("EfficientNet-Lite0, bicubic", network, blurred),
        ("EfficientNet-Lite0, bilinear", network, bilinear),
        ("EfficientNet-Lite0, nearest", network, nearest),
        ("VGG16, bicubic", load_features("vgg16"), blurred),
    ):
        a = found[:half] if asked_network is network else features(asked_network, one)
        b = features(asked_network, y)
        kernel, error = kernel_distance(a, b)
        print(f"{name:30} Fréchet {frechet_distance(a, b):9.2f}  kernel {kernel:.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
