from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from undust.formats.locks import FileLock, LockedError


def test_the_second_is_told_who_holds_it(tmp_path: Path):
    lock = FileLock(tmp_path / "lock")
    assert lock.certain
    with pytest.raises(LockedError) as error:
        FileLock(tmp_path / "lock")
    assert str(error.value) == f"process {os.getpid()} on {socket.gethostname()}"
    lock.release()
    assert not (tmp_path / "lock").exists()
    FileLock(tmp_path / "lock").release()


def test_a_lock_without_a_holder_is_given_up(tmp_path: Path):
    lock = FileLock(tmp_path / "lock")
    del lock
    FileLock(tmp_path / "lock").release()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from undust.formats.locks import FileLock; "
        "lock = FileLock(Path('lock')); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(
        LockedError, match=rf"^process {holder.pid} on {re.escape(socket.gethostname())}$"
    ):
        FileLock(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()
    FileLock(tmp_path / "lock").release()


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "nowhere" / "lock")
