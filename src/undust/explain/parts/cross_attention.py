"""Part 12, cross-attention: where words act, and pictures without one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from undust.adapters.ablation import (
    as_unet,
    changed,
    conditions,
    cross_attention_text,
    without_tokens,
)
from undust.conditioning.text import PromptWord
from undust.errors import UndustError
from undust.explain.effect import Effect, mean_and_deviation
from undust.explain.figures import Frames, Line, LineChart, TextTable
from undust.explain.result import PartResult
from undust.explain.setup import NetworkChange, Setup, enlarged
from undust.explain.trace import Trace, trace
from undust.explain.trace_pictures import overlay
from undust.explain.word_maps import attention_shares, auc
from undust.networks.attention import TokenEmbedding
from undust.networks.conditioning import Conditioning

SHOWN = 256  # pixels, the shorter side of a map
WORDS = 5  # at most, that are taken away one by one
ROW = 2  # pictures without a word
ACTING = 0.25  # share of the cells that change the most
LEVEL = 2.0  # noise level of the errors, in units of the latents' deviation
CLOSE = 1e-3  # of the largest state; a text in another batch is rounded differently
OBJECTS = (  # prompts and their objects, which can be taken away, as in benchmarks/word_maps.py
    ("smiling face with sunglasses", "sunglasses", "smiling face"),
    ("smiling face with halo", "halo", "smiling face"),
    ("smiling cat with heart-eyes", "heart-eyes", "smiling cat"),
    ("face with thermometer", "thermometer", "face"),
    ("heart with arrow", "arrow", "heart"),
    ("cloud with rain", "rain", "cloud"),
    ("house with garden", "garden", "house"),
    ("bell with slash", "slash", "bell"),
)


def show(setup: Setup) -> PartResult:
    """The part of this model. Raises UndustError for one without text and as `trace`."""
    if not setup.model.texts:
        raise UndustError("cross-attention: this model takes no text")
    say = setup.say("cross-attention")
    found = _trace(setup, setup.prompts[0], setup.seeds[0])
    own, other = on_the_map(setup)
    last = [words_of(setup, prompt)[-1:] for prompt in setup.prompts]
    masked = _masking(setup, last)
    filler = leaving_out(setup, setup.prompts, [padding(setup, each) for each in setup.prompts])
    moved = {name: changes(setup, own) for name, own in ways(setup, last).items()}
    effects = [
        Effect("map_of_another_word", say("map_of_another_word"), other, own, "lower"),
        Effect(
            "word_masked",
            say("word_masked"),
            moved["last_masked"],
            changes(setup, setup.sample(filler).pictures),
            "higher",
            3,
        ),
        Effect(
            "error_without_word",
            say("error_without_word"),
            errors(setup, masked),
            errors(setup, None),
            "higher",
            3,
        ),
    ]
    if "none_beside" in moved:
        effects.append(
            Effect(
                "cross_attention_or_beside",
                say("cross_attention_or_beside"),
                moved["none_read"],
                moved["none_beside"],
                "higher",
                3,
            )
        )
    numbers = {
        "words": [word.text for word in found.words],
        "shares": attention_shares(found.maps).tolist(),
        "changes": moved,
    }
    figures = [
        word_frames(setup, found),
        taken_away(setup, found),
        _table(setup, moved),
        shares(setup, found),
    ]
    return PartResult(figures, effects, numbers)


def ways(setup: Setup, last: Sequence[Sequence[PromptWord]]) -> dict[str, Tensor]:
    """Pictures with the prompt taken away in several ways; last: the last word of each prompt."""
    words = [words_of(setup, prompt) for prompt in setup.prompts]
    rests = [without_word(*each, -1) for each in zip(setup.prompts, words, strict=True)]
    nothing = [""] * len(rests)
    made = {
        "last_masked": setup.sample(_masking(setup, last)),
        "last_removed": setup.sample(prompts=rests),
        "all_masked": setup.sample(_masking(setup, words)),
        "none_read": setup.sample(_reading(setup, nothing)),
    }
    if _beside(setup):
        made["none_beside"] = setup.sample(_telling(setup, nothing))
    made["none"] = setup.sample(prompts=nothing)
    return {name: each.pictures for name, each in made.items()}


def _table(setup: Setup, moved: Mapping[str, Sequence[float]]) -> TextTable:
    say = setup.say("cross-attention")
    rows = [
        (say(name), f"{mean:.3f} ± {deviation / len(own) ** 0.5:.3f}")
        for name, own in moved.items()
        for mean, deviation in [mean_and_deviation(own)]
    ]
    return TextTable(say("ways"), [say("way"), say("change")], rows, say("ways_note"))


def _trace(setup: Setup, prompt: str, seed: int) -> Trace:
    return trace(
        setup.model,
        prompt,
        layers="finest",
        seed=seed,
        steps=setup.steps,
        guidance=setup.guidance,
    )


def word_frames(setup: Setup, found: Trace) -> Frames:
    """The picture, and on it the map of each word."""
    say = setup.say("cross-attention")
    picture = enlarged(found.picture.image.convert("RGB"), SHOWN)
    return Frames(
        say("maps"),
        [say("picture"), *(word.text for word in found.words)],
        [picture, *(overlay(picture, own) for own in found.maps)],
        say("maps_alt"),
        "words",
        note=say("maps_note"),
    )


def shares(setup: Setup, found: Trace) -> LineChart:
    """The share of each word in the attention to words, at each step."""
    say = setup.say("cross-attention")
    unit = setup.latents.std().item()
    levels = [step.sigma / unit for step in found.steps]
    of_steps = torch.stack([attention_shares(step.maps) for step in found.steps])
    lines = [
        Line(word.text, levels, own.tolist())
        for word, own in zip(found.words, of_steps.T, strict=True)
    ]
    return LineChart(
        say("shares"), say("level"), say("share"), lines, log_x=True, note=say("shares_note")
    )


def taken_away(setup: Setup, found: Trace) -> Frames:
    """Pictures of the first prompt without each word, in a row for each way to take it away."""
    say = setup.say("cross-attention")
    prompt, words = setup.prompts[0], found.words
    count = min(ROW, len(setup.seeds))
    few = replace(setup, prompts=[prompt] * count, seeds=setup.seeds[:count])
    most = attention_shares(found.maps).argsort(descending=True)[:WORDS].sort().values.tolist()
    rests = {word: without_word(prompt, words, word) for word in most}
    drawn = {say("all"): torch.cat([few.baseline.pictures] * 3)}
    for word, rest in rests.items():
        drawn[say("without_word", word=words[word].text, number=word + 1)] = _without(
            few, [words[word]], rest
        )
    drawn[say("without_all")] = _without(few, words, "")
    return Frames(
        say("removed"),
        [*drawn],
        [setup.row(pictures, count) for pictures in drawn.values()],
        say("removed_alt"),
        "buttons",
        note=say("removed_note_beside" if _beside(setup) else "removed_note", prompt=prompt),
    )


def _without(setup: Setup, words: Sequence[PromptWord], rest: str) -> Tensor:
    """Pictures with the words masked, with `rest` read in cross-attention, and by `rest` alone."""
    rests = [rest] * len(setup.prompts)
    masked = setup.sample(_masking(setup, [words] * len(rests)))
    read = setup.sample(_reading(setup, rests))
    return torch.cat([each.pictures for each in (masked, read, setup.sample(prompts=rests))])


def _beside(setup: Setup) -> bool:
    """Whether the network is given the prompt beside the time step too."""
    added = as_unet(setup.model.unet).add_embedding
    return isinstance(added, TokenEmbedding) or setup.model.condition([""]).pooled is not None


def on_the_map(setup: Setup) -> tuple[list[float], list[float]]:
    """For each of `OBJECTS`, how well maps find the cells that change without the object.

    The area under the ROC curve of the object's own map, and of the map of the object before it
    in the list, in the picture of its own prompt.
    """
    seeds = [setup.seeds[place % len(setup.seeds)] for place in range(len(OBJECTS))]
    own = replace(setup, prompts=[each[0] for each in OBJECTS], seeds=seeds)
    without = own.sample(prompts=[each[2] for each in OBJECTS]).pictures
    apart = (own.baseline.pictures - without).abs().mean(1, keepdim=True)
    maps = [
        object_map(_trace(setup, prompt, seed), words)
        for (prompt, words, _), seed in zip(OBJECTS, seeds, strict=True)
    ]
    height, width = maps[0].shape
    changed_most = [
        each >= each.flatten().quantile(1 - ACTING)
        for each in F.adaptive_avg_pool2d(apart, (height, width))[:, 0]
    ]
    return (
        [auc(map_, acts) for map_, acts in zip(maps, changed_most, strict=True)],
        [auc(map_, acts) for map_, acts in zip(maps[-1:] + maps[:-1], changed_most, strict=True)],
    )


def object_map(found: Trace, words: str) -> Tensor:
    """The sum [h, w] of the maps of these words."""
    chosen = [place for place, word in enumerate(found.words) if word.text in words.split()]
    return found.maps[chosen].sum(0)


def changes(setup: Setup, pictures: Tensor) -> list[float]:
    """The root mean square difference of each picture from that of the baseline."""
    return (pictures - setup.baseline.pictures).square().flatten(1).mean(1).sqrt().tolist()


def errors(setup: Setup, change: NetworkChange | None) -> list[float]:
    """The root mean square error of x0 of each generated picture, by its own prompt.

    In units of the latents' deviation, at the noise level `LEVEL`.
    """
    unit, latents = setup.latents.std().item(), setup.baseline.latents
    x = latents + unit * LEVEL * setup.noise(latents, 0)
    estimate = setup.estimate(x, unit * LEVEL, change, setup.prompts)
    return ((estimate - latents).square().flatten(1).mean(1).sqrt() / unit).tolist()


def words_of(setup: Setup, prompt: str) -> list[PromptWord]:
    """The words of a prompt, with the places of their tokens."""
    return setup.model.texts[0].prompt_words(prompt)


def padding(setup: Setup, prompt: str) -> list[int]:
    """Places behind the words of a prompt, as many as its last word has tokens, from the end."""
    words = words_of(setup, prompt)
    taken = max((place for word in words for place in word.places), default=0)
    count = sum(len(word.places) for word in words[-1:])
    return [*range(setup.model.conditioner.token_count(prompt) - 1, taken + 1, -1)][:count]


def _masking(setup: Setup, words: Sequence[Sequence[PromptWord]]) -> NetworkChange:
    """Cross-attention without these words of each prompt."""
    places = [[place for word in own for place in word.places] for own in words]
    return leaving_out(setup, setup.prompts, places)


def leaving_out(
    setup: Setup, prompts: Sequence[str], places: Sequence[Sequence[int]]
) -> NetworkChange:
    """Cross-attention without the tokens at these places of each prompt.

    The entries of a batch that are for other prompts, such as the negative one, keep all tokens.
    """
    texts = [_text(setup, prompt) for prompt in prompts]

    def which(cond: Conditioning) -> Tensor:
        given = _given(cond)
        masked = torch.zeros(given.shape[:2], dtype=torch.bool, device=given.device)
        for text, own in zip(texts, places, strict=True):
            entries = _for_text(given, text)
            for place in own:
                masked[:, place :: len(text)] |= entries[:, None]
        return masked

    return changed(without_tokens(which))


def _reading(setup: Setup, rests: Sequence[str]) -> NetworkChange:
    """Cross-attention to other prompts, while the rest of the network has those of the setup."""
    swapped = _swapping(setup, rests)
    return changed(cross_attention_text(lambda cond: _given(swapped(cond))))


def _telling(setup: Setup, rests: Sequence[str]) -> NetworkChange:
    """Other prompts for the network, while cross-attention has those of the setup."""
    return changed(cross_attention_text(_given), conditions(_swapping(setup, rests)))


def _swapping(setup: Setup, rests: Sequence[str]) -> Callable[[Conditioning], Conditioning]:
    """The conditions with other prompts for the entries that have a prompt of the setup."""
    texts = [_text(setup, prompt) for prompt in setup.prompts]
    with torch.inference_mode():
        others = [setup.model.condition([rest]) for rest in rests]

    def swapped(cond: Conditioning) -> Conditioning:
        text, pooled = _given(cond).clone(), cond.pooled
        pooled = None if pooled is None else pooled.clone()
        for own, other in zip(texts, others, strict=True):
            entries = _for_text(_given(cond), own)
            new = _given(other)[0].to(text)
            if text.shape[1] % len(new):
                raise UndustError("cross-attention: the prompts are too long to swap their words")
            text[entries] = new.repeat(text.shape[1] // len(new), 1)
            if pooled is not None and other.pooled is not None:
                pooled[entries] = other.pooled[0].to(pooled)
        return replace(cond, text=text, pooled=pooled)

    return swapped


def _given(cond: Conditioning) -> Tensor:
    assert cond.text is not None
    return cond.text


@torch.inference_mode()
def _text(setup: Setup, prompt: str) -> Tensor:
    """The states [T, D] of a prompt."""
    return _given(setup.model.condition([prompt]))[0]


def _for_text(given: Tensor, text: Tensor) -> Tensor:
    """Which entries of given states [B, k·T, D] have this text [T, D], repeated; bool [B]."""
    if given.shape[1] % len(text):
        return torch.zeros(len(given), dtype=torch.bool, device=given.device)
    text = text.to(given)
    apart = given.unflatten(1, (-1, len(text))) - text
    return apart.abs().flatten(1).amax(1) <= CLOSE * text.abs().max()


def without_word(prompt: str, words: Sequence[PromptWord], number: int) -> str:
    """A prompt without its word of that number; the other words alone if it is spelt otherwise."""
    number = range(len(words))[number] if words else 0
    end = begin = 0
    for word in words[: number + 1]:
        begin = prompt.find(word.text, end)
        if begin < 0:
            return " ".join(each.text for k, each in enumerate(words) if k != number)
        end = begin + len(word.text)
    return " ".join((prompt[:begin] + prompt[end:]).split())
