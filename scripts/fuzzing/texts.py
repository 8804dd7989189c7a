"""Configurations, tokenizers, and what people write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from fuzzing.cases import KINDS, Asks, Make, asks, kind
from fuzzing.changes import bytes_changed, json_changed, text_changed
from fuzzing.originals import drawn, entries_of, model, text_encoder, unet
from fuzzing.pictures import recipe
from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.clip import clip
from undust.conditioning.prompt import parse
from undust.conditioning.text import TextConditioner
from undust.diffusion.guidance import GUIDANCES
from undust.diffusion.process import DISCRETE, EDM, Flow
from undust.formats import model_folder, safetensors_file
from undust.formats import tokenizer_files as tokenizer_folder
from undust.formats.components import load_component
from undust.formats.scheduler import read_scheduler, scheduler_config
from undust.latent.references import resolved_image, resolved_weights
from undust.networks.autoencoder import Autoencoder
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet
from undust.pictures import from_data, to_data
from undust.recipe import inputs
from undust.recipe.files import ImageRef
from undust.recipe.guidance import read_guidance, settings_of
from undust.recipe.recipe import Recipe


@kind(10)
def configs(room: Path) -> Make:
    folder = model(room)
    index = json.dumps({"weight_map": dict.fromkeys(entries_of(UNet(unet())), "b.safetensors")})
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    told = [name for name in names if not name.endswith(".safetensors")]
    likely = [name for name in told if "config" in name or "index" in name]
    content = {name: (folder / name).read_bytes() for name in told}
    networks = {"unet": UNet, "vae": Autoencoder, "text_encoder": TextEncoder}

    def make(chance: Random, place: Path) -> Asks:
        copy = place / "model"
        shutil.copytree(folder, copy, copy_function=os.link)
        name = chance.choice(likely if chance.random() < 0.9 else told)
        if chance.random() < 0.05:  # weights in several files
            weight = copy / "unet/diffusion_pytorch_model.safetensors"
            weight.rename(weight.with_name("b.safetensors"))
            name = "unet/diffusion_pytorch_model.safetensors.index.json"
        was = content.get(name, index.encode())
        if name.endswith(".json"):
            new = json_changed(chance, json.loads(was), often=0.95)
        else:
            new = bytes_changed(chance, was)
        (copy / name).unlink(missing_ok=True)
        (copy / name).write_bytes(new)
        size = sum(path.stat().st_size for path in copy.rglob("*"))
        part = (copy / name).parent

        def ask() -> None:
            for words in model_folder.read(copy, torch.float32).texts:
                words(["a (dog:1.2)", ""])

        if part.name in networks and chance.random() < 0.8:  # the part alone is quickly read
            return Asks([lambda: load_component(part, networks[part.name])], size)
        return asks(chance, copy, size, ask)

    return make


@kind(10)
def schedulers(_: Path) -> Make:
    known: list[tuple[Any, str]] = [
        (DISCRETE["scaled-linear"](1000, 0.00085, 0.012), "epsilon"),
        (DISCRETE["cosine"](100, 1e-4, 0.02), "v_prediction"),
        (Flow(3.0, 1000), "flow"),
        (EDM(), "edm"),
    ]
    originals = [scheduler_config(*each) for each in known]
    originals.append({**originals[0], "beta_schedule": "linear", "rescale_betas_zero_snr": True})
    originals.append({**originals[0], "trained_betas": [0.01] * 9, "num_train_timesteps": 9})

    def make(chance: Random, folder: Path) -> Asks:
        text = json_changed(chance, chance.choice(originals), often=0.95)
        (folder / "scheduler_config.json").write_bytes(text)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = {}
        fields = fields if isinstance(fields, dict) else {"_class_name": fields}
        return Asks([lambda: read_scheduler(fields, "scheduler_config.json")], len(text))

    return make


@kind(6)
def tokenizers_(room: Path) -> Make:
    made = tokenizers.train(["a cat", "a dog"], size=520, length=16)
    tokenizer_folder.save(room / "tokenizer", made)
    content = {path.name: path.read_bytes() for path in sorted((room / "tokenizer").iterdir())}
    merges = [" ".join(pair) for pair in made.merges]
    one = {"model": {"type": "BPE", "vocab": dict(made.vocabulary), "merges": merges}}
    whole = {"tokenizer.json": json.dumps(one).encode()} | {
        name: content[name] for name in content if name.endswith(("config.json", "map.json"))
    }

    def make(chance: Random, folder: Path) -> Asks:
        files = dict(chance.choice((content, whole)))
        name = chance.choice(list(files))
        if name.endswith(".json"):
            files[name] = json_changed(chance, json.loads(files[name]), often=0.95)
        else:
            files[name] = bytes_changed(chance, files[name])
        for each, told in files.items():
            (folder / each).write_bytes(told)

        def ask() -> None:
            tokenizer_folder.load(folder)(["a cat, (a dog)", "고양이"])

        return Asks([ask], sum(map(len, files.values())))

    return make


KINDS["tokenizers"] = KINDS.pop("tokenizers_")


@kind(14)
def prompts(_: Path) -> Make:
    encoder = drawn(TextEncoder(text_encoder(49408, 77)))
    learnt = {"<cat>": torch.zeros(3, 32), "a b": torch.ones(1, 32)}
    words = TextConditioner(clip(), encoder, embeddings=learnt)
    words(["the tokenizer's engine is made the first time"])
    originals = [
        *("a (smiling:1.2) cat BREAK [on] a mat", "((((x))))", "((a [b) c]:1.5)", r"a \(b\)"),
        *("<cat> and a b" * 40, "고양이 🐈", "(" * 900 + "x", "a:1.5)" * 99, "[" * 2000),
        *("x " * 900, "a BREAK " * 300, "٣(x:٣)", "(x:1e5)"),
    ]
    sayings: list[tuple[Callable[[str], object], list[str]]] = [
        (inputs.Upscale.read, ["2@0.5", "1.5"]),
        (inputs.Refiner.read, ["a/b.safetensors@0.8", "x"]),
        (inputs.SizeConditioning.read, ["original=512x512,crop=0x64", "target=9x9"]),
        (
            lambda given: resolved_weights(inputs.LoRA.read(given)),
            ["style.safetensors:0.8", "C:/a:b"],
        ),
        (
            lambda given: resolved_weights(inputs.Embedding.read(given)),
            ["a/cat.safetensors=<cat>", "cat"],
        ),
        (inputs.Control.read, ["canny.safetensors=canny:house.png@0.8:0-0.5", "a=b"]),
        (lambda given: resolved_image(ImageRef.of(given)), ["a/house.png"]),
        (lambda given: safetensors_file.load(Path(given)), ["a/some.safetensors"]),
        (inputs.read_extend, ["64,0,64,0"]),
        (read_guidance, [f"{name}:{settings_of(GUIDANCES[name]).summary()}" for name in GUIDANCES]),
        (lambda given: Recipe.read({**recipe(), "schedule": given}), ["14.6,3.2,0", "karras"]),
        (lambda given: Recipe.read({**recipe(), "sampler": given}), ["deis", "euler"]),
        (lambda given: from_data(given), [to_data(Image.new("L", (8, 8)), (8, 8))]),
    ]

    def make(chance: Random, folder: Path) -> Asks:
        if chance.random() < 0.3:
            read, said = chance.choice(sayings)
            text = text_changed(chance, chance.choice(said))
            readings = [lambda: read(text)]
        else:
            text = text_changed(chance, chance.choice(originals))
            text = text * chance.choice((1, 1, 1, 1, 50)) + "\udfff" * (chance.random() < 0.02)
            short = text[:10_000]  # what a recipe lets through
            readings = [
                lambda: parse(short),
                lambda: Recipe.read({**recipe(), "prompt": text}),
                lambda: words([short, ""], skip=chance.choice((0, 0, 1))),
            ]
        content = text.encode("utf-8", "surrogatepass")
        (folder / "some.txt").write_bytes(content)
        return Asks(readings, len(content))

    return make
