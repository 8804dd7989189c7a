"""CLIP's tokenizer: byte-pair encoding of text in any language (Radford et al. 2021).

Text is lower-cased, split into words, encoded as bytes and merged pair by pair; the last piece of a
word ends in "</w>". transformers' CLIPTokenizer reads the same files.
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
LEARNT = 2**14  # characters of a caption
HALF = re.compile("[\ud800-\udfff]")  # a lone surrogate of UTF-16, which UTF-8 cannot encode
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its ordered merges; every prompt becomes `length` tokens.

    vocabulary: piece → id, with the start and end tokens; merges: pairs, the earliest learnt first;
    padding: the piece that fills up after the end token; added: id → a token added after training,
    which is never split. Raises UndustError if a special token is missing, a merge makes a piece
    without an id, or an added token's text or id is taken.
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
                    f"the tokenizer cannot add {printable(word.content)} with the id {number}: "
                    "one of them is empty or taken"
                )
            words.add(word.content)
        for needed in (START, END, self.padding):
            if needed not in words:
                raise UndustError(f"the tokenizer's vocabulary lacks {printable(needed)}")
        known = self.vocabulary
        for left, right in self.merges:
            if left not in known or right not in known or left + right not in known:
                pair = printable(f"{left} {right}")
                raise UndustError(f"the tokenizer merges '{pair}' outside its vocabulary")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The id of each piece and of each added token."""
        return {**self.vocabulary, **{word.content: number for number, word in self.added.items()}}

    @cached_property
    def _together(self) -> dict[int, list[int]]:
        """The id of each added token → the ids of its vectors (diffusers: it, it_1, it_2)."""
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
        engine.add_special_tokens([START, END])  # in a prompt they are not words
        engine.add_tokens(list(self.added.values()))
        return engine

    def pieces(self, prompt: str) -> list[str]:
        """The prompt's tokens as text, without start and end."""
        return self._engine.encode(_whole(prompt)).tokens

    @property
    def room(self) -> int:
        """The number of tokens that fit between start and end."""
        return self.length - 2

    def words(self, text: str) -> list[list[int]]:
        """The ids of the text's tokens, without start and end, grouped by added token."""
        return [ids for ids, _ in self.placed_words(text)]

    def placed_words(self, text: str) -> list[tuple[list[int], int]]:
        """As `words`, each group with the index of its first character in the text."""
        encoding = self._engine.encode(_whole(text))
        begins = (begin for begin, _ in encoding.offsets)
        return [*zip(self._words(encoding.ids), begins, strict=True)]

    def _words(self, ids: Sequence[int]) -> list[list[int]]:
        return [self._together.get(number, [number]) for number in ids]

    def row(self, ids: Sequence[int]) -> list[int]:
        """`length` ids: start, the first `room` of the given ones, end, and padding."""
        start, end, pad = (self.numbers[piece] for piece in (START, END, self.padding))
        filled = [start, *ids[: self.room], end]
        return filled + [pad] * (self.length - len(filled))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [B, length]: start, the prompt, end, and padding.

        A prompt that is too long loses its last tokens; `TextConditioner` encodes it in parts.
        """
        encodings = self._engine.encode_batch([_whole(prompt) for prompt in prompts])
        rows = [self.row([*chain.from_iterable(self._words(each.ids))]) for each in encodings]
        return torch.tensor(rows, dtype=torch.long)


def train(captions: Iterable[str], size: int, length: int) -> Tokenizer:
    """A tokenizer of at most `size` entries learnt from captions.

    It has all 256 bytes, inside and at the end of a word, so that it encodes any text. Of a caption
    the first `LEARNT` characters count: the time to learn a word is quadratic in its length.
    """
    engine = _engine(BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    letters = alphabet()
    ends = [letter + WORD_END for letter in letters]
    trainer = BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=letters,
        # As special tokens they always have the same ids; otherwise the trainer would number them
        # in an arbitrary order, and it breaks ties by id.
        special_tokens=ends,
        end_of_word_suffix=WORD_END,
        continuing_subword_prefix="",
        show_progress=False,
    )
    engine.train_from_iterator((caption[:LEARNT] for caption in captions), trainer)
    learnt = engine.get_vocab()
    pieces = sorted(learnt, key=learnt.__getitem__)
    merged = _merges(engine)
    ordered = [*letters, *ends, *(p for p in pieces if p not in {*letters, *ends}), START, END]
    return Tokenizer({piece: number for number, piece in enumerate(ordered)}, merged, length)


def alphabet() -> list[str]:
    """A character for each of the 256 bytes, in CLIP's order: the printable ones first."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _whole(text: str) -> str:
    """The text. Raises UndustError for a lone surrogate, which UTF-8 cannot encode."""
    if half := HALF.search(text):
        raise UndustError(f"the prompt contains {half[0]!r}, a lone surrogate")
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
    """The merges, from the engine's serialisation: it has no other access to them."""
    import json

    merges: list[list[str]] = json.loads(engine.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
