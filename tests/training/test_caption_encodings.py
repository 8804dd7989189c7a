"""Captions of finished text encoders are encoded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.variants import build

import undust
from undust.latent.conditioner import ConditionInputs
from undust.training import caption_encodings
from undust.training.caption_encodings import CaptionEncodings

CAPTIONS = ["a cat", None, "two (big) dogs", "a cat", ""]


@pytest.fixture(scope="module")
def model() -> undust.LatentDiffusion:
    return build("sdxl")


def test_they_are_what_the_text_encoders_say(model: undust.LatentDiffusion):
    """Both encoders of a tiny SDXL, states and pooled; no caption is zeros there, "" is not."""
    inputs = ConditionInputs(CAPTIONS, captions=True)
    encoded = CaptionEncodings(model.texts)(CAPTIONS)
    kept = ConditionInputs(CAPTIONS, captions=True, encoded=encoded)
    expected, found = model.conditioner(inputs), model.conditioner(kept)
    for name in ("text", "pooled"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        assert not getattr(found, name)[1].any()
        assert getattr(found, name)[4].any()


def test_each_is_encoded_once_and_alone(model: undust.LatentDiffusion):
    """To the same bits whatever the batch, the order, the precision and the memory."""
    calls: list[int] = []
    embeddings = model.texts[0].encoder.get_submodule("text_model.embeddings")
    hook = embeddings.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    encodings = CaptionEncodings(model.texts)
    first = encodings(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        later = CaptionEncodings(model.texts, memory=0)(CAPTIONS[::-1])
        again = encodings(CAPTIONS[::-1])
    hook.remove()
    assert calls == [1] * (3 + 5)
    for one, other, third in zip(first, later, again, strict=True):
        assert one is not None and other is not None and third is not None
        assert torch.equal(one, other.flip(0))
        assert torch.equal(other, third)


def test_files_of_more_captions_by_another_encoder_do_not_stay(
    model: undust.LatentDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(caption_encodings, "SHARD", 2)
    counts: list[tuple[int, int]] = []
    CaptionEncodings(model.texts[:1]).write(tmp_path, list("abcde"), lambda *_: None)
    CaptionEncodings(model.texts).write(tmp_path, ["a", "b"], lambda *done: counts.append(done))
    assert len([*tmp_path.iterdir()]) == 1
    assert counts == [(2, 2)]
    CaptionEncodings(model.texts).read(tmp_path)
