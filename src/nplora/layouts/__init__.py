"""Base models as tables: which modules one has, and what each is called by diffusers and by the original checkpoint.

The tables are JSON files beside this one, one a base model, written by `tools/derive_layouts.py`, which also describes
their form. A file put into the folder is found; no second list exists. `text/` holds the text encoders that several
base models share. Nothing is read before it is asked for.

*Canonical* is the module path of diffusers' (transformers') model, *native* that of the original checkpoint. Where
the native model fuses projections (qkv), the canonical modules are its parts, from top to bottom of its rows.

>>> load("flux1").find("transformer", "single_blocks_7_linear1")[1:3]
(Part(name='single_transformer_blocks.7.attn.to_k', rows=(3072, 6144), swap=False),
 Part(name='single_transformer_blocks.7.attn.to_v', rows=(6144, 9216), swap=False))
"""

from __future__ import annotations

from .layout import Layout, load, names
from .recognition import Recognition, recognise
from .tables import Part

__all__ = ["Layout", "Part", "Recognition", "load", "names", "recognise"]
