"""Many fusions in worker processes, a core for each: threads of one process would wait for one interpreter lock.

A worker is a new interpreter that imports nplora and nothing of the caller's. So it is safe beside threads, in
notebooks, in daemonic processes and in scripts without a main guard, which `multiprocessing` would run once more.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import NploraError, OutputError
from ..methods import known_methods
from ..reading.adapter import Adapter
from . import worker
from .expansion import Single
from .making import FailedError, Outcome

LEAST_FUSIONS = 4  # to be computed; for fewer no worker is started
LEAST_BYTES = 1 << 28  # of inputs, counted for each fusion: starting workers takes as long as fusing so much
MOST_WORKERS = 16  # each keeps Gram matrices of its own
PATIENCE = 10.0  # seconds that an interrupted worker has to remove what is half-written

_START = "import sys; sys.path[:] = sys.argv[1:]; from nplora.recipes.worker import serve; serve()"

Process = subprocess.Popen[bytes]


def workers_for(singles: Sequence[Single], adapters: Mapping[str, Adapter], overwrite: bool) -> int:
    """How many worker processes a recipe's fusions are worth; 0 where threads of this process are better or a must.

    Args:
        singles: the fusions.
        adapters: path -> adapter.
        overwrite: whether outputs that stand there may be made once more.
    """
    count = min(os.cpu_count() or 1, MOST_WORKERS)
    waiting = [single for single in singles if overwrite or not single.output.exists()]
    if count < 2 or len(waiting) < LEAST_FUSIONS or not _can_start():
        return 0
    files = [adapters[given.path].file for single in waiting for given in single.inputs.values()]
    if sum(file.size for file in files if file is not None) < LEAST_BYTES:
        return 0
    if any(str(single.parameters.get("device") or "cpu") != "cpu" for single in waiting):
        return 0
    own = __name__.partition(".")[0] + "."
    methods = known_methods()
    if not all(one.method not in methods or methods[one.method].function.__module__.startswith(own) for one in waiting):
        return 0  # a method of the caller's, which a worker would not know
    return min(count, len(waiting))


def _can_start() -> bool:
    """Whether this is Python itself, and a Python that would find this very package."""
    interpreter = Path(sys.executable or "").name.lower().startswith("python")
    return os.name == "posix" and interpreter and not hasattr(sys, "frozen") and __name__ == "nplora.recipes.processes"


@contextmanager
def started(count: int) -> Iterator[list[Process]]:
    """Worker processes that are ready, none if one of them could not be started; ended with the block.

    After an interrupt they end at once, else when they have finished what they are at.
    """
    # sys.path as it is now, so that a worker finds what this process finds.
    command = [sys.executable, "-c", _START, *(path or os.fspath(Path.cwd()) for path in sys.path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    workers: list[Process] = []
    try:
        try:
            with _interrupts_held():
                for _ in range(count):
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603
                    workers.append(process)  # one by one: all that were started are ended
            ready = all(_answer(process) == worker.__file__ for process in workers)
        except (OSError, EOFError, pickle.PickleError):
            ready = False
        yield workers if ready else []
    except (KeyboardInterrupt, SystemExit):
        for process in workers:
            process.terminate()
        raise
    finally:
        _end(workers)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started here never see Ctrl-C: it reaches all of a terminal, and one process is to decide."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: Sequence[Process]) -> None:
    try:
        for process in workers:
            with suppress(OSError):
                _pipe(process.stdin).close()
        for process in workers:
            process.wait()
    except (KeyboardInterrupt, SystemExit):
        for process in workers:
            process.terminate()
        raise
    finally:
        for process in workers:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _pipe(process.stdout).close()


def run_in(
    workers: Sequence[Process], singles: Sequence[Single], adapters: Mapping[str, Adapter], overwrite: bool
) -> Iterator[tuple[int, Outcome]]:
    """Make fusions in worker processes; those of one protected adapter in one process, as far as it goes.

    Args:
        workers: from `started`.
        singles: the fusions. adapters: path -> adapter. overwrite: as in `run_recipe`.

    Yields:
        A fusion's number and what became of it, as they are done.

    Raises:
        FailedError: the first that went wrong.
    """
    untouched = _groups(singles)
    hands: list[deque[int]] = [deque() for _ in workers]
    doing: dict[int, int] = {}

    def hand_on(index: int) -> None:
        number = _next(untouched, hands, index)
        if number is not None:
            doing[index] = number
            _ask(workers[index], singles[number], adapters, overwrite)
        for given in singles[hands[index][0]].inputs.values() if hands[index] else ():  # of what comes next
            if (file := adapters[given.path].file) is not None:
                file.begin_sha256()

    with selectors.DefaultSelector() as selector:
        for index, process in enumerate(workers):
            selector.register(_pipe(process.stdout), selectors.EVENT_READ, index)
            hand_on(index)
        while doing:
            for key, _ in selector.select():
                number = doing.pop(key.data)
                outcome = _outcome(workers[key.data], number, singles[number])
                hand_on(key.data)
                yield number, outcome


def _groups(singles: Sequence[Single]) -> deque[deque[int]]:
    """The fusions' numbers, those that share their most protected adapter together."""
    groups: dict[str, deque[int]] = {}
    for number, single in enumerate(singles):
        groups.setdefault(list(single.inputs.values())[-1].path, deque()).append(number)
    return deque(groups.values())


def _next(untouched: deque[deque[int]], hands: list[deque[int]], index: int) -> int | None:
    """What a worker does next: of its own group, else of one that nobody has begun, else from another's end."""
    if not hands[index]:
        if not untouched:
            longest = max(hands, key=len)
            return longest.pop() if longest else None
        hands[index] = untouched.popleft()
    return hands[index].popleft()


def _ask(process: Process, single: Single, adapters: Mapping[str, Adapter], overwrite: bool) -> None:
    files = {given.path: adapters[given.path].file for given in single.inputs.values()}
    digests = {path: (file.sha256(), file.identity) for path, file in files.items() if file is not None}
    pipe = _pipe(process.stdin)
    with suppress(BrokenPipeError):  # it has ended: reading its answer says so
        pipe.write(pickle.dumps((single, digests, overwrite)))
        pipe.flush()


def _outcome(process: Process, number: int, single: Single) -> Outcome:
    try:
        answer = _answer(process)
    except (EOFError, pickle.UnpicklingError):
        raise FailedError(number, _gone(process, single)) from None
    if isinstance(answer, NploraError):
        raise FailedError(number, answer)
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Outcome)
    return answer


def _answer(process: Process) -> object:
    return pickle.load(_pipe(process.stdout))  # noqa: S301 - from a process that this one started, by a pipe of its own


def _gone(process: Process, single: Single) -> OutputError:
    return OutputError(
        "the process that was to write this file ended before", file=single.output, got=f"status {process.wait()}",
        hint="Memory may have run out. Run it again: what is finished is kept.",
    )  # fmt: skip


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # all are asked for
    return pipe
