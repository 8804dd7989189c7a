"""How a picture's captions are worded: so that people's own words find what has only a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from undust.training.recipes import Captions


class Wording:
    """Words a caption anew each time that its picture is shown.

    By chance: one of the fields that the picture has; of a list some of its words, in any order;
    and one of the field's templates around them. A picture without captions has the empty one.
    """

    def __init__(self, table: Captions, captions: Sequence[Mapping[str, str]]) -> None:
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


def _words(caption: str, is_list: bool) -> list[str]:
    """The entries of a list; any other caption is one entry."""
    if not is_list:
        return [caption]
    return [word.strip() for word in caption.split(",") if word.strip()] or [caption]
