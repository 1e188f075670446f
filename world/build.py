"""`python -m world.build`: the whole world from nothing, stage by stage, each in a process of its own.

A stage whose result is there is skipped; one that was cut off goes on from its last checkpoint. A stage asked for by
name runs in any case: a finished training goes on if more steps are asked for than it has had.

`--rehearse` goes through all stages in minutes, with a few steps each and two LoRAs: what comes out paints noise, but
shows that each stage finds what the one before it left. Give it a runs folder of its own; it leaves `world/` alone.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from world.places import MODEL, runs


@dataclass(frozen=True)
class Stage:
    """One stage: its commands run side by side; `results` (in the runs folder) exist once it is finished."""

    commands: tuple[tuple[str, ...], ...]
    results: tuple[str, ...] = ()

    def finished(self, folder: Path) -> bool:
        """True when every result is there (a stage without results is cheap, or skips by itself)."""
        return bool(self.results) and all((folder / result).exists() for result in self.results)


STAGES = {
    "packages": Stage((("world.packages",),)),
    "dataset": Stage((("world.dataset",),), ("dataset/names.json",)),
    "autoencoder": Stage((("world.autoencoder", "--steps", "{autoencoder_steps}"),), ("autoencoder/vae/config.json",)),
    "base": Stage((("world.base", "--steps", "{base_steps}", "--out", "{model}"),), ("base/finished.json",)),
    "codec": Stage((("world.judge", "--codec"),), ("judges/codec.npy",)),
    "judges": Stage(
        tuple(("world.judge", "--seed", seed, "--steps", "{judge_steps}") for seed in ("1", "2")),
        ("judges/judge-1.json", "judges/judge-2.json"),
    ),
    "loras": Stage((("world.adapters", "--pipeline", "{model}"),)),
    "gates": Stage((("world.gates", "--pipeline", "{model}", "--loras", "{loras}"),)),
    "curves": Stage((("world.curves",),)),
}
REHEARSED = {"autoencoder_steps": 20, "base_steps": 20, "judge_steps": 20}
REHEARSED_OPTIONS = {
    "loras": ("--names", "fox", "gold", "--ranks", "4", "--arms", "own", "--repeats", "0", "--steps", "2"),
    "gates": ("--every", "121"),
}


def main() -> None:
    """Run the asked stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)} (default: all that are not finished)")
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--base-steps", type=int, default=14_000)
    parser.add_argument("--judge-steps", type=int, default=2400)
    parser.add_argument("--rehearse", action="store_true", help="every stage in a few steps, into the runs folder only")
    options = parser.parse_args()
    values = vars(options) | {"loras": runs() / "loras", "model": MODEL}
    if options.rehearse:
        values |= REHEARSED | {"model": runs() / "model"}
    for name in options.stages or STAGES:
        if name not in STAGES:
            parser.error(f"no stage {name!r}; there are {', '.join(STAGES)}")
        stage = STAGES[name]
        if not options.stages and stage.finished(runs()):
            print(f"{name}: finished before ({', '.join(stage.results)})", flush=True)
            continue
        print(f"{name} ...", flush=True)
        more = REHEARSED_OPTIONS.get(name, ()) if options.rehearse else ()
        running = [
            subprocess.Popen([sys.executable, "-m", *(part.format(**values) for part in command), *more])
            for command in stage.commands
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            sys.exit(f"stage {name} failed; give the command again to go on from its last checkpoint")


if __name__ == "__main__":
    main()
