"""Everything else: names are kept as they are, so any two files that agree on naming can be fused.

Bare paths of a diffusers or native model, language models, SAM's ``w_a_000``, video models without a table.
"""

from __future__ import annotations

from . import Format, Place, unspelled


def locate(module: str, suffix: str) -> Place | None:
    return Place(None, module.replace(".processor.", "."))


FORMAT = Format(
    name="generic",
    title="plain module names",
    example="down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    locate=locate,
    spell=unspelled,
    carries_kinds=True,
    suffixes={"down": ".lora_A.weight", "up": ".lora_B.weight"},
    weight=0.1,
)
