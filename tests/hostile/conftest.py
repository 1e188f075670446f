"""How a refusal is watched."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from nplora.errors import InputError
from nplora.storage.tensors import TensorFile


@pytest.fixture
def refusal_of() -> Callable[[Path], str]:
    """Opens a file that must be refused: its message, without the path. It comes fast and costs little memory."""

    return refusal


def refusal(path: Path) -> str:
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(InputError) as caught:
            TensorFile(path)
        seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 2.0
    # What the file holds may cost its own size some times over; what it merely claims costs nothing.
    assert peak < 30 * min(path.stat().st_size, 4_000_000) + 500_000
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")
