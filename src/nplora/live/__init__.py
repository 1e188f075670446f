"""Fuse adapters that are loaded in a model: on its device, in its number types, as one more PEFT adapter.

`nplora.diffusers` and `nplora.peft` are thin fronts to this. torch and peft are imported where they are used.
"""
