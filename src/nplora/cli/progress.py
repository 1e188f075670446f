"""A progress bar on a terminal, for what takes long enough to make one wonder."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any, Self

PATIENCE = 1.0  # seconds before a bar appears


class Progress:
    """Called with (done, in all, perhaps a note); draws on a terminal, once `PATIENCE` has passed.

    Work that has not told yet how much there is shows a bar that only moves.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self._wanted = not quiet and sys.stderr.isatty()
        self._lock = threading.Lock()
        self._latest: tuple[int, int | None, str] = (0, None, "")
        self._bar: Any = None
        self._task: Any = None
        self._timer: threading.Timer | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self._latest = (done, total, note)
        if self._bar is not None:
            self._show()

    def _show(self) -> None:
        done, total, note = self._latest
        self._bar.update(self._task, completed=done, total=total, description=f"{self.title} {note}".rstrip())

    def _open(self) -> None:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}"), rich.BarColumn(40),
            rich.MofNCompleteColumn(), rich.TimeRemainingColumn(),
        )  # fmt: skip
        with self._lock:
            if self._timer is None:  # the work ended meanwhile
                return
            bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = bar.add_task(self.title, total=None)
            bar.start()
            self._bar = bar
            self._show()

    def __enter__(self) -> Self:
        if self._wanted:
            self._timer = threading.Timer(PATIENCE, self._open)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
