"""A progress bar on a terminal, for what takes long enough to make one wonder."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

PATIENCE = 1.0  # seconds before a bar appears


class Progress:
    """Called with (done, in all, perhaps a note); draws on a terminal, once `PATIENCE` has passed with work left."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self._wanted = not quiet and sys.stderr.isatty()
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if self._bar is None:
            if not self._wanted or done == total or time.monotonic() - self._start < PATIENCE:
                return
            self._open(total)
        self._bar.update(self._task, completed=done, total=total, description=f"{self.title} {note}".rstrip())

    def _open(self, total: int) -> None:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}"), rich.BarColumn(40),
            rich.MofNCompleteColumn(), rich.TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
