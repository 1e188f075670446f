"""Where do two adapters meet? python examples/inspect_pair.py cat.safetensors ink.safetensors"""

import sys

import nplora

subject, style = map(nplora.load, sys.argv[1:])
report = nplora.fuse(subject, style).report()  # nothing is written
print(f"{subject.base}: {len(subject)} modules, {style.base}: {len(style)} modules")
print(report["sentence"], report["advice"])
for row in sorted(report["overlaps"], key=lambda row: -row["rho"])[:5]:
    print(f"{row['rho']:6.1%}  {row['module']}")
