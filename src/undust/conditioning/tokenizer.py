"""Prompts to token numbers: CLIP's byte-pair encoding (Radford et al. 2021), in any language.

Text is lower-cased, split into words, written as bytes and merged pair by pair; the last piece of
a word ends in "</w>". The vocabulary is a file pair that CLIPTokenizer of transformers reads too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count, takewhile

import torch
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from undust.errors import UndustError, printable

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
HALF = re.compile("[\ud800-\udfff]")  # a surrogate of UTF-16 alone, which no other encoding has
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its merges, in order; every prompt becomes `length` tokens.

    vocabulary: piece → number, with the two ends; merges: pairs, the earliest learnt first;
    padding: the piece that stands after the end; added: number → a word that was learnt after the
    vocabulary, and is whole wherever a prompt has it. Raises UndustError when the ends or the
    padding are missing, a merge makes a piece that has no number, or an added word is taken.
    """

    vocabulary: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    length: int = 77
    padding: str = END
    added: Mapping[int, AddedToken] = field(default_factory=dict[int, AddedToken])

    def __post_init__(self) -> None:
        words, numbers = set(self.vocabulary), set(self.vocabulary.values())
        for number, word in self.added.items():
            if not word.content.strip() or word.content in words or number in numbers:
                raise UndustError(
                    f"the tokenizer cannot add {printable(word.content)} with the number {number}: "
                    "one of them is empty or taken"
                )
            words.add(word.content)
        for needed in (START, END, self.padding):
            if needed not in words:
                raise UndustError(f"the tokenizer's vocabulary lacks {printable(needed)}")
        for left, right in self.merges:
            if not {left, right, left + right} <= self.vocabulary.keys():
                pair = printable(f"{left} {right}")
                raise UndustError(f"the tokenizer merges '{pair}' outside its vocabulary")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """That of each piece and of each added word."""
        return {**self.vocabulary, **{word.content: number for number, word in self.added.items()}}

    @cached_property
    def _together(self) -> dict[int, list[int]]:
        """The number of each added word → those of its vectors: diffusers adds it, it_1, it_2."""
        own = {word.content: number for number, word in self.added.items()}
        return {
            number: [number, *map(own.__getitem__, takewhile(own.__contains__, _further(word)))]
            for word, number in own.items()
        }

    @cached_property
    def _engine(self) -> Engine:
        engine = _engine(
            BPE(
                vocab=self.numbers,
                merges=list(self.merges),
                end_of_word_suffix=WORD_END,
                continuing_subword_prefix="",
                fuse_unk=False,
                unk_token=END,
            )
        )
        engine.add_special_tokens([START, END])  # in a prompt they are the ends, not words
        engine.add_tokens(list(self.added.values()))
        return engine

    def pieces(self, prompt: str) -> list[str]:
        """The prompt's tokens as text, without the two ends."""
        return self._engine.encode(_whole(prompt)).tokens

    @property
    def room(self) -> int:
        """How many tokens of a prompt fit between the two ends."""
        return self.length - 2

    def words(self, text: str) -> list[list[int]]:
        """The numbers of the text's tokens, without the two ends; those of one word together."""
        return self._words(self._engine.encode(_whole(text)).ids)

    def _words(self, ids: Sequence[int]) -> list[list[int]]:
        return [self._together.get(number, [number]) for number in ids]

    def row(self, ids: Sequence[int]) -> list[int]:
        """`length` numbers: start, what there is `room` for of the given ones, end, and padding."""
        start, end, pad = (self.numbers[piece] for piece in (START, END, self.padding))
        filled = [start, *ids[: self.room], end]
        return filled + [pad] * (self.length - len(filled))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers [B, length]: start, the prompt, end, and the padding.

        A prompt that is too long loses its last tokens; `Words` reads it in parts.
        """
        encodings = self._engine.encode_batch([_whole(prompt) for prompt in prompts])
        rows = [self.row([*chain.from_iterable(self._words(each.ids))]) for each in encodings]
        return torch.tensor(rows, dtype=torch.long)


def train(captions: Iterable[str], size: int, length: int) -> Tokenizer:
    """A tokenizer of at most `size` entries learnt from captions.

    All 256 bytes are in it, in the middle and at the end of a word, so that any text of any
    language has tokens.
    """
    engine = _engine(BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    letters = alphabet()
    ends = [letter + WORD_END for letter in letters]
    trainer = BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=letters,
        # Named first, they have the same numbers every time; the trainer would number them in the
        # order in which it meets them, which is by chance, and settles ties by these numbers.
        special_tokens=ends,
        end_of_word_suffix=WORD_END,
        continuing_subword_prefix="",
        show_progress=False,
    )
    engine.train_from_iterator(captions, trainer)
    learnt = engine.get_vocab()
    pieces = sorted(learnt, key=learnt.__getitem__)
    merged = _merges(engine)
    ordered = [*letters, *ends, *(p for p in pieces if p not in {*letters, *ends}), START, END]
    return Tokenizer({piece: number for number, piece in enumerate(ordered)}, merged, length)


def alphabet() -> list[str]:
    """A letter for each of the 256 bytes, in CLIP's order: those that can be printed first."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _whole(text: str) -> str:
    """The text. Raises UndustError if it has halves of letters, which stand for no bytes."""
    if half := HALF.search(text):
        raise UndustError(f"the prompt has {half[0]!r} in it, which is half of a letter")
    return text


def _further(word: str) -> Iterator[str]:
    return (f"{word}_{number}" for number in count(1))


def _engine(model: BPE) -> Engine:
    engine = Engine(model)
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine


def _merges(engine: Engine) -> list[tuple[str, str]]:
    """The merges in the engine's own serialisation, the only place that tells them."""
    import json

    merges: list[list[str]] = json.loads(engine.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
