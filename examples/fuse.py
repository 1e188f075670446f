"""Fuse a subject and a style: python examples/fuse.py cat.safetensors ink.safetensors cat-ink.safetensors"""

import sys

import nplora

subject, style, output = sys.argv[1:]
fused = nplora.fuse(nplora.load(subject), nplora.load(style), mu=0.5)
report = fused.save(output, overwrite=True)
print(report["sentence"])
