from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats import safetensors_file


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "brain": torch.randn(2, 2, generator=generator).bfloat16(),
        "한국어": torch.arange(3),
        "scalar": torch.tensor(0.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def pack(head: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def claim(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_what_is_saved_is_loaded_here_and_by_the_library(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors_file.save(path, tensors(), {"format": "pt"})
    assert same(safetensors_file.load(path), tensors())
    assert same(safetensors.torch.load_file(path), tensors())


def test_what_the_library_saved_is_loaded(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors(), path)
    assert same(safetensors_file.load(path), tensors())


@pytest.mark.parametrize("dtype", safetensors_file.DTYPES.values(), ids=safetensors_file.DTYPES)
def test_every_dtype_survives(tmp_path: Path, dtype: torch.dtype):
    path = tmp_path / "a.safetensors"
    tensor = torch.arange(16, dtype=torch.uint8).remainder(2).to(dtype)
    safetensors_file.save(path, {"a": tensor})
    loaded = safetensors.torch.load_file(path)["a"]
    assert loaded.dtype == dtype
    assert loaded.view(torch.uint8).equal(tensor.view(torch.uint8))
    assert safetensors_file.header(path).tensors["a"] == (dtype, (16,))


def test_the_same_content_gives_the_same_bytes(tmp_path: Path):
    metadata = {name: name for name in "hgfedcba"}
    first, second = tmp_path / "first", tmp_path / "second"
    safetensors_file.save(first, tensors(), metadata)
    safetensors_file.save(
        second, dict(reversed(tensors().items())), dict(reversed(metadata.items()))
    )
    assert first.read_bytes() == second.read_bytes()


def test_parts_of_one_memory_are_saved_apart(tmp_path: Path):
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {"whole": whole, "row": whole[1], "column": whole[:, 1], "turned": whole.T}
    safetensors_file.save(tmp_path / "a", parts)
    assert same(safetensors_file.load(tmp_path / "a"), parts)


def test_a_parameter_is_saved_without_its_gradient(tmp_path: Path):
    layer = torch.nn.Linear(2, 2)
    safetensors_file.save(tmp_path / "a", dict(layer.named_parameters()))
    assert not safetensors_file.load(tmp_path / "a")["weight"].requires_grad


def test_a_file_can_be_replaced_while_its_tensors_are_in_use(tmp_path: Path):
    path = tmp_path / "a"
    safetensors_file.save(path, tensors())
    loaded = safetensors_file.load(path)
    safetensors_file.save(path, {"other": torch.zeros(1)})
    assert same(loaded, tensors())


def test_loading_casts_floating_point_alone(tmp_path: Path):
    safetensors_file.save(tmp_path / "a", tensors())
    loaded = safetensors_file.load(tmp_path / "a", torch.float16)
    assert loaded["weight"].dtype == loaded["scalar"].dtype == torch.float16
    assert loaded["한국어"].dtype == torch.int64
    assert loaded["flags"].dtype == torch.bool


def test_saving_casts_floating_point_alone(tmp_path: Path):
    sizes: list[int] = []
    safetensors_file.save(tmp_path / "a", tensors(), dtype=torch.float16, wrote=sizes.append)
    cast = {name: t.half() if t.is_floating_point() else t for name, t in tensors().items()}
    assert same(safetensors_file.load(tmp_path / "a"), cast)
    assert sorted(sizes) == sorted(tensor.nbytes for tensor in cast.values())


def test_saving_refuses_numbers_that_have_no_room(tmp_path: Path):
    large = {"fits": torch.tensor([65504.0]), "a": torch.tensor([1.0, -65520.0])}
    with pytest.raises(UndustError, match=r"a holds 6\.55e\+04, outside the range of torch"):
        safetensors_file.save(tmp_path / "a", large, dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    # What is infinite already is no news.
    safetensors_file.save(tmp_path / "a", {"a": torch.tensor([torch.inf])}, dtype=torch.float16)


def test_loading_some_of_the_tensors(tmp_path: Path):
    path = tmp_path / "a"
    safetensors_file.save(path, tensors())
    some = safetensors_file.load(path, names=["weight", "flags"])
    assert same(some, {name: tensors()[name] for name in ("weight", "flags")})
    assert safetensors_file.load(path, torch.float16, names=[]) == {}
    with pytest.raises(UndustError, match=r"has no other$"):
        safetensors_file.load(path, names=["weight", "other"])


def mapped(path: Path) -> list[range]:
    """The addresses at which this process sees the file itself."""
    found: list[range] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, _, end = line.split()[0].partition("-")
            found.append(range(int(start, 16), int(end, 16)))
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells by Linux's /proc")
def test_what_keeps_its_precision_is_the_file_itself(tmp_path: Path):
    path = tmp_path / "a"
    safetensors_file.save(path, {"half": torch.ones(9999).half(), "whole": torch.ones(9999)})
    loaded = safetensors_file.load(path, torch.float32)
    assert any(loaded["whole"].data_ptr() in there for there in mapped(path))
    assert not any(loaded["half"].data_ptr() in there for there in mapped(path))
    loaded["whole"] += 1  # a copy of the page, not the file's
    assert safetensors_file.load(path)["whole"].eq(1).all()


MEASURE = """
import re, sys
from pathlib import Path
import torch
from undust.formats import safetensors_file
def kilobytes(of):
    return int(re.search(rf"{of}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.ones(8).half().float()
before = kilobytes("VmRSS")
loaded = safetensors_file.load(Path(sys.argv[1]), torch.float32)
weights = sum(tensor.nbytes for tensor in loaded.values())
print((kilobytes("VmHWM") - before) * 1024 / weights)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells by Linux's /proc")
def test_casting_holds_the_result_and_one_tensor(tmp_path: Path):
    part = torch.ones(1, dtype=torch.float16).expand(1_000_000)
    safetensors_file.save(tmp_path / "a", {str(number): part for number in range(40)})
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 1.15


def test_the_header_alone(tmp_path: Path):
    path = tmp_path / "a"
    safetensors_file.save(path, tensors(), {"licence": "Apache-2.0"})
    head = safetensors_file.header(path)
    assert head.metadata == {"licence": "Apache-2.0"}
    assert head.tensors == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors().items()
    }


def test_the_content_hash_is_sha256(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert safetensors_file.content_hash(path) == expected
    assert hashlib.sha256(b"abc").hexdigest() == expected


def test_a_dtype_that_the_format_lacks_is_refused(tmp_path: Path):
    with pytest.raises(UndustError, match=r"a is torch\.complex128"):
        safetensors_file.save(tmp_path / "a", {"a": torch.zeros(1, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_at_any_byte_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "cut.safetensors"
    safetensors_file.save(path, {"a": torch.ones(5), "b": torch.ones(3).half()}, {"k": "v"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        for read in (safetensors_file.load, safetensors_file.header):
            with pytest.raises(UndustError, match=r"cut\.safetensors is"):
                read(path)


def test_a_file_with_more_at_its_end_is_refused(tmp_path: Path):
    path = tmp_path / "a"
    safetensors_file.save(path, tensors())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UndustError, match="is damaged"):
        safetensors_file.load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"PK\x03\x04" + bytes(50), "pickle"),
        (b"\x80\x02}q\x00" + bytes(50), "pickle"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (bytes(50), "does not begin with a header"),
        (pack({}, length=1 << 60), "cut short"),
        (pack(b"{nonsense"), "damaged header"),
        (pack(b"{" + b'"a":[' * 100_000), "damaged header"),
        (pack(b"{\xff}"), "damaged header"),
        (pack(b'{"a":{},"a":{}}'), "a name stands in it twice"),
        (pack({"__metadata__": {"k": 1}}), "__metadata__"),
        (pack({"__metadata__": []}), "__metadata__"),
        (pack({"a": {}}), "header: a has no dtype"),
        (pack({"two\nlines\x1b[2J": {}}), r"'two\\nlines\\x1b\[2J' has no dtype"),
        (pack({"a" * 10_000: {}}), "aaa… has no dtype"),
        (pack(claim(), bytes(9)), "is damaged"),
        (pack(claim(), bytes(7)), "cut short"),
        (pack(claim(dtype="F33"), bytes(8)), "unknown dtype 'F33'"),
        (pack(claim(shape=[3]), bytes(8)), "contradicts its shape"),
        (pack(claim(shape=[-2]), bytes(8)), "has no dtype"),
        (pack(claim(shape=[2.0]), bytes(8)), "has no dtype"),
        (pack(claim(shape=[True, 2]), bytes(8)), "has no dtype"),
        (pack(claim(data_offsets=[0, 8, 9]), bytes(8)), "has no dtype"),
        (pack(claim(data_offsets=[8, 16]), bytes(16)), "does not start where"),
        (pack({**claim(), "b": claim()["a"]}, bytes(8)), "does not start where"),
    ],
)
def test_a_file_that_is_something_else_is_said_to_be(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UndustError, match=reason) as caught:
        safetensors_file.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_out_of_proportion_is_not_read(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    text = b'{"__metadata__":{"a":"' + b"a" * 3 * 2**20 + b'"}}'
    path.write_bytes(pack(text))
    with pytest.raises(UndustError, match="too long for a file of"):
        safetensors_file.header(path)
    head = {"a": {"dtype": "U8", "shape": [16 * 2**20], "data_offsets": [0, 16 * 2**20]}}
    path.write_bytes(pack(text[:-1] + b"," + json.dumps(head).encode()[1:], bytes(16 * 2**20)))
    assert len(safetensors_file.header(path).metadata["a"]) == 3 * 2**20


@pytest.mark.parametrize(
    ("shape", "size"),
    [([1] * 71, 4), ([1] * 9, 4), ([0] * 71, 0), ([2**62, 0], 0), ([2**40, 0, 2**40], 0)],
    ids=str,
)
def test_shapes_that_no_weights_have(tmp_path: Path, shape: list[int], size: int):
    path = tmp_path / "a.safetensors"
    head = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    path.write_bytes(pack(head, bytes(size)))
    with pytest.raises(UndustError, match=rf"a has a shape of {len(shape)} dimensions, \["):
        safetensors_file.load(path)


@pytest.mark.parametrize("shape", [(1,) * 8, (), (0,), (3, 0), (2**58, 0)], ids=str)
def test_shapes_that_can_be_read(tmp_path: Path, shape: tuple[int, ...]):
    tensor = torch.zeros(shape)
    safetensors_file.save(tmp_path / "a.safetensors", {"a": tensor})
    for dtype in (None, torch.float16):
        assert safetensors_file.load(tmp_path / "a.safetensors", dtype)["a"].shape == shape


@pytest.mark.parametrize("name", ["a\0b", "half\ud800"])
def test_what_is_no_name_of_a_file(name: str):
    with pytest.raises(UndustError, match="is not a valid file name"):
        safetensors_file.header(Path(name))


def test_a_real_pickle_is_refused(tmp_path: Path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.ckpt")
    with pytest.raises(UndustError, match="pickle"):
        safetensors_file.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("read", [safetensors_file.load, safetensors_file.content_hash])
def test_what_is_not_there_is_named(tmp_path: Path, read):
    with pytest.raises(UndustError, match=r"nothing cannot be read: No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(UndustError, match="is a folder, not a file"):
        read(tmp_path)


@given(content=st.binary(max_size=200) | st.binary(max_size=200).map(lambda text: pack(text)))
def test_any_bytes_give_tensors_or_an_error(tmp_path_factory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        safetensors_file.load(path)
    except UndustError as error:
        assert "any.safetensors" in str(error)


HEADS = st.dictionaries(
    st.text(max_size=4),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "X"]),
            "shape": st.lists(st.integers(-1, 1 << 70) | st.integers(0, 3), max_size=80),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
        }
    )
    | st.none(),
    max_size=3,
)


@given(head=HEADS, body=st.binary(max_size=40))
def test_any_header_gives_what_the_library_gives_or_an_error(tmp_path_factory, head, body: bytes):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(pack(head, body))
    try:
        loaded = safetensors_file.load(path)
    except UndustError as error:
        assert str(error).isprintable()
        return
    theirs = safetensors.torch.load_file(path)
    assert loaded.keys() == theirs.keys() == head.keys()
    assert all(torch.equal(loaded[name], theirs[name]) for name in head if loaded[name].numel())
