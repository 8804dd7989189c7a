"""Models by name: from a hub of our own on this machine, and then from the cache alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import undust
from undust.errors import UndustError
from undust.formats import hub as hub_files
from undust.formats import locate, safetensors_file
from undust.formats.feature_networks import load_features, load_heads
from undust.formats.hub import fetch, fetch_network, is_name, wanted, wanted_of_network
from undust.networks.features.vgg import VGG16
from undust.training.derived import first_stage_at

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
NAME = "dust/tiny"


class Hub:
    """The few addresses of the hub that fetching a model asks; it counts what it gave away."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {NAME: files}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                code, kind, content = hub.find(path)
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                if kind == "file":
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", path.split("/")[4])
                elif code != 200:
                    self.send_header("X-Error-Code", kind)
                else:
                    self.send_header("Content-Type", "application/json")
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def find(self, path: str) -> tuple[int, str, bytes]:
        """Status, what it is (or the error's code), and the content of an address."""
        match path.strip("/").split("/"):
            case ["api", "models", org, name, what, revision] if f"{org}/{name}" in self.files:
                files = self.files[f"{org}/{name}"]
                if revision not in (*COMMITS, *COMMITS.values()):
                    return 404, "RevisionNotFound", b""
                content: object = {"id": name, "sha": COMMITS.get(revision, revision)}
                if what == "tree":
                    content = [
                        {"type": "file", "path": path, "size": len(own), "oid": "0" * 40}
                        for path, own in files.items()
                    ]
                return 200, "json", json.dumps(content).encode()
            case [org, name, "resolve", _, *rest] if "/".join(rest) in self.files.get(
                f"{org}/{name}", {}
            ):
                return 200, "file", self.files[f"{org}/{name}"]["/".join(rest)]
            case _:
                return 404, "RepoNotFound", b""


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny model, and things beside it that nobody needs."""
    files = {
        str(path.relative_to(tiny_model)): path.read_bytes()
        for path in tiny_model.rglob("*")
        if path.is_file()
    }
    unet = files["unet/diffusion_pytorch_model.safetensors"]
    beside = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin")
    files |= dict.fromkeys((*beside, "tiny.safetensors", "safety_checker/model.safetensors"), unet)
    files |= {"README.md": b"a model", "run.py": b"import os"}
    hub = Hub(files)
    settings = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_what_is_needed_is_fetched_once(hub: Hub, tiny_model: Path):
    folder = fetch(NAME)
    assert folder.name == COMMITS["main"]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    own = {str(path.relative_to(tiny_model)) for path in tiny_model.rglob("*") if path.is_file()}
    assert found == own
    assert undust.load(folder).hash == undust.load(tiny_model).hash
    hub.asked.clear()
    assert fetch(NAME) == folder
    assert hub.asked == []


def test_a_recipe_may_name_a_first_stage_on_the_hub(hub: Hub):
    assert first_stage_at(Path(NAME)) == fetch(NAME) / "vae"
    assert first_stage_at(Path(f"{NAME}@v1")) == fetch(NAME, "v1") / "vae"


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_path_of_a_file_is_no_name(hub: Hub, ending: str):
    with pytest.raises(UndustError, match=r"no model at folder/a\..*: it does not exist"):
        locate.find(f"folder/a.{ending}")
    assert hub.asked == []


def test_a_name_keeps_its_commit_until_another_is_asked_for(hub: Hub, monkeypatch):
    folder = fetch(NAME)
    monkeypatch.setitem(COMMITS, "main", "c" * 40)
    assert fetch(NAME) == folder
    assert fetch(NAME, "v1").name == COMMITS["v1"]
    assert fetch(NAME, "c" * 40).name == "c" * 40
    assert fetch(NAME, folder.name) == folder


def test_without_a_hub_the_cache_is_enough(hub: Hub, monkeypatch):
    folder = fetch(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(NAME) == folder
    with pytest.raises(UndustError, match="is not in the cache, and the hub cannot be reached"):
        fetch("dust/other")
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(UndustError, match="is not in the cache, and the hub cannot be reached"):
        fetch(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert fetch(NAME) == folder
    assert (folder / "unet" / "config.json").is_file()


def test_the_cache_of_another_program_is_used_where_there_is_no_hub(hub: Hub, monkeypatch):
    folder = fetch(NAME)
    for listing in (folder.parents[1] / "trees").iterdir():
        listing.unlink()
    huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(NAME) == folder


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("dust/none", None, "there is no such model on the hub, or it is private"),
        (NAME, "v9", "it has no revision v9"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, name, revision, reason):
    with pytest.raises(UndustError, match=f"^{name} is not on this disk .* fetched: {reason}$"):
        fetch(name, revision)


def test_a_hub_that_is_gone_is_said(hub: Hub, monkeypatch):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(UndustError, match="not in the cache, and the hub cannot be reached"):
        fetch(NAME)


def test_pickles_are_not_fetched(hub: Hub):
    files = hub.files[NAME]
    for name in [name for name in files if name.startswith("unet/") and "safet" in name]:
        del files[name]
    with pytest.raises(UndustError, match=f"{NAME} has no safetensors file of its unet"):
        fetch(NAME)
    assert not [path for path in hub.asked if path.endswith(".bin")]


# Networks that are a repository of their own


def test_a_network_is_fetched_without_what_it_does_not_need(hub: Hub, tmp_path: Path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**small, image_size=16, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    files = {path.name: path.read_bytes() for path in (tmp_path / "dino").iterdir()}
    needed = {*files, "preprocessor_config.json", "vocab.json", "merges.txt"}
    files |= dict.fromkeys(needed - files.keys(), b"{}")
    beside = ("pytorch_model.bin", "onnx/model.onnx", "flax_model.msgpack", "README.md", "run.py")
    hub.files["dust/dino"] = files | dict.fromkeys(beside, b"never read")
    network = load_features("dust/dino")
    folder = fetch_network("dust/dino")
    assert {path.name for path in folder.rglob("*")} == needed
    digest = safetensors_file.files_hash([folder / "model.safetensors"])[:8]
    assert network.name == f"DINOv2 (dino, {digest})"
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(network.pooled(x), load_features(str(tmp_path / "dino")).pooled(x))
    hub.asked.clear()
    assert locate.find_network(f"dust/dino@{COMMITS['main']}") == folder
    assert hub.asked == []
    assert locate.find_network("dust/dino@v1").name == COMMITS["v1"]


def test_a_repository_of_one_file_of_weights(hub: Hub, tmp_path: Path):
    """VGG16 as timm names its tensors, and the heads of LPIPS."""
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1) for k, n in enumerate(widths)}
    ours = VGG16()
    head = {"pre_logits.fc1.bias": torch.zeros(8), "head.fc.bias": torch.zeros(2)}
    for name, tensors in (("vgg", {**ours.state_dict(), **head}), ("heads", heads)):
        safetensors_file.save(tmp_path / name, tensors)
        content = (tmp_path / name).read_bytes()
        hub.files[f"dust/{name}"] = {f"{name}.safetensors": content}
    hub.files["dust/vgg"]["config.json"] = b'{"architecture": "vgg16"}'
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_features("dust/vgg").maps(x), ours.maps(x))
    assert all(
        torch.equal(found, given.flatten())
        for found, given in zip(load_heads(Path("dust/heads")), heads.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["config.json", "pytorch_model.bin"], "has no safetensors file; nothing is fetched"),
        (["model_index.json", "all.safetensors"], "is a whole model .model_index.json., not a"),
        (["a.safetensors", "b.safetensors"], "has 2 files of weights; download one, such as a"),
    ],
)
def test_other_repositories_are_no_networks(hub: Hub, files: list[str], reason: str):
    hub.files["dust/other"] = dict.fromkeys(files, b"{}")
    with pytest.raises(UndustError, match=f"dust/other {reason}"):
        load_features("dust/other")
    assert not [path for path in hub.asked if path.endswith((".bin", ".safetensors"))]


def test_the_parts_of_a_network_in_several_files():
    parts = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    needed = ["config.json", "model.safetensors.index.json", *parts]
    assert sorted(wanted_of_network(NAME, [*needed, "model.fp16.safetensors"])) == sorted(needed)


def test_a_path_comes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dust" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate.find_network("dust/tiny") == Path("dust/tiny")
    assert locate.find_network("nets/vgg.h5") == Path("nets/vgg.h5")
    assert hub_files.title(tmp_path / "dust" / "tiny") == "tiny"
    assert hub.asked == []


def test_without_the_package_the_extra_is_named():
    code = f"""
import sys
sys.modules["huggingface_hub"] = None
from undust.errors import UndustError
from undust.formats.hub import fetch
try:
    fetch("{NAME}")
except UndustError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("the hub needs another package: pip install 'undust[hub]'\n")


# Which files, which names


STEM = "unet/diffusion_pytorch_model"
FULL, HALF = f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"
SHARDS = [f"{STEM}-0000{k}-of-00002.safetensors" for k in (1, 2)]
INDEX, HALF_INDEX = (f"{STEM}.safetensors.index{kind}.json" for kind in ("", ".fp16"))
HALF_SHARD = f"{STEM}.fp16-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ([FULL, HALF, "unet/x.non_ema.safetensors"], [FULL]),
        ([HALF], [HALF]),
        ([INDEX, *SHARDS, HALF], [INDEX, *SHARDS]),
        ([HALF_INDEX, HALF_SHARD, *SHARDS], [HALF_INDEX, HALF_SHARD]),
    ],
)
def test_one_file_of_weights_is_chosen(weights: list[str], chosen: list[str]):
    beside = ["README.md", "vae_1_0/model.safetensors", "unet/model.onnx", "unet/deep/a.json"]
    kept = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]
    assert sorted(wanted(NAME, [*beside, *kept, *weights])) == sorted([*kept, *chosen])


def test_a_repository_of_single_files_is_explained():
    with pytest.raises(UndustError, match=r"no model_index\.json\); download a\.safetens"):
        wanted(NAME, ["a.safetensors", "a.ckpt"])


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert is_name("stabilityai/stable-diffusion-2-1")
    for other in ("emoji", "./a", "../a", "a/b/c", "/a", "a/", "~/a", "a b/c", "C:/a", ".a/b"):
        assert not is_name(other)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_name("a/b")


@given(files=st.lists(st.text("unetvae/modl.sfrijx_c", max_size=40), max_size=8))
def test_any_list_of_files_is_chosen_from(files: list[str]):
    try:
        assert set(wanted(NAME, ["model_index.json", *files])) <= {"model_index.json", *files}
    except UndustError as error:
        assert "no safetensors" in str(error)
