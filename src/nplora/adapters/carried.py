"""Kinds that are recognised and carried along: what they make of a weight is not written out here."""

from __future__ import annotations

from . import Group, Kind, Update, opaque


def _kind(name: str, marks: set[str]) -> Kind:
    def size(group: Group) -> tuple[int, int] | None:
        return None

    def read(group: Group, scale: float, scale_from: str) -> Update:
        return opaque(group, name, None)

    return Kind(name, frozenset(marks), size, read, priority=2, fate="carried along unchanged")


MARKS = {
    "replaced weight": {"set_weight", "reshape_weight"},
    "embedding LoRA": {"embedding_down", "embedding_up"},
    "sparse bias": {"sparse_bias", "sparse_bias_values", "sparse_bias_size"},
    "VeRA": {"other:vera"}, "HRA": {"other:hra"}, "FourierFT": {"other:fourierft"}, "C3A": {"other:c3a"},
    "RoAd": {"other:road"}, "RandLoRA": {"other:randlora"}, "SHiRA": {"other:shira"}, "MiSS": {"other:miss"},
    "VB-LoRA": {"other:vblora"}, "GraLoRA": {"other:gralora"}, "HiRA": {"other:hira"},
}  # fmt: skip
KINDS = tuple(_kind(name, marks) for name, marks in MARKS.items())
