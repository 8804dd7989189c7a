"""Pictures, and the recipes in them."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from fuzzing.cases import Asks, Make, asks, kind
from fuzzing.changes import bytes_changed, json_changed, text_changed
from undust.formats.a1111 import parse_a1111
from undust.formats.metadata.containers import SIGNATURE
from undust.formats.recipe_png import read_recipe, read_texts, write_picture
from undust.latent.references import resolved_image
from undust.pictures import read_image
from undust.recipe.files import ImageRef
from undust.recipe.recipe import Recipe

PARAMETERS = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 4, Seed: 1"
PARAMETERS += ', Size: 64x64, Model: "a, b"'


def recipe() -> dict[str, Any]:
    return {
        "prompt": "a (smiling:1.2) cat",
        "negative": "blurry",
        "seed": 1,
        "steps": 9,
        "width": 64,
        "height": 64,
        "guidance": 4.0,
        "sampler": "deis",
        "schedule": "karras",
        "guides": [{"name": "apg"}],
        "init": {"path": "a.png", "hash": "0" * 16},
        "strength": 0.5,
        "loras": [{"path": "b.safetensors", "weight": 0.5}],
        "controls": [{"path": "c", "picture": {"path": "d.png"}, "start": 0.0, "end": 0.5}],
        "embeddings": [{"path": "e", "word": "<e>"}],
        "framing": {"original": [64, 64], "crop": [0, 0]},
        "refiner": {"model": "f", "after": 0.8},
        "undust": "0.1",
    }


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    said = len(content) if length is None else length
    check = zlib.crc32(name + content)
    return said.to_bytes(4, "big") + name + content + check.to_bytes(4, "big")


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    return found


@kind(20)
def pictures(room: Path) -> Make:
    image = Image.radial_gradient("L").resize((24, 20)).convert("RGB")
    write_picture(room / "a.png", image, Recipe.read(recipe()).model_dump())
    pngs, rest = [(room / "a.png").read_bytes()], list[bytes]()
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
        ("PNG", "RGB", {"save_all": True, "append_images": [image.rotate(9)] * 3}),
        ("GIF", "P", {"save_all": True, "append_images": [image.rotate(9).convert("P")] * 3}),
        *((form, "RGB", {}) for form in ("JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")),
        ("TIFF", "CMYK", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ]
    for form, mode, more in ways:
        file = io.BytesIO()
        image.convert("L" if "I" in mode else mode).convert(mode).save(file, form, **more)
        (pngs if form == "PNG" else rest).append(file.getvalue())
    bomb = zlib.compress(b"0" * (64 * 2**20), 9)

    def texts(chance: Random) -> bytes:
        """A text chunk that carries a changed recipe, or a bomb."""
        key = chance.choice((b"undust", b"undust", b"parameters"))
        if key == b"undust":
            text = json_changed(chance, recipe(), often=0.95)
        else:
            text = text_changed(chance, PARAMETERS).encode("utf-8", "replace")
        flag = chance.choice((b"\0\0", b"\1\0"))
        packed = bomb if chance.random() < 0.1 else zlib.compress(text)
        match chance.randrange(3):
            case 0:
                return chunk(b"zTXt", key + b"\0\0" + packed)
            case 1:
                return chunk(b"tEXt", key + b"\0" + text)
            case _:
                body = packed if flag == b"\1\0" else text
                return chunk(b"iTXt", key + b"\0" + flag + b"\0\0" + body)

    def png(chance: Random) -> bytes:
        parts = [chunk(*each) for each in chunks(chance.choice(pngs))]
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(1, len(parts)) if len(parts) > 1 else 0
            name, content = chunks(b"\0" * 8 + parts[at])[0] if len(parts[at]) > 8 else (b"", b"")
            match chance.randrange(8):
                case 0 | 1:
                    parts.insert(at, texts(chance))
                case 2:
                    parts[at] = chunk(name, bytes_changed(chance, content))
                case 3:
                    lie = chance.choice((0, 1, 2**31 - 1, 2**32 - 1, len(content) + 1))
                    parts[at] = chunk(name, content, lie)
                case 4:
                    del parts[at]
                case 5:
                    parts.insert(at, chance.choice(parts))
                case 6:
                    head = parts[0][8:21]
                    sizes = (0, 1, 4096, 4097, 10**5, 2**31 - 1, 2**32 - 1)
                    wide, high = (chance.choice(sizes).to_bytes(4, "big") for _ in range(2))
                    parts[0] = chunk(b"IHDR", wide + high + bytes_changed(chance, head[8:]))
                case _:
                    parts[at] = chunk(chance.choice((b"acTL", b"fdAT", b"iCCP", b"eXIf")), content)
            parts = parts or [b""]
        content = SIGNATURE + b"".join(parts)
        return bytes_changed(chance, content) if chance.random() < 0.2 else content

    def make(chance: Random, folder: Path) -> Asks:
        path = folder / "some.png"
        some = png(chance) if chance.random() < 0.75 else bytes_changed(chance, chance.choice(rest))
        path.write_bytes(some)

        def picture() -> None:
            image = read_image(path)
            case.unpacked = 4 * image.width * image.height
            resolved_image(ImageRef.of(path))

        def parameters() -> None:
            parse_a1111(read_texts(path).get("parameters", ""))

        case = asks(
            chance, path, len(some), lambda: Recipe.read(read_recipe(path)), parameters, picture
        )
        return case

    return make
