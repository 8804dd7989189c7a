"""Hashes of files that are kept: never that of another content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats import known_hashes
from undust.formats.safetensors_file import content_hash

Hashed = Callable[[], tuple[str, int]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "LARGE", 0)
    monkeypatch.setattr(known_hashes, "SETTLED", -1)
    return tmp_path / "cache" / "undust" / "hashes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def hashed(file: Path, monkeypatch: pytest.MonkeyPatch) -> Hashed:
    """The hash of the file, and how often it has been read for it."""
    count = 0

    def counted(path: Path) -> str:
        nonlocal count
        count += 1
        return content_hash(path)

    monkeypatch.setattr(known_hashes, "content_hash", counted)
    return lambda: (known_hashes.known_hash(file), count)


def digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("cache")
def test_a_file_is_hashed_once(hashed: Hashed):
    assert [hashed(), hashed()] == [(digits(b"weights"), 1)] * 2


@pytest.mark.usefixtures("cache")
def test_a_change_of_any_kind_is_seen(file: Path, hashed: Hashed):
    hashed()
    kept = file.stat()
    file.write_bytes(b"WEIGHTS")  # of the same size, and with the old time of change
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert hashed() == (digits(b"WEIGHTS"), 2)
    other = file.with_name("other")
    other.write_bytes(b"sthgiew")
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    other.replace(file)
    assert hashed() == (digits(b"sthgiew"), 3)


@pytest.mark.usefixtures("cache")
def test_a_file_that_has_just_changed_is_not_kept(hashed: Hashed, monkeypatch: pytest.MonkeyPatch):
    """Another change within the resolution of the file system's time would not be seen."""
    monkeypatch.setattr(known_hashes, "SETTLED", 60)
    assert [hashed()[1], hashed()[1]] == [1, 2]


def test_small_files_leave_nothing(cache: Path, hashed: Hashed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_hashes, "LARGE", 8)
    assert [hashed()[1], hashed()[1]] == [1, 2]
    assert not cache.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=40)
    | st.sampled_from([b"{}", b"[]", b'{"state": [], "sha256": ""}', b'{"state": 1}', b"null"])
)
def test_a_damaged_entry_is_written_again(cache: Path, hashed: Hashed, content: bytes):
    before = hashed()[1]
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert hashed() == (digits(b"weights"), before + 1)
    assert hashed() == (digits(b"weights"), before + 1)


def test_without_a_folder_to_write_to(cache: Path, hashed: Hashed):
    cache.parent.parent.mkdir()
    cache.parent.write_bytes(b"a file where the folder would be")
    assert [hashed(), hashed()] == [(digits(b"weights"), 1), (digits(b"weights"), 2)]


@pytest.mark.usefixtures("cache")
def test_errors_are_those_of_reading(file: Path):
    assert known_hashes.known_hash(file) == digits(b"weights")
    file.unlink()
    with pytest.raises(UndustError, match="cannot be read: No such file"):
        known_hashes.known_hash(file)
