"""Numbers and names as people read them, for terminals and pages alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def size(count: int) -> str:
    """Bytes in the units of file managers.

    >>> size(340765416), size(812)
    ('340.8 MB', '812 bytes')
    """
    number, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "module"), count(2, "key")
    ('1 module', '2 keys')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def three(number: float) -> str:
    """A number with three digits that matter.

    >>> three(6.0), three(123.4), three(12345.6), three(6.2e29)
    ('6.00', '123', '12346', '6.20e+29')
    """
    if abs(number) >= 1e7:
        return f"{number:.2e}"
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:#.3g}".rstrip(".")


def some(names: Collection[str], shown: int = 3) -> str:
    """The first few names and how many more there are.

    >>> some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    rest = len(names) - shown
    first = ", ".join(name for name, _ in zip(names, range(shown), strict=False))
    return f"{first} and {rest} more" if rest > 0 else first


def spread(counts: Mapping[Any, int]) -> str:
    """Values with their counts: one alone, a few listed, many as a range.

    >>> spread({32: 722}), spread({4: 10, 8: 3}), spread({1: 1, 2: 9, 3: 1, 4: 1})
    ('32', '4 (10), 8 (3)', '1 to 4, mostly 2')
    """
    if len(counts) < 2:
        return "".join(_number(value) for value in counts)
    if len(counts) > 3:
        return (
            f"{_number(min(counts))} to {_number(max(counts))}, mostly {_number(max(counts, key=lambda v: counts[v]))}"
        )
    return ", ".join(f"{_number(value)} ({number})" for value, number in counts.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
