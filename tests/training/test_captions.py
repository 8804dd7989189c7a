"""How captions are worded: fields, lists and templates, each by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.conditioning import tokenizer as tokenizers
from undust.datasets.samples import Sample
from undust.diffusion.noise import uniform
from undust.errors import UndustError
from undust.training.captions import CaptionSampler, CaptionsConfig, check_captions, too_long
from undust.training.diffusion import DiffusionConfig


def said(captions: Mapping[str, str], count: int = 600, **table: object) -> Counter[str]:
    """How often each caption of one picture is said."""
    sampler = CaptionSampler(CaptionsConfig.model_validate(table), [captions])
    counters = torch.tensor([[k, 0, 0] for k in range(count)])
    chances: list[list[float]] = uniform(1, counters, (sampler.num_chances,)).tolist()
    return Counter(sampler(0, chance) for chance in chances)


def shares(counts: Counter[str], expected: Mapping[str, float]) -> bool:
    """Whether each is said as often as expected, within four standard deviations."""
    total = counts.total()
    return counts.keys() == expected.keys() and all(
        abs(counts[text] - share * total) <= 4 * (total * share * (1 - share)) ** 0.5
        for text, share in expected.items()
    )


CAPTIONS = {"text": "red heart", "text_ko": "빨간 하트", "text_tags": "love, red"}


def test_a_field_named_twice_is_said_twice_as_often():
    fields = ["text", "text", "text_ko", "text_de"]  # there is no German
    assert shares(said(CAPTIONS, fields=fields), {"red heart": 2 / 3, "빨간 하트": 1 / 3})


def test_a_template_goes_around_the_captions_of_its_field():
    counts = said(
        CAPTIONS, fields=["text", "text_ko"], templates={"text": ["{}", "{}", "a {}", "my {}!"]}
    )
    expected = {"red heart": 1 / 4, "a red heart": 1 / 8, "my red heart!": 1 / 8}
    assert shares(counts, {**expected, "빨간 하트": 1 / 2})


def test_of_a_list_some_words_are_said_in_any_order():
    """One word or both, and both in either order, each as often."""
    counts = said(CAPTIONS, fields=["text_tags"], lists=["text_tags"])
    assert shares(counts, {"love": 1 / 4, "red": 1 / 4, "love, red": 1 / 4, "red, love": 1 / 4})


def test_what_is_no_list_keeps_its_commas():
    assert said(CAPTIONS, fields=["text_tags"]) == {"love, red": 600}


@pytest.mark.parametrize("tags", [" , ,", ","])
def test_a_list_of_nothing_is_said_as_it_is(tags: str):
    assert said({"text": tags}, fields=["text"], lists=["text"]) == {tags: 600}


def test_a_picture_without_captions_is_called_nothing():
    assert said({}, fields=["text"], templates={"text": ["a {}"]}) == {"": 600}


def test_braces_in_a_caption_are_left_alone():
    counts = said({"text": "a {} and {0}"}, fields=["text"], templates={"text": ["the {}"]})
    assert counts == {"the a {} and {0}": 600}


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5))
def test_any_chance_says_something_of_the_list(chance: Sequence[float]):
    table = CaptionsConfig(fields=("text",), lists=("text",), templates={"text": ("a {}",)})
    sampler = CaptionSampler(table, [{"text": "x, y"}])
    assert sampler.num_chances == 5
    assert sampler(0, chance) in {"a x", "a y", "a x, y", "a y, x"}


def test_the_vocabulary_learns_from_all_that_can_be_said():
    table = CaptionsConfig(fields=("text", "text"), templates={"text": ("{}", "a {}")})
    every = CaptionSampler(table, [CAPTIONS, {}]).all_texts()
    assert " ".join(every).split() == ["red", "heart", "red", "heart", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("captions.templates.text=['a cat']", r"captions\.templates\.text\.0: has to have {} once"),
        ("captions.templates.text=['{} and {}']", r"captions\.templates\.text\.0: "),
        ("captions.templates.text_de=['{}']", "templates names 'text_de', which is not among"),
        ("captions.lists=['tags']", "lists names 'tags', which is not among the fields"),
    ],
)
def test_wordings_that_cannot_be(
    change: str, message: str, diffusion_recipe: Callable[[str], DiffusionConfig]
):
    with pytest.raises(UndustError, match=message):
        diffusion_recipe(change)


def sample(**captions: str) -> Sample:
    return Sample(Path("a.png"), captions, "a.png")


def test_captions_that_are_not_there_are_refused_with_the_columns_that_are():
    samples = [sample(caption="a", prompt="b"), sample(caption="c")]
    with pytest.raises(UndustError, match=r"in text; .* columns caption \(2\), prompt \(1\): name"):
        check_captions(CaptionsConfig(), samples)
    with pytest.raises(UndustError, match=r"in capton; did you mean caption\? the data has the"):
        check_captions(CaptionsConfig(fields=("capton",)), samples)
    assert check_captions(CaptionsConfig(fields=("caption",)), samples) == []
    assert len(check_captions(CaptionsConfig(), samples, required=False)) == 2  # a run that goes on
    with pytest.raises(UndustError, match=r"the data has no captions: put one beside each picture"):
        check_captions(CaptionsConfig(), [sample()])
    labelled = Sample(Path("a.png"), {}, "a.png", columns={"file_name": "a.png", "year": "1990"})
    with pytest.raises(UndustError, match="has no captions, and numbers alone in year: put one"):
        check_captions(CaptionsConfig(), [labelled])


def test_folders_of_classes_are_no_captions():
    samples = [Sample(Path(name), {}, name) for name in ("cat/0.png", "dog/0.png")]
    with pytest.raises(UndustError, match=r"reads the names of folders \(cat, dog, …\)"):
        check_captions(CaptionsConfig(), samples)


@pytest.mark.parametrize("table", [CaptionsConfig(fields=()), CaptionsConfig(drop=1.0)])
def test_a_model_without_captions_is_asked_for(table: CaptionsConfig):
    assert check_captions(table, [sample(), sample(caption="x")]) == []


def test_the_share_without_a_caption_and_a_misspelt_column_are_told():
    samples = [sample(text="a"), sample(), sample(text="b"), sample(text="c")]
    without, absent = (
        "1 of 4 pictures (25%) have no caption and are trained without one",
        "captions.fields: no picture has text_kr; the data has the columns text (3)",
    )
    assert check_captions(CaptionsConfig(), samples) == [without]
    assert check_captions(CaptionsConfig(fields=("text", "text_kr")), samples) == [absent, without]


def test_captions_that_are_too_long_are_counted():
    captions = ["a b c d e f", "a b", "a"]
    tokenizer = tokenizers.train(captions, 600, 6)
    samples = [{"text": caption} for caption in captions]
    (note,) = too_long(CaptionsConfig(length=6), samples, tokenizer)
    assert note.startswith("1 of 3 captions are cut to captions.length = 6 tokens")
    assert note.endswith("the longest has 8")  # six letters and the two ends
    assert too_long(CaptionsConfig(length=6), samples[1:], tokenizer) == []
