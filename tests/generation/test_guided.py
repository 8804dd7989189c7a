"""What guides come to in a picture, with a model whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from painter import ColourPainter
from undust.diffusion.guidance import GUIDANCES, GuidanceContext, GuidanceMethod, IdentityMap
from undust.diffusion.process import PROCESSES, Process
from undust.diffusion.samplers import SAMPLERS
from undust.diffusion.schedules import SCHEDULES
from undust.errors import UndustError
from undust.generation import loop
from undust.generation.guided import resolve_guidance
from undust.networks.conditioning import CallOptions, Conditioning
from undust.pictures import to_data
from undust.recipe.recipe import Recipe


@dataclass
class Painter(ColourPainter):
    """Paints the colour of its prompt; half of it where self-attention is the identity, a quarter
    where queries are blurred. `bent`, its answers hang on all they can."""

    bent: bool = False
    faint: float = 1.0
    hash: str = "0123456789"
    process: Process = field(default_factory=PROCESSES["scaled-linear"])
    calls: list[int] = field(default_factory=list[int])

    def denoise(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, options: CallOptions | None = None, /
    ) -> Tensor:
        assert len(x) == len(sigma) == len(cond)
        self.calls.append(len(x))
        kept = {None: 1.0, IdentityMap(): 0.5}
        strength = [
            kept.get(how, 0.25) for how in (options.perturbed if options else [None] * len(x))
        ]
        colour = cond.text[:, 0] * torch.tensor(strength)[:, None] * self.faint
        colour = colour[:, :, None, None].expand_as(x)
        return torch.tanh(x + colour) / (1 + sigma.reshape(-1, 1, 1, 1)) if self.bent else colour

    def load_other(self, name_or_path: str, /) -> Painter:
        assert name_or_path == "faint"
        return Painter(faint=0.5, hash="faint", calls=self.calls)


def recipe(prompt: str = "red", *guides: str, **fields: Any) -> Recipe:
    size = {"width": 4, "height": 2, "sampler": "euler", "steps": 4}
    return Recipe.read({"prompt": prompt, "seed": 1, "guides": guides, **size, **fields})


def mask(shades: Sequence[int]) -> str:
    """A mask of four columns of these shades."""
    image = Image.new("L", (4, 2))
    image.putdata([*shades, *shades])
    return to_data(image, (4, 2))


def end(asked: Recipe, painter: Painter | None = None) -> Tensor:
    """The latent [3, 2, 4] that it ends in, each step painted in one call."""
    painter = painter or Painter()
    *_, last = loop.sample_batch(painter, [asked])
    return last.x[0]


def colour(x: Tensor) -> Any:
    assert torch.equal(x, x[:, :1, :1].expand_as(x))
    return pytest.approx(x[:, 0, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "guides", "guidance", "negative", "expected"),
    [
        ("grey", [], 1.5, "", [0.5, 0.5, 0.5]),
        # and: black + (grey − black) + ½(red − black) = (1, 0, 0); then twice as far from black
        ("grey", ["and:prompt=red,weight=0.5"], 2, "", [3, 1, 1]),
        # perp-neg: p = (2, 0, 0), n = (1, 1, 1), n⊥ = (0, 1, 1); black + p − n⊥
        ("red", ["perp-neg"], 1, "grey", [1, -2, -2]),
        ("red", ["perp-neg:weight=0"], 2, "grey", [3, -1, -1]),
        # red + 2·(red − red/2); then a quarter
        ("red", ["pag:scale=2"], 1, "", [2, -2, -2]),
        ("red", ["seg:scale=2"], 1, "", [2.5, -2.5, -2.5]),
        ("red", ["seg:scale=2,blur=3", "pag:scale=2"], 1, "", [3.5, -3.5, -3.5]),
        ("red", ["autoguidance:model=faint,scale=1"], 1, "", [1.5, -1.5, -1.5]),
        # (5, −1, −1) has three times the contrast of red
        ("red", ["rescale:share=1,output=sample"], 3, "", [5 / 3, -1 / 3, -1 / 3]),
        ("grey", ["threshold"], 5, "", [3, 3, 3]),
        ("grey", ["interval:high=0.001"], 5, "", [0, 0, 0]),
        # grey and black: the first step is guided, in which they agree as far as they can
        ("grey", ["adaptive:threshold=-1"], 5, "", [0, 0, 0]),
        ("grey", ["adaptive:threshold=1"], 5, "", [4, 4, 4]),
        ("red", ["adaptive:threshold=-1", "pag:scale=2"], 5, "", [2, -2, -2]),
        # inside the interval the prompt is guided, and pag, which comes after it, is everywhere
        ("red", ["interval:high=0.001", "pag:scale=2"], 5, "", [2, -2, -2]),
        ("red", ["pag:scale=2", "interval:high=0.001"], 5, "", [1, -1, -1]),
        ("grey", ["scales:values=5 3"], 7, "", [2, 2, 2]),
        ("grey", ["cfg++:scale=0.5"], 7, "", [-0.5, -0.5, -0.5]),
        ("grey", ["apg:eta=1,momentum=0"], 3, "", [2, 2, 2]),
        ("grey", ["then:prompt=red,after=0.5"], 1, "", [1, -1, -1]),
        ("grey", ["then:prompt=red,sigma=0.5"], 1, "", [1, -1, -1]),
        ("red", ["then:prompt=grey,after=0.5", "pag:scale=2"], 1, "", [0, 0, 0]),
    ],
)
def test_what_each_guide_comes_to(
    prompt: str, guides: list[str], guidance: float, negative: str, expected: list[float]
):
    painted = end(recipe(prompt, *guides, guidance=guidance, negative=negative))
    assert colour(painted) == expected


def test_each_prompt_has_its_steps():
    guides = ["then:prompt=red,after=0.4", "then:prompt=,after=0.8"]
    steps = loop.sample_batch(Painter(), [recipe("grey", *guides, guidance=1, steps=5)])
    assert [step.x0[0, 0, 0, 0].item() for step in steps] == [0, 0, 1, 1, -1]


def test_a_prompt_begins_where_its_share_of_the_steps_ends():
    """0.07 × 100 is 7, although the product of the two floats is a little more."""
    asked = recipe("grey", "then:prompt=red,after=0.07", guidance=1, steps=100)
    steps = loop.sample_batch(Painter(), [asked])
    assert [step.x0[0, 0, 0, 0].item() for step in steps] == [0] * 7 + [1] * 93


def test_each_region_has_its_prompt():
    """White is its prompt, black the first one, grey shades between; overlaps are shared."""
    guide = f"region:prompt=red,mask={mask([255, 255, 51, 0])}"
    painted = end(recipe("grey", guide, guidance=1))
    assert painted[0, 1].tolist() == pytest.approx([1, 1, 0.2, 0])
    both = [guide, f"region:prompt=,mask={mask([0, 255, 0, 0])}"]
    painted = end(recipe("grey", *both, guidance=1))
    assert painted[0, 1].tolist() == pytest.approx([1, 0, 0.2, 0])


def test_a_mask_is_read_and_kept_at_the_size_of_the_latent(tmp_path: Path):
    Image.new("RGB", (40, 20), "white").save(tmp_path / "mask.png")
    (asked,) = recipe("grey", f"region:prompt=red,mask={tmp_path / 'mask.png'}", guidance=1).guides
    settled = resolve_guidance(asked, Painter(), (4, 2))
    assert settled.model_dump()["mask"] == mask([255] * 4)
    assert resolve_guidance(settled, Painter(), (4, 2)) == settled
    with pytest.raises(UndustError, match="not a picture"):
        end(recipe("grey").model_copy(update={"guides": (asked,)}))
    with pytest.raises(UndustError, match="guide region: its mask is not for 8x2"):
        end(recipe("grey", width=8).model_copy(update={"guides": (settled,)}))
    with pytest.raises(UndustError, match=r"none\.png cannot be read as a picture"):
        resolve_guidance(asked.model_copy(update={"mask": "none.png"}), Painter(), (4, 2))


def test_another_model_is_known_by_its_hash():
    (asked,) = recipe("red", "autoguidance:model=faint").guides
    settled = resolve_guidance(asked, Painter(), (4, 2))
    assert settled.model_dump()["model_hash"] == "faint"
    changed = recipe("red", "autoguidance:model=faint,model_hash=other")
    with pytest.raises(
        UndustError, match=r"faint is another model \(faint\) than it was \(other\)"
    ):
        end(changed)


NEUTRAL = [
    "and:prompt=red,weight=0",
    "then:prompt=red,after=1",
    f"region:prompt=red,mask={mask([0] * 4)}",
    "scales:values=4",
    "apg:eta=1,momentum=0",
    "pag:scale=0",
    "seg:scale=0",
    "autoguidance:model=faint,scale=0",
    "rescale:share=0",
    "interval",
    "threshold:limit=1e9",
]


def steps(*guides: str, painter: Painter) -> list[loop.Step]:
    asked = [recipe("red", *guides, seed=1), recipe("grey", *guides, seed=2)]
    return list(loop.sample_batch(painter, asked))


@pytest.mark.parametrize(
    "guides", [*([guide] for guide in NEUTRAL), ["perp-neg:weight=0"], NEUTRAL]
)
def test_a_neutral_guide_is_not_there_to_the_bit(guides: list[str]):
    ours, theirs = Painter(bent=True), Painter(bent=True)
    for here, there in zip(steps(*guides, painter=ours), steps(painter=theirs), strict=True):
        assert torch.equal(here.x, there.x)
        assert torch.equal(here.x0, there.x0)
    assert ours.calls == theirs.calls == [4] * 4


def test_without_guides_it_is_classifier_free_guidance_by_hand_to_the_bit():
    painter = Painter(bent=True)
    asked = [recipe("red", seed=1), recipe("grey", seed=2)]
    ours = list(loop.sample_batch(painter, asked))
    cond = painter.condition(["red", "grey"]).concat(painter.condition(["", ""]))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        answer = painter.denoise(torch.cat([x, x]), sigma.repeat(2), cond)
        positive, negative = answer.chunk(2)
        return negative + 4.0 * (positive - negative)

    sigmas = SCHEDULES["karras"](painter.process, 4)
    start = loop.PictureNoise([1, 2], (3, 2, 4)).start()
    x = painter.process.start(start, sigmas[0])
    theirs = SAMPLERS["euler"](denoise, x, sigmas, lambda *_: x)
    for here, there in zip(ours, theirs, strict=True):
        assert torch.equal(here.x, there.x)


def test_all_branches_of_a_step_are_one_call():
    """Prompt, negative prompt, no prompt, the other prompt, two perturbations of both prompts."""
    painter = Painter(bent=True)
    guides = ["and:prompt=grey", "perp-neg", "pag", "seg", "rescale", "threshold"]
    end(recipe("red", *guides, negative="grey"), painter)
    assert painter.calls == [8] * 4


def test_every_run_begins_without_memory():
    painter, asked = Painter(bent=True), recipe("red", "apg:momentum=-0.9")
    assert torch.equal(end(asked, painter), end(asked, painter))
    assert not torch.equal(end(asked, painter), end(recipe("red", "apg:momentum=0"), painter))


def test_a_new_guidance_finds_every_denoiser_in_its_context(monkeypatch: pytest.MonkeyPatch):
    """One that changes the prompts too, also where they are perturbed or another model's."""
    found: list[tuple[object, ...]] = []

    class Other:
        """Another prompt, for a test of the registry."""

        @classmethod
        def build(cls, context: GuidanceContext, *, prompt: str = "grey") -> object:
            found.append((context.negative, context.empty, context.positive, context.denoise))
            return context.conditioned_on(prompt)

    monkeypatch.setitem(GUIDANCES, "other", GuidanceMethod("other", "prompt", Other))
    asked = recipe("red", "other", "pag:scale=2", "autoguidance:model=faint", negative="grey")
    assert end(asked).isfinite().all()
    assert len(found) == 3  # plain, perturbed, the other model
    assert len({id(negative) for negative, *_ in found}) == 1
    assert len({id(empty) for _, empty, *_ in found}) == 1
    assert len({id(positive) for *_, positive, _ in found}) == 3
    assert all(positive is denoise for *_, positive, denoise in found)


def test_a_changed_model_is_named_by_the_guidance_that_uses_it():
    asked = recipe("red", "autoguidance:model=faint,model_hash=0000")
    with pytest.raises(UndustError, match=r"guide autoguidance: faint is another model \(faint\)"):
        end(asked)
