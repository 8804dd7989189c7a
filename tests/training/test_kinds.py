"""Recipes: read, changed from the command line, refused by name."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.training import kinds
from undust.training.config_keys import tables
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig

PUBLISHED = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
Write = Callable[[str], Path]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_recipes_can_be_read(path: Path):
    assert kinds.read(path).kind in path.stem


def test_recipes_are_published():
    assert PUBLISHED


@pytest.mark.parametrize("kind", ["first-stage", "diffusion"])
def test_a_recipe_survives_being_written_in_a_checkpoint(kind: str, write_recipe: Write):
    recipe = kinds.read(write_recipe(kind))
    assert kinds.parse(recipe.model_dump(mode="json"), "checkpoint") == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("run.stepz=3", "run.stepz"),
        ("typo=3", "typo"),
        ("run.steps=0", "run.steps"),
        ("run.steps=many", "run.steps"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("run.precision=fp8", "run.precision"),
        ("kind=magic", "kind"),
        ("autoencoder.norm_num_groups=3", "autoencoder: norm_num_groups must divide"),
        ("data=5", "data"),
        ("run.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("kind.name=x", "'kind' is a value, not a table"),
    ],
)
def test_what_cannot_be_is_named(change: str, said: str, write_recipe: Write):
    with pytest.raises(UndustError) as error:
        kinds.read(write_recipe("first-stage"), [change])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("process", "changes"),
    [
        ("scaled-linear", ["beta_start=0.001", "zero_terminal_snr=true", "shift=3"]),
        ("sigmoid", ["beta_end=0.02", "prediction=v_prediction"]),
        ("cosine", ["steps=50", "prediction=sample"]),
        ("flow", ["shift=3", "steps=500", "prediction=flow"]),
        ("vp", ["beta_min=0.2", "beta_max=10", "times=mode", "weighting=likelihood"]),
        ("sub-vp", ["steps=500", "prediction=score"]),
        ("ve", ["sigma_min=0.02", "sigma_max=40", "prediction=score"]),
        ("edm", ["sigma_data=1", "p_mean=-0.5", "p_std=1", "sigma_min=0.01", "sigma_max=90"]),
    ],
)
def test_every_process_has_its_own_keys(process: str, changes: list[str], write_recipe: Write):
    path = write_recipe("diffusion")
    changes = [f"process={process}", *changes]
    recipe = kinds.read(path, [f"diffusion.{change}" for change in changes])
    assert isinstance(recipe, DiffusionConfig)
    for change in changes:
        name, _, value = change.partition("=")
        assert str(getattr(recipe.diffusion, name)).lower().removesuffix(".0") == value
    assert kinds.parse(recipe.model_dump(mode="json"), "checkpoint") == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["diffusion.process=flow", "diffusion.beta_start=1"],
            "diffusion.beta_start: is not known, with process flow",
        ),
        (
            ["diffusion.process=flow", "diffusion.prediction=epsilon"],
            "prediction: .* process flow",
        ),
        (["diffusion.process=flow", "diffusion.shift=0"], "diffusion.shift: .* process flow"),
        (
            ["diffusion.process=edm", "diffusion.shift=2"],
            "shift: is not known, with process edm",
        ),
        (["diffusion.process=edm", "diffusion.p_std=0"], "diffusion.p_std: .* with process edm"),
        (
            ["diffusion.process=cosine", "diffusion.beta_end=1"],
            "beta_end: .* process cosine",
        ),
        (["diffusion.prediction=flow"], "diffusion.prediction: .* with process scaled-linear"),
        (["diffusion.shift=2", "diffusion.times=uniform"], "shift: it has to be left out where"),
        (["diffusion.p_mean=1"], "diffusion.p_mean: is not known, with process scaled-linear"),
        (
            ["diffusion.process=ddpm"],
            "diffusion.process: 'ddpm'.*'linear', 'scaled-linear'.*'flow'.*'edm'",
        ),
        (["diffusion=3"], "diffusion: "),
    ],
)
def test_keys_that_a_process_does_not_have(changes: list[str], said: str, write_recipe: Write):
    with pytest.raises(UndustError, match=said) as error:
        kinds.read(write_recipe("diffusion"), changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("run.steps=7", lambda recipe: recipe.run.steps == 7),
        (" run.steps = 7", lambda recipe: recipe.run.steps == 7),
        ("optimizer.betas=[0.8, 0.95]", lambda recipe: recipe.optimizer.betas == (0.8, 0.95)),
        ('run.precision="bf16"', lambda recipe: recipe.run.precision == "bf16"),
        ("run.precision=bf16", lambda recipe: recipe.run.precision == "bf16"),
        ("data.folder=/a/b c=d", lambda recipe: recipe.data.folder == Path("/a/b c=d")),
        ("loss.kl=0", lambda recipe: recipe.loss.kl == 0),  # a table the file does not have
    ],
)
def test_changes_from_the_command_line(
    change: str, found: Callable[[FirstStageConfig], bool], write_recipe: Write
):
    recipe = kinds.read(write_recipe("first-stage"), [change])
    assert isinstance(recipe, FirstStageConfig)
    assert found(recipe)


def test_the_former_name_of_a_table_works_and_is_noted(write_recipe: Write):
    path = write_recipe("diffusion")
    now = kinds.read(path, ["diffusion.shift=3", "diffusion.process=flow"])
    notes: list[str] = []
    assert kinds.read(path, ["dust.shift=3", " dust.process=flow"], notes.append) == now
    path.write_text(path.read_text("utf-8") + "[dust]\nprocess = 'flow'\n", "utf-8")
    assert kinds.read(path, ["diffusion.shift=3"], notes.append) == now
    assert notes == ["dust in a recipe is now called diffusion; the former name still works"] * 2
    tree = now.model_dump(mode="json")
    tree["dust"] = tree.pop("diffusion")
    assert kinds.parse(tree, "checkpoint") == now
    with pytest.raises(UndustError, match=r"diffusion\.shift: .* process flow"):
        kinds.read(path, ["dust.shift=0"])
    with pytest.raises(UndustError, match="dust: is not known"):
        kinds.parse({**tree, "diffusion": {}}, "both names")


def test_the_last_change_counts(write_recipe: Write):
    assert kinds.read(write_recipe("diffusion"), ["run.steps=7", "run.steps=8"]).run.steps == 8


def test_files_that_are_no_recipe(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(UndustError, match=r"cannot read the recipe .*recipe\.toml: No such file"):
        kinds.read(path)
    with pytest.raises(UndustError, match="is a folder, not a file"):
        kinds.read(tmp_path)
    path.write_text("kind = ")
    with pytest.raises(UndustError, match=r"recipe\.toml is not TOML"):
        kinds.read(path)
    path.write_bytes(b"kind = '\xff'")
    with pytest.raises(UndustError, match=r"recipe\.toml is not text .* pictures are given as"):
        kinds.read(path)
    path.write_text("")
    with pytest.raises(UndustError, match=r"recipe\.toml: kind"):
        kinds.read(path)


# Pieces of recipes, so that some of what is made from them is read beyond the first line.
PIECES = st.sampled_from(
    ["kind", "run", "steps", "data", ".", "=", " ", "\n", "[", "]", '"', "'first-stage'", "1", "{"]
)
TEXTS = st.text(max_size=40) | st.lists(PIECES, max_size=20).map("".join)


@given(TEXTS)
@example("x = " + "[" * 2_000)
@example("kind = 'first-stage'\nrun = 5")
def test_any_text_is_a_recipe_or_a_line_that_says_why_not(text: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_text(text, "utf-8", errors="replace")
        with pytest.raises(UndustError) as error:
            kinds.read(path)
    assert "\n" not in str(error.value)


@given(TEXTS)
@example("run.steps=" + "[" * 2_000)
@example("run.steps=1\n[data]\nfolder=3")
@example("..=1")
def test_any_change_is_made_or_refused(text: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_text(PUBLISHED[0].read_text("utf-8"), "utf-8")
        try:
            kinds.read(path, [text])
        except UndustError as error:
            assert "\n" not in str(error)


# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("first-stage", "run.stepz=3", "run.stepz: is not known; did you mean run.steps?"),
        ("first-stage", "batch=3", "batch: is not known; did you mean run.batch?"),
        ("first-stage", "optimizer.steps=3", "did you mean run.steps or figures.steps?"),
        (
            "first-stage",
            "loss.q=3",
            "loss.q: is not known; known here: pixel, edges, scales, per",
        ),
        ("diffusion", "autoencoder.x=1", 'it is a key of kind "first-stage"'),
        ("diffusion", "loss.kl=1", 'loss: is not known in a recipe of kind "diffusion"; it is a'),
        ("first-stage", "unet.x=1", 'it is a key of kind "diffusion"'),
        ("first-stage", "first_stage=x", 'it is a key of kind "diffusion"'),
        ("diffusion", "unet.in_chanels=3", "did you mean unet.in_channels?"),
        ("diffusion", "diffusion.beta_stat=1", "scaled-linear; did you mean diffusion.beta_start?"),
        (
            "diffusion",
            'unet.down_block_types=["crossattndownblock2d"]',
            "unet.down_block_types.0: has to be 'CrossAttnDownBlock2D' or 'DownBlock2D'",
        ),
        ("first-stage", "data.folder=5", "data.folder: has to be a path"),
        ("diffusion", "data.folder=5", "data.folder: has to be a path"),
        ("first-stage", "data.folder=", "data.folder: is empty; the working folder is ."),
        ("diffusion", "first_stage=", "first_stage: is empty"),
        ("first-stage", "data=5", "data: has to be a table"),
        ("diffusion", "diffusion=5", "diffusion: has to be a table"),
        (
            "first-stage",
            "kind=Diffusion",
            "kind: 'Diffusion' is none of 'first-stage', 'diffusion'",
        ),
        ("first-stage", "seed=99999999999999999999999", "seed: has to be less than 1844674407370"),
        ("first-stage", "run.steps=" + "9" * 6000, "run.steps: has to be a smaller number"),
        ("first-stage", "optimizer.betas=[1,1]", "optimizer.betas.0: has to be less than 1"),
        ("first-stage", "optimizer.betas=[]", "optimizer.betas.0: is missing"),
        ("first-stage", "optimizer.betas=0.9,0.99", "betas: has to be a list, such as [0.9, 0.99]"),
        ("diffusion", "unet.block_out_channels=32", "has to be a list, such as [32]"),
        ("diffusion", "unet.block_out_channels=true", "block_out_channels: has to be a list"),
        (
            "diffusion",
            "captions.fields=text",
            'captions.fields: has to be a list of names, such as ["text"]',
        ),
        ("diffusion", "captions.fields=[text, text_ko]", 'names, such as ["text", "text_ko"]'),
        ("diffusion", "captions.templates.text=a {}", 'text: has to be a list, such as ["a {}"]'),
        ("first-stage", "optimizer.learning_rate=inf", "learning_rate: has to be a finite number"),
        ("first-stage", "optimizer.warm_up=1.5", "a whole number of steps, or below 1: a share"),
        ("diffusion", 'captions.templates.text=["{"]', "text.0: has to have {} once, where"),
    ],
)
def test_what_a_message_says(kind: str, change: str, said: str, write_recipe: Write):
    path = write_recipe(kind)
    # A table of the name of a kind is told apart from it.
    table = [] if kind == "first-stage" or change == "diffusion=5" else ["diffusion.shift=1"]
    with pytest.raises(UndustError) as error:
        kinds.read(path, [*table, change])
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert not re.search(r"class |\^\[|pydantic|: :", str(error.value))


def test_a_recipe_without_a_kind_and_one_with_a_byte_order_mark(write_recipe: Write):
    path = write_recipe("diffusion")
    text = path.read_text("utf-8")
    path.write_text("\ufeff" + text, "utf-8")
    assert isinstance(kinds.read(path), DiffusionConfig)
    path.write_text(text.replace('kind = "diffusion"', ""), "utf-8")
    with pytest.raises(UndustError, match="kind: is missing; possible are first-stage, diffusion"):
        kinds.read(path)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("first-stage", "autoencoder.use_quant_conv=false", "use_quant_conv has to be true"),
        ("first-stage", "autoencoder.use_post_quant_conv=false", "use_post_quant_conv has to be t"),
        ("first-stage", "autoencoder.in_channels=1", "autoencoder.in_channels has to be 3"),
        ("first-stage", "autoencoder.out_channels=4", "autoencoder.out_channels has to be 3"),
        ("first-stage", "autoencoder.shift_factor=0.1", "shift_factor has to be left out"),
        ("diffusion", "unet.num_class_embeds=3", "unet.num_class_embeds: "),
        (
            "diffusion",
            'text_encoder.architectures=["CLIPTextModelWithProjection"]',
            "text_encoder.architectures",
        ),
    ],
)
def test_what_could_not_be_published_is_refused_at_once(
    kind: str, change: str, said: str, write_recipe: Write
):
    with pytest.raises(UndustError) as error:
        kinds.read(write_recipe(kind), [change])
    assert said in str(error.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, 0, 1])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
KEYS = sorted(
    {
        f"{table}.{key}".lstrip(".")
        for kind in (FirstStageConfig, DiffusionConfig)
        for table, model in tables(kind)
        for key in model.model_fields
    }
)


@settings(max_examples=200)
@given(
    path=st.sampled_from(PUBLISHED),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
def test_any_values_are_a_recipe_or_a_line_that_says_why_not(
    path: Path, changes: dict[str, object]
):
    tree: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        *above, name = key.split(".")
        table = tree
        for part in above:
            inner = table.setdefault(part, {})
            table = inner if isinstance(inner, dict) else {}
        table[name] = value
    try:
        recipe = kinds.parse(tree, "here")
        if isinstance(recipe, DiffusionConfig):
            recipe.diffusion.build()
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert kinds.parse(recipe.model_dump(mode="json"), "checkpoint") == recipe
        assert recipe.optimizer.rate(0, recipe.run.steps) >= 0
