"""The captions that images are trained with: drawn at random from fields, lists and templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from undust.conditioning.tokenizer import Tokenizer
from undust.datasets.metadata import NO_CAPTIONS
from undust.datasets.samples import captions_in
from undust.errors import UndustError, printable
from undust.training.configs import Config
from undust.training.sources import DataSample


def _one_placeholder(template: str) -> str:
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise ValueError("has to have {} once, where the caption goes, and no other brace")
    return template


Template = Annotated[str, AfterValidator(_one_placeholder)]
"""Text around one {}."""


class CaptionChoiceConfig(Config):
    """The captions to train with."""

    fields: tuple[str, ...] = Field(
        default=("text",),
        description="caption columns, or folder for the name of the picture's folder; one that the "
        "picture has is drawn for each sample; a column named twice is drawn twice as often; []: "
        "train without captions",
    )
    lists: tuple[str, ...] = Field(
        default=(),
        description="columns that are lists separated by commas: some entries, in random order",
    )
    templates: dict[str, tuple[Template, ...]] = Field(
        default={},
        description="templates for a column, such as 'a picture of {}'; one is drawn each time",
    )
    drop: float = Field(
        default=0.1, ge=0, le=1, description="share of samples trained without a caption"
    )

    @model_validator(mode="after")
    def _of_these_fields(self) -> Self:
        for key, named in (("lists", self.lists), ("templates", self.templates)):
            for field in named:
                if field not in self.fields:
                    raise ValueError(f"{key} names {field!r}, which is not among the fields")
        return self


class CaptionsConfig(CaptionChoiceConfig):
    """The captions to train with, and the tokenizer that is learnt from them."""

    vocabulary: int = Field(
        default=4096, ge=600, le=2**20, description="size of the byte-pair vocabulary"
    )
    length: int = Field(
        default=32, ge=4, le=2**16, description="tokens per caption, start and end included"
    )


class CaptionSampler:
    """Draws a caption each time that an image is used.

    At random: one of the fields that the image has; of a list some entries, in any order; and one
    of the field's templates. An image without captions has the empty one.
    """

    def __init__(self, config: CaptionChoiceConfig, captions: Sequence[Mapping[str, str]]) -> None:
        """captions: of each sample, by field."""
        self.templates = config.templates
        self.choices = [
            [
                (field, _entries(has[field], field in config.lists))
                for field in config.fields
                if field in has
            ]
            for has in captions
        ]
        longest = max((len(entries) for fields in self.choices for _, entries in fields), default=0)
        # Random numbers for one caption: the field, the template, how many entries, their order.
        self.num_chances = 3 + longest

    def __call__(self, sample: int, chances: Sequence[float]) -> str:
        """The caption of one sample; chances: `num_chances` numbers in (0, 1)."""
        choices = self.choices[sample]
        if not choices:
            return ""
        field, entries = choices[int(chances[0] * len(choices))]
        templates = self.templates.get(field, ("{}",))
        template = templates[int(chances[1] * len(templates))]
        count = 1 + int(chances[2] * len(entries))
        order = sorted(range(len(entries)), key=chances[3:].__getitem__)
        return template.replace("{}", ", ".join(entries[place] for place in order[:count]))

    def possible(self, samples: Sequence[int]) -> list[str]:
        """Every caption that can be drawn for these samples, but for parts of lists; sorted."""
        found = {""}
        for sample in samples:
            for field, entries in self.choices[sample]:
                if len(entries) == 1:
                    templates = self.templates.get(field, ("{}",))
                    found |= {template.replace("{}", entries[0]) for template in templates}
        return sorted(found)

    def all_texts(self, samples: Sequence[int] | None = None) -> list[str]:
        """Every caption of these samples or of all, and every template, to learn a vocabulary."""
        choices = self.choices if samples is None else [self.choices[k] for k in samples]
        captions = [", ".join(entries) for fields in choices for _, entries in fields]
        templates = [text.replace("{}", "") for texts in self.templates.values() for text in texts]
        return captions + templates


def check_captions(
    config: CaptionChoiceConfig,
    samples: Sequence[DataSample],
    *,
    required: bool = True,
    hint: str = "; undust data check shows what is there",
) -> list[str]:
    """Notes on images without a caption, and on fields that no image has.

    hint: to put after the places for captions if there are none.
    Raises UndustError if captions are required, the configuration uses them, and there are none.
    """
    if not config.fields or config.drop == 1:
        return []
    known = Counter(name for sample in samples for name in sample.captions)
    columns = ", ".join(f"{printable(name)} ({count})" for name, count in known.most_common(10))
    columns = f"the data has the columns {columns}" if columns else "the data has no captions"
    if not known:
        named = dict.fromkeys(name for sample in samples for name in sample.columns)
        numbers = [printable(name) for name in named if name not in NO_CAPTIONS]
        columns += f", and numbers alone in {', '.join(numbers[:10])}" if numbers else ""
    own = [captions_in(sample, config.fields) for sample in samples]
    absent = [name for name in dict.fromkeys(config.fields) if not any(name in has for has in own)]
    others = [name for name in known if name not in config.fields]
    near = dict.fromkeys(match for name in absent for match in get_close_matches(name, others, n=1))
    guess = f"; did you mean {' and '.join(map(printable, near))}?" if near else ";"
    missing = sum(not has for has in own)
    if missing == len(samples) and required:
        remedy = (
            "name one of them in captions.fields"
            if known
            else f"put one beside each picture (cat.txt for cat.png) or into a metadata.jsonl{hint}"
        )
        inside = (PurePosixPath(sample.group) for sample in samples if sample.column("folder"))
        folders = sorted({name.parent.name for name in inside} - {""})
        if not known and len(folders) > 1:
            names = ", ".join(map(printable, folders[:3]))
            remedy += (
                f'; captions.fields = ["folder"] reads the names of folders ({names}, …), and a '
                "new model takes them as classes with a table [labels]"
            )
        if not isinstance(config, CaptionsConfig):  # of a model that exists
            remedy += "; prompt = '…' is one for all pictures"
        raise UndustError(
            f"captions.fields: no picture has a caption in {', '.join(config.fields)}{guess} "
            f"{columns}: {remedy}. To train without captions: captions.fields = []"
        )
    notes: list[str] = []
    if absent:
        notes.append(f"captions.fields: no picture has {', '.join(absent)}{guess} {columns}")
    if missing:
        notes.append(
            f"{missing} of {len(samples)} pictures ({missing / len(samples):.0%}) have no caption "
            "and are trained without one"
        )
    return notes


def too_long(
    config: CaptionChoiceConfig, captions: Sequence[Mapping[str, str]], tokenizer: Tokenizer
) -> list[str]:
    """A note on captions that are cut because they have too many tokens, or none.

    captions: of each sample, by field.
    """
    counts = [
        len(tokenizer.pieces(own[name]))
        for own in captions
        for name in dict.fromkeys(config.fields)
        if name in own and name not in config.lists
    ]
    cut = [count for count in counts if count > tokenizer.room]
    if not cut:
        return []
    key = "captions.length = " if isinstance(config, CaptionsConfig) else ""
    return [
        f"{len(cut)} of {len(counts)} captions are cut to {key}{tokenizer.length} tokens, start "
        f"and end included; the longest has {max(cut) + 2}"
    ]


def _entries(caption: str, is_list: bool) -> list[str]:
    """The entries of a list; any other caption is one entry."""
    if not is_list:
        return [caption]
    return [word.strip() for word in caption.split(",") if word.strip()] or [caption]
