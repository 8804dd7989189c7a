"""Prompts to what a U-Net is shown of them: of any length, weighted, with words learnt later."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, count, islice

import torch
from torch import Tensor

from undust.conditioning.prompt import parse
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.networks.text_encoder import EncodedText, TextEncoder

MAX_CHUNKS = 256  # chunks of a prompt, also where several are repeated to be as long: 19,200 tokens
Chunk = list[tuple[int, float]]
"""As many tokens as an encoder reads at once, each with its weight, without the two ends."""


@dataclass(frozen=True, eq=False)
class TextConditioner:
    """A tokenizer, its text encoder, and how the encoder's states are shown.

    penultimate: the states before the last layer and without the final norm are (SDXL), not those
    after it; pooled: the end's state, projected, is shown too; embeddings: word → the vectors [n,D]
    that stand for it (textual inversion, Gal et al. 2022); name: of the encoder in a model folder.
    Raises UndustError for vectors of
    another width than the encoder's, for a word of nothing, for a tokenizer of more words than the
    encoder, and for `pooled` without a projection.
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
                f"the tokenizer does not fit: it has the number {most}, the text encoder's "
                f"are below {places}"
            )
        for word, vectors in self.embeddings.items():
            if not word.strip():
                raise UndustError("an embedding needs a word that it stands for")
            if vectors.ndim != 2 or vectors.shape[1] != width:
                raise UndustError(
                    f"the embedding '{word}' does not fit: it is {list(vectors.shape)}, "
                    f"the text encoder is {width} wide"
                )
        if self.pooled and self.encoder.text_projection is None:
            raise UndustError("the text encoder has no text_projection, and the U-Net needs it")

    def token_count(self, prompt: str) -> int:
        """How many tokens the prompt comes to, a multiple of the tokenizer's length."""
        return len(self._chunks(prompt)) * self.tokenizer.length

    def __call__(self, prompts: Sequence[str], skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """The prompts' states [B,T,D], and pooled [B,P] if they are shown; `prompt.parse` reads.

        skip: how many more of the last layers are left out (clip skip). A prompt too long for the
        encoder, or with a BREAK, is read in chunks, each between its own ends; their states stand
        one after another, and the first one's pooled is the prompt's. Where the prompts of a batch
        come to different T, each is repeated up to the least common multiple: attention over keys
        and values that all stand there k times is the same, as k cancels in the softmax.

        A weight w moves a token's state along the line from the state that the empty prompt has at
        its place, z = empty + w·(z − empty), as ComfyUI does it: 0 takes the token back, 1 leaves
        every bit. AUTOMATIC1111 multiplies by w and then divides by what that does to the mean of
        all states, which has no bound where the mean is near 0. Pooled is never weighted. Raises
        UndustError as `TextEncoder.read` and `parse` do, and for prompts of too many parts.
        """
        chunked = [self._chunks(prompt) for prompt in prompts]
        counts = [len(own) for own in chunked]
        common = math.lcm(*counts)
        if common > MAX_CHUNKS:
            told = " and ".join(map(str, sorted(set(counts))))
            raise UndustError(
                f"prompt: {told} parts of {self.tokenizer.length} tokens are more than can be "
                f"shown together, {MAX_CHUNKS} parts"
            )
        chunks = [chunk for own in chunked for chunk in own]
        states, pooled = self._read([[number for number, _ in chunk] for chunk in chunks], skip)
        states = self._weighted(states, [[weight for _, weight in chunk] for chunk in chunks], skip)
        rows = [own.flatten(0, 1).repeat(common // len(own), 1) for own in states.split(counts)]
        if pooled is not None:
            pooled = pooled[list(accumulate(counts[:-1], initial=0))]
        return torch.stack(rows), pooled if self.pooled else None

    def captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The states and pooled text of captions as they stand, as a model is trained on them.

        No character has a meaning of its own, and what is beyond the encoder's length is cut off.
        """
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
        """The chunks' states [N,T,D] with their tokens' weights; the same ones if all are 1."""
        if all(weight == 1 for chunk in weights for weight in chunk):
            return states
        # The two ends and the padding stay as they are.
        rows = [[1.0, *own, *[1.0] * (states.shape[1] - 1 - len(own))] for own in weights]
        w = torch.tensor(rows, device=states.device)[..., None]
        empty = self._read([[]], skip).states.float()
        moved = empty + w * (states.float() - empty)
        return torch.where(w == 1, states, moved.to(states.dtype))

    def _chunks(self, prompt: str) -> list[Chunk]:
        """The prompt's tokens, cut where a chunk is full and at BREAK; at least one chunk."""
        room = self.tokenizer.room
        chunks: list[Chunk] = []
        for part in parse(prompt):
            chunks.append([])
            for text, weight in part:
                for word in self._words(text):
                    if room - len(chunks[-1]) < len(word) <= room:
                        chunks.append([])
                    for number in word:
                        if len(chunks[-1]) == room:
                            chunks.append([])
                        chunks[-1].append((number, weight))
        return [chunk for chunk in chunks if chunk] or [[]]

    def _words(self, text: str) -> Iterator[list[int]]:
        """Numbers that stand together: of one token, or of all of an embedding's vectors."""
        end = 0
        for match in self._pattern.finditer(text) if self.embeddings else ():
            yield from self.tokenizer.words(text[end : match.start()])
            yield self._learnt[(match.lastindex or 0) - 1][1]
            end = match.end()
        yield from self.tokenizer.words(text[end:])

    @cached_property
    def _learnt(self) -> list[tuple[str, list[int]]]:
        """The embeddings' words, the longest first, and the numbers of each one's vectors.

        They follow on the vocabulary's, in the order of the embeddings.
        """
        numbers = count(self.encoder.config.vocab_size)
        found = [(word, list(islice(numbers, len(own)))) for word, own in self.embeddings.items()]
        return sorted(found, key=lambda each: len(each[0]), reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds the embeddings' words, each as a group, and none of them inside another word.

        A word that begins or ends with a sign, as "<cat>" does, needs no gap there.
        """
        apart = r"(?:(?<!\w)|(?!\w))"
        words = "|".join(f"({re.escape(word)})" for word, _ in self._learnt)
        return re.compile(f"{apart}(?:{words}){apart}", re.IGNORECASE)
