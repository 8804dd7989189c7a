"""Prompts, sizes and further inputs to a conditioning: one embedder for each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import undust
from undust.latent.conditioner import Conditioner, ConditionInputs, SizeEmbedder, TextEmbedder
from undust.recipe.inputs import SizeConditioning

SIZES = {"width": [512], "height": [256]}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> undust.LatentDiffusion:
    return undust.load(tiny_model)


def test_a_model_has_the_embedders_that_its_denoiser_takes(model: undust.LatentDiffusion):
    assert [type(each) for each in model.conditioner.embedders] == [TextEmbedder]
    assert model.conditioner.inputs == ("clip_skip",)
    cond = model.conditioner(ConditionInputs(["a cat", None]))
    assert cond.tensors().keys() == {"text"}
    assert torch.equal(cond.text, model.condition(["a cat", None]).text)


def test_without_embedders_there_is_a_batch_and_nothing_else(model: undust.LatentDiffusion):
    bare = Conditioner(model)
    bare.embedders = ()
    cond = bare(ConditionInputs([None] * 3))
    assert (len(cond), cond.tensors()) == (3, {})


def test_captions_have_no_syntax(model: undust.LatentDiffusion):
    text = "a (big:1.5) cat"
    plain = model.conditioner(ConditionInputs([text], captions=True)).text
    escaped = model.conditioner(ConditionInputs([r"a \(big:1.5\) cat"])).text
    weighted = model.conditioner(ConditionInputs([text])).text
    assert torch.equal(plain, escaped)
    assert not torch.equal(plain, weighted)


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_the_negative_prompt_of_a_batch_is_encoded_once(
    model: undust.LatentDiffusion, negative: str | None
):
    sizes: list[int] = []
    encoder = model.texts[0].encoder
    read = type(encoder).read

    def counted(ids: torch.Tensor, **options: object) -> object:
        sizes.append(len(ids))
        return read(encoder, ids, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(encoder), "read", lambda _, ids, **options: counted(ids, **options))
        found = model.conditioner(ConditionInputs([negative] * 3, negative=True)).text
        assert sizes == [1]
        both = model.conditioner(ConditionInputs([negative, "a cat"], negative=True)).text
        assert sizes == [1, 2]
    assert found is not None and both is not None and found.shape[0] == 3
    expected = model.condition([negative]).text
    assert all(torch.equal(row, expected[0]) for row in found)
    assert torch.allclose(both[0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("framing", "ids"),
    [
        (None, [256, 512, 0, 0, 256, 512]),
        ("original=100x50,crop=3x7", [50, 100, 7, 3, 256, 512]),
        ("target=64x32", [256, 512, 0, 0, 32, 64]),
    ],
)
def test_size_ids_are_heights_before_widths(framing: str | None, ids: list[int]):
    """Podell et al. 2023, section 2.2: original size, crop, target size."""
    told = framing and SizeConditioning.read(framing)
    inputs = ConditionInputs(["a"], {**SIZES, "framing": [told]})
    assert SizeEmbedder(6, (1024, 1024))(inputs).size_ids.tolist() == [ids]  # type: ignore[union-attr]


@pytest.mark.parametrize(("negative", "score"), [(False, 6.0), (True, 2.5)])
def test_the_refiner_takes_an_aesthetic_score(negative: bool, score: float):
    inputs = ConditionInputs(["a"], SIZES, negative=negative)
    ids = SizeEmbedder(5, (1024, 1024))(inputs).size_ids
    assert ids is not None and ids.tolist() == [[256, 512, 0, 0, score]]


def test_without_a_size_it_is_that_of_training():
    ids = SizeEmbedder(6, (1024, 768))(ConditionInputs(["a", "b"])).size_ids
    assert ids is not None and ids.tolist() == [[768, 1024, 0, 0, 768, 1024]] * 2
