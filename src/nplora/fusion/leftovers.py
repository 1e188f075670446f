"""Keys of the inputs that do not reach the output: each is named with the reason, none is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable


class LeftOut(dict[str, str]):
    """Key -> why it is left out; a key that both inputs have is told apart by its role.

    >>> left_out = LeftOut()
    >>> left_out.add("subject", ["a.alpha"], "too much")
    >>> left_out.add("style", ["a.alpha"], "too much")
    >>> list(left_out)
    ['a.alpha', 'a.alpha (style)']
    """

    def __init__(self, other: LeftOut | None = None) -> None:
        super().__init__(other or {})
        self.known: set[tuple[str, str]] = set(other.known) if other is not None else set()

    def account(self, role: str, keys: Iterable[str], consumed: Iterable[str]) -> None:
        """Enter every key of an input that nothing consumed and no reason names: such a loss must be seen."""
        explained = {key for known, key in self.known if known == role}.union(consumed)
        lost = [key for key in keys if key not in explained]
        self.add(role, lost, "nothing in nplora read it; please report this file")

    def add(self, role: str, keys: Iterable[str], why: str) -> None:
        """Enter keys of one input ("subject" or "style"), each once."""
        for key in keys:
            if (role, key) not in self.known:
                self.known.add((role, key))
                self[f"{key} ({role})" if key in self else key] = why
