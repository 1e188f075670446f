"""Kinds that multiply or replace the base weight (OFT, GLoRA, IA3, ...): without it they can only be carried along."""

from __future__ import annotations

from . import Group, Kind, Update, opaque


def _kind(name: str, marks: set[str]) -> Kind:
    def size(group: Group) -> tuple[int, int] | None:
        return None

    def read(group: Group, scale: float, scale_from: str) -> Update:
        return opaque(group, name, None)

    return Kind(name, frozenset(marks), size, read, priority=2)


MARKS = {
    "OFT": {"oft", "oft_rescale"},
    "GLoRA": {"glora_a1", "glora_a2", "glora_b1", "glora_b2", "glora_bm"},
    "IA3": {"ia3_on_input", "other:ia3"},
    "BOFT": {"other:boft"},
    "replaced weight": {"set_weight", "reshape_weight"},
    "embedding LoRA": {"embedding_down", "embedding_up"},
    "sparse bias": {"sparse_bias", "sparse_bias_values", "sparse_bias_size"},
    "VeRA": {"other:vera"}, "HRA": {"other:hra"}, "FourierFT": {"other:fourierft"}, "C3A": {"other:c3a"},
    "RoAd": {"other:road"}, "RandLoRA": {"other:randlora"}, "SHiRA": {"other:shira"}, "MiSS": {"other:miss"},
    "VB-LoRA": {"other:vblora"}, "GraLoRA": {"other:gralora"}, "HiRA": {"other:hira"},
}  # fmt: skip
KINDS = tuple(_kind(name, marks) for name, marks in MARKS.items())
