"""Captions of a name and keywords, and the built-in model with room for them.

python examples/long_captions.py data/emoji-64 --out data/emoji-long --tokens 48

Writes OUT/data, the data set with columns `long` and `long_ko` (its pictures are links), and
OUT/model, a model whose text encoder takes more tokens: new positions start as the last one.
recipes/emoji-long-finetune.toml trains it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from undust.formats.locate import find

POSITIONS = "position_embedding.weight"


def write_captions(source: Path, target: Path) -> None:
    """The data set with each name and its keywords as one list."""
    target.mkdir(parents=True)
    lines: list[str] = []
    for line in (source / "metadata.jsonl").read_text("utf-8").splitlines():
        row = cast("dict[str, Any]", json.loads(line))
        for name, column in (("text", "long"), ("text_ko", "long_ko")):
            if row.get(name) and row.get(f"{name}_keywords"):
                row[column] = f"{row[name]}, {row[f'{name}_keywords']}"
        os.link(source / row["file_name"], target / row["file_name"])
        lines.append(json.dumps(row, ensure_ascii=False))
    (target / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def write_model(source: Path, target: Path, tokens: int) -> None:
    """The model in a folder with a text encoder of more positions."""
    shutil.copytree(source, target)
    for name, key in (
        ("text_encoder/config.json", "max_position_embeddings"),
        ("tokenizer/tokenizer_config.json", "model_max_length"),
    ):
        config = cast("dict[str, Any]", json.loads((target / name).read_text("utf-8")))
        (target / name).write_text(json.dumps({**config, key: tokens}, indent=2), "utf-8")
    weights = target / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith(POSITIONS):
            more = tensor[-1:].expand(tokens - len(tensor), -1)
            tensors[name] = torch.cat([tensor, more]).contiguous()
    save_file(tensors, weights, {"format": "pt"})


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    write_captions(given.data, given.out / "data")
    write_model(find(given.model), given.out / "model", given.tokens)


if __name__ == "__main__":
    main()
