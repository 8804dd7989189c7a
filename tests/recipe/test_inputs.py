"""What people write beside words: read as they mean it, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.errors import UndustError
from undust.formats.safetensors_file import save
from undust.latent.references import image_of, resolved_image, resolved_weights
from undust.recipe.files import ImageRef
from undust.recipe.inputs import (
    Control,
    Embedding,
    LoRA,
    Refiner,
    SizeConditioning,
    TextInput,
    Upscale,
    read_extend,
)

KINDS: list[type[TextInput]] = [Upscale, Refiner, SizeConditioning, LoRA, Embedding, Control]
# Much of what has a meaning, so that some of it is right.
ALPHABET = st.sampled_from([*"0123456789.:=@,-x×\\/ \n\0e", "canny:", "crop=", "original=", "é"])
TEXTS = st.lists(ALPHABET, max_size=20).map("".join) | st.text(max_size=40)
WRITTEN = {
    Upscale: ["2", "1.5@0.5", " 8@1 ", "2.@.5"],
    Refiner: ["refiner", "refiner.safetensors@0.8", "a@b", "C:\\models\\refiner@0", "a@b@1"],
    SizeConditioning: ["crop=0x64", "original=512x768,crop=1X2,target=3×4", " target = 9x9 "],
    LoRA: ["a.safetensors", "a.safetensors:0.8", "C:\\a.safetensors", "a=b@c:-1", "a b:2."],
    Embedding: ["cat.safetensors", "dir/cat.pt=<cat toy>", "C:\\cat.safetensors=cat"],
    Control: ["a=b.png", "a b=canny:b c.png@0.8:0-0.5", "a=C:\\b.png@1", "a=b=c:.2-.7"],
}


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_any_text_is_read_or_refused_in_one_line(kind: type[TextInput], text: str):
    try:
        asked = kind.read(text)
    except UndustError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(f"{(kind.kind or kind.__name__.lower())}: ")
        return
    assert kind.read(json.loads(json.dumps(asked.model_dump()))) == asked
    assert kind.read(asked) is asked


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())
VALUES |= TEXTS.map(Path) | st.tuples(st.text(), st.floats())


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_values_are_read_or_refused(kind: type[TextInput], data: st.DataObject):
    names = st.sampled_from(list(kind.model_fields)) | st.text()
    fields = data.draw(st.dictionaries(names, VALUES) | VALUES)
    if isinstance(fields, str):
        return
    try:
        asked = kind.read(fields)
    except UndustError as error:
        assert "\n" not in str(error)
        return
    assert kind.read(asked.model_dump()) == asked


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind in KINDS for text in WRITTEN[kind]]
)
def test_what_is_written_is_understood(kind: type[TextInput], text: str):
    kind.read(text)


@pytest.mark.parametrize(
    ("kind", "text", "fields"),
    [
        (Upscale, "2", {"factor": 2, "strength": 0.3}),
        (Upscale, "1.5@.25", {"factor": 1.5, "strength": 0.25}),
        (Refiner, "refiner", {"model": "refiner", "after": 0.8}),
        (Refiner, "user@host/refiner", {"model": "user@host/refiner", "after": 0.8}),
        (Refiner, "a@1@0.5", {"model": "a@1", "after": 0.5}),
        (SizeConditioning, "crop=3x64", {"original": None, "crop": (3, 64), "target": None}),
        (LoRA, "a.safetensors", {"path": "a.safetensors", "weight": 1}),
        (LoRA, "a.safetensors:0.8", {"path": "a.safetensors", "weight": 0.8}),
        (LoRA, "a.safetensors:-1", {"path": "a.safetensors", "weight": -1}),
        (LoRA, "C:\\loras\\a:0.8", {"path": "C:\\loras\\a", "weight": 0.8}),
        (LoRA, "C:\\loras\\a", {"path": "C:\\loras\\a", "weight": 1}),
        (LoRA, "with space=and@sign", {"path": "with space=and@sign", "weight": 1}),
        (Embedding, "words/toy.safetensors", {"word": "toy"}),
        (Embedding, "toy.safetensors=<toy>", {"path": "toy.safetensors", "word": "<toy>"}),
        (Embedding, "toy.safetensors=", {"path": "toy.safetensors", "word": "toy"}),
        (Control, "a=b.png", {"path": "a", "weight": 1, "start": 0, "end": 1, "edges": False}),
        (Control, "a=b.png:0-0.5", {"weight": 1, "start": 0, "end": 0.5}),
        (Control, "a=b.png@2", {"weight": 2, "start": 0, "end": 1}),
        (Control, "a=b.png@-.5:.25-.75", {"weight": -0.5, "start": 0.25, "end": 0.75}),
        (Control, "a=canny:b.png", {"path": "a", "edges": True}),
    ],
)
def test_what_is_meant(kind: type[TextInput], text: str, fields: dict[str, Any]):
    read = kind.read(text).model_dump()
    assert {name: read[name] for name in fields} == fields


@pytest.mark.parametrize(
    "picture", ["b.png", "C:\\maps\\b.png", "b=c.png", "b@2.png", "b:1.png", "b c.png", "1-2"]
)
@pytest.mark.parametrize("tail", ["", "@0.8", "@0.8:0-0.5", ":0-0.5"])
@pytest.mark.parametrize("edges", ["", "canny:"])
def test_pictures_of_controls_have_any_name(picture: str, tail: str, edges: str):
    read = Control.read(f"C:\\nets\\a@1:2={edges}{picture}{tail}")
    assert (read.path, read.picture.path) == ("C:\\nets\\a@1:2", picture)
    assert read.edges == bool(edges)
    assert read.weight == (0.8 if "@0.8" in tail else 1)
    assert read.end == (0.5 if ":0" in tail else 1)


PATHS = st.text(st.sampled_from("ab /.\\_-é"), min_size=1).filter(lambda path: path[-1] not in "-.")
NUMBERS = st.decimals(-99, 99, places=3).map(lambda number: f"{number:f}")


@given(PATHS, NUMBERS)
def test_paths_come_back(path: str, number: str):
    assert LoRA.read(f"{path}:{number}") == LoRA(path=path, weight=float(number))
    assert LoRA.read(path) == LoRA(path=path)
    control = Control.read(f"{path}={path}@{number}")
    assert (control.path, control.picture.path) == (path, path)
    assert control.weight == float(number)
    assert Embedding.read(f"{path}=toy") == Embedding(path=path, word="toy")


NAMES = st.text(st.sampled_from("ab:@=,%-.08"), min_size=1, max_size=12).filter(
    lambda name: name.strip(".")
)


@given(NAMES, NUMBERS)
def test_what_is_there_is_meant_whatever_its_name(name: str, number: str):
    """Also where a part of the name could be a weight, a word or a picture."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, name))
        Path(path).touch()
        weight = float(number)
        assert LoRA.read(path) == LoRA(path=path)
        assert LoRA.read(f"{path}:{number}") == LoRA(path=path, weight=weight)
        assert Refiner.read(path) == Refiner(model=path)
        assert Embedding.read(path) == Embedding(path=path, word=Path(path).stem)
        assert Embedding.read(f"{path}=toy") == Embedding(path=path, word="toy")
        for edges in ("", "canny:"):
            for tail, told in [
                ("", {}),
                (f"@{number}", {"weight": weight}),
                (":.25-1", {"start": 0.25}),
                (f"@{number}:0-.5", {"weight": weight, "end": 0.5}),
            ]:
                read = Control.read(f"{path}={edges}{path}{tail}")
                picture: Any = {"path": path}
                assert read == Control(path=path, picture=picture, edges=bool(edges), **told)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(LoRA, {"path": "a:b"}), (Refiner, {"model": "a@b"}), (Embedding, {"path": "a", "word": "b"})],
)
def test_paths_need_not_be_texts(kind: type[TextInput], fields: dict[str, str]):
    name, path = next(iter(fields.items()))
    told = kind.read(fields)
    assert kind.read(MappingProxyType({**fields, name: Path(path)})) == told
    if len(fields) == 1:
        assert kind.read(Path(path)) == told


def test_the_picture_of_a_control_may_be_in_memory_or_a_path(tmp_path: Path):
    image = Image.new("RGB", (4, 4), "red")
    image.save(tmp_path / "map.png")
    path = tmp_path / "map.png"
    told = Control.read(f"net={path}").picture
    for same in (path, str(path), {"path": path}, {"path": str(path)}, told):
        picture = Control.read({"path": "net", "picture": same}).picture
        assert picture.path == str(path)
        assert image_of(picture).tobytes() == image.convert("RGBA").tobytes()
    picture = Control.read({"path": "net", "picture": image}).picture
    assert resolved_image(picture).hash == resolved_image(ImageRef.of(path)).hash
    with pytest.raises(UndustError, match="int is neither"):
        Control.read({"path": "net", "picture": 3})
    with pytest.raises(UndustError, match=r"none\.png cannot be read"):
        resolved_image(Control.read({"path": "net", "picture": "none.png"}).picture)


@pytest.mark.parametrize("given", [None, 3, ("a.safetensors", 0.8), ["a"], b"a", object()])
@pytest.mark.parametrize("kind", KINDS)
def test_how_it_is_written_is_said_of_what_is_none(kind: type[TextInput], given: object):
    with pytest.raises(UndustError, match=r"is not valid; expected (PATH|FACTOR|original=)"):
        kind.read(given)
    with pytest.raises(
        UndustError, match=r"'a\.pt' is none of .* as text: (PATH|FACTOR|original=)"
    ):
        kind.read({"a.pt": given})


@pytest.mark.parametrize("text", ["a:0,8", "a@80%", "a:", "a:0.8:", "a@0.8"])
def test_a_weight_that_cannot_be_read_is_not_taken_for_a_name(tmp_path: Path, text: str):
    (tmp_path / "a").touch()
    with pytest.raises(UndustError, match=r"does not exist; expected PATH or PATH:WEIGHT"):
        resolved_weights(LoRA.read(f"{tmp_path}/{text}"))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (Upscale, "", "is not FACTOR"),
        (Upscale, "1", "factor: has to be greater than 1"),
        (Upscale, "9", "factor: has to be less than or equal to 8"),
        (Upscale, "nan", "is not FACTOR"),
        (Upscale, "2@0", "strength: has to be greater than 0"),
        (Upscale, "2@1.5", "strength: has to be less than or equal to 1"),
        (Upscale, "2x", "is not FACTOR"),
        (Refiner, "", "model: "),
        (Refiner, "@0.5", "model: "),
        (Refiner, "a@1.5", "after: has to be less than or equal to 1"),
        (SizeConditioning, "", "is not original=WxH"),
        (SizeConditioning, "crop=-1x0", "is not original=WxH"),
        (SizeConditioning, "crop=1x2,crop=3x4", "each of them once"),
        (SizeConditioning, "size=1x2", "is not original=WxH"),
        (SizeConditioning, "original=16385x1", "original"),
        (SizeConditioning, "original=" + "9" * 5000 + "x1", "is not original=WxH"),
        (LoRA, "", "path: "),
        (LoRA, ":0.5", "path: "),
        (LoRA, "a:101", "weight: has to be less than or equal to 100"),
        (Embedding, "", "path: "),
        (Embedding, "=toy", "path: "),
        (Embedding, "a=" + "x" * 201, "word: "),
        (Control, "", "is not PATH=PICTURE"),
        (Control, "a", "is not PATH=PICTURE"),
        (Control, "=b.png", "is not PATH=PICTURE"),
        (Control, "a=", "is not PATH=PICTURE"),
        (Control, "a=canny:", "is not PATH=PICTURE"),
        (Control, "a=b.png:0-1.5", "end: has to be less than or equal to 1"),
        (Control, "a=b.png:-1-1", "start: has to be greater than or equal to 0"),
    ],
)
def test_what_cannot_be(kind: type[TextInput], text: str, said: str):
    with pytest.raises(UndustError, match=f"{(kind.kind or kind.__name__.lower())}: .*{said}"):
        kind.read(text)


def test_one_wish_is_not_another():
    with pytest.raises(UndustError, match="lora: "):
        LoRA.read(Embedding(path="a", word="b"))


@given(st.tuples(*[st.integers(0, 10**6)] * 4).filter(any))
def test_what_is_added_at_the_sides(sides: tuple[int, ...]):
    assert read_extend(sides) == read_extend(list(sides)) == sides
    assert read_extend(",".join(map(str, sides))) == sides
    assert read_extend(" , ".join(map(str, sides))) == sides


@given(TEXTS | VALUES | st.lists(st.integers() | st.floats() | st.text()))
def test_any_sides_are_read_or_refused(given: object):
    try:
        sides = read_extend(given)
    except UndustError as error:
        assert "\n" not in str(error)
        return
    assert len(sides) == 4
    assert min(sides) >= 0
    assert max(sides) > 0


@pytest.mark.parametrize(
    "given",
    ["", "1,2,3", "1,2,3,4,5", "0,0,0,0", "1,2,3,-4", "1.5,0,0,0", "a,b,c,d", 5, (), [1.0] * 4],
)
def test_what_is_no_sides(given: object):
    with pytest.raises(UndustError, match=r"extend: .* is not LEFT,TOP,RIGHT,BOTTOM"):
        read_extend(given)


def test_both_files_of_a_control_are_told_by_their_hashes(tmp_path: Path):
    import torch

    save(tmp_path / "net.safetensors", {"a": torch.ones(1)})
    Image.new("RGB", (4, 4)).save(tmp_path / "map.png")
    written = f"{tmp_path / 'net.safetensors'}=canny:{tmp_path / 'map.png'}@0.5"
    settled = resolved_weights(Control.read(written))
    assert settled.hash and settled.picture.hash
    assert resolved_weights(settled) == settled
    Image.new("RGB", (4, 4), "red").save(tmp_path / "map.png")
    with pytest.raises(UndustError, match=r"map\.png is not the picture any more"):
        resolved_weights(Control.read(settled.model_dump()))
