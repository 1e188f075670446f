"""`python -m world.build`: the whole world from nothing, stage by stage, each in a process of its own.

A stage that was cut off goes on from its last checkpoint when the command is given again.
"""

import argparse
import subprocess
import sys

from world.places import runs

STAGES = {
    "packages": [["world.packages"]],
    "dataset": [["world.dataset"]],
    "autoencoder": [["world.autoencoder", "--steps", "{autoencoder_steps}"]],
    "base": [["world.base", "--steps", "{base_steps}"]],
    "judges": [["world.judge", "--seed", "1"], ["world.judge", "--seed", "2"]],
    "loras": [["world.adapters"]],
    "gates": [["world.gates", "--loras", "{loras}"]],
    "curves": [["world.curves"]],
}


def main() -> None:
    """Run the asked stages in order; commands of one stage run side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--base-steps", type=int, default=14_000)
    options = parser.parse_args()
    for stage in options.stages:
        if stage not in STAGES:
            parser.error(f"no stage {stage!r}; there are {', '.join(STAGES)}")
        commands = [
            [part.format(**vars(options), loras=runs() / "loras") for part in command] for command in STAGES[stage]
        ]
        running = [subprocess.Popen([sys.executable, "-m", *command]) for command in commands]
        if any(process.wait() for process in running):
            sys.exit(f"stage {stage} failed; give the command again to go on from its last checkpoint")


if __name__ == "__main__":
    main()
