"""An output about to be written: everything about it but its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .loose import Loose
from .naming import Naming
from .plan import Plan


@dataclass
class Target:
    """An output about to be written."""

    path: Path
    naming: Naming
    plan: Plan
    loose: Loose
    metadata: dict[str, str]
    asked: dict[str, str]  # format and dtype as the user asked for them: what a rerun needs
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return self.plan.specs + [(tensor.key, tensor.dtype, tensor.shape) for tensor in self.loose.tensors]
