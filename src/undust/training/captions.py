"""How a picture's captions are worded: so that people's own words find what has only a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from undust.conditioning.tokenizer import Tokenizer
from undust.datasets.image_folder import Sample, columns
from undust.errors import UndustError, printable
from undust.training.configs import CaptionsConfig


class CaptionSampler:
    """Draws a caption anew each time a picture is used.

    By chance: one of the fields that the picture has; of a list some of its words, in any order;
    and one of the field's templates around them. A picture without captions has the empty one.
    """

    def __init__(self, table: CaptionsConfig, captions: Sequence[Mapping[str, str]]) -> None:
        self.templates = table.templates
        self.choices = [
            [
                (field, _words(has[field], field in table.lists))
                for field in table.fields
                if field in has
            ]
            for has in captions
        ]
        longest = max((len(words) for several in self.choices for _, words in several), default=0)
        self.chances = 3 + longest  # the field, the template, how many words, and their order

    def __call__(self, sample: int, chance: Sequence[float]) -> str:
        """The caption of one sample; `chance` holds `chances` numbers in (0, 1)."""
        choices = self.choices[sample]
        if not choices:
            return ""
        field, words = choices[int(chance[0] * len(choices))]
        templates = self.templates.get(field, ("{}",))
        template = templates[int(chance[1] * len(templates))]
        count = 1 + int(chance[2] * len(words))
        order = sorted(range(len(words)), key=chance[3:].__getitem__)
        return template.replace("{}", ", ".join(words[place] for place in order[:count]))

    def every(self) -> list[str]:
        """All that can be said, once: what a vocabulary is learnt from."""
        captions = [", ".join(words) for several in self.choices for _, words in several]
        templates = [
            text.replace("{}", "") for several in self.templates.values() for text in several
        ]
        return captions + templates


def check_captions(
    table: CaptionsConfig, samples: Sequence[Sample], *, required: bool = True
) -> list[str]:
    """A line for pictures without a caption, and for columns that none has.

    Raises UndustError if captions are required, the table asks for them, and no picture has one.
    """
    if not table.fields or table.drop == 1:
        return []
    known = columns(samples)
    there = ", ".join(f"{printable(name)} ({count})" for name, count in known.most_common(10))
    there = f"the data has the columns {there}" if there else "the data has no captions"
    absent = [name for name in dict.fromkeys(table.fields) if not known[name]]
    missing = sum(not set(table.fields) & sample.captions.keys() for sample in samples)
    if missing == len(samples) and required:
        put_in = (
            "name one of them in captions.fields"
            if known
            else ("put one beside each picture (cat.txt for cat.png) or into a metadata.jsonl")
        )
        folders = sorted({PurePosixPath(sample.group).parent.name for sample in samples} - {""})
        if not known and len(folders) > 1:
            put_in += (
                f"; names of folders ({', '.join(map(printable, folders[:3]))}, …) are not read"
            )
        raise UndustError(
            f"captions.fields: no picture has a caption in {', '.join(table.fields)}; {there}: "
            f"{put_in}. To train without captions: captions.fields = []"
        )
    notes: list[str] = []
    if absent:
        notes.append(f"captions.fields: no picture has {', '.join(absent)}; {there}")
    if missing:
        notes.append(
            f"{missing} of {len(samples)} pictures ({missing / len(samples):.0%}) have no caption "
            "and are trained without one"
        )
    return notes


def too_long(table: CaptionsConfig, samples: Sequence[Sample], tokenizer: Tokenizer) -> list[str]:
    """A line for captions that lose their ends, since they have more tokens than there is room."""
    counts = [
        len(tokenizer.pieces(sample.captions[name]))
        for sample in samples
        for name in dict.fromkeys(table.fields)
        if name in sample.captions and name not in table.lists
    ]
    cut = [count for count in counts if count > tokenizer.room]
    if not cut:
        return []
    return [
        f"{len(cut)} of {len(counts)} captions are cut to captions.length = {tokenizer.length} "
        f"tokens, the two ends included; the longest has {max(cut) + 2}"
    ]


def _words(caption: str, is_list: bool) -> list[str]:
    """The entries of a list; any other caption is one entry."""
    if not is_list:
        return [caption]
    return [word.strip() for word in caption.split(",") if word.strip()] or [caption]
