"""Maps of emoji, from a picture whose maps are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from emoji_maps import build
from PIL import Image

from undust.datasets import image_folder


def test_maps_of_a_red_square(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((220, 50, 45), (20, 20, 44, 44))
    (tmp_path / "set").mkdir()
    picture.save(tmp_path / "set/square.png")
    row = {"file_name": "square.png", "text": "a red square", "concept": "square"}
    (tmp_path / "set/metadata.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    assert build(tmp_path / "set", tmp_path / "maps") == 1
    [sample] = image_folder.read(tmp_path / "maps")
    assert sample.columns["colour"] == "red"
    assert np.array_equal(
        np.asarray(sample.beside("segmentation").convert("RGB")), np.asarray(picture)
    )
    maps = [sample.beside(name).convert("L") for name in ("depth", "edges")]
    depth, edges = map(np.asarray, maps)
    # 8 pixels inside the outline the depth is 1; edges are one pixel wide, around 24×24 pixels.
    assert depth[20, 32] == 255 // 8 + 1 and depth[32, 32] == 255 and depth[10, 10] == 0
    assert set(np.unique(edges)) == {0, 255}
    rows, columns = np.nonzero(edges)
    assert np.isin([rows.min(), columns.min()], [19, 20]).all()
    assert np.isin([rows.max(), columns.max()], [43, 44]).all()
    assert 80 <= len(rows) <= 96 and not edges[24:40, 24:40].any()
