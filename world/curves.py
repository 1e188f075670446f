"""`python -m world.curves`: draw the loss of every training that has a log."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from world.places import runs


def draw(folder: Path, target: Path) -> None:
    """Plot `log.jsonl` of every run under `folder`, one panel each."""
    logs = sorted(folder.glob("**/log.jsonl"))
    if not logs:
        raise FileNotFoundError(f"no log.jsonl under {folder}; train something first")
    figure, panels = plt.subplots(1, len(logs), figsize=(4 * len(logs), 3), squeeze=False, layout="constrained")
    for panel, log in zip(panels[0], logs, strict=True):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        panel.semilogy([line["step"] for line in lines], [line["loss"] for line in lines])
        panel.set(title=log.parent.name, xlabel="step", ylabel="loss")
        panel.grid(alpha=0.3)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    draw(runs(), runs() / "curves.png")
