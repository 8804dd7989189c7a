"""Runs so small that they take seconds: 12 pictures of 16 px, a few thousand weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from undust.datasets import image_folder
from undust.formats.components import save_component
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.training import controlnet, denoising, film, kinds, validation
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from variants import build

AUTOENCODER = AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4)

RUN = """
[optimizer]
learning_rate = 1e-3
warm_up = 1
[run]
steps = 6
batch = 4
ema = 0.9
log_every = 1
checkpoint_every = 2
keep = 2
"""
FIRST_STAGE = """
kind = "first-stage"
[data]
folder = {data}
size = 16
crop = 8
[autoencoder]
block_out_channels = [8, 8]
norm_num_groups = 4
"""
# With all that a first stage can be trained with, and no feature network.
VQ = """
kind = "first-stage"
[data]
folder = {data}
size = 16
crop = 8
[vq]
block_out_channels = [8, 8]
norm_num_groups = 4
num_vq_embeddings = 24
[codebook]
update = "ema"
revive_after = 3
[discriminator]
weight = 0.5
start = 0.4
layers = 1
channels = 4
[loss]
learned_variance = true
equivariance = 0.5
"""
DIFFUSION = """
kind = "diffusion"
first_stage = {first_stage}
[data]
folder = {data}
size = 16
draw_by = "concept"
[captions]
fields = ["text", "text_ko"]
vocabulary = 600
length = 8
[unet]
sample_size = 8
block_out_channels = [8]
down_block_types = ["CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 8
attention_head_dim = 2
norm_num_groups = 4
[text_encoder]
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
"""

SHORT: dict[str, Any] = {"steps": 2, "batch": 2, "sample_every": 9, "log_every": 1, "ema": 0}
COLOURS = {"green": (20, 200, 60), "red": (220, 30, 30), "blue": (30, 40, 210)}
SQUARES = """
kind = "diffusion"
first_stage = {first_stage}
[data]
folder = {data}
size = 16
[unet2d]
block_out_channels = [16, 16]
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
norm_num_groups = 8
[optimizer]
learning_rate = 4e-3
warm_up = 1
[run]
steps = 3
batch = 4
ema = 0.95
checkpoint_every = 100000
sample_every = 100000
"""

# Many ends of words, so that a vocabulary that depends on chance shows.
NAMES = (
    ("sky over sand", "모래 위 하늘"),
    ("wine beside milk", "우유 곁 포도주"),
    ("grass and stone", "풀과 돌"),
    ("lilac near rust", "녹 옆 라일락"),
    ("plum with gold", "자두와 금"),
    ("slate next to lime", "라임 옆 석판"),
    ("coral facing ink", "먹을 마주한 산호"),
    ("ash under mint", "박하 아래 재"),
    ("peach by night", "밤의 복숭아"),
    ("rose on clay", "진흙 위 장미"),
    ("olive from fog", "안개 속 올리브"),
    ("amber at sea", "바다의 호박"),
)

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order would be other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews and validation losses, which would take longer than the steps of such runs."""
    for module in (controlnet, denoising, film):
        monkeypatch.setattr(module, "PREVIEW_STEPS", 3)
    monkeypatch.setattr(validation, "MIN_DRAWS", 8)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in two halves of two colours: ten to train on, of seven concepts, and two not."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = torch.Generator().manual_seed(0)
    rows: list[dict[str, str]] = []
    for number in range(12):
        left, right = torch.randint(0, 256, (2, 3), generator=chance).tolist()
        picture = Image.new("RGB", (16, 16), tuple(left))
        picture.paste(tuple(right), (8, 0, 16, 16))
        name = f"{number:02}.png"
        picture.save(folder / name)
        rows.append(
            {
                "file_name": name,
                "text": NAMES[number][0],
                "text_ko": NAMES[number][1],
                "concept": str(min(number, 6)),
                "split": "train" if number < 10 else "test",
            }
        )
    image_folder.write(folder, rows)
    return folder


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an autoencoder with random weights: 16 px to 8x8x4."""
    folder = tmp_path_factory.mktemp("first_stage")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_component(folder, Autoencoder(AUTOENCODER))
    return folder


@pytest.fixture(scope="session")
def exact_first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `first_stage`, with latents that are three times as large and have no noise."""
    folder = tmp_path_factory.mktemp("exact")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        autoencoder = Autoencoder(AUTOENCODER.model_copy(update={"scaling_factor": 3.0}))
        autoencoder.state_dict()["quant_conv.weight"][4:] = 0
        autoencoder.state_dict()["quant_conv.bias"][4:] = -20
        save_component(folder, autoencoder)
    return folder


@pytest.fixture
def write_recipe(data: Path, first_stage: Path, tmp_path: Path) -> Write:
    """Writes the tiny recipe of a kind to a file; gives its path."""

    def write(kind: str) -> Path:
        texts = {"first-stage": FIRST_STAGE, "vq": VQ, "diffusion": DIFFUSION}
        text = texts[kind].format(
            data=json.dumps(str(data)), first_stage=json.dumps(str(first_stage))
        )
        path = tmp_path / f"{kind}.toml"
        path.write_text(text + RUN, "utf-8")
        return path

    return write


@pytest.fixture
def first_stage_recipe(write_recipe: Write) -> Callable[..., FirstStageConfig]:
    """The tiny first-stage recipe, with changes such as "run.steps=3"."""

    def read(*changes: str) -> FirstStageConfig:
        recipe = kinds.read(write_recipe("first-stage"), changes)
        assert isinstance(recipe, FirstStageConfig)
        return recipe

    return read


@pytest.fixture
def diffusion_recipe(write_recipe: Write) -> Callable[..., DiffusionConfig]:
    """The tiny diffusion recipe, with changes such as "run.steps=3"."""

    def read(*changes: str) -> DiffusionConfig:
        recipe = kinds.read(write_recipe("diffusion"), changes)
        assert isinstance(recipe, DiffusionConfig)
        return recipe

    return read


@pytest.fixture(scope="session")
def variant_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a published variant, tiny and with random weights: 4 px to a latent's one."""
    root = tmp_path_factory.mktemp("variants")

    def written(variant: str) -> Path:
        if not (root / variant).exists():
            build(variant).save(root / variant)
        return root / variant

    return written


@pytest.fixture
def existing_recipe(data: Path) -> Callable[..., Any]:
    """A tiny recipe of a kind that starts from a model, with further tables and keys."""

    def read(kind: str, model: Path | str, **more: Any) -> Any:
        tree: dict[str, Any] = {
            "kind": kind,
            "model": str(model),
            "data": {"folder": str(data), "size": 32, **more.pop("data", {})},
            "optimizer": {"learning_rate": 1e-2},
            "run": {**SHORT, **more.pop("run", {})},
        }
        return kinds.parse({**tree, **more}, "here").complete()

    return read


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder: its name and its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour on black: the colour is the class, the square the map."""
    folder = tmp_path_factory.mktemp("squares")
    rows: list[dict[str, str]] = []
    for number in range(12):
        name, colour = [*COLOURS.items()][number % 3]
        left = 0 if number % 2 else 8
        for kind in (name, "maps"):
            (folder / kind).mkdir(exist_ok=True)
        picture, segmentation = (Image.new("RGB", (16, 16)) for _ in range(2))
        picture.paste(colour, (left, 4, left + 8, 12))
        segmentation.paste((255, 255, 255), (left, 4, left + 8, 12))
        picture.save(folder / name / f"{number}.png")
        segmentation.save(folder / "maps" / f"{number}.png")
        row = {"file_name": f"{name}/{number}.png", "map": f"maps/{number}.png", "text": name}
        rows.append(row)
    image_folder.write(folder, rows)
    return folder


@pytest.fixture
def recipe(pictures: Path, first_stage: Path, tmp_path: Path) -> Callable[..., DiffusionConfig]:
    def read(more: str = "", *changes: str, first: str | None = "pixels") -> DiffusionConfig:
        text = SQUARES.format(
            data=json.dumps(str(pictures)), first_stage=json.dumps(first or str(first_stage))
        )
        path = tmp_path / "recipe.toml"
        path.write_text(text + more, "utf-8")
        config = kinds.read(path, changes)
        assert isinstance(config, DiffusionConfig)
        return config

    return read
