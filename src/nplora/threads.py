"""A few threads over many small pieces of work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_on_one_core: ContextVar[bool] = ContextVar("on_one_core", default=False)


def stay_on_one_core() -> None:
    """From now on `run_threads` starts none here: other processes have the other cores."""
    _on_one_core.set(True)


def run_threads(
    function: Callable[[Item], Outcome], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Outcome]]:
    """Map over items on a few threads, in completion order; the first error stops the rest."""
    if workers <= 1 or _on_one_core.get():
        for item in items:
            yield item, function(item)
        return
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        queue = iter(items)
        running: dict[Future[Outcome], Item] = {}
        try:
            while True:
                for item in queue:
                    running[pool.submit(function, item)] = item
                    if len(running) > workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


def one_blas_thread() -> AbstractContextManager[object]:
    """One BLAS thread per worker: small products lose more to hand-overs than they gain."""
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
        return nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits
