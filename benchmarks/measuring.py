"""Measure whole processes: wall time, and the memory that belongs to the process alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

INTERVAL = 0.005  # seconds between two looks at a process's memory
# Installed programs have their byte code; where Python is told to write none, every start would compile the source.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
IDLE = [sys.executable, "-c", "import time; time.sleep(0.3)"]


@dataclass(frozen=True)
class Timing:
    """Wall times of one command, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(min(self.seconds))} to {_short(max(self.seconds))})"


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def run(command: Sequence[str]) -> float:
    """Wall time of a whole process, from its start to its end.

    Raises:
        SystemExit: the command failed; its last words are shown.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return seconds


def times(
    commands: Mapping[str, Sequence[str]], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Wall times of commands that are compared with each other, in turns.

    One round that is not counted warms the page cache and Python's byte code. Then the commands take turns, so that
    whatever else the machine does meets all of them alike.

    Args:
        commands: name -> command.
        rounds: how often each one runs.
        before: called before every run (removes the last output).
    """
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            before()
            seconds = run(command)
            if number:
                found[name].append(seconds)
    before()
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def peak_anonymous(command: Sequence[str]) -> int:
    """The largest anonymous memory of a process, in bytes; 0 where the system does not tell (only Linux does).

    ``RssAnon`` in /proc/PID/status counts the pages that a process allocated. ``VmHWM``, the usual peak, also counts
    the pages of mapped files: those belong to the page cache, are shared, and go away when memory is needed. The
    kernel keeps no peak of RssAnon, so it is sampled; a spike shorter than the interval may be missed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        peak = max(peak, _anonymous(status))
        time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return peak


def _anonymous(status: Path) -> int:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # no /proc, or the process has just ended
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def load_average() -> str:
    """How busy the machine is, in processes that want to run."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
