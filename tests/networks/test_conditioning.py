"""Conditions put together, cut apart, and mixed, with every field that they can have."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undust.diffusion.guidance import BlurredQueries, IdentityMap
from undust.diffusion.interpolation import slerp
from undust.errors import UndustError
from undust.networks.conditioning import CallOptions, Conditioning

FIELDS = ("text", "pooled", "size_ids", "label", "estimate", "extra_channels", "negative")


@dataclass(frozen=True)
class Below:
    """A control that has something to say up to a noise level."""

    level: float

    def acts(self, sigma: float) -> bool:
        return sigma <= self.level

    def __call__(self, *_: object) -> list[Tensor]:
        return []


def full(count: int, tokens: int = 3, seed: int = 0, **fields: Any) -> Conditioning:
    """A condition for `count` pictures with every field."""
    draw = torch.Generator().manual_seed(seed)
    return replace(
        Conditioning(
            count,
            torch.randn(count, tokens, 4, generator=draw),
            torch.randn(count, 5, generator=draw),
            torch.randint(0, 99, (count, 6), generator=draw),
            torch.randint(0, 99, (count,), generator=draw),
            torch.randn(count, 4, 3, 3, generator=draw),
            torch.randn(count, 2, 3, 3, generator=draw),
            torch.randint(0, 2, (count,), generator=draw) == 1,
        ),
        **fields,
    )


def same(a: Conditioning, b: Conditioning) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    alike = all(u is v if u is None or v is None else torch.equal(u, v) for u, v in pairs)
    return alike and len(a) == len(b)


@given(st.integers(1, 4), st.integers(1, 4), st.sets(st.sampled_from(FIELDS)))
def test_what_is_put_together_can_be_cut_apart(first: int, second: int, without: set[str]):
    absent = dict.fromkeys(without)
    a, b = full(first, seed=1, **absent), full(second, seed=2, **absent)
    together = a.concat(b)
    assert len(together) == first + second
    assert same(together[:first], a)
    assert same(together[first:], b)
    for name in FIELDS:
        tensor = getattr(together, name)
        assert (tensor is None) == (name in without)
        assert tensor is None or len(tensor) == first + second


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_only_one_has(name: str):
    for pair in ((full(1), full(1, **{name: None})), (full(1, **{name: None}), full(1))):
        with pytest.raises(
            UndustError, match=f"with and without {name} cannot share a network call"
        ):
            pair[0].concat(pair[1])


def test_a_field_of_another_number_of_entries():
    with pytest.raises(UndustError, match="label is for 3, not 2"):
        Conditioning(2, torch.randn(2, 3, 4), label=torch.zeros(3))
    assert len(Conditioning(3)) == 3
    assert len(Conditioning(3)[1:]) == 2


def test_options_of_several_branches():
    plain, weak = CallOptions((None, None), (Below(1.0),)), CallOptions((IdentityMap(),) * 2)
    with pytest.raises(UndustError, match="different controls"):
        plain.concat(weak)
    together = plain.concat(replace(weak, controls=(Below(1.0),)))
    assert together == CallOptions((None, None, IdentityMap(), IdentityMap()), (Below(1.0),))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_attention_does_not_see_that_texts_are_repeated(first: int, second: int, seed: int):
    """softmax(q·kᵀ)·v over keys that all stand there k times, in float64."""
    a, b = full(2, first, seed), full(1, second, seed + 1)
    together = a.concat(b)
    assert together.text.shape[1] == math.lcm(first, second)
    query = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(seed)).double()

    def attend(query: Tensor, text: Tensor) -> Tensor:
        text = text.double()
        return torch.softmax(query @ text.mT, -1) @ text

    both = attend(query, together.text)
    torch.testing.assert_close(both[:2], attend(query[:2], a.text))
    torch.testing.assert_close(both[2:], attend(query[2:], b.text))


def test_texts_of_one_length_stay_as_they_are_to_the_bit():
    a, b = full(2, 77), full(1, 77, seed=1)
    assert torch.equal(a.concat(b).text, torch.cat([a.text, b.text]))


@pytest.mark.parametrize(("sigma", "acting"), [([0.5, 0.9], 1), ([1.0, 1.0], 1), ([0.5, 1.1], 0)])
def test_controls_act_at_their_levels(sigma: list[float], acting: int):
    """The highest level of a batch decides."""
    options = CallOptions((BlurredQueries(2.0),), (Below(1.0),))
    at = options.at(torch.tensor(sigma))
    assert at.controls == (Below(1.0),) * acting
    assert at.perturbed == options.perturbed
    plain = CallOptions((None,))
    assert plain.at(torch.tensor(sigma)) is plain


def test_precision_and_place_of_each_field():
    """Sizes lose nothing: 1023 is no number of bfloat16."""
    half = full(2).to(torch.device("cpu"), torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in half.tensors().items()}
    expected = dict.fromkeys(("text", "pooled", "estimate", "extra_channels"), torch.bfloat16)
    numbers = {"size_ids": torch.int64, "label": torch.int64, "negative": torch.bool}
    assert kinds == expected | numbers


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_the_ends_of_a_way(part: float):
    a, b = full(2, seed=1), full(2, seed=2)
    there = a.toward(b, torch.full((2,), part))
    end = b if part else a
    assert end.pooled is not None and there.pooled is not None
    torch.testing.assert_close(there.text, end.text)
    torch.testing.assert_close(there.pooled, end.pooled)
    # What is no words is the first one's: both have the same size and the same controls.
    assert same(replace(there, text=a.text, pooled=a.pooled), a)


def test_each_token_goes_along_its_own_arc():
    a, b = full(2, 3, seed=1), full(2, 3, seed=2)
    part = torch.tensor([0.25, 0.7])
    there = a.toward(b, part)
    for picture in range(2):
        for token in range(3):
            pair = a.text[picture, token][None], b.text[picture, token][None]
            expected = slerp(*pair, part[picture].item())[0]
            torch.testing.assert_close(there.text[picture, token], expected)


def test_ways_between_texts_of_different_lengths():
    a, b = full(2, 2, seed=1), full(2, 3, seed=2)
    there = a.toward(b, torch.tensor([0.0, 1.0]))
    assert there.text.shape == (2, 6, 4)
    torch.testing.assert_close(there.text[0], a.text[0].repeat(3, 1))
    torch.testing.assert_close(there.text[1], b.text[1].repeat(2, 1))


def test_a_way_from_no_words_at_all():
    """Zeros, as Stable Diffusion XL has them for no prompt, are no direction: still finite."""
    nothing = Conditioning(3, torch.zeros(3, 2, 4))
    words = Conditioning(3, torch.randn(3, 2, 4))
    there = nothing.toward(words, torch.tensor([0.0, 0.5, 1.0])).text
    assert there.isfinite().all()
    assert torch.equal(there[0], nothing.text[0])
    torch.testing.assert_close(there[2], words.text[2])
