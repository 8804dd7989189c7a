"""Figures of generated pictures: caption recall, CLIP score, and distances to real pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undust.conditioning.prompt import escape
from undust.diffusion.noise import uniform
from undust.errors import UndustError
from undust.evaluation.figure import Figure, with_features
from undust.evaluation.networks import ClipScore, FeatureSet, FigureNetworks, set_figures
from undust.evaluation.pictures import PictureSet, in_unit_range
from undust.evaluation.recall import ReferenceSet
from undust.evaluation.sampling import Observe, SampledPictures, ignore
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe


@dataclass(frozen=True)
class PictureQuery:
    """A picture to generate.

    caption: "" without one; kind, column: of the captions, for caption recall, both "" without;
    picture: the index of the real one that it belongs to; options: of the request, such as a label.
    """

    caption: str
    kind: str = ""
    column: str = ""
    picture: int = 0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


class GeneratedFigures:
    """Figures of a model's pictures for some queries, against real pictures.

    queries: one for each picture; its seed is `seed` plus its place; template: put around each
    caption; recall: whether caption recall is measured; sets: whether distances of sets are, with
    the network for them; options: of all requests, such as steps. What depends on the real pictures
    alone is computed once, for several models or steps of a training.
    """

    def __init__(
        self,
        real: PictureSet,
        queries: Sequence[PictureQuery],
        networks: FigureNetworks | None = None,
        *,
        seed: int = 0,
        template: str = "{}",
        recall: bool = True,
        sets: bool = True,
        options: Mapping[str, Any] | None = None,
        observe_real: Observe = ignore,
    ) -> None:
        """observe_real: called with numbers of real pictures. UndustError for a bad template."""
        if "{}" not in template:
            raise UndustError(f"template: {template!r} has no {{}} for the caption")
        self.real, self.queries, self.networks = real, list(queries), networks or FigureNetworks()
        self.seed, self.template, self.options = seed, template, dict(options or {})
        self.recall = recall and any(query.kind for query in queries)
        self.features = self.networks.features if sets else None
        self._observe_real = observe_real

    @property
    def measured(self) -> bool:
        """Whether there is any figure, given the networks."""
        return self.recall or self.features is not None or self._clip is not None

    @property
    def _clip(self) -> ClipScore | None:
        """The CLIP score's network, if there are captions."""
        return self.networks.clip if any(query.caption for query in self.queries) else None

    def recipes(self, model: LatentDiffusion) -> list[Recipe]:
        """The recipe of each query's picture."""
        return [
            recipe
            for place, query in enumerate(self.queries)
            for recipe in model.recipes(
                self.template.replace("{}", escape(query.caption)) if model.texts else "",
                seed=self.seed + place,
                **self.options,
                **query.options,
            )
        ]

    def sampled(self, model: LatentDiffusion, folder: Path | None = None) -> SampledPictures:
        """The pictures, sampled when they are asked for."""
        return SampledPictures(model, self.recipes(model), folder)

    def __call__(
        self, model: LatentDiffusion, folder: Path | None = None, observe: Observe = ignore
    ) -> list[Figure]:
        """The figures of a model; folder: where the pictures are kept; observe: counts steps."""
        return self.measure(self.sampled(model, folder), observe)

    @torch.inference_mode()
    def measure(self, sampled: SampledPictures, observe: Observe = ignore) -> list[Figure]:
        """The figures of sampled pictures, from `sampled`; they are not sampled for no figure."""
        if not self.measured:
            observe(sampled.steps, sampled.steps)
            return []
        ranks: list[int] = []
        scores: list[Tensor] = []
        features = self.features and FeatureSet(self.features, classes=self.features.classifies)
        clip = self._clip
        for places, x in sampled.pictures(observe):
            queries = [self.queries[place] for place in places]
            if self.recall:
                ranks += self.reference.ranks(x, [query.picture for query in queries])
            if features:
                features.add(x)
            if clip:
                scores.append(clip(x, [query.caption for query in queries]))
        found: list[Figure] = []
        if self.recall:
            found += self._recall_figures(ranks)
        if features:
            found += set_figures(self._real_features, features, self.real, self.seed)
        if clip:
            values = torch.cat(scores).double()
            error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
            fields = with_features("CLIP score", clip.vision)
            kind = {"of": "generated pictures and their captions"}
            found.append(self._figure(float(values.mean()), len(values), error, **fields, **kind))
        return found

    @cached_property
    def reference(self) -> ReferenceSet:
        """The distinct real pictures, for recall."""
        return ReferenceSet(self.real)

    @cached_property
    def _real_features(self) -> FeatureSet:
        if self.features is None:
            raise ValueError("no network for features")
        features, done = FeatureSet(self.features), 0
        for batch in self.real.batches():
            features.add(in_unit_range(batch))
            done += len(batch)
            self._observe_real(done, len(self.real))
        return features

    def _recall_figures(self, ranks: Sequence[int]) -> list[Figure]:
        """By kind of caption, and by column for kinds with several columns."""
        groups: dict[str, dict[str, list[int]]] = {}
        for query, rank in zip(self.queries, ranks, strict=True):
            if query.kind:
                groups.setdefault(query.kind, {}).setdefault(query.column, []).append(rank)
        found: list[Figure] = []
        for kind, columns in groups.items():
            parts = {kind: [rank for own in columns.values() for rank in own]}
            if len(columns) > 1:
                parts |= {f"{kind}, {column}": own for column, own in columns.items()}
            for name, own in parts.items():
                for quantity, limit in (("right picture nearest", 1), ("among the nearest 5", 5)):
                    share = sum(rank < limit for rank in own) / len(own)
                    about: dict[str, Any] = {
                        "quantity": f"{name}: {quantity}",
                        "of": "captions",
                        "unit": "%",
                        "references": len(self.reference),
                        "among": f"distinct {self.real.of}",
                    }
                    found.append(self._figure(share, len(own), **about))
        return found

    def _figure(
        self, value: float, count: int, error: float | None = None, **fields: Any
    ) -> Figure:
        own = {"value": value, "count": count, "error": error}
        return Figure.model_validate({**own, "size": self.real.size, "seed": self.seed, **fields})


def queries_of(
    count: int, total: int, seed: int, ask: Callable[[int], PictureQuery]
) -> list[PictureQuery]:
    """Queries for `count` pictures: those of all real ones in a random order, again and again.

    total: of real pictures; ask: the query of the real picture at an index. The first n do not
    depend on the count.
    """
    places: list[int] = []
    while len(places) < count:
        drawn = uniform(seed, (1, len(places) // total, 0), (total,))
        places += drawn.argsort().tolist()
    return [ask(place) for place in places[:count]]
