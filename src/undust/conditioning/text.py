"""Text conditioning: prompts of any length, with weights and embeddings, to encoder states."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, count, islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from undust.conditioning.prompt import parse
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.networks.text_encoder import EncodedText, TextEncoder

MAX_CHUNKS = 256  # of a prompt after repetition to a common length: 19,200 tokens
Chunk = list[tuple[int, float]]
"""Up to `room` token ids with their weights, without start and end."""
T = TypeVar("T")


class PromptWord(NamedTuple):
    """A word of a prompt, and the places of its tokens among the states [T, D]."""

    text: str
    places: tuple[int, ...]


def joined(encoded: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The states of several encoders side by side [B,T,ΣD], and the pooled state of the last."""
    return torch.cat([states for states, _ in encoded], -1), encoded[-1][1]


@dataclass(frozen=True, eq=False)
class TextConditioner:
    """A tokenizer with its text encoder, and the choice of the encoder's states.

    penultimate: the states before the last layer without the final norm (SDXL), not the last ones;
    pooled: also the projected state of the end token; embeddings: word → vectors [n,D] in its place
    (textual inversion, Gal et al. 2022); name: of the encoder in a model folder. Raises UndustError
    for vectors of another width than the encoder's, an empty word, a tokenizer with ids beyond the
    encoder's, and `pooled` without a projection.
    """

    tokenizer: Tokenizer
    encoder: TextEncoder
    penultimate: bool = False
    pooled: bool = False
    embeddings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    name: str = "text_encoder"

    def __post_init__(self) -> None:
        width = self.encoder.config.hidden_size
        most, places = max(self.tokenizer.numbers.values()), self.encoder.config.vocab_size
        if most >= places:
            raise UndustError(
                f"the tokenizer does not fit: it has the id {most}, the text encoder's "
                f"are below {places}"
            )
        for word, vectors in self.embeddings.items():
            if not word.strip():
                raise UndustError("an embedding needs a word")
            if vectors.ndim != 2 or vectors.shape[1] != width:
                raise UndustError(
                    f"the embedding '{word}' does not fit: it is {list(vectors.shape)}, "
                    f"the text encoder's width is {width}"
                )
        if self.pooled and self.encoder.text_projection is None:
            raise UndustError("the text encoder has no text_projection, and the U-Net needs it")

    def token_count(self, prompt: str) -> int:
        """The number of tokens of a prompt, a multiple of the tokenizer's length."""
        return len(self._chunks(prompt)) * self.tokenizer.length

    def __call__(self, prompts: Sequence[str], skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """The states [B,T,D] of prompts, with the syntax of `prompt.parse`, and pooled [B,P].

        skip: number of further last layers to leave out (clip skip). A prompt too long for the
        encoder, or with a BREAK, is encoded in chunks, each with start and end; their states are
        concatenated, and the pooled state is the first one's. Prompts of different T in a batch are
        repeated to the least common multiple: attention over keys and values that are all repeated
        k times is the same, as k cancels in the softmax.

        A weight w changes a token's state z to empty + w·(z − empty), with the state of the empty
        prompt at its position, as in ComfyUI: 0 removes the token, 1 changes no bit. AUTOMATIC1111
        multiplies by w and then restores the mean of all states, with an unbounded factor for means
        near 0. The pooled state is not weighted. Raises UndustError as `TextEncoder.read` and
        `parse`, and for prompts of too many chunks.
        """
        chunked = [self._chunks(prompt) for prompt in prompts]
        counts = [len(own) for own in chunked]
        common = math.lcm(*counts)
        if common > MAX_CHUNKS:
            lengths = " and ".join(map(str, sorted(set(counts))))
            raise UndustError(
                f"prompt: {lengths} chunks of {self.tokenizer.length} tokens are too many; at most "
                f"{MAX_CHUNKS} fit together"
            )
        chunks = [chunk for own in chunked for chunk in own]
        states, pooled = self._read([[number for number, _ in chunk] for chunk in chunks], skip)
        states = self._weighted(states, [[weight for _, weight in chunk] for chunk in chunks], skip)
        rows = [own.flatten(0, 1).repeat(common // len(own), 1) for own in states.split(counts)]
        if pooled is not None:
            pooled = pooled[list(accumulate(counts[:-1], initial=0))]
        return torch.stack(rows), pooled if self.pooled else None

    def captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The states and pooled state of captions without prompt syntax, for training.

        Captions longer than the encoder's length are cut.
        """
        if self.embeddings:
            words = (chain.from_iterable(self._words(caption)) for caption in captions)
            states, pooled = self._read([[*own] for own in words], 0)
            return states, pooled if self.pooled else None
        device = self.encoder.get_parameter("text_model.embeddings.token_embedding.weight").device
        states, pooled = self._states(self.tokenizer(captions).to(device), 0)
        return states, pooled if self.pooled else None

    def _read(self, chunks: Sequence[Sequence[int]], skip: int) -> EncodedText:
        table = self.encoder.get_parameter("text_model.embeddings.token_embedding.weight")
        ids = torch.tensor([self.tokenizer.row(chunk) for chunk in chunks], device=table.device)
        rows = torch.cat([*self.embeddings.values()]).to(table) if self.embeddings else None
        return self._states(ids, skip, rows)

    def _states(self, ids: Tensor, skip: int, rows: Tensor | None = None) -> EncodedText:
        skip += self.penultimate
        return self.encoder.read(ids, skip=skip, norm=not self.penultimate, rows=rows)

    def _weighted(self, states: Tensor, weights: Sequence[Sequence[float]], skip: int) -> Tensor:
        """The chunks' states [N,T,D] with their tokens' weights; unchanged if all are 1."""
        if all(weight == 1 for chunk in weights for weight in chunk):
            return states
        # Start, end and padding have no weights.
        rows = [[1.0, *own, *[1.0] * (states.shape[1] - 1 - len(own))] for own in weights]
        w = torch.tensor(rows, device=states.device)[..., None]
        empty = self._read([[]], skip).states.float()
        moved = empty + w * (states.float() - empty)
        return torch.where(w == 1, states, moved.to(states.dtype))

    def _chunks(self, prompt: str) -> list[Chunk]:
        """The prompt's tokens, split at BREAK and where a chunk is full; at least one chunk."""
        return self._filled(
            [
                [(number, weight) for number in ids]
                for text, weight in part
                for ids, _ in self._placed(text)
            ]
            for part in parse(prompt)
        )

    def prompt_words(self, prompt: str) -> list[PromptWord]:
        """The words of a prompt in their order, for attention to the states of `__call__`.

        A word is what blanks and the syntax of `prompt.parse` leave together, without punctuation
        at its ends; a hyphen or an apostrophe inside belongs to it. Punctuation alone is none.
        """
        texts: list[str] = []

        def numbered(text: str) -> Iterator[list[int | None]]:
            """For each token of a fragment, the number of its word."""
            found, first = [*_words_of(text)], len(texts)
            texts.extend(word for _, word in found)
            begins = [begin for begin, _ in found]
            for ids, begin in self._placed(text):
                place = bisect_right(begins, begin) - 1
                inside = place >= 0 and begin < begins[place] + len(found[place][1])
                yield [first + place if inside else None] * len(ids)

        parts = [[own for text, _ in part for own in numbered(text)] for part in parse(prompt)]
        places: list[list[int]] = [[] for _ in texts]
        for number, chunk in enumerate(self._filled(parts)):
            for place, word in enumerate(chunk, 1 + number * self.tokenizer.length):
                if word is not None:
                    places[word].append(place)
        pairs = zip(texts, places, strict=True)
        return [PromptWord(text, tuple(own)) for text, own in pairs if own]

    def _filled(self, parts: Iterable[Iterable[Sequence[T]]]) -> list[list[T]]:
        """The tokens' items in chunks: new ones for each part, and for words without room."""
        room = self.tokenizer.room
        chunks: list[list[T]] = []
        for part in parts:
            chunks.append([])
            for word in part:
                if room - len(chunks[-1]) < len(word) <= room:
                    chunks.append([])
                for item in word:
                    if len(chunks[-1]) == room:
                        chunks.append([])
                    chunks[-1].append(item)
        return [chunk for chunk in chunks if chunk] or [[]]

    def _words(self, text: str) -> Iterator[list[int]]:
        """Ids that are kept together: of a token, or of all vectors of an embedding."""
        return (ids for ids, _ in self._placed(text))

    def _placed(self, text: str) -> Iterator[tuple[list[int], int]]:
        """As `_words`, each with the index of its first character in the text."""
        end = 0
        for match in self._pattern.finditer(text) if self.embeddings else ():
            yield from self._placed_between(text, end, match.start())
            yield self._learnt[(match.lastindex or 0) - 1][1], match.start()
            end = match.end()
        yield from self._placed_between(text, end, len(text))

    def _placed_between(self, text: str, begin: int, end: int) -> Iterator[tuple[list[int], int]]:
        for ids, place in self.tokenizer.placed_words(text[begin:end]):
            yield ids, begin + place

    @cached_property
    def _learnt(self) -> list[tuple[str, list[int]]]:
        """The embeddings' words, the longest first, with the ids of their vectors.

        The ids follow the vocabulary's, in the order of the embeddings.
        """
        numbers = count(self.encoder.config.vocab_size)
        found = [(word, list(islice(numbers, len(own)))) for word, own in self.embeddings.items()]
        return sorted(found, key=lambda each: len(each[0]), reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """A pattern of the embeddings' words, each as a group, not inside other words.

        A word that begins or ends with a symbol, such as "<cat>", needs no boundary there.
        """
        apart = r"(?:(?<!\w)|(?!\w))"
        words = "|".join(f"({re.escape(word)})" for word, _ in self._learnt)
        return re.compile(f"{apart}(?:{words}){apart}", re.IGNORECASE)


def _words_of(text: str) -> Iterator[tuple[int, str]]:
    """The words between blanks, without punctuation at their ends, each with its begin."""
    for match in re.finditer(r"\S+", text):
        begin, end = match.span()
        while begin < end and unicodedata.category(text[begin])[0] == "P":
            begin += 1
        while begin < end and unicodedata.category(text[end - 1])[0] == "P":
            end -= 1
        if begin < end:
            yield begin, text[begin:end]
