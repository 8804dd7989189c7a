"""Films of photographs and emoji: cameras, captions, splits, and views with true depths."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import moving_material
import moving_pictures
import numpy as np
import pytest
import torch
from emoji_set import EmojiRenderer, find_font
from moving_cameras import KINDS, Depths
from moving_material import Material, SceneMaker, drawable_emoji, read_photographs
from moving_pictures import build, motion_number, split_of, write_webp
from moving_scenes import Layer, camera_for, homographies, render
from moving_views import agreement, build_views, estimated_depth
from PIL import Image

from undust.conditioning.warp import Camera, warp, warped_views
from undust.datasets import image_folder
from undust.errors import UndustError
from undust.formats.depth_maps import read_depth
from undust.formats.known_views import read_known_views

SIZE, FRAMES, CLIPS = 32, 4, 10
EMOJI = [chr(code) for code in range(0x1F400, 0x1F43F)]  # animals


def smooth_picture(seed: int) -> Image.Image:
    """Colours that change over a quarter of the picture."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((150, 125), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(10):
        smooth_picture(seed).save(folder / f"BlueSky-{seed}_by_Someone.png")
    return folder


@pytest.fixture(scope="module")
def material(photographs: Path) -> Material:
    try:
        find_font()
    except UndustError as error:
        pytest.skip(str(error))
    return Material(
        read_photographs([photographs], SIZE), drawable_emoji([*EMOJI, "🇰🇷", "👍🏽", "#️⃣"])
    )


@pytest.fixture(scope="module")
def made(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    build(folder, material, size=SIZE, frames=FRAMES, clips=CLIPS, seed=3)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows_of(folder: Path) -> list[dict[str, str | int]]:
    return [
        json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    ]


def test_a_seed_always_gives_the_same_bytes(made: Path, material: Material, tmp_path: Path) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        build(tmp_path / name, material, size=SIZE, frames=FRAMES, clips=2, seed=seed)
    again, other, first = contents(tmp_path / "again"), contents(tmp_path / "other"), contents(made)
    assert all(again[f"clips/00000{k}.webp"] == first[f"clips/00000{k}.webp"] for k in range(2))
    assert again["clips/000000.webp"] != other["clips/000000.webp"]


def test_rows_are_those_of_the_files(made: Path) -> None:
    rows = rows_of(made)
    assert [row["file_name"] for row in rows] == [f"clips/{k:06}.webp" for k in range(CLIPS)]
    assert {path.name for path in (made / "clips").iterdir()} == {
        Path(str(row["file_name"])).name for row in rows
    }
    for row in rows:
        assert row["fps"] == 7
        assert isinstance(row["motion"], int) and 0 <= row["motion"] <= 255
        assert ": " in str(row["text"]) and " before a " in str(row["text"])
        with Image.open(made / str(row["file_name"])) as film:
            assert (film.n_frames, film.size) == (FRAMES, (SIZE, SIZE))
    samples = image_folder.read(made)
    assert [sample.captions["text"] for sample in samples] == [row["text"] for row in rows]
    assert {sample.split for sample in samples} == {"train", "validation", "test"}


def test_what_is_held_out_is_in_no_scene_of_training(material: Material) -> None:
    held_out, others = material.part(held_out=True), material.part(held_out=False)
    for name in ("photographs", "emoji"):
        one, other, whole = (set(getattr(each, name)) for each in (held_out, others, material))
        assert one and other and not one & other
        assert one | other == whole
    splits = [split_of(index) for index in range(1000)]
    assert [splits.count(name) for name in ("test", "validation", "train")] == [50, 20, 930]


def test_sprites_are_emoji_without_flags_keycaps_and_tones(material: Material) -> None:
    assert set(material.emoji) == {*EMOJI}
    assert material.emoji["🐀"] == "rat"


def test_captions_name_what_is_there(made: Path, material: Material) -> None:
    for row in rows_of(made):
        part = material.part(held_out=row["split"] == "test")
        text = str(row["concept"])
        names, _, background = text.rpartition(" before a ")
        assert background == "gradient" or background.partition(" of ")[2] in part.photographs
        assert any(names.startswith(name) for name in part.emoji.values())
    assert "blue sky 3" in material.photographs


def test_homographies_project_as_warp_does() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    turn = turn * turn.det().sign()
    camera = camera_for(SIZE, turn, torch.tensor([0.3, -0.2, 0.1]).double())
    point = torch.tensor([0.7, -0.4, 5.0], dtype=torch.float64)
    layer = Layer(torch.zeros(4, 1, 1), point[None], torch.ones(1), torch.zeros(1))
    u, v, depth = homographies(layer, [camera])[0] @ torch.tensor([0, 0, 1]).double()
    seen = turn.T @ (point - camera.position)
    assert torch.allclose(depth, seen[2])
    assert torch.allclose(torch.stack([u, v]) / depth, SIZE * seen[:2] / seen[2] + (SIZE - 1) / 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "still"])
def test_the_picture_goes_where_the_camera_does_not(kind: str) -> None:
    for seed in range(8):
        motion = KINDS[kind].drawn(np.random.default_rng(seed), Depths(3, 8), FRAMES)
        cameras = motion.cameras(SIZE)
        first, last = cameras[0], cameras[-1]
        assert torch.equal(first.rotation, torch.eye(3).double())
        assert not first.position.any()
        near = torch.zeros(FRAMES, 3, dtype=torch.float64) + torch.tensor([0.2, 0, 3.0])
        layer = Layer(torch.zeros(4, 1, 1), near, torch.ones(FRAMES), torch.zeros(FRAMES))
        at = homographies(layer, [first, last, *cameras[2:]])[:2] @ torch.tensor([0, 0, 1]).double()
        (x, y), way = (at[1, :2] / at[1, 2] - at[0, :2] / at[0, 2]).tolist(), motion.text.split()[1]
        right = {
            "left": x > 0,
            "right": x < 0,
            "up": y > 0,
            "down": y < 0,
            "in": x > 0,
            "out": x < 0,
            "clockwise": y < 0,
            "counterclockwise": y > 0,
        }
        assert right[way], motion.text


def test_a_texture_has_its_place_depth_and_motion() -> None:
    """A white square of 8 by 8 pixels goes 2 pixels to the right, before black."""
    places = torch.tensor([[0.0, 0, 4], [0.25, 0, 4]], dtype=torch.float64)
    white = Layer(torch.ones(4, 8, 8), places, torch.full((2,), 0.5).double(), torch.zeros(2))
    black = torch.cat([torch.zeros(3, 4, 4), torch.ones(1, 4, 4)])
    far = torch.tensor([[0.0, 0, 8]] * 2, dtype=torch.float64)
    behind = Layer(black, far, torch.full((2,), 9.0), torch.zeros(2), endless=True)
    still = [camera_for(SIZE, torch.eye(3).double(), torch.zeros(3).double())] * 2
    film = render([behind, white], still, SIZE)
    rows, columns = (film.frames[1, 0] > 0).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 19, 14, 21)
    assert film.depths[1].unique().tolist() == [4, 8]
    assert int((film.depths[1] == 4).sum()) == 64
    assert film.motion == pytest.approx(2 * 64 / SIZE**2)
    assert motion_number(film, SIZE) == round(32 * 2 * film.motion)


def test_equal_frames_are_kept(tmp_path: Path) -> None:
    picture = smooth_picture(0)
    write_webp(tmp_path / "still.webp", [picture] * 5)
    with Image.open(tmp_path / "still.webp") as film:
        assert film.n_frames == 5
        lasting = 0
        for frame in range(5):
            film.seek(frame)
            film.load()
            lasting += int(film.info["duration"])
            change = np.asarray(film.convert("RGB")).astype(int) - np.asarray(picture)
            assert np.abs(change).sum() <= 1
    assert lasting == round(5000 / 7)


def test_views_agree_with_the_warp(material: Material, tmp_path: Path) -> None:
    figures = build_views(tmp_path / "views", material, size=SIZE, frames=6, views=2, seed=1)
    assert len(figures) == 2
    for index, figure in enumerate(figures):
        folder = tmp_path / "views" / f"{index:02}"
        assert figure.true > 30 and figure.true > figure.estimated
        assert 0.1 <= figure.holes <= 0.35
        stored = json.loads((folder / "cameras.json").read_text())
        cameras = [
            Camera(stored["focal"], tuple(stored["centre"]), torch.tensor(turn), torch.tensor(at))
            for turn, at in zip(stored["rotations"], stored["positions"], strict=True)
        ]
        views, known = read_known_views(folder / "known", 6)
        assert 1 - float(known[-1].double().mean()) == pytest.approx(figure.holes)
        estimated = read_depth(folder / "estimated-depth.npy", (SIZE, SIZE))
        frames = torch.stack(
            [
                torch.from_numpy(np.array(Image.open(folder / "film" / f"frame-{k:04}.png")))
                for k in range(6)
            ]
        )
        pictures = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        again = list(warped_views(pictures[:1], estimated[None], cameras))
        assert all(torch.equal(mask, known[k]) for k, (_, mask) in enumerate(again))
        assert max(float((view - views[k]).abs().max()) for k, (view, _) in enumerate(again)) < 0.02
        depth = read_depth(folder / "depth.npy", (SIZE, SIZE))
        error = (estimated / depth).log()
        assert 0.05 < float(error.std()) < 0.4


def test_true_depths_beat_wrong_ones(material: Material) -> None:
    maker = SceneMaker(material, EmojiRenderer(), SIZE, 4)
    rng = np.random.default_rng(0)
    scene = maker.scene(rng, {"parallax": 1}, moving=0)
    film = render(scene.layers, scene.cameras, SIZE)

    def measured(depth: torch.Tensor) -> float:
        pairs = [warp(film.frames[0], depth, scene.cameras[0], camera) for camera in scene.cameras]
        views, masks = zip(*pairs, strict=True)
        return agreement(film, torch.stack(views), torch.stack(masks))

    true = measured(film.depths[0])
    assert true > 30
    assert true > measured(1.5 * film.depths[0]) + 5
    assert true > measured(estimated_depth(film.depths[0], rng)) + 1


def test_without_photographs_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_material, "find_spec", lambda _: None)
    with pytest.raises(UndustError, match="pip install scikit-image"):
        read_photographs([], SIZE)
    with pytest.raises(UndustError, match="two are needed"):
        read_photographs([tmp_path], SIZE)
    smooth_picture(0).save(tmp_path / "one.png")
    out = tmp_path / "out"
    arguments = ["moving_pictures.py", "--out", str(out), "--photographs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="1 photographs"):
        moving_pictures.main()
    assert not out.exists()


def test_the_command_makes_all_or_nothing(
    photographs: Path, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    numbers = f"--size {SIZE} --frames 3 --clips 2 --views 1 --view-frames 5"
    arguments = ["moving_pictures.py", "--out", str(out), "--photographs", str(photographs)]
    monkeypatch.setattr(sys, "argv", [*arguments, *numbers.split()])
    monkeypatch.setattr(moving_pictures, "drawable_emoji", lambda: material.emoji)
    moving_pictures.main()
    assert {path.name for path in out.iterdir()} == {"clips", "metadata.jsonl", "views"}
    with pytest.raises(SystemExit, match="not empty"):
        moving_pictures.main()
