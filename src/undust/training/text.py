"""The text condition of a training run: captions, their tokenizer, and text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import Tokenizer
from undust.datasets.samples import captions_in
from undust.errors import UndustError
from undust.formats import tokenizer_files
from undust.networks.config import TextEncoderConfig
from undust.networks.text_encoder import TextEncoder
from undust.training.caption_encodings import CaptionEncodings
from undust.training.captions import (
    CaptionChoiceConfig,
    CaptionSampler,
    CaptionsConfig,
    check_captions,
    too_long,
)
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.data import Batch, Observe, RandomStream
from undust.training.sources import TrainingData

SHOWN = 60  # characters of the caption in the command that is shown at the end


class Captions:
    """Captions of samples, drawn at random.

    tokenizer: of the text encoder; finished: the text encoders, if none is trained; notes: for
    people, on the captions.
    """

    def __init__(
        self,
        config: CaptionChoiceConfig,
        data: TrainingData,
        tokenizer_of: Callable[[Sequence[str]], Tokenizer],
        *,
        finished: Sequence[TextConditioner] = (),
        prompts: Sequence[str] = (),
        required: bool = True,
    ) -> None:
        """tokenizer_of: gives the tokenizer for all texts; finished: encode each caption once.

        prompts: in place of the captions of the data, one is drawn for each sample. Raises
        UndustError if there are no captions and they are required.
        """
        captions = [captions_in(each, config.fields) for each in data.samples]
        self.notes: list[str] = []
        if prompts:
            config = CaptionChoiceConfig(fields=tuple(prompts), drop=config.drop)
            captions = [{prompt: prompt for prompt in prompts}] * len(captions)
        else:
            self.notes += check_captions(config, data.training_samples, required=required)
        self.config, self._sampler = config, CaptionSampler(config, captions)
        texts = self._sampler.all_texts(data.train)
        self.example = _first_words(next((text for text in texts if text.strip()), ""))
        self.tokenizer, self.finished = tokenizer_of(texts), finished
        self._encodings = CaptionEncodings(finished)
        self._possible = partial(self._sampler.possible, [*data.train, *data.held_out])
        if finished and data.encoded:
            self._encodings.read(data.encoded)
        self.notes += too_long(config, [captions[k] for k in data.train], self.tokenizer)

    def __call__(self, batch: Batch) -> list[str | None]:
        """A caption of each sample, or None for the unconditional input of guidance.

        (Ho & Salimans 2022, algorithm 1.)
        """
        chances = batch.uniform(RandomStream.CAPTION, self._sampler.num_chances).tolist()
        dropped = (batch.uniform(RandomStream.DROP)[:, 0] < self.config.drop).tolist()
        return [
            None if drop else self._sampler(sample, chance)
            for sample, chance, drop in zip(batch.sample, chances, dropped, strict=True)
        ]

    def encoded(self, prompts: Sequence[str | None]) -> tuple[Tensor, Tensor | None] | None:
        """The prompts by the finished text encoders; None if there are none."""
        return self._encodings(prompts) if self.finished else None

    def store(self, folder: Path, observe: Observe) -> int:
        """Writes the captions by the finished text encoders to a folder; their number.

        observe: called with the number of captions done and of all.
        """
        if not self.finished:
            return 0
        captions = self._possible()
        self.notes += self._encodings.write(folder, captions, observe)
        return len(captions)

    def first(self, sample: int) -> str:
        """One caption of a sample, always the same."""
        return self._sampler(sample, [0.0] * self._sampler.num_chances)


def learnt_tokenizer(
    config: CaptionsConfig, resumed: TrainingCheckpoint | None, out: Path, texts: Sequence[str]
) -> Tokenizer:
    """A tokenizer learnt from texts, or that of the run in `out` that is resumed.

    Raises UndustError if that is gone.
    """
    if resumed is None:
        return tokenizers.train(texts, config.vocabulary, config.length)
    if resumed.tokenizer:
        return resumed.tokenizer
    folder = out / "model" / "tokenizer"
    if not folder.is_dir():
        raise UndustError(
            f"the checkpoint of step {resumed.step} is of an earlier version, which kept the "
            f"tokenizer in {folder} alone, and that is gone: put it back"
        )
    return tokenizer_files.load(folder)


def new_text_encoder(
    config: TextEncoderConfig, tokenizer: Tokenizer, length: int
) -> TextConditioner:
    """A text encoder with random weights for captions of `length` tokens."""
    vocabulary = tokenizer.vocabulary
    ends = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": length,
        "bos_token_id": vocabulary[tokenizers.START],
        "eos_token_id": vocabulary[tokenizers.END],
        "pad_token_id": vocabulary[tokenizers.END],
    }
    return TextConditioner(tokenizer, TextEncoder(config.model_copy(update=ends)))


def _first_words(text: str) -> str:
    """A text that fits into a line."""
    return text if len(text) <= SHOWN else text[:SHOWN].rpartition(" ")[0] or text[:SHOWN]
