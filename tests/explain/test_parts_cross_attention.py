"""Cross-attention as a part: words taken away in each way, against the same done by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.conditioning.text import PromptWord
from undust.errors import UndustError
from undust.explain.parts import PARTS
from undust.explain.parts import cross_attention as part
from undust.explain.texts import Language
from undust.pipeline import LatentDiffusion


@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
def test_it_runs(
    model: Callable[[], LatentDiffusion], language: Language, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part, "OBJECTS", part.OBJECTS[:2])
    monkeypatch.setattr(part, "WORDS", 1)
    found = PARTS["cross-attention"](setup(model(), language))
    assert len(found.figures) == 4
    beside = {"cross_attention_or_beside"} if model is emoji else set[str]()
    expected = {"map_of_another_word", "word_masked", "error_without_word", *beside}
    assert {each.name for each in found.effects} == expected


def test_a_model_without_text():
    without: Any = SimpleNamespace(texts=())
    with pytest.raises(UndustError, match="takes no text"):
        part.show(replace(setup(tiny()), model=without))


def test_ways_into_a_network_with_cross_attention_alone():
    own = setup(tiny())
    last = [part.words_of(own, prompt)[-1:] for prompt in own.prompts]
    ways = part.ways(own, last)
    assert ways.keys() == {"last_masked", "last_removed", "all_masked", "none_read", "none"}
    assert torch.allclose(ways["none_read"], ways["none"], atol=1e-4)
    expected = own.sample(prompts=["smiling face with", "red"]).pictures
    assert torch.equal(ways["last_removed"], expected)
    assert not torch.allclose(ways["none"], own.baseline.pictures, atol=1e-4)


def test_only_entries_for_the_prompts_are_changed():
    own = setup(emoji())
    negative = own.model.condition([None, "red heart"])
    assert negative.text is not None
    for text, expected in (
        ("red heart", [False, True]),
        ("smiling face with sunglasses", [False, False]),
    ):
        states = own.model.condition([text]).text
        assert states is not None
        found = part._for_text(negative.text.repeat(1, 2, 1), states[0])
        assert found.tolist() == expected


def test_both_ways_together_are_another_prompt():
    """Read in cross-attention and told beside the time step, a prompt is the only one."""
    own = setup(emoji())
    rests = ["bird", "house"]
    swapped = part._swapping(own, rests)
    given = own.model.condition([*own.prompts, None])
    expected = own.model.condition([*rests, None])
    found = swapped(given)
    assert found.text is not None
    assert expected.text is not None
    assert torch.allclose(found.text, expected.text, atol=1e-5)
    x, sigma = own.latents[:2], own.latents.std().item()
    apart = [
        own.estimate(x, sigma, change(own, rests), own.prompts)
        for change in (part._reading, part._telling)
    ]
    whole = own.estimate(x, sigma, None, own.prompts)
    other = own.estimate(x, sigma, None, rests)
    for each in apart:
        assert not torch.allclose(each, whole, atol=1e-3)
        assert not torch.allclose(each, other, atol=1e-3)
    same = own.estimate(x, sigma, part._reading(own, own.prompts), own.prompts)
    assert torch.allclose(same, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "number", "expected"),
    [
        ("smiling face with sunglasses", -1, "smiling face with"),
        ("a cat, a dog", 2, "a cat, dog"),
        ("a cat, a dog", 1, "a , a dog"),
        ("bird", 0, ""),
        ("", -1, ""),
    ],
)
def test_without_word(prompt: str, number: int, expected: str):
    words = emoji().texts[0].prompt_words(prompt)
    assert part.without_word(prompt, words, number) == expected


def test_a_word_that_is_spelt_otherwise():
    words = [PromptWord("a", (1,)), PromptWord("(b)", (2,))]
    assert part.without_word(r"a \(b\)", words, 0) == r"\(b\)"
    assert part.without_word(r"a \(b\)", words, 1) == "a"


def test_padding():
    own = setup(emoji())
    length = own.model.conditioner.token_count("bird")
    places = part.padding(own, "smiling face with sunglasses")
    assert places == [length - 1, length - 2]  # two tokens, as the last word has


def test_changes():
    own = setup(emoji())
    pictures = own.baseline.pictures + torch.tensor([0.5, 0.0])[:, None, None, None]
    assert part.changes(own, pictures) == pytest.approx([0.5, 0], abs=1e-6)
