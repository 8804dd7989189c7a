"""What a text encoder is shown of long, weighted and learnt words, against the encoder itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.prompt import escape
from undust.conditioning.text import TextConditioner
from undust.conditioning.tokenizer import END, START, Tokenizer
from undust.errors import UndustError
from undust.networks.attention import attend
from undust.networks.config import TextEncoderConfig
from undust.networks.text_encoder import TextEncoder

LENGTH, ROOM, WIDTH = 10, 8, 16


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every letter of "abcdefghij" that stands alone is a token, and so is "cat"."""
    learnt = tokenizers.train(["cat cat cat", "a dog", "고양이"], size=600, length=LENGTH)
    assert learnt.pieces("a cat") == ["a</w>", "cat</w>"]
    return replace(learnt, padding="!")


def build(tokenizer: Tokenizer, *, projects: bool = False) -> TextEncoder:
    """Of random weights, all of them far from what they start as."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = TextEncoder(
            TextEncoderConfig(
                architectures=["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
                vocab_size=len(tokenizer.vocabulary),
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                projection_dim=12,
                eos_token_id=tokenizer.vocabulary[END],
            )
        )
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> TextConditioner:
    return TextConditioner(tokenizer, build(tokenizer))


@contextmanager
def calls(words: TextConditioner) -> Iterator[list[Tensor]]:
    """The token numbers of every call of the encoder."""
    heard: list[Tensor] = []
    embeddings = words.encoder.get_submodule("text_model.embeddings")
    hook = embeddings.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    yield heard
    hook.remove()


def rows(tokenizer: Tokenizer, *chunks: str) -> Tensor:
    """Numbers of chunks, put together by hand from their tokens' pieces."""
    start, end, pad = (tokenizer.vocabulary[piece] for piece in (START, END, "!"))
    found = []
    for chunk in chunks:
        ids = [tokenizer.vocabulary[piece] for piece in tokenizer.pieces(chunk)]
        found.append([start, *ids, end, *[pad] * (ROOM - len(ids))])
    return torch.tensor(found)


@given(st.text(max_size=8))
def test_plain_words_are_the_encoders_own(words: TextConditioner, text: str):
    prompt = escape(text)
    if words.token_count(prompt) > LENGTH:
        assert len(words.tokenizer.words(text)) > ROOM
        return
    with calls(words) as heard:
        states, pooled = words([prompt])
    assert len(heard) == 1
    assert torch.equal(states, words.encoder(words.tokenizer([text])))
    assert pooled is None


def test_a_full_chunk_is_one(words: TextConditioner):
    assert words.token_count("a " * ROOM) == LENGTH
    assert words.token_count("a " * (ROOM + 1)) == 2 * LENGTH
    full = "a " * (ROOM - 1) + "cat"
    assert torch.equal(words([full])[0], words.encoder(words.tokenizer([full])))


def test_a_batch_is_one_call(words: TextConditioner):
    prompts = ["a cat", "", "a dog"]
    with calls(words) as heard:
        states, _ = words(prompts)
    assert len(heard) == 1
    assert torch.equal(states, words.encoder(words.tokenizer(prompts)))


@pytest.mark.parametrize("same", ["(a cat:1.0)", "(a:1) cat", "a (cat:1.)", "[(a cat)]"])
def test_a_weight_of_one_changes_no_bit_and_costs_nothing(words: TextConditioner, same: str):
    with calls(words) as heard:
        found, _ = words([same])
    assert len(heard) == 1
    assert torch.equal(found, words(["a cat"])[0])


@pytest.mark.parametrize("penultimate", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.3, -1.0, 4.0])
def test_a_weight_moves_a_token_from_the_empty_prompt(words: TextConditioner, penultimate, weight):
    words = replace(words, penultimate=penultimate)
    plain, empty = words(["a cat b"])[0][0], words([""])[0][0]
    found = words([f"a (cat:{weight}) b"])[0][0]
    expected = empty.double() + weight * (plain.double() - empty.double())
    torch.testing.assert_close(found[2].double(), expected[2], rtol=1e-6, atol=1e-6)
    if weight == 0:
        assert torch.equal(found[2], empty[2])
    others = [0, 1, *range(3, LENGTH)]
    assert torch.equal(found[others], plain[others])


def test_weights_reach_every_chunk_and_every_prompt(words: TextConditioner):
    long = "a " * ROOM + "(cat:2) b"
    found = words([long, "cat", "(cat:2)"])[0]
    empty = words([""])[0][0]
    for prompt, row, place in ((long, 0, LENGTH + 1), ("cat", 1, None), ("cat", 2, 1)):
        plain = words([prompt.replace("(cat:2)", "cat")])[0][0]
        plain = plain.repeat(2 * LENGTH // len(plain), 1)
        for at in range(2 * LENGTH):
            base = empty[at % LENGTH]
            moved = place is not None and (at == place or (row == 2 and at == place + LENGTH))
            expected = base + 2 * (plain[at] - base) if moved else plain[at]
            torch.testing.assert_close(found[row, at], expected, rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_read_in_chunks(words: TextConditioner):
    letters = "a b c d e f g h i j a b c d e f g cat"
    chunks = rows(words.tokenizer, "a b c d e f g h", "i j a b c d e f", "g cat")
    assert words.token_count(letters) == 3 * LENGTH
    with calls(words) as heard:
        found, _ = words([letters])
    assert torch.equal(torch.cat(heard), chunks)
    assert torch.equal(found, words.encoder(chunks).reshape(1, 3 * LENGTH, WIDTH))


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a BREAK cat", ["a", "cat"]),
        ("a b c d e f g h i BREAK cat", ["a b c d e f g h", "i", "cat"]),
        ("BREAK a BREAK BREAK cat BREAK", ["a", "cat"]),  # what has no words has no chunk
        ("BREAK", [""]),
        (r"\BREAK", ["break"]),
    ],
)
def test_break_begins_a_chunk(words: TextConditioner, prompt: str, chunks: list[str]):
    with calls(words) as heard:
        words([prompt])
    assert torch.equal(torch.cat(heard), rows(words.tokenizer, *chunks))
    assert words.token_count(prompt) == len(chunks) * LENGTH


def test_what_is_repeated_is_attended_to_as_it_was(words: TextConditioner):
    """Prompts of 2 and 3 chunks, together in 6: attention gives each the answer it has alone."""
    prompts = ["a BREAK cat", "a BREAK cat BREAK b", "a"]
    together, _ = words(prompts)
    assert together.shape == (3, 6 * LENGTH, WIDTH)
    query = torch.randn(1, 5, WIDTH, generator=torch.manual_seed(0))
    for prompt, states in zip(prompts, together, strict=True):
        alone, _ = words([prompt])
        assert alone.shape == (1, words.token_count(prompt), WIDTH)
        expected = attend(query, alone, alone * 0.3, heads=2)
        found = attend(query, states[None], states[None] * 0.3, heads=2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sdxls_states_and_pooled(tokenizer: Tokenizer):
    """The last but one layer without the norm, and the end of the first chunk, projected."""
    encoder = build(tokenizer, projects=True)
    words = TextConditioner(tokenizer, encoder, penultimate=True, pooled=True)
    prompts = ["a b c d e f g h i (cat:1.5)", "cat", "b BREAK cat"]
    first = rows(tokenizer, "a b c d e f g h", "cat", "b")
    for skip in (0, 1):
        states, pooled = words(prompts, skip)
        expected = encoder.read(first, skip=1 + skip, norm=False)
        # In batches of other sizes the same rows are summed in another order.
        torch.testing.assert_close(states[:, :LENGTH], expected.states)
        torch.testing.assert_close(pooled, expected.pooled)
        assert pooled.shape == (3, 12)
    assert replace(words, pooled=False)(prompts)[1] is None


def test_clip_skip(words: TextConditioner):
    ids = words.tokenizer(["cat"])
    assert torch.equal(words(["cat"], 2)[0], words.encoder.read(ids, skip=2).states)
    with pytest.raises(UndustError, match="clip skip: 4 is not 0 to 3"):
        words(["cat"], 4)


def test_half_precision_stays_half(tokenizer: Tokenizer):
    half = TextConditioner(
        tokenizer, build(tokenizer).bfloat16(), embeddings={"dog": torch.randn(2, WIDTH)}
    )
    states, _ = half(["a (dog:1.3)"])
    assert states.dtype == torch.bfloat16
    assert states.isfinite().all()


VECTORS = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
LEARNT = {"cat": VECTORS[:1], "cat-dog": VECTORS[1:4], "<I>": VECTORS[4:6], "a+b": VECTORS[6:8]}


@pytest.fixture(scope="module")
def learnt(words: TextConditioner) -> Callable[[str], list[list[str]]]:
    """The chunks of a prompt: tokens as text, and vectors by their numbers in VECTORS."""
    taught = replace(words, embeddings=LEARNT)
    pieces = {number: piece for piece, number in words.tokenizer.vocabulary.items()}
    size = words.encoder.config.vocab_size

    def chunks(prompt: str) -> list[list[str]]:
        with calls(taught) as heard:
            states, _ = taught([prompt])
        ids = torch.cat(heard)
        expected = words.encoder.read(ids, rows=VECTORS).states
        assert torch.equal(states, expected.reshape(1, -1, WIDTH))
        named = [
            [pieces[n].removesuffix("</w>") if n < size else str(n - size) for n in row]
            for row in ids.tolist()
        ]
        return [row[1 : row.index(END)] for row in named]

    return chunks


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a cat, b", [["a", "0", ",", "b"]]),
        ("CAT Cat", [["0", "0"]]),
        ("cat-dog", [["1", "2", "3"]]),
        ("cat-do", [["0", "-", "d", "o"]]),
        ("cats acat cat_", [["c", "a", "t", "s", "a", "cat", "cat", "_"]]),
        ("a<i>b", [["a", "4", "5", "b"]]),
        ("a+b a+bc", [["6", "7", "a", "+", "b", "c"]]),
        ("un(cat:1)", [["u", "n", "cat"]]),
        # Its three vectors are kept together.
        ("a b c d e f cat-dog a", [["a", "b", "c", "d", "e", "f"], ["1", "2", "3", "a"]]),
        ("a b c d e cat-dog a", [["a", "b", "c", "d", "e", "1", "2", "3"], ["a"]]),
    ],
)
def test_learnt_words_are_their_vectors(learnt, prompt: str, chunks):
    assert learnt(prompt) == chunks


def test_more_vectors_than_a_chunk_holds_are_cut(words: TextConditioner):
    taught = replace(words, embeddings={"dog": VECTORS})
    assert taught.token_count("dog") == 3 * LENGTH
    assert taught.token_count("a dog") == 3 * LENGTH
    size = words.encoder.config.vocab_size
    with calls(taught) as heard:
        taught(["a dog b"])
    (ids,) = heard
    assert ids[ids >= size].tolist() == list(range(size, size + 20))


def test_a_learnt_word_can_be_weighted(words: TextConditioner):
    taught = replace(words, embeddings=LEARNT)
    plain, empty = taught(["a cat-dog"])[0][0], words([""])[0][0]
    found = taught(["a (cat-dog:1.5)"])[0][0]
    expected = empty + 1.5 * (plain - empty)
    torch.testing.assert_close(found[2:5], expected[2:5])
    assert torch.equal(found[5:], plain[5:])


def test_words_that_were_learnt_elsewhere_change_nothing(words: TextConditioner):
    taught = replace(words, embeddings=LEARNT)
    assert torch.equal(taught(["a dog"])[0], words(["a dog"])[0])


@pytest.mark.parametrize(
    ("embeddings", "said"),
    [
        ({"dog": torch.zeros(2, 8)}, r"embedding 'dog' does not fit: .*\[2, 8\].* width is 16"),
        ({"dog": torch.zeros(WIDTH)}, r"embedding 'dog' does not fit: .*\[16\]"),
        ({" ": torch.zeros(1, WIDTH)}, "needs a word"),
    ],
)
def test_what_does_not_fit_is_refused(words: TextConditioner, embeddings, said: str):
    with pytest.raises(UndustError, match=said):
        replace(words, embeddings=embeddings)
    with pytest.raises(UndustError, match="no text_projection"):
        replace(words, pooled=True)


@given(st.lists(st.text("ab c()[]:1.\\", max_size=40), min_size=1, max_size=3))
def test_any_prompts_have_finite_states(words: TextConditioner, prompts: list[str]):
    taught = replace(words, embeddings=LEARNT)
    states, _ = taught(prompts)
    assert states.isfinite().all()
    assert all(states.shape[1] % taught.token_count(prompt) == 0 for prompt in prompts)


def test_a_tokenizer_of_more_words_than_the_encoder_is_refused(
    words: TextConditioner, tokenizer: Tokenizer
):
    further = {**tokenizer.vocabulary, "further": len(tokenizer.vocabulary)}
    with pytest.raises(UndustError, match="tokenizer does not fit: it has the id"):
        replace(words, tokenizer=replace(tokenizer, vocabulary=further))


@pytest.mark.parametrize("prompts", [["a BREAK " * 300], ["a " * 8 * 17, "a " * 8 * 19]])
def test_prompts_of_too_many_parts_are_refused(words: TextConditioner, prompts: list[str]):
    with pytest.raises(UndustError, match="chunks of 10 tokens are too many"):
        words(prompts)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a", (1,)), ("cat", (2,))]),
        ("((cat)) [b], (c d:1.3)!", [("cat", (1,)), ("b", (2,)), ("c", (4,)), ("d", (5,))]),
        (r"\(a\) cat", [("a", (2,)), ("cat", (4,))]),
        ("a-b, 'c'", [("a-b", (1, 2, 3)), ("c", (6,))]),
        ("a BREAK b", [("a", (1,)), ("b", (LENGTH + 1,))]),
        (
            "a b c d e f g h cat",
            [*((w, (n,)) for n, w in enumerate("abcdefgh", 1)), ("cat", (11,))],
        ),
        ("a <toy> cat", [("a", (1,)), ("<toy>", (2, 3)), ("cat", (4,))]),
        (
            "a b c d e f g <toy>",
            [*((w, (n,)) for n, w in enumerate("abcdefg", 1)), ("<toy>", (11, 12))],
        ),
        ("고양이, cat", [("고양이", (1,)), ("cat", (3,))]),
        ("... !", []),
        ("", []),
    ],
    ids=str,
)
def test_words_and_their_tokens(
    tokenizer: Tokenizer, prompt: str, expected: list[tuple[str, tuple[int, ...]]]
):
    vectors = {"<toy>": torch.randn(2, WIDTH)}
    conditioner = TextConditioner(tokenizer, build(tokenizer), embeddings=vectors)
    assert [*map(tuple, conditioner.prompt_words(prompt))] == expected


@given(prompt=st.text("ab c(:1.3)[],\\고é", max_size=60))
def test_every_word_has_its_tokens(tokenizer: Tokenizer, prompt: str):
    """Places rise, none is of two words, and all are within the states."""
    conditioner = TextConditioner(tokenizer, build(tokenizer))
    places = [place for word in conditioner.prompt_words(prompt) for place in word.places]
    assert places == sorted(set(places))
    assert all(0 < place < conditioner.token_count(prompt) for place in places)
    assert all(place % LENGTH not in (0, LENGTH - 1) for place in places)
