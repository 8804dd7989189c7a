"""The average of the weights of two models of one shape, such as before and after a fine-tune.

python examples/average_models.py data/emoji-long/model runs/emoji-long-finetune/model --out new

Averages keep what the first knew beside what the second learnt (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"). --share: of the second, 0 to 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import undust


@torch.no_grad()
def main() -> None:
    """Writes the model, in float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs=2)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    first, second = (undust.load(name, engine="torch") for name in given.models)
    for name, network in first.networks.items():
        theirs = second.networks[name].state_dict()
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(theirs[key], given.share)
    first.save(given.out, dtype=torch.float16)


if __name__ == "__main__":
    main()
