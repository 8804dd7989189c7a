"""Models and single networks by name from the Hugging Face hub, its cache first; no pickles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from undust.errors import UndustError, printable
from undust.formats.folder import INDEX, STEMS
from undust.formats.model_folder import NETWORKS, PARTS

NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
CONFIG = "config.json"
# Of a network that is a repository of its own: the files beside its weights.
BESIDE = (
    CONFIG,
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
Choose = Callable[[str, Iterable[str]], list[str]]


def is_name(name: str) -> bool:
    """Whether a name has the form `org/name` of the hub and is not a path on this disk."""
    return bool(re.fullmatch(NAME, name)) and not Path(name).exists()


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of the model `org/name`, from the cache or else from the hub.

    revision: a branch, a tag or a commit; None for the main branch. It is resolved to a commit when
    the model is first fetched, and stays at that commit; only files that are not cached are
    fetched. Of each component one file of weights is fetched, in full precision if there is one.
    Raises UndustError without the `hub` extra, for a model that does not exist or has no
    safetensors, and if the hub cannot be reached.
    """
    return _fetch(name, revision, INDEX, wanted)


def fetch_network(name: str, revision: str | None = None) -> Path:
    """The folder of a network that is the repository `org/name`: its weights and configuration.

    As `fetch`, for CLIP, DINOv2 or a file of weights; a tokenizer's files are fetched too.
    """
    return _fetch(name, revision, CONFIG, wanted_of_network)


def title(folder: Path) -> str:
    """The name of a folder; in the hub's cache, where it is a commit, that of its repository."""
    folder = folder.resolve()
    repository, snapshots = folder.parts[-3:-1] if len(folder.parts) > 3 else ("", "")
    if snapshots == "snapshots" and (found := re.fullmatch(r"models--.+?--(.+)", repository)):
        return found[1]
    return folder.name


def _fetch(name: str, revision: str | None, first_file: str, choose: Choose) -> Path:
    """The folder with the chosen files; first_file: the one that is fetched before the list."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UndustError(
            f"{name} is not on this disk, and fetching it from the hub needs another package: "
            "pip install 'undust[hub]'"
        ) from error
    try:
        found = _cached(hub, name, revision, choose)
        return found or _fetched(hub, name, revision, first_file, choose)
    except UndustError:
        raise
    except errors.GatedRepoError as error:
        reason = "its owners have to grant access first; then log in with hf auth login"
        raise _error(name, reason) from error
    except errors.RepositoryNotFoundError as error:
        raise _error(name, "there is no such model on the hub, or it is private") from error
    except errors.RevisionNotFoundError as error:
        raise _error(name, f"it has no revision {printable(revision)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _error(name, "it is not in the cache, and the hub cannot be reached") from error
    # Errors of the hub, a full disk or a broken connection, of many kinds.
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise _error(name, printable(first[0])) from error


def wanted(name: str, files: Iterable[str]) -> list[str]:
    """The files of a model's repository that are needed.

    Raises UndustError if it is not a model folder, or has only pickled weights.
    """
    files = set(files)
    if INDEX not in files:
        single = sorted(file for file in files if re.fullmatch(r"[^/]+\.safetensors", file))
        instead = f"; download {printable(single[0])} and give its path" if single else ""
        raise UndustError(f"{name} is not a model folder (no {INDEX}){instead}")
    chosen = [INDEX]
    for part in PARTS:
        chosen += sorted(file for file in files if re.fullmatch(rf"{part}/[^/]+\.(json|txt)", file))
        if part in NETWORKS:
            weights = sorted(_weights(f"{part}/", files))
            if f"{part}/config.json" in files and not weights:
                raise UndustError(
                    f"{name} has no safetensors file of its {part}; nothing is fetched"
                )
            chosen += weights
    return chosen


def wanted_of_network(name: str, files: Iterable[str]) -> list[str]:
    """The files of a network's repository that are needed.

    Its weights have the usual names or are the only safetensors file. Raises UndustError if it is
    a whole model, or has no such weights.
    """
    files = set(files)
    if INDEX in files:
        raise UndustError(f"{name} is a whole model ({INDEX}), not a single network")
    weights = [*_weights("", files)]
    if not weights:
        weights = sorted(file for file in files if re.fullmatch(r"[^/]+\.safetensors", file))
        if not weights:
            raise UndustError(f"{name} has no safetensors file; nothing is fetched")
        if len(weights) > 1:
            first = printable(weights[0])
            raise UndustError(
                f"{name} has {len(weights)} files of weights; download one, such as {first}, and "
                "give its path"
            )
    beside = (*BESIDE, *(f"{stem}.safetensors.index.json" for stem in STEMS))
    return [*(file for file in beside if file in files), *weights]


def _weights(folder: str, files: set[str]) -> Iterator[str]:
    """The files in a folder, "" or one that ends in "/", that `load_weights` would read."""
    for variant in ("", ".fp16"):
        for stem in STEMS:
            whole = f"{folder}{stem}{variant}.safetensors"
            if whole in files:
                yield whole
                return
            if f"{folder}{stem}.safetensors.index{variant}.json" in files:
                shard = re.escape(f"{folder}{stem}{variant}") + r"-\d+-of-\d+\.safetensors"
                yield from (file for file in files if re.fullmatch(shard, file))
                return


def _cached(hub: Any, name: str, revision: str | None, choose: Choose) -> Path | None:
    """The folder, if the chosen files are all cached."""
    try:
        listed = hub.get_cached_repo_tree(name, revision=revision)
        files = choose(name, (file.path for file in listed))
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=files, local_files_only=True
            )
        )
    except (hub.errors.CachedRepoTreeNotFoundError, hub.errors.LocalEntryNotFoundError):
        return None


def _fetched(hub: Any, name: str, revision: str | None, first_file: str, choose: Choose) -> Path:
    """The folder from the hub; its cached files if the hub cannot be reached."""
    first = Path(hub.snapshot_download(name, revision=revision, allow_patterns=[first_file]))
    try:
        listed = hub.get_cached_repo_tree(name, revision=first.name)
    except hub.errors.CachedRepoTreeNotFoundError:
        return first  # another program's cache, and no network: it may still be complete
    files = choose(name, (file.path for file in listed))
    return Path(hub.snapshot_download(name, revision=first.name, allow_patterns=files))


def _error(name: str, reason: str) -> UndustError:
    return UndustError(f"{name} is not on this disk and cannot be fetched: {reason}")
