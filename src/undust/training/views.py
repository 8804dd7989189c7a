"""Views: the parts of pictures that samples are made of, their sizes, and their mirror images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from undust.errors import UndustError
from undust.recipe.inputs import SizeConditioning
from undust.training.buckets import BucketRule, Size, nearest
from undust.training.configs import DataConfig
from undust.training.data import Batch, RandomStream

CENTRE = 0.5
MAX_SIDE = 2**14  # of `SizeConditioning`


class View(NamedTuple):
    """A picture that is resized to cover a size and cropped to it.

    sample: index into the data source; size: width and height, pixels; place: of the crop along the
    side that is too long, from 0, left or top, to 1; flip: mirrored, left to right.
    """

    sample: int
    size: Size
    place: float = CENTRE
    flip: bool = False

    def smaller(self, factor: int) -> View:
        """The same part of the picture at a size that is divided by a factor."""
        return self._replace(size=(self.size[0] // factor, self.size[1] // factor))

    def framing(self, original: Size) -> SizeConditioning:
        """Sizes and crop as SDXL is told them (Podell et al. 2023, section 2.2).

        original: size of the picture. The corner of the crop is in pixels of the resized picture,
        mirrored if the view is.
        """
        left, top = _room(original, self.size)
        place = 1 - self.place if self.flip else self.place
        crop = round(left * place), round(top * self.place)
        width, height = (min(side, MAX_SIDE) for side in original)
        return SizeConditioning(original=(width, height), crop=crop, target=self.size)


class Views:
    """The views of a run's pictures, and the one of each draw.

    Held-out pictures have one view, the middle, so that validation losses can be compared.
    notes: for people, on buckets.
    """

    def __init__(
        self, config: DataConfig, original: Callable[[int], Size], held_out: Iterable[int]
    ) -> None:
        """original: width and height of a sample's picture; held_out: samples."""
        self._config, self._held_out = config, frozenset(held_out)
        self.original = cache(original)
        self.square = config.size, config.size
        self.sizes: dict[int, Size] = {}
        """With buckets: of each sample."""
        self.notes: list[str] = []

    def fill(self, train: Sequence[int], rule: BucketRule | None) -> None:
        """Puts the samples trained on and those held out into buckets.

        Raises UndustError if there are none, and without a rule.
        """
        if rule is None:
            raise UndustError(
                "data.buckets: a first stage is trained on squares, such as random crops "
                "(data.crop); leave it out"
            )
        buckets = rule.sizes(self._config.size, self._config.max_ratio)
        enlarged = beyond = 0
        used = [*train, *self._held_out]
        for sample in used:
            width, height = self.original(sample)
            own = self.sizes[sample] = nearest((width, height), buckets)
            enlarged += own[0] > width or own[1] > height
            beyond += max(width, height) > self._config.max_ratio * min(width, height)
        counts = Counter(self.sizes[sample] for sample in train)
        listed = ", ".join(f"{w}x{h} ({n})" for (w, h), n in counts.most_common())
        self.notes.append(f"buckets: {listed}")
        if enlarged:
            self.notes.append(
                f"smaller than their bucket and enlarged: {enlarged} of {len(used)} pictures"
            )
        if beyond:
            ratio = self._config.max_ratio
            self.notes.append(
                f"longer than data.max_ratio = {ratio:g} and cropped to it: {beyond} of "
                f"{len(used)} pictures"
            )

    def central(self, sample: int) -> View:
        """The middle of a picture, at the size that it is trained at."""
        return View(sample, self.sizes.get(sample, self.square))

    def of(self, sample: int) -> list[View]:
        """All views of a picture."""
        centre = self.central(sample)
        if sample in self._held_out:
            return [centre]
        views, count = [centre], self._config.crops
        if count > 1 and (room := max(_room(self.original(sample), centre.size))):
            places = {round(room * k / (count - 1)): k / (count - 1) for k in range(count)}
            views = [centre._replace(place=place) for place in places.values()]
        if self._config.flip:
            views += [view._replace(flip=True) for view in views]
        return views

    def drawn(self, batch: Batch) -> list[View]:
        """The view of each sample of a batch; all are of one size."""
        if not self._config.flip and self._config.crops == 1:
            return [self.central(sample) for sample in batch.sample]
        chances = batch.uniform(RandomStream.VIEW)[:, 0].tolist()
        every = [self.of(sample) for sample in batch.sample]
        return [
            views[int(chance * len(views))] for views, chance in zip(every, chances, strict=True)
        ]

    def inputs(self, batch: Batch, *, framing: bool = False) -> dict[str, Sequence[Any]]:
        """Fields of `ConditionInputs`: the size of the batch's pictures.

        framing: also the sizes of the originals and the crops, for a network that takes size ids.
        """
        views = self.drawn(batch)
        width, height = zip(*(view.size for view in views), strict=True)
        fields: dict[str, Sequence[Any]] = {"width": width, "height": height}
        if framing:
            fields["framing"] = [view.framing(self.original(view.sample)) for view in views]
        return fields


def _room(original: Size, size: Size) -> Size:
    """Pixels that a picture, resized to cover a size, is wider and higher than it."""
    scale = max(own / given for own, given in zip(size, original, strict=True))
    width, height = (round(scale * given) - own for own, given in zip(size, original, strict=True))
    return width, height
