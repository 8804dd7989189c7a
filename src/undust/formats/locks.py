"""Exclusive file locks, which the system releases when their holder ends in any way."""

from __future__ import annotations

import errno
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

# Errors of file systems without locks, such as some network mounts.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


class LockedError(Exception):
    """Another process holds the lock; the message names it: "process 1234 on HOST"."""


class FileLock:
    """An exclusive lock on a file that exists while the lock is held.

    The file names the process and the host. A file left by a killed process is not locked and is
    taken over. certain: False if the file system has no locks; then nobody is kept out.
    """

    def __init__(self, path: Path) -> None:
        """Takes the lock. LockedError if another holds it, OSError if the file cannot be made."""
        self.path = path
        self.certain = False
        self._descriptor = -1
        while self._descriptor < 0:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self.certain = _lock(descriptor)
                with suppress(FileNotFoundError):  # its holder may have removed it in between
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        self._descriptor = descriptor
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
                raise LockedError(holder or "another process") from None
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())

    def release(self) -> None:
        """Removes the file and releases the lock; a second call does nothing."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        ours = False
        with suppress(OSError):
            ours = os.path.samestat(os.fstat(descriptor), self.path.stat())
        if sys.platform == "win32":  # open files, so those of a new holder, cannot be removed
            os.close(descriptor)
        if ours:
            with suppress(OSError):
                self.path.unlink()
        if sys.platform != "win32":
            os.close(descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def locked(path: Path) -> bool:
    """Whether a process holds the lock on this file; it is not made."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor)  # until it is closed
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30  # beyond the text: Windows does not allow reading locked bytes

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Whether the lock is certain; BlockingIOError if another holds it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
        return True
