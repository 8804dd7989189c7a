from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from faults import run_limited
from undust.errors import UndustError
from undust.formats import files
from undust.formats.files import atomic, atomic_folder, atomic_write


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_appears_whole_and_replaces_an_older_one(tmp_path: Path):
    for content in (b"first", b"second"):
        atomic_write(tmp_path / "a.txt", content)
        assert (tmp_path / "a.txt").read_bytes() == content
    assert names(tmp_path) == {"a.txt"}


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    with atomic(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    with pytest.raises(failure), atomic(target) as temporary:
        temporary.write_bytes(b"ne")
        raise failure
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"a.txt"}


def test_a_file_has_the_usual_permissions(tmp_path: Path):
    mask = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a.txt", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    atomic_write(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_bytes() == b"content"


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(UndustError, match=r"nowhere does not exist"):
        atomic_write(tmp_path / "nowhere" / "a.txt", b"")


@pytest.mark.parametrize("target", ["folder", "/dev/null"])
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path, target: str):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UndustError, match="is not a file"):
        atomic_write(tmp_path / target, b"")


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"old")
    done = run_limited(
        """
        import torch
        from pathlib import Path
        from undust.errors import UndustError
        from undust.formats import safetensors_file
        try:
            safetensors_file.save(Path("weights.safetensors"), {"a": torch.zeros(100_000)})
        except UndustError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.stdout == "cannot write weights.safetensors: File too large\n", done.stderr
    assert (tmp_path / "weights.safetensors").read_bytes() == b"old"
    assert names(tmp_path) == {"weights.safetensors"}


def test_a_folder_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_bytes(b"old")
    done = run_limited(
        """
        from pathlib import Path
        from undust.errors import UndustError
        from undust.formats.files import atomic_folder
        try:
            with atomic_folder(Path("model"), replace=True) as building:
                (building / "small").write_bytes(b"fits")
                (building / "large").write_bytes(bytes(100_000))
        except UndustError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.stdout == "cannot write model: File too large\n", done.stderr
    assert names(tmp_path) == {"model", "model/old"}


def test_an_unwritable_folder_is_named(tmp_path: Path):
    folder = tmp_path
    if os.geteuid() == 0:
        folder = Path("/sys")  # where even root may not
    else:
        folder.chmod(0o500)
    with pytest.raises(UndustError, match=rf"cannot write {folder}/a\.txt: (Permission|Read-only)"):
        atomic_write(folder / "a.txt", b"")


def test_a_folder_appears_whole(tmp_path: Path):
    with atomic_folder(tmp_path / "model") as building:
        (building / "unet").mkdir()
        (building / "unet" / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == {"model", "model/unet", "model/unet/config.json"}


def test_a_failure_leaves_no_folder(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as building:
        (building / "a").write_text("")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_a_folder_with_content_is_replaced_only_when_asked(tmp_path: Path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(UndustError, match="not empty"), atomic_folder(target):
        pass
    assert names(target) == {"old"}
    with atomic_folder(target, replace=True) as building:
        (building / "new").write_text("")
    assert names(tmp_path) == {"model", "model/new"}


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as building:
        (building / "new").write_text("")
    assert names(tmp_path) == {"model", "model/new"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path):
    (tmp_path / "model").write_text("")
    with (
        pytest.raises(UndustError, match="there is a file of that name"),
        atomic_folder(tmp_path / "model"),
    ):
        pass


def test_the_leftovers_of_a_killed_run_are_removed(tmp_path: Path):
    script = """
        import os, signal
        from pathlib import Path
        from undust.formats.files import atomic_folder
        with atomic_folder(Path("model")) as building:
            (building / "half").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    assert run_limited(script, tmp_path).returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert names(tmp_path) != set()
    with atomic_folder(tmp_path / "model") as building:
        (building / "whole").write_text("")
    assert names(tmp_path) == {"model", "model/whole"}


def test_what_a_kill_between_the_two_renames_left_is_still_the_folder(tmp_path: Path):
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "weights").write_text("the only copy")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model", replace=True):
        raise RuntimeError("the next attempt fails too")
    assert (tmp_path / "model" / "weights").read_text() == "the only copy"


WRITERS = """
    import secrets, sys
    from pathlib import Path
    from undust.formats import files
    if "plain" in sys.argv:
        files._exchange_call = lambda: None
    while True:
        with files.atomic_folder(Path("model"), replace=True) as building:
            version = secrets.token_hex(8)
            for name in "abc":
                (building / name).write_text(version * 1000)
        files.atomic_write(Path("file"), version.encode() * 1000)
    """


def look(folder: Path) -> set[bytes]:
    """The versions that the files of a folder are of; UndustError if one is not there."""
    found: set[bytes] = set()
    for name in "abc":
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise UndustError(str(error)) from error
        assert content == content[:16] * 1000
        found.add(content[:16])
    return found


@pytest.mark.parametrize("way", ["exchanged", "plain"])
def test_writers_that_are_killed_and_readers_meet(way: str, tmp_path: Path):
    """Three writers, one after another killed and replaced; every look is at a whole folder.

    "plain" is the way of systems that cannot exchange two folders, where it is absent for moments.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITERS), way],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    folder = tmp_path / "model"
    writers = [start() for _ in range(3)]
    seen: set[bytes] = set()
    looks = 0
    try:
        while not (folder / "a").exists() or not (tmp_path / "file").exists():
            time.sleep(0.01)
        for victim in (0, 1, 2, 0, 1, 2):
            until = time.monotonic() + 0.25
            while time.monotonic() < until:
                looks += 1
                try:
                    (version,) = files.read_whole(folder, lambda: look(folder))
                    seen.add(version)
                    if way == "exchanged":
                        look(folder)  # even without care each file is there at any time
                except UndustError:
                    assert way == "plain"
                content = (tmp_path / "file").read_bytes()
                assert content == content[:16] * 1000
            assert all(writer.poll() is None for writer in writers)  # none met another's removal
            writers[victim].kill()
            writers[victim].wait()
            writers[victim] = start()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert looks > 20
    assert len(seen) > 5
    with atomic_folder(folder, replace=True) as building:
        assert len(look(folder)) == 1
        (building / "whole").write_text("")
    assert names(tmp_path) == {"file", "model", "model/whole"}


def test_the_temporary_of_a_live_writer_is_left_alone(tmp_path: Path):
    with atomic(tmp_path / "a") as slow:
        atomic_write(tmp_path / "b", b"b")
        with atomic_folder(tmp_path / "c"):
            pass
        slow.write_bytes(b"a")
    assert names(tmp_path) == {"a", "b", "c"}


def test_a_folder_that_a_killed_writer_had_moved_aside_is_restored(tmp_path: Path):
    """By whatever is written next beside it; in the way of this version, and of earlier ones."""
    for place in (".undust-0.tmp/old/model", ".two.old"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "weights").write_text(place)
    (tmp_path / ".two.new").mkdir()
    files.restore(tmp_path / "two")
    assert names(tmp_path) == {"model", "model/weights", "two", "two/weights"}


def test_the_temporaries_of_earlier_versions_are_removed_when_they_are_old(tmp_path: Path):
    for name, age in ((".undust-old.tmp", 2 * files.DAY), (".undust-new.tmp", 60)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    (tmp_path / ".undust-mine").write_bytes(b"not a temporary")
    atomic_write(tmp_path / "a", b"")
    assert names(tmp_path) == {"a", ".undust-new.tmp", ".undust-mine"}


def test_a_folder_that_is_filled_meanwhile_is_not_replaced_unasked(tmp_path: Path):
    target = tmp_path / "model"
    with pytest.raises(UndustError, match="not empty"), atomic_folder(target):
        target.mkdir()
        (target / "of another").write_text("")
    assert names(tmp_path) == {"model", "model/of another"}


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path):
    """The first of two files is read, then the folder is replaced: both are read of the new one."""
    folder = tmp_path / "model"

    def write(version: str) -> None:
        with atomic_folder(folder, replace=True) as building:
            for name in "ab":
                (building / name).write_text(version)

    write("old")
    newer = iter(["newer", "newest"])

    def read() -> list[str]:
        first = (folder / "a").read_text()
        if version := next(newer, None):
            write(version)
        return [first, (folder / "b").read_text()]

    assert files.read_whole(folder, read) == ["newest", "newest"]
    with pytest.raises(UndustError, match="keep replacing it"):
        files.read_whole(folder, lambda: write("again"))
