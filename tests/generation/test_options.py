"""From wishes to recipes to pictures, and from those recipes to the same pictures again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import undust
from undust.diffusion.noise import PictureNoise
from undust.errors import UndustError
from undust.formats.recipe_png import read_recipe
from undust.formats.safetensors_file import save
from undust.generation import inversion, loop
from undust.generation.options import NOISE_LEVEL
from undust.pictures import to_data
from undust.pipeline import LatentDiffusion
from undust.recipe.guidance import read_guidance
from undust.recipe.inputs import Embedding
from undust.recipe.recipe import Recipe, between
from undust.recipe.request import SEEDS

QUICK = {"steps": 3, "seed": 1}
LONG = "a cat and a dog and " * 4  # of several chunks of the tiny model's 16 tokens


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LatentDiffusion:
    return undust.load(tiny_model)


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def hole(width: int = 32, height: int = 32) -> Image.Image:
    image = Image.new("L", (width, height), 0)
    image.paste(255, (width // 4, height // 4, width // 2, height))
    return image


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture and a mask, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    picture().save("a.png")
    hole().save("mask.png")
    return tmp_path


# Wishes to recipes


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (3, 7), (2, SEEDS - 1)])
def test_every_prompt_gets_every_seed(model: LatentDiffusion, count: int, seed: int):
    made = model.recipes(["a", "b"], count=count, seed=seed)
    assert [(each.prompt, each.seed) for each in made] == [
        (prompt, (seed + k) % SEEDS) for prompt in "ab" for k in range(count)
    ]
    assert {(each.model, each.model_hash) for each in made} == {(model.name, model.hash)}
    assert model.recipes("a")[0].seed != model.recipes("a")[0].seed  # any


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count: has to be at least 1, not 0"),
        ({"count": "2"}, "count: has to be a whole number, not '2'"),
        ({"count": 1.5}, "count: has to be a whole number, not 1.5"),
        ({"seed": "1"}, "seed: has to be a whole number, not '1'"),
        ({"seed": np.zeros(2)}, "seed: has to be a whole number"),
        ({"seed": -1}, "seed: .*not -1; leave it out for a random one"),
        ({"negative": ["a", "b"]}, "negative: one text goes with all prompts of a call"),
        ({"init": np.zeros((8, 8, 3), np.uint8)}, "picture: ndarray is neither"),
        ({"mask": torch.zeros(8, 8)}, "picture: Tensor is neither"),
        ({"embeddings": {"a.pt": "zzz"}}, "embedding: 'a.pt' is none of .* PATH or PATH=WORD"),
        ({"loras": {"a.pt": 0.8}}, "lora: 'a.pt' is none of .* PATH or PATH:WEIGHT"),
        ({"loras": ("none", 0.8)}, "none does not exist"),
        ({"loras": [("none", 0.8)]}, r"lora: \('none', 0.8\) is not valid; expected PATH"),
        ({"loras": 3}, "lora: 3 is not valid; expected PATH"),
        ({"guides": 3}, "guides: 3 is not valid"),
        ({"upscale": (2, 0.3)}, r"upscale: \(2, 0.3\) is not valid; expected FACTOR"),
        ({"seed": SEEDS}, "seed: "),
        ({"size": 33}, "size: 33x33 is not divisible by 4"),
        ({"size": (32, 0)}, "size: 32x0 is not divisible"),
        ({"init": "a.png", "extend": "4,0,0,0", "size": 40}, "size: leave it out; with extend"),
        ({"extend": "4,0,0,0"}, r"extend: it needs a picture to start from \(init\)"),
        ({"init": "none.png"}, r"none\.png cannot be read as a picture"),
        ({"init": "a.png", "mask": "none.png"}, r"none\.png cannot be read as a picture"),
        ({"loras": ["none.safetensors"]}, r"none\.safetensors does not exist$"),
        ({"loras": "none.safetensors:0.8"}, r"none\.safetensors does not exist$"),
        ({"embeddings": "none=word"}, "none does not exist$"),
        ({"controls": "none=a.png"}, "none does not exist$"),
        ({"refiner": "none"}, "unknown model 'none'"),
        ({"upscale": 1.0}, "upscale: factor: has to be greater than 1"),
        ({"upscale": "2@2"}, "upscale: strength: "),
        ({"init": "a.png", "mask": "mask.png", "upscale": 2}, "upscale: the second pass"),
        ({"framing": "x"}, "framing: 'x' is not original=WxH"),
        ({"guides": "aapg"}, "unknown guide 'aapg'"),
    ],
)
def test_wishes_that_cannot_be(
    model: LatentDiffusion, here: Path, options: dict[str, Any], said: str
):
    with pytest.raises(UndustError, match=said):
        model.recipes("a cat", **options)
    with pytest.raises(UndustError, match="no prompt"):
        model.recipes([], **options)


@pytest.mark.parametrize("prompts", [3, b"a", ["a", 3], [["a"]], {"a": 1}, np.zeros(2)])
def test_prompts_are_texts(model: LatentDiffusion, prompts: Any):
    with pytest.raises(UndustError, match="prompt: has to be a text, or a list of texts") as caught:
        model.generate(prompts)
    assert "\n" not in str(caught.value)
    with pytest.raises(UndustError, match="no prompt: give one"):
        model.generate(None)  # pyright: ignore


def test_one_of_several_may_stand_alone(model: LatentDiffusion, here: Path):
    save(here / "toy.safetensors", {"emb_params": torch.randn(2, 16)})
    fields = {"path": "toy.safetensors", "word": "toy"}
    asked = [
        model.recipes("a", seed=1, embeddings=given, guides=guide)[0]
        for given, guide in [
            (["toy.safetensors"], ["apg:eta=1"]),
            ("toy.safetensors", "apg:eta=1"),
            (Path("toy.safetensors"), {"name": "apg", "eta": 1}),
            (fields, [{"name": "apg", "eta": 1}]),
            ({**fields, "path": Path("toy.safetensors")}, read_guidance("apg:eta=1")),
            (Embedding.read(fields), (each for each in ["apg:eta=1"])),
        ]
    ]
    assert len(asked[0].embeddings) == len(asked[0].guides) == 1
    assert asked == asked[:1] * len(asked)


def test_numbers_need_not_be_pythons_own(model: LatentDiffusion):
    plain = model.recipes("a", count=2, seed=3)
    assert model.recipes("a", count=np.int64(2), seed=np.int64(3)) == plain  # pyright: ignore
    assert model.recipes("a", count=2, seed=torch.tensor(3)) == plain  # pyright: ignore
    assert len(model.recipes("a", count=None)) == 1


def test_nothing_asked_for_is_left_out(model: LatentDiffusion):
    plain = model.recipes("a", seed=1)[0]
    nothing = {"init": None, "mask": None, "extend": None, "strength": None, "upscale": None}
    for none in ((), None):
        several = dict.fromkeys(("loras", "embeddings", "controls", "guides"), none)
        asked = model.recipes("a", seed=1, refiner=None, framing=None, **nothing, **several)
        assert asked == [plain]


@given(st.integers(1, 70), st.integers(1, 70), st.none() | st.tuples(*[st.integers(0, 9)] * 4))
def test_the_size_is_that_of_the_picture(
    model: LatentDiffusion, width: int, height: int, extend: tuple[int, ...] | None
):
    """As the network can have it, unless another is asked for."""
    extend = extend if extend and any(extend) else None
    image = picture(width, height)
    recipe = model.recipes("a", init=image, extend=extend)[0]
    left, top, right, bottom = extend or (0, 0, 0, 0)
    for side, wanted in (
        (recipe.width, width + left + right),
        (recipe.height, height + top + bottom),
    ):
        assert side % 4 == 0
        assert wanted <= side < wanted + 4
    if extend is None:
        assert model.recipes("a", init=image, size=(16, 8))[0].final_size == (16, 8)
    assert model.recipes("a")[0].final_size == model.size == (32, 32)


def test_files_are_named_with_what_is_in_them(model: LatentDiffusion, here: Path, tiny_model: Path):
    save(here / "toy.safetensors", {"emb_params": torch.randn(2, 16)})
    asked = {
        "init": "a.png",
        "mask": Image.open("mask.png"),
        "embeddings": ["toy.safetensors=<toy>"],
        "refiner": f"{tiny_model}@0.5",
    }
    for init in (asked["init"], Path("a.png")):
        recipe = model.recipes("a <toy>", **{**asked, "init": init})[0]
        assert recipe.init and recipe.mask and recipe.refiner
        assert (recipe.init.path, recipe.mask.path) == ("a.png", "")
        assert recipe.init.hash and recipe.mask.hash and recipe.embeddings[0].hash
        assert recipe.refiner.model_hash == model.hash
    again = {name: getattr(recipe, name) for name in asked}
    assert model.recipes("a <toy>", seed=recipe.seed, **again) == [recipe]


def test_a_refiner_that_is_another_than_it_was(model: LatentDiffusion, tiny_model: Path):
    with pytest.raises(UndustError, match=rf"is another model \({model.hash}\) than it was \(x\)"):
        model.recipes("a", refiner={"model": str(tiny_model), "model_hash": "x"})


def test_models_that_make_pictures_larger_have_their_own_defaults():
    from variants import build

    larger = build("x4-upscaler")
    recipe = larger.recipes("a", init=picture(9, 5))[0]
    assert (recipe.width, recipe.height, recipe.noise_level) == (36, 20, NOISE_LEVEL)
    assert larger.recipes("a", init=picture(9, 5), noise_level=3)[0].noise_level == 3
    with pytest.raises(UndustError, match="give it one to begin from"):
        larger.generate("a", steps=1)
    with pytest.raises(UndustError, match="only makes pictures larger, with generate"):
        list(inversion.invert(larger, larger.recipes("a"), torch.zeros(1, 4, 16, 16)))
    assert larger.recipes("a", init=picture(9, 5), noise_level=350)[0].noise_level == 350
    with pytest.raises(UndustError, match=r"noise level: .* trained with at most 350, not 351"):
        larger.recipes("a", init=picture(9, 5), noise_level=351)
    for name, value in {"strength": 0.5, "mask": picture(9, 5), "upscale": 2.0}.items():
        with pytest.raises(UndustError, match=f"{name}: not possible with an upscaling model"):
            larger.recipes("a", init=picture(9, 5), **{name: value})


@pytest.mark.parametrize(("guidance", "counts"), [(0, "does not count"), (0.5, "counts for less")])
def test_guidance_below_one_is_told(model: LatentDiffusion, guidance: float, counts: str):
    with pytest.warns(UserWarning, match=f"at {guidance} the prompt {counts}; --guidance 1 is"):
        model.recipes("a cat", guidance=guidance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.recipes("a cat", guidance=1)
        model.recipes("a cat", guidance=guidance, guides="scales:values=4 2")


# Batches


def test_prompts_of_one_length_go_together(model: LatentDiffusion):
    prompts = ["a", "a cat", LONG, LONG + "!", "a dog", "a"]
    made = list(loop.batches(model, model.recipes(prompts, **QUICK)))
    assert [[each.prompt for each in batch] for batch in made] == [
        ["a", "a cat"],
        [LONG, LONG + "!"],
        ["a dog", "a"],
    ]
    by_negative = model.recipes("a", negative=LONG, **QUICK) + model.recipes("a", **QUICK)
    assert [len(batch) for batch in loop.batches(model, by_negative)] == [1, 1]


def test_a_learnt_word_counts_as_all_its_vectors(model: LatentDiffusion, here: Path):
    save(here / "toy.safetensors", {"emb_params": torch.randn(14, 16)})
    asked = model.recipes(["toy a", "cat a", "cat"], embeddings=["toy.safetensors"], **QUICK)
    assert [len(batch) for batch in loop.batches(model, asked)] == [1, 2]
    assert [len(batch) for batch in loop.batches(model, model.recipes(["toy a", "cat a"]))] == [2]


def test_what_is_shared_is_asked_for_once(model: LatentDiffusion, here: Path):
    asked = model.recipes(["a", "b"], init="a.png", count=2, **QUICK)
    assert [len(batch) for batch in loop.batches(model, asked)] == [4]
    other = model.recipes("c", init=picture(seed=5), **QUICK)
    assert [len(batch) for batch in loop.batches(model, asked + other)] == [4, 1]
    # Whether it was read already or comes from a file's recipe makes no difference.
    read = [Recipe.read(each.model_dump()) for each in asked]
    assert [len(batch) for batch in loop.batches(model, asked[:2] + read[2:])] == [4]


OVER = [
    {"init": "a.png"},
    {"init": "a.png", "strength": 0.4},
    {"init": "a.png", "mask": "mask.png"},
    {"init": "a.png", "extend": "3,0,6,4"},
    {"init": "a.png", "mask": "mask.png", "strength": 0.5, "sampler": "euler-ancestral"},
    {"init": "a.png", "size": 16},
    {"upscale": "1.5@0.7"},
    {"init": "a.png", "strength": 0.4, "upscale": 2},
    {"upscale": 1.5, "guides": ["region:prompt=a dog,mask=mask.png"]},
]


@pytest.mark.parametrize("options", OVER)
def test_pictures_of_a_batch_are_those_made_alone(
    model: LatentDiffusion, here: Path, options: dict[str, Any]
):
    together = model.generate(["a cat", "a dog"], count=2, **QUICK, **options)
    exact = model.generate(["a cat", "a dog"], count=2, exact=True, **QUICK, **options)
    assert [each.recipe.batch for each in together] == [4] * 4
    assert [each.recipe.batch for each in exact] == [1] * 4
    # Between two passes a picture has 8 bits, and rounding can turn a byte: 2/255 of [-1, 1].
    allowed = 2 / 255 if "upscale" in options else 1e-4
    for one, other in zip(together, exact, strict=True):
        torch.testing.assert_close(one.latent, other.latent, rtol=1e-3, atol=allowed)
        off = np.array(one.image).astype(int) - np.array(other.image)
        assert np.abs(off).max() <= 1
    (alone,) = model.generate("a dog", **{**QUICK, "seed": 2}, **options)
    assert alone.image.tobytes() == exact[3].image.tobytes()


# The same again


@pytest.mark.parametrize("options", OVER)
def test_the_same_picture_is_made_again(
    model: LatentDiffusion, here: Path, options: dict[str, Any]
):
    pictures = model.generate(["a cat", "a dog"], **QUICK, **options)
    path = pictures[1].save("b.png")
    again = model.rerun(Recipe.read(read_recipe(path)))
    assert again.image.tobytes() == pictures[1].image.tobytes()
    again.save("c.png")
    assert Path("c.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize("name", ["a.png", "mask.png"])
def test_a_file_that_is_gone_or_another(model: LatentDiffusion, here: Path, name: str):
    (made,) = model.generate("a cat", init="a.png", mask="mask.png", **QUICK)
    kept = Recipe.read(read_recipe(made.save("b.png")))
    with Image.open(name) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(name)
    with pytest.raises(UndustError, match=rf"{name} is not the picture any more that it was"):
        model.rerun(kept)
    Path(name).unlink()
    with pytest.raises(UndustError, match=rf"{name} cannot be read as a picture"):
        model.rerun(kept)


def test_a_picture_in_memory_is_not_in_the_file(model: LatentDiffusion, here: Path):
    (made,) = model.generate("a cat", init=picture(), **QUICK)
    assert model.rerun(made.recipe).image.tobytes() == made.image.tobytes()
    kept = Recipe.read(read_recipe(made.save("b.png")))
    with pytest.raises(UndustError, match="made from one in memory"):
        model.rerun(kept)


def test_a_region_is_where_it_was_in_the_second_pass_too(model: LatentDiffusion, here: Path):
    """Its mask, kept at the size of the first pass's latent, is brought to the second's."""
    (recipe,) = model.recipes("a", upscale=2, guides=["region:prompt=b,mask=mask.png"], **QUICK)
    (larger,) = loop.upscaled_recipes([recipe], model, (64, 64))
    assert (larger.width, larger.height) == (64, 64)
    with Image.open("mask.png") as image:
        assert larger.guides[0].model_dump()["mask"] == to_data(image, (16, 16))


@pytest.mark.parametrize(
    ("first", "factor", "last"),
    [((30, 28), 2, (60, 56)), ((32, 32), 1.3, (42, 42)), ((29, 31), "1.5", (44, 47))],
)
def test_a_second_pass_keeps_the_shape_of_the_picture(
    model: LatentDiffusion, first: tuple[int, int], factor: float | str, last: tuple[int, int]
):
    """Whatever sides the network can have: it is image to image of the larger picture."""
    options = {"init": picture(*first), "strength": 0.5, **QUICK}
    (ours,) = model.generate("a cat", upscale=factor, **options)
    assert ours.image.size == last
    (small,) = model.generate("a cat", **options)
    assert small.image.size == first
    larger = small.image.resize(last, Image.Resampling.LANCZOS)
    start = PictureNoise([1], ours.latent.shape).start(1)
    (again,) = model.generate("a cat", init=larger, strength=0.5, noise=start, **QUICK)
    assert torch.equal(ours.latent, again.latent)
    assert ours.image.tobytes() == again.image.tobytes()


# On the way between two


@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.5}, {"mask": "mask.png"}, {"upscale": "1.5"}]
)
def test_on_the_way_over_a_picture(model: LatentDiffusion, here: Path, options: dict[str, Any]):
    if "upscale" not in options:
        options = {"init": "a.png", **options}
    first, last = (
        model.recipes(prompt, steps=3, seed=seed, **options)[0]
        for prompt, seed in (("a cat", 1), ("고양이", 2))
    )
    (batch,) = loop.batches(model, between(first, last, 3))
    *_, step = loop.sample_batch(model, batch)
    way = loop.decode(batch, step)
    for place, end in ((0, first), (2, last)):
        *_, alone = loop.sample_batch(model, [end])
        torch.testing.assert_close(way[place].latent, alone.x[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(way[1].latent, way[0].latent, atol=1e-3)
    kept = Recipe.read(read_recipe(way[1].save("b.png")))
    assert model.rerun(kept).image.tobytes() == way[1].image.tobytes()


@pytest.mark.parametrize("size", ["32 by 32", (32, 32, 32), (32.0, 32)])
def test_a_size_is_two_numbers_or_one(model: LatentDiffusion, size: object):
    with pytest.raises(UndustError, match=r"size: .* is neither"):
        model.recipes("a cat", size=size)  # pyright: ignore


def test_what_a_model_is_not_told_is_refused(model: LatentDiffusion):
    with pytest.raises(UndustError, match="framing: tiny has no size conditioning"):
        model.recipes("a cat", framing="crop=1x1")


def test_an_unknown_option_is_named(model: LatentDiffusion):
    with pytest.raises(UndustError, match="unknown option 'stengh'; did you mean 'strength'"):
        model.generate("a cat", stengh=0.3)  # pyright: ignore


def test_a_refiner_of_other_latents_is_refused(tmp_path: Path):
    from variants import build

    build("sd1").save(tmp_path / "other")
    with pytest.raises(UndustError, match="has other latents"):
        build("sdxl").recipes("a cat", refiner=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("a cat <lora:ink:0.8>", {}, r"<lora:ink:0\.8> is read as plain text; a LoRA is loaded"),
        ("a cat", {"negative": "a [b:c:3]"}, r"\[b:c:3\] is read as plain text"),
        ("a cat", {"embeddings": "toy.safetensors=<zzz>"}, "no prompt says '<zzz>'"),
        ("a cat", {"init": picture(80, 80)}, r"6 times the pixels .* trained on \(32x32\)"),
    ],
)
def test_what_is_likely_not_meant_is_told_once(
    model: LatentDiffusion, here: Path, prompt: str, options: dict[str, Any], said: str
):
    save(here / "toy.safetensors", {"emb_params": torch.randn(2, 16)})
    with pytest.warns(UserWarning, match=said) as told:
        model.recipes([prompt, prompt], **QUICK, **options)
    assert len(told) == 1


@pytest.mark.filterwarnings("error")
def test_what_is_meant_is_not_told(model: LatentDiffusion, here: Path):
    save(here / "toy.safetensors", {"emb_params": torch.randn(2, 16)})
    model.recipes("a Toy (cat:1.2)", embeddings="toy.safetensors", init=picture(64, 64), **QUICK)
    model.recipes("a cat", negative="toy", embeddings="toy.safetensors", **QUICK)


def test_a_mask_without_white_paints_nothing(model: LatentDiffusion):
    with pytest.raises(UndustError, match="mask: nothing in it is white or transparent; those"):
        model.recipes("a cat", init=picture(), mask=Image.new("L", (32, 32)), **QUICK)
    model.recipes("a cat", init=picture(), mask=Image.new("L", (32, 32)), extend="8,0,0,0", **QUICK)


# Transparent holes


def with_hole(color: tuple[int, int, int], alpha: int = 0) -> Image.Image:
    image = Image.new("RGBA", (32, 32), (*color, 255))
    image.paste((0, 0, 0, alpha), (8, 8, 24, 24))
    return image


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (200, 30, 90)])
def test_a_hole_in_a_mask_is_painted(model: LatentDiffusion, color: tuple[int, int, int]):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    (by_white,) = model.generate("a", init=picture(), mask=mask, **QUICK)
    with pytest.warns(UserWarning, match="the transparent part of the mask is repainted"):
        (by_hole,) = model.generate("a", init=picture(), mask=with_hole(color), **QUICK)
    assert by_hole.image.tobytes() == by_white.image.tobytes()
    assert by_hole.recipe.mask_is_hole
    assert "mask_is_hole" not in by_white.recipe.model_dump()


def test_a_hole_in_the_only_picture_is_painted(model: LatentDiffusion, here: Path):
    image = picture().convert("RGBA")
    image.putalpha(with_hole((0, 0, 0)).getchannel("A"))
    image.save("hole.png")
    with pytest.warns(UserWarning, match="the transparent part of the picture is repainted"):
        (made,) = model.generate("a", init="hole.png", **QUICK)
    kept = np.asarray(image.getchannel("A")) == 255
    assert (np.asarray(made.image)[kept] == np.asarray(picture())[kept]).all()
    assert (np.asarray(made.image)[~kept] != 255).any()
    assert made.recipe.strength == 1
    made.save("made.png")
    again = model.rerun(Recipe.read(read_recipe(Path("made.png"))))
    assert again.image.tobytes() == made.image.tobytes()


def test_what_has_no_hole_is_as_it_was(model: LatentDiffusion):
    strokes = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    strokes.paste((255, 255, 255, 255), (8, 8, 24, 24))  # drawn in white on nothing
    opaque = with_hole((255, 255, 255), 255)
    soft = with_hole((9, 9, 9), 128)  # a shadow of a logo: no place of it is all transparent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [
            *model.recipes("a", init=picture(), mask=strokes),
            *model.recipes("a", init=picture(), mask=opaque),
            *model.recipes("a", init=soft),
            *model.recipes("a", init=with_hole((9, 9, 9)), upscale=2),
        ]
    assert not any(each.mask_is_hole for each in made)
    assert [each.mask is None for each in made] == [False, False, True, True]
    with pytest.raises(UndustError, match="mask_is_hole: it needs a mask"):
        Recipe.read({**made[2].model_dump(), "mask_is_hole": True})
