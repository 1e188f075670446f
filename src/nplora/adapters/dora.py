"""DoRA: a LoRA with a magnitude, ``W' = (W + dW) * m / ||W + dW||``; fusing it needs the base weight.

Recognised and carried along; the fusion with a base model is still to come.
"""

from __future__ import annotations

from . import Group, Kind, Update, lora, opaque


def size(group: Group) -> tuple[int, int] | None:
    return lora.size(group) if {"up", "down"} <= group.tensors.keys() else None


def read(group: Group, scale: float, scale_from: str) -> Update:
    return opaque(group, "DoRA", size(group))


KINDS = (Kind("DoRA", frozenset({"dora"}), size, read, priority=3, alpha_rank=lora.alpha_rank),)
