"""A worker process: fusions of a recipe come in on stdin one by one, and what became of each goes out on stdout.

`processes` starts it and is the only one that speaks with it.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from threading import Event
from typing import Any, BinaryIO

from ..errors import NploraError
from ..memory import keep_memory
from ..reading.adapter import Adapter
from ..reading.loading import load
from ..threads import stay_on_one_core
from .making import Outcome, make


def serve() -> None:
    """Make what is asked for until nobody asks any more; SIGTERM ends it at once, and no half-written file is left."""
    busy = Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # cleaning up is not interrupted
        if not busy.is_set():
            os._exit(0)  # nothing is half-written, and nobody waits
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError), os.fdopen(os.dup(1), "wb", 0) as replies:
        os.dup2(2, 1)  # whatever prints must not speak to the one who asks
        gc.disable()  # as in a command
        keep_memory()
        stay_on_one_core()
        replies.write(pickle.dumps(__file__))
        _answer_all(sys.stdin.buffer, replies, busy)


def _answer_all(requests: BinaryIO, replies: Any, busy: Event) -> None:
    adapters: dict[str, Adapter] = {}
    while True:
        request = pickle.load(requests)  # noqa: S301 - from the process that started this one, by a pipe of its own
        busy.set()
        try:
            answer: Outcome | Exception = _made(adapters, *request)
        except NploraError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked shall hear of it
            answer = _portable(error)
        busy.clear()
        replies.write(pickle.dumps(answer))


def _made(adapters: dict[str, Adapter], single: Any, digests: Any, overwrite: bool) -> Outcome:
    for given in single.inputs.values():
        if given.path not in adapters:
            adapter = load(given.path)
            if adapter.file is not None:
                adapter.file.require_sha256(*digests[given.path])
            adapters[given.path] = adapter
    return make(single, adapters, overwrite)


def _portable(error: Exception) -> Exception:
    """The error as it can be sent, with its traceback as a note."""
    note = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a line above
    except Exception:  # noqa: BLE001 - an error of any library
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error
