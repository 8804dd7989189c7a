"""Whether the map of a word lies where the word acts: its map against the picture without it.

    python benchmarks/word_maps.py [--steps 10] [--seeds 2]

Each prompt of the built-in model is drawn twice from one seed: as it is, and without its last
object, either with the word removed or with its weight 0. The cells of the latent (8×8) in which
the two pictures differ the most, a quarter of them, are where the word acts. A word's map is
compared with them by the area under the ROC curve: 0.5 is chance, 1 is a map that is higher in all
of these cells than in any other. Controls: the maps of the prompt's other words, and the map of
another prompt's object from the same seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

import undust
from undust.explain import Trace, trace
from undust.explain.word_maps import Layers, auc
from undust.pictures import from_image
from undust.pipeline import LatentDiffusion

PROMPTS = (  # the prompt, the words of its object, the prompt without it
    ("smiling face with sunglasses", "sunglasses", "smiling face"),
    ("smiling face with halo", "halo", "smiling face"),
    ("smiling face with horns", "horns", "smiling face"),
    ("smiling cat with heart-eyes", "heart-eyes", "smiling cat"),
    ("face with medical mask", "medical mask", "face"),
    ("face with thermometer", "thermometer", "face"),
    ("face with monocle", "monocle", "face"),
    ("cowboy hat face", "cowboy hat", "face"),
    ("heart with arrow", "arrow", "heart"),
    ("heart with ribbon", "ribbon", "heart"),
    ("cloud with rain", "rain", "cloud"),
    ("cloud with lightning", "lightning", "cloud"),
    ("sun behind cloud", "cloud", "sun"),
    ("house with garden", "garden", "house"),
    ("locked with key", "key", "locked"),
    ("bell with slash", "slash", "bell"),
)
ACTING = 0.25  # share of the cells
Found = dict[str, list[float]]


LAYERS: tuple[Layers, ...] = ("all", "finest")


def correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: that of the ranks."""
    ranks = torch.stack([each.flatten().argsort().argsort().double() for each in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def difference(model: LatentDiffusion, one: undust.Picture, other: undust.Picture) -> Tensor:
    """The mean absolute difference of two pictures in each cell [h, w]."""
    size = one.image.size
    pixels = (from_image(one.image, size).float() - from_image(other.image, size).float()).abs()
    return torch.nn.functional.avg_pool2d(pixels.mean(0)[None], model.downsampling_factor)[0]


def object_map(found: Trace, words: str, maps: Tensor) -> Tensor:
    chosen = [place for place, word in enumerate(found.words) if word.text in words.split()]
    return maps[chosen].sum(0)


def other_maps(found: Trace, words: str, maps: Tensor) -> list[Tensor]:
    return [
        own for own, word in zip(maps, found.words, strict=True) if word.text not in words.split()
    ]


def without(prompt: str, words: str) -> str:
    """With the words at weight 0: their tokens get the states of the empty prompt."""
    return prompt.replace(words, f"({words}:0)")


def of_pixels(maps: Tensor) -> Tensor:
    """Each word's share of the attention to words, pixel by pixel."""
    return maps / maps.sum(0).clamp_min(1e-12)


def spread(values: Iterable[float]) -> str:
    values = [*values]
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def measure(
    model: LatentDiffusion, steps: int, seeds: Sequence[int]
) -> dict[tuple[str, ...], Found]:
    """By ablation, layers and kind of map: the AUCs and the correlation of each picture."""
    table: dict[tuple[str, ...], Found] = {}
    for seed in seeds:
        whole = [each[0] for each in PROMPTS]
        ablated = {
            "removed": [model.generate(rest, seed=seed, steps=steps)[0] for _, _, rest in PROMPTS],
            "weight 0": [
                model.generate(without(prompt, words), seed=seed, steps=steps)[0]
                for prompt, words, _ in PROMPTS
            ],
        }
        for layers in LAYERS:
            traces = [trace(model, each, seed=seed, steps=steps, layers=layers) for each in whole]
            for kind, normalised in (("probability", lambda maps: maps), ("share", of_pixels)):
                own = [
                    object_map(found, words, normalised(found.maps))
                    for found, (_, words, _) in zip(traces, PROMPTS, strict=True)
                ]
                for how, pictures in ablated.items():
                    into = table.setdefault(
                        (how, layers, kind),
                        {"object": [], "other words": [], "other prompt": [], "correlation": []},
                    )
                    for place, (found, picture) in enumerate(zip(traces, pictures, strict=True)):
                        changed = difference(model, found.picture, picture)
                        acts = changed >= changed.flatten().quantile(1 - ACTING)
                        words = PROMPTS[place][1]
                        others = other_maps(found, words, normalised(found.maps))
                        into["object"].append(auc(own[place], acts))
                        into["other words"].append(
                            statistics.mean(auc(each, acts) for each in others)
                        )
                        into["other prompt"].append(auc(own[place - 1], acts))
                        into["correlation"].append(correlation(own[place], changed))
    return table


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    model = undust.load("emoji", engine="torch")
    table = measure(model, asked.steps, range(1, asked.seeds + 1))
    print(
        "| the word is | layers | map | AUC of its map | of other words' | of another prompt's "
        "object | above other words' | rank correlation |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for (how, layers, kind), found in table.items():
        pairs = zip(found["object"], found["other words"], strict=True)
        above = statistics.mean(own > other for own, other in pairs)
        cells = [spread(found[name]) for name in ("object", "other words", "other prompt")]
        print(
            f"| {how} | {layers} | {kind} | {' | '.join(cells)} | {above:.0%} | "
            f"{spread(found['correlation'])} |"
        )
    print(f"\n{len(PROMPTS)} prompts, {asked.seeds} seeds each, {asked.steps} steps.")


if __name__ == "__main__":
    main()
