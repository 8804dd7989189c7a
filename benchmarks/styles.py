"""A model of several styles: whether the words of a style give that style, and the concept in it.

    python benchmarks/styles.py MODEL DATA [--captions 60]

DATA is of examples/emoji_styles.py. English captions of training pictures, of concepts that are
held out in this style alone, and of held-out skin tones; their pictures are compared with all
pictures of all styles, as `undust evaluate` does. The table of docs/training/styles.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

import undust
from undust.datasets import image_folder
from undust.datasets.samples import Sample
from undust.evaluation.pictures import PictureSet, in_unit_range
from undust.evaluation.recall import ReferenceSet, features
from undust.pictures import from_image

SIZE = (64, 64)


def kinds(samples: Sequence[Sample]) -> Mapping[tuple[str, str], list[int]]:
    """The indices of the samples of each style and kind of caption."""
    known = {(each.group, each.columns["style"]) for each in samples if each.split == "train"}
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        style = sample.columns["style"]
        kind = "training captions"
        if sample.split != "train":
            seen = (sample.group, style) in known
            kind = "held-out skin tones" if seen else "concepts held out in this style"
        found[style, kind].append(index)
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--captions", type=int, default=60, help="in each row, at most")
    options = parser.parse_args()
    samples = image_folder.read(options.data)
    real = PictureSet.of_samples(samples, SIZE)
    references = ReferenceSet(real)
    described = torch.cat([features(in_unit_range(batch)) for batch in real.batches()])
    model = undust.load(options.model)
    print(f"{options.model}, seed 0, against {len(references)} distinct pictures")
    print(
        "| style | captions | number | right style | right picture nearest | among the nearest 5 |"
    )
    print("|---|---|---|---|---|---|")
    for (style, kind), indices in kinds(samples).items():
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
        chosen = [indices[k] for k in order[: options.captions].tolist()]
        pictures = model.generate([samples[index].captions["text"] for index in chosen], seed=0)
        shown = in_unit_range(torch.stack([from_image(each.image, SIZE) for each in pictures]))
        ranks = references.ranks(shown, chosen)
        nearest = torch.cdist(features(shown), described).argmin(1).tolist()
        right = [samples[index].columns["style"] == style for index in nearest]
        shares = [sum(right), sum(rank < 1 for rank in ranks), sum(rank < 5 for rank in ranks)]
        cells = " | ".join(f"{share / len(chosen):.0%}" for share in shares)
        print(f"| {style} | {kind} | {len(chosen)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
