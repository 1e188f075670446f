"""How much of one adapter lies in another's directions: every ordered pair of a folder, and what that says of seeds.

    .venv/bin/python benchmarks/overlaps.py FOLDER [FOLDER ...]

Without a folder: the real SD1.5 files in `../shared/loras` beside the repository. Pairs of one base with the same
modules are compared; a file that is all zero, or a copy of another, is left out. Prints the share of each pair's
subject inside the style's row space against chance, and quantiles of all pairs.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np

import nplora
from nplora import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "loras"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def adapters(folders: list[Path]) -> list[nplora.Adapter]:
    """What can be read and changes something, each only once."""
    found: dict[bytes, nplora.Adapter] = {}
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        if path.suffix != ".safetensors" and not (path / "adapter_config.json").is_file():
            continue
        try:
            adapter = nplora.load(path)
            module = next(iter(adapter.values()))
            update = module.delta()
        except (InputError, AttributeError):  # no adapter, or one whose update depends on the base
            continue
        if update.any():
            found.setdefault(np.round(update, 5).tobytes(), adapter)
    return list(found.values())


def main() -> None:
    groups: dict[tuple[str | None, tuple[str, ...]], list[nplora.Adapter]] = defaultdict(list)
    for adapter in adapters([Path(word) for word in sys.argv[1:]] or [SHARED]):
        groups[adapter.base, tuple(sorted(adapter))].append(adapter)
    shares = []
    for (base, names), members in groups.items():
        for subject, style in permutations(members, 2):
            found = nplora.compare(subject, style)
            shares.append(found["rho"])
            pair = f"{Path(subject.path).name} in {Path(style.path).name}"
            seed = found["median_down_cosine"]
            print(f"{found['rho']:8.4f}  chance {found['chance']:.4f}  down factors {seed:6.3f}  {pair}")
        if len(members) > 1:
            print(f"{len(members)} adapters of {base or 'an unknown base'}, {len(names)} modules\n")
    if not shares:
        sys.exit("no two adapters of one base and the same modules were found")
    print(f"{len(shares)} ordered pairs; quantiles of the share:")
    print("  ".join(f"{q:.0%}: {np.quantile(shares, q):.4f}" for q in QUANTILES))


if __name__ == "__main__":
    main()
