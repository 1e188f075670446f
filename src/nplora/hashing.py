"""SHA-256 of files, computed on threads beside other work."""

from __future__ import annotations

import hashlib
import os
import threading
from mmap import ACCESS_READ, mmap
from stat import S_ISREG

# Half of the cores at most: whatever else a fusion does in the meantime needs the others.
_TURNS = threading.Semaphore(max(1, (os.cpu_count() or 1) // 2))


class Digest:
    """The SHA-256 of a mapped file; the work begins at once.

    Whoever reads `data` later finds its pages mapped already.
    """

    def __init__(self, data: mmap) -> None:
        self.data = data
        # A daemon: a run that fails meanwhile ends without waiting for it.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with _TURNS:
            self._hex = hashlib.sha256(self.data).hexdigest()  # in one call, during which other threads run

    def result(self) -> str:
        """The digest in hex, once it is there."""
        self._thread.join()
        return self._hex


_begun: dict[tuple[int, ...], Digest] = {}


def begin(path: str) -> None:
    """Begin to hash a file that will soon be opened and asked for its digest; anything but a file is left alone."""
    try:
        if not S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - pathlib would be imported for this alone
            return
        with open(path, "rb") as stream:
            _begun[identity(stream.fileno())] = Digest(mmap(stream.fileno(), 0, access=ACCESS_READ))
    except (OSError, ValueError):  # whoever opens the file says what is wrong with it
        return


def begun(file: int) -> Digest | None:
    """The digest of an open file that was begun before, handed out once."""
    return _begun.pop(identity(file), None)


def identity(file: int) -> tuple[int, ...]:
    """What tells an open file from others, and from itself after a change."""
    status = os.fstat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
