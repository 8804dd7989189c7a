"""Textual inversion: a new word for a model whose weights stay as they are (Gal et al. 2022)."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from torch import Tensor, nn

from undust.conditioning.prompt import escape
from undust.conditioning.text import TextConditioner
from undust.errors import UndustError
from undust.formats import textual_inversion
from undust.formats.files import atomic_folder
from undust.formats.textual_inversion import MAX_VECTORS
from undust.training.captions import CaptionChoiceConfig, Template
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.data import Observe
from undust.training.existing import ExistingModelConfig, ExistingModelTask

FILE = "learned_embeds.safetensors"  # that diffusers' load_textual_inversion finds in a folder
NO_CAPTIONS = CaptionChoiceConfig(drop=0)  # a sample without the word has nothing to train


def _without_syntax(word: str) -> str:
    """Without characters of the prompt's syntax and of the command line's."""
    if not re.fullmatch(r"[\w<>*+.-]+", word):
        raise ValueError("has to be one word of letters, digits and < > * + . - _")
    return word


Word = Annotated[str, StringConstraints(max_length=64), AfterValidator(_without_syntax)]


class TextualInversionConfig(ExistingModelConfig):
    """Trains the vectors of a new word of a model that exists, and nothing else."""

    kind: Literal["textual-inversion"] = Field(description="what is trained")
    word: Word = Field(description="the new word, such as <cup>")
    initial: str = Field(
        min_length=1, description="words that the model knows, from whose vectors it starts"
    )
    vectors: int | None = Field(
        default=None,
        ge=1,
        le=MAX_VECTORS,
        description="number of vectors of the word; left out: that of `initial`",
    )
    templates: tuple[Template, ...] = Field(
        default=("{}", "a {}", "the {}", "a picture of a {}", "a photo of a {}"),
        min_length=1,
        description="prompts with {} for the word; one is drawn for each sample",
    )
    captions: CaptionChoiceConfig = NO_CAPTIONS

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> TextualInversionTask:
        """The training of the word."""
        return TextualInversionTask(self, out, resumed, observe)

    @model_validator(mode="after")
    def _by_templates(self) -> Self:
        given = {"prompt": self.prompt, "prior": self.prior}
        if self.captions != NO_CAPTIONS:
            given["captions"] = "given"
        if name := next((name for name, value in given.items() if value), None):
            raise ValueError(f"{name}: leave it out; the prompts of the pictures are templates")
        return self


class NewWord(nn.Module):
    """The vectors [n, D] of a word for one text encoder, at first those of other words."""

    def __init__(self, text: TextConditioner, config: TextualInversionConfig) -> None:
        """Raises UndustError for a word that the model knows, and for too few tokens or vectors."""
        super().__init__()
        tokens = [number for word in text.tokenizer.words(config.initial) for number in word]
        count = config.vectors or len(tokens)
        if not tokens:
            raise UndustError(f"initial: {config.initial!r} has no word")
        if count < len(tokens):
            raise UndustError(
                f"vectors: {config.word} has {count}, and initial has {len(tokens)} tokens; it has "
                "to have at least as many, or initial has to be shorter"
            )
        known = text.tokenizer.pieces(config.word)
        if len(known) == 1:
            raise UndustError(
                f"word: {config.word} is a word of the model; another would be <{config.word}>"
            )
        table = text.encoder.get_parameter("text_model.embeddings.token_embedding.weight")
        chosen = [tokens[place % len(tokens)] for place in range(count)]
        self.embedding = nn.Parameter(table.detach()[chosen].clone())


class TextualInversionTask(ExistingModelTask):
    """The vectors of one word are trained, for each text encoder of the model."""

    def __init__(
        self,
        config: TextualInversionConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. Raises UndustError as `NewWord`."""
        model = config.loaded()
        if not model.texts:
            raise UndustError(f"model: {config.model} takes no text, so it cannot learn a word")
        words = {text.name: NewWord(text, config) for text in model.texts}
        self._vectors: dict[str, Tensor] = {name: own.embedding for name, own in words.items()}
        texts = tuple(
            replace(text, embeddings={config.word: self._vectors[text.name]})
            for text in model.texts
        )
        self._word, self._initial = config.word, config.initial
        super().__init__(
            config,
            out,
            resumed,
            observe,
            model=replace(model, texts=texts),
            modules=words,
            text_is_finished=False,
            prompts=[template.replace("{}", config.word) for template in config.templates],
        )

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes the word's vectors as a file in a folder."""
        about = {
            "word": self._word,
            "initial": self._initial,
            "base_model": str(self.config.model),
            "base_model_hash": self.model.hash,
        }
        vectors = {name: own.detach().cpu() for name, own in self._vectors.items()}
        with atomic_folder(folder, replace=True) as building:
            metadata = {"undust": json.dumps(about)}
            textual_inversion.save(building / FILE, self._word, vectors, metadata)

    def next_steps(self, model: Path, data: Path) -> str:  # noqa: ARG002
        """A command that generates an image with the word."""
        command = ["undust", "generate", f"a {escape(self._word)}", "--model"]
        command += [str(self.config.model), "--embedding", f"{model / FILE}={self._word}"]
        several = len(self.model.texts) > 1
        how = "" if several else f"; diffusers: load_textual_inversion({str(model)!r})"
        return f"generate with it: {shlex.join(command)}{how}"
