"""A pipe, a device, a socket or a folder in the place of a file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from undust.errors import UndustError
from undust.regular import open_regular, read_bytes, read_text


def test_a_file_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "a").write_bytes("웃\r\n".encode())
    with open_regular(tmp_path / "a") as file:
        assert file.read(1) == "웃".encode()[:1]
    assert read_bytes(tmp_path / "a", 5) == "웃\r\n".encode()
    assert read_text(tmp_path / "a") == "웃\r\n"
    (tmp_path / "b").write_text("b", "utf-8-sig")
    assert read_text(tmp_path / "b") == "b"


def test_a_link_to_a_file_is_followed(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b") == "a"


def test_more_than_the_limit_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(bytes(1001))
    with pytest.raises(UndustError, match="a is larger than 1,000 bytes"):
        read_bytes(tmp_path / "a", 1000)


def test_an_absent_file_is_the_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "a")
    with pytest.raises(ValueError, match="null"):
        open_regular(tmp_path / "a\0b")


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "a")
    (tmp_path / "b").symlink_to("a")
    for name in "ab":
        with pytest.raises(UndustError, match=rf"/{name} is a pipe, not a file; save its output"):
            open_regular(tmp_path / name)


def test_a_pipe_of_the_shell_is_refused():
    """Such as bash makes of <(…)."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(UndustError, match="is a pipe"):
            open_regular(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
        os.close(writing)


def test_folders_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UndustError, match=r"is a folder, not a file$"):
        open_regular(tmp_path)
    with pytest.raises(UndustError, match=r"/dev/zero is a device, not a file$"):
        open_regular(Path("/dev/zero"))
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket's name
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("a")
        with pytest.raises(UndustError, match=r"a is a socket, not a file$"):
            open_regular(Path("a"))


def test_what_becomes_a_pipe_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a"
    os.mkfifo(path)
    regular = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda _: regular)
    with pytest.raises(UndustError, match="is a pipe"):
        open_regular(path)
